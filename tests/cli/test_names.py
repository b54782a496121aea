"""Names of images, classes, layers, networks and stores that attack a terminal, a spreadsheet or a plot."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

import actstats
import actstats_cli
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
    with contextlib.chdir(folder):
        result = run(LINES["sweep"][0])
        assert result.exit_code == 0, result.output
        for name in (COPY, DAMAGED):
            shutil.copytree(STORE, name)
        (Path(DAMAGED) / "mean" / "c.0.0").write_bytes(b"")
    return folder


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder, as working directory; plots keep their text as text."""
    monkeypatch.chdir(folder)
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        yield folder


ARCH = f"{__name__}:network"
DAMAGED = "broken\x1b[5m.zarr"
COPY = "copy\x1b[7m.zarr"
STORE = "$\\alpha$=\x1b[7m.zarr"
INPUT = "--preprocessing 'resize=36 crop=32 mean=0.5 std=0.3'"
SWEEP = f"sweep --arch {ARCH} --data images --device cpu --batch-size 4 --top-k 3 {INPUT}"
PLAN = f"plan{SWEEP.removeprefix('sweep')} --store {{store}} --out 'plan\x1b[2J.json'"
LINES = {
    "sweep": [
        f"{SWEEP} --max-failed 0.5 --out {{store}}", f"{SWEEP} --out {{store}} --json",
        f"{SWEEP} --dry-run", f"{SWEEP} --layers '\x1b[2J' --out x.zarr", f"{SWEEP} --strict --out y.zarr",
    ],
    "plan": [f"{PLAN} --json", f"{PLAN} --layers '\x1b[2J'"],
    "run": [PLAN, "run 'plan\x1b[2J.json' --trust", "run 'plan\x1b[2J.json'", "run 'none\x1b[2J.json'"],
    "layers": [f"layers --arch {ARCH} {INPUT}"],
    "info": ["info {store}", "info {store} --json", "info {store} --verify", "info 'none\x1b[2J.zarr'"],
    "repair": ["info {damaged} --verify", "repair {damaged} --data images --trust", "repair {store} --json"],
    "top": ["top {store} {unit}", "top {store} {unit} --json", "top {store} {unit} --out t.png"],
    "compare": ["compare {store}", "compare {store} {store} --name '=a\x1b[1m' --name b --report r.html"],
    "smoothness": ["smoothness {store} --by unit --out 1.csv --plot 1.svg", "smoothness {store} {copy} --plot 2.svg"],
    "spectrum": ["spectrum {store} --by unit --out 2.csv", "spectrum {store} {copy} --plot 3.svg"],
    "selectivity": ["selectivity {store} --by unit --out 3.csv --plot 4.svg"],
    "quantiles": ["quantiles {store} --out 4.csv --plot 5.svg"],
    "match": ["match {store} {copy} --by unit --out 5.csv", "match {store} {copy} --json"],
    "similarity": ["similarity {store} {copy} --out 6.csv --plot 6.svg --name '$\\x$' --name _b"],
    "noise": ["noise {store} {copy} --by unit --out 7.csv --plot 7.svg"],
    "kernels": [f"kernels {{store}} --arch {ARCH} --by unit --out 8.csv"],
    "cues": ["cues {store} --trust --data images --distort scramble:4 --out 9.csv"],
    "dissect": ["dissect {store} --trust --data images"],
    "ablate": ["ablate {store} --trust --data images --concepts 1.csv --out 10.csv"],
    "shape-bias": ["shape-bias --network {store} --trust --stimuli images"],
}  # fmt: skip
"""Every command that prints or writes names from files; the paths of stores and of a unit are filled in."""


def run(line: str) -> Result:
    filled = {"store": STORE, "copy": COPY, "damaged": DAMAGED, "unit": f"{LAYERS[5]}/0"}
    words = [word.format(**filled) for word in shlex.split(line)]
    return CliRunner().invoke(main, words, catch_exceptions=False)


def drawn(file: Path) -> str:
    """All text in a plot."""
    return "\n".join(text.strip() for text in ElementTree.parse(file).getroot().itertext() if text.strip())


@pytest.mark.parametrize("command", LINES)
def test_names_from_files_are_escaped_wherever_they_are_shown(command, here):
    before = set(here.iterdir())
    for line in LINES[command]:
        result = run(line if command in COMMANDS else f"analyze {line}")
        shown = result.stdout + result.stderr
        assert result.exit_code in (0, 1), shown
        assert not HIDDEN.search(shown), line
        if "--json" in line:
            json.loads(result.stdout)
    for file in set(here.iterdir()) - before:
        if file.suffix == ".csv":
            for row in csv.reader(file.open(newline="", encoding="utf-8")):
                for cell in row:
                    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r")) or math.isfinite(float(cell))
        elif file.suffix == ".svg":
            assert not HIDDEN.search(drawn(file))


def test_every_command_is_tried():
    assert {*LINES, "demo", "models", "analyze"} == {*COMMANDS, *ANALYSES}


def test_plots_show_names_as_they_are(here):
    assert run("analyze smoothness {store} {copy} --plot text.svg").exit_code == 0
    text = drawn(here / "text.svg")
    for name in (
        "$\\frac$",
        "_x",
        "two\\nlines",
        "clip\\x1b]52;c;cm0=\\x07",
        "$\\alpha$=\\x1b[7m, median",
    ):
        assert name in text


def test_tables_are_read_back_as_they_were(here):
    assert run("analyze smoothness {store} --by unit --out again.csv").exit_code == 0
    assert list(dict.fromkeys(read_units(here / "again.csv")["layer"])) == list(LAYERS)
    names = ["=1", "'=1", "''-", "'quoted'", "", "plain", "@a", "\tb", "1", "＝x"]  # noqa: RUF001
    table = pd.DataFrame({"=name": names, "value": [-1.5] * len(names)})
    write_csv(table, here / "texts.csv")
    read = pd.read_csv(here / "texts.csv", dtype={"'=name": str}, keep_default_na=False)
    pd.testing.assert_frame_equal(from_csv(read), table)


def test_errors_of_the_library_are_one_line_for_a_terminal():
    assert str(ActstatsError("no \x1b[2J\x9b\u202e in\n  here")) == "no \\x1b[2J\\x9b\\u202e in here"


@pytest.mark.parametrize(
    ("call", "packages", "allowed"),
    [
        ("click.echo(", [actstats_cli], {"printing.py", "main.py"}),
        ("print(", [actstats_cli], set()),
        (".to_csv(", [actstats, actstats_cli], {"tables.py"}),
        (".savefig(", [actstats, actstats_cli], {"plotting.py", "pair.py"}),
    ],
)
def test_text_leaves_through_one_function(call, packages, allowed):
    modules = [file for package in packages for file in Path(package.__path__[0]).rglob("*.py")]
    pattern = re.compile(rf"(?<![\w.>]){re.escape(call)}" if call[0] != "." else re.escape(call))
    found = {file.name for file in modules if pattern.search(file.read_text())}
    assert found <= allowed
