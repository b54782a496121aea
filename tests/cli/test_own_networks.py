"""Networks of the user's own on the command line: their input, the options of `top`, and what `--also` inherits."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
import xarray as xr
from PIL import Image

import actstats as package
from tests.cli.conftest import actstats, output_of

FACTORIES = """
import torch
from torch import nn
import actstats

def bare():
    torch.manual_seed(2)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))

def sized():
    return bare(), actstats.Preprocessing(36, 32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The working folder, with the module of factories and four images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "factories_of_mine", raising=False)
    (tmp_path / "factories_of_mine.py").write_text(FACTORIES)
    (tmp_path / "images").mkdir()
    for index in range(4):
        pixels = np.random.default_rng(index).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{index}.png")
    return tmp_path


SWEEP = "sweep --data images --device cpu --workers 0 --layers 0 --metrics mean,top"
SIZES = "resize=36 crop=32 mean=0.5 std=0.25"


def test_images_for_a_network_without_preprocessing_are_refused():
    for command in (
        f"{SWEEP} --arch factories_of_mine:bare --out s.zarr",
        "layers --arch factories_of_mine:bare",
    ):
        result = actstats(command)
        assert result.exit_code == 1
        assert (
            "a network of your own needs --preprocessing for images: imagenet, sizes and moments"
            in result.stderr
        )
    with pytest.raises(package.ActstatsError, match="needs `preprocessing=`"):
        package.sweep("factories_of_mine:bare", "images", "s.zarr")


def test_a_preprocessing_can_be_given_in_each_form(folder):
    output_of(f"{SWEEP} --arch factories_of_mine:sized --out s.zarr")
    record = xr.open_zarr("s.zarr").attrs["preprocessing"]
    (folder / "input.json").write_text(json.dumps(record))
    (folder / "inputs_of_mine.py").write_text(
        "from torchvision.transforms import *\n"
        "def moments(image): return Normalize([0.5] * 3, [0.25] * 3)(ToTensor()(CenterCrop(32)(Resize(36)(image))))\n"
        "compose = Compose([Resize(36), CenterCrop(32), ToTensor(), Normalize([0.5] * 3, [0.25] * 3)])\n"
    )
    expected = xr.open_zarr("s.zarr")["mean"].values
    forms = [f"'{SIZES}'", "input.json", "inputs_of_mine:compose", "inputs_of_mine:moments"]
    for number, form in enumerate(forms):
        output_of(f"{SWEEP} --arch factories_of_mine:bare --preprocessing {form} --out {number}.zarr")
        found = xr.open_zarr(f"{number}.zarr")
        np.testing.assert_array_equal(found["mean"], expected)
        assert ("function" in found.attrs["preprocessing"]) == form.endswith("moments")
    layers = output_of(f"layers --arch factories_of_mine:bare --preprocessing '{SIZES}'")
    assert layers == output_of("layers --arch factories_of_mine:sized")
    assert "30 x 30" in layers


def test_the_input_is_printed_before_a_sweep_in_a_dry_run_and_by_info():
    line = "resize 36, crop 32, bilinear, mean 0.5 0.5 0.5, std 0.25 0.25 0.25"
    command = f"{SWEEP} --arch factories_of_mine:sized --out s.zarr"
    assert line in output_of(f"{command} --dry-run")
    assert f"input: {line}" in actstats(command).stderr
    assert line in output_of("info s.zarr")


def test_info_of_a_sweep_of_tensors_and_of_a_function():
    net = torch.nn.Sequential(torch.nn.Conv2d(5, 4, 3))
    package.sweep(net, torch.rand(3, 5, 12, 14), "s.zarr", device="cpu")
    assert "5 x 12 x 14 float32, the data as they are" in output_of("info s.zarr")


def test_top_draws_maps_of_a_network_of_ones_own_and_of_a_weights_file(folder):
    command = f"{SWEEP} --arch factories_of_mine:sized"
    output_of(f"{command} --out s.zarr")
    draw = "top s.zarr 0/1 --out sheet.png --maps"
    refused = actstats(draw)
    assert refused.exit_code == 1
    assert "for a store of your own, pass --trust" in refused.stderr
    for option in ("--trust", "--arch factories_of_mine:sized"):
        (folder / "sheet.png").unlink(missing_ok=True)
        output_of(f"{draw} {option}")
        assert (folder / "sheet.png").is_file()
    assert "not factories_of_mine:bare" in actstats(f"{draw} --arch factories_of_mine:bare").stderr
    torch.save(package.load_model("factories_of_mine:bare").model.state_dict(), "a.pth")
    output_of(f"{command} --weights a.pth --out t.zarr")
    both = "top t.zarr 0/1 --out sheet.png --maps --arch factories_of_mine:sized"
    assert "for a store of your own, pass --trust" in actstats(both).stderr
    output_of(f"{both} --trust")


@pytest.mark.parametrize(
    ("first", "also", "expected"),
    [
        ("--weights a.pth", "--top-k 2", ("file:a.pth", None)),
        ("--weights a.pth --seed 3", "--weights none", ("none", 3)),
        ("--weights none --seed 3", "--seed 4", ("none", 4)),
        ("--weights none", "--weights a.pth", ("file:a.pth", None)),
        ("--weights none", "--arch factories_of_mine:sized --seed 5", ("factory", 5)),
    ],
)
def test_also_takes_what_it_does_not_give_from_the_first_network(first, also, expected):
    model = package.load_model("squeezenet1_1", "none").model
    torch.save(model.state_dict(), "a.pth")
    own = "squeezenet1_1 --layers features.0" if "arch" not in also else "squeezenet1_1 --layers '*0'"
    command = f"{SWEEP.replace('--layers 0 ', '')} --arch {own} {first} --dry-run --json --out s.zarr"
    found = json.loads(output_of(f'{command} --also "{also} --out r.zarr"'))["sweeps"]
    assert [record["store"] for record in found] == ["s.zarr", "r.zarr"]
    weights = found[1]["manifest"]["weights"]
    assert (weights["source"], weights.get("seed")) == expected


def test_also_robust_stays_with_the_embedded_pair_and_replaces_other_weights():
    command = "sweep --data images --arch googlenet --layers conv1 --dry-run --json --offline --out s.zarr"
    found = json.loads(output_of(f"{command} --weights demo --also '--robust --out r.zarr'"))["sweeps"]
    assert [record["manifest"]["weights"]["source"] for record in found] == ["demo:s", "demo:r"]
    found = json.loads(output_of(f"{command} --weights demo --robust --also '--weights demo --out r.zarr'"))
    assert [record["manifest"]["weights"]["source"] for record in found["sweeps"]] == ["demo:r", "demo:s"]
    refused = actstats(f"{command} --weights none --also '--robust --out r.zarr'")
    assert (
        "the robust googlenet (l2:3) has no stable address" in refused.stderr
    )  # not: --weights already selects
