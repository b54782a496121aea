"""Names of images, classes, layers, networks and stores that attack a terminal, a spreadsheet or a plot."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shlex
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

from actstats.analysis.tables import from_csv, write_csv
from actstats.errors import ActstatsError
from actstats.probing.unit_sets import read_units
from actstats_cli.analyze import ANALYSES
from actstats_cli.main import COMMANDS, main
from tests.conftest import photograph

LAYERS = (
    "=cmd|'x'!A0", "@SUM(1+1)", "$\\frac$", "_x", "two\nlines", "clip\x1b]52;c;cm0=\x07", "c1\x9b31m", "\u202egnp",
)  # fmt: skip
CLASSES = ("=1+1\x1b[8m", "-$2^$\n\u2067")
HIDDEN = re.compile("[\0-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def network() -> nn.Module:
    """A convolution and a rectifier for each name, and outputs for the classes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Sequential()
        for index, name in enumerate(LAYERS):
            layers.add_module(name, nn.Sequential(nn.Conv2d(4 if index else 3, 4, 3, padding=1), nn.ReLU()))
        layers.add_module("pool", nn.AdaptiveAvgPool2d(1))
        layers.add_module("flat", nn.Flatten())
        layers.add_module("head", nn.Linear(4, 2))
    return layers


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, a store of them and of the network above, and files for the commands that need some."""
    folder = tmp_path_factory.mktemp("names")
    for index in range(8):
        path = folder / "images" / CLASSES[index % 2] / f"@{index}\x1b]0;title\x07\n.png"
        path.parent.mkdir(exist_ok=True, parents=True)
        photograph(index, (64, 48)).save(path)
    (folder / "images" / CLASSES[0] / "+broken\x1b[2J.png").write_bytes(b"no image")
    return folder


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


ARCH = f"{__name__}:network"
STORE = "$\\alpha$=\x1b[7m.zarr"
INPUT = "--preprocessing 'resize=36 crop=32 mean=0.5 std=0.3'"
SWEEP = f"sweep --arch {ARCH} --data images --device cpu --batch-size 4 --top-k 3 {INPUT}"
LINES = {
    "sweep": [
        f"{SWEEP} --out {{store}}", f"{SWEEP} --out {{store}} --json",
        f"{SWEEP} --dry-run", f"{SWEEP} --layers '\x1b[2J' --out x.zarr", f"{SWEEP} --strict --out y.zarr",
    ],
    "layers": [f"layers --arch {ARCH} {INPUT}"],
    "info": ["info {store}", "info {store} --json", "info {store} --verify", "info 'none\x1b[2J.zarr'"],
    "top": ["top {store} {unit}", "top {store} {unit} --json", "top {store} {unit} --out t.png"],
    "compare": ["compare {store}", "compare {store} {store} --name '=a\x1b[1m' --name b --report r.html"],
    "smoothness": ["smoothness {store} --by unit --out 1.csv --plot 1.svg", "smoothness {store} {copy} --plot 2.svg"],
    "spectrum": ["spectrum {store} --by unit --out 2.csv", "spectrum {store} {copy} --plot 3.svg"],
    "selectivity": ["selectivity {store} --by unit --out 3.csv --plot 4.svg"],
    "quantiles": ["quantiles {store} --out 4.csv --plot 5.svg"],
    "match": ["match {store} {copy} --by unit --out 5.csv", "match {store} {copy} --json"],
    "similarity": [f"similarity {{store}} {{copy}} --out 6.csv --plot 6.svg --name '$\\x$' --name _b --arch {ARCH}"],
    "noise": ["noise {store} {copy} --by unit --out 7.csv --plot 7.svg"],
    "kernels": [f"kernels {{store}} --arch {ARCH} --by unit --out 8.csv"],
    "cues": [f"cues {ARCH} --data images --distort scramble:4 {INPUT} --out 9.csv"],
    "dissect": ["dissect {store} --data images"],
    "ablate": [f"ablate {{store}} --arch {ARCH} --data images --concepts 1.csv --out 10.csv"],
    "shape-bias": ["shape-bias --network {store} --stimuli images"],
}  # fmt: skip
"""Every command that prints or writes names from files; the paths of stores and of a unit are filled in."""


def run(line: str) -> Result:
    filled = {"store": STORE, "copy": "copy\x1b[7m.zarr", "unit": f"{LAYERS[5]}.1/0"}
    words = [word.format(**filled) for word in shlex.split(line)]
    return CliRunner().invoke(main, words, catch_exceptions=False)
