"""`actstats models`, and `--robust` and `--offline` of the commands that load a network."""

from __future__ import annotations

import json

import pytest
import xarray as xr

from actstats.models import robust
from actstats.models.downloads import cached_file
from tests.cli.conftest import actstats, output_of


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ACTSTATS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def failure_of(command):
    result = actstats(command)
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_models_lists_what_is_published(cache):
    text = output_of("models --arch 'resnet?8'")
    rows = [line.split() for line in text.splitlines()]
    assert ["resnet18", "standard", "69.76", "--arch", "resnet18"] in rows
    assert ["resnet18", "l2:3", "53.12", "--arch", "resnet18", "--robust", "l2:3"] in rows
    assert rows[-1][-1] == str(cache)
    everything = json.loads(output_of("models --json"))["models"]
    assert {entry["threat"] for entry in everything} >= {"standard", "l2:3", "linf:4"}
    assert len(everything) > 150


def test_models_says_where_to_go_for_what_has_no_address():
    text = output_of("models --robust --arch alexnet")
    assert "--arch alexnet --weights alexnet-r.pt" in text
    assert "folder that https://github.com/anguyen8/shape-bias links to" in text


def test_models_finds_by_threat_model():
    found = json.loads(output_of("models --robust linf:4 --json"))["models"]
    assert {entry["arch"] for entry in found} == {"resnet18", "resnet50", "wide_resnet50_2"}
    assert all(entry["threat"] == "linf:4" for entry in found)
    every = json.loads(output_of("models --robust linf --json"))["models"]
    assert len(every) == 15
    assert "--robust round is not a threat model" in failure_of("models --robust round")


def test_models_knows_what_is_here():
    row = robust.choose("resnet18", "l2:3")
    place = cached_file(row.url)
    place.parent.mkdir(parents=True)
    place.write_bytes(b"weights")
    found = json.loads(output_of("models --cached --robust --json"))["models"]
    here = [entry for entry in found if entry["arch"] == "resnet18"]
    assert [(entry["name"], entry["file"]) for entry in here] == [(row.name, str(place))]


def test_robust_networks_that_are_not_here(tmp_path):
    sweep = f"sweep --data demo --out {tmp_path / 's.zarr'}"
    assert "--arch googlenet --weights GoogleNet_R.pt" in failure_of(f"{sweep} --arch googlenet --robust")
    assert "is not in the cache and --offline" in failure_of(
        f"{sweep} --arch resnet18 --robust linf:4 --offline"
    )
    assert "no published robust weights of vgg19" in failure_of("layers --arch vgg19 --robust")
    assert not (tmp_path / "s.zarr").exists()


def test_a_sweep_of_the_embedded_robust_network(images, tmp_path):
    store = tmp_path / "s.zarr"
    output_of(
        f"sweep --arch googlenet --weights demo --robust --offline --data {images} --out {store} --limit 2 "
        "--layers conv1 --device cpu"
    )
    dataset = xr.open_zarr(store)
    assert dataset.attrs["weights"]["source"] == "demo:r"
    assert dataset.attrs["preprocessing"]["crop"] == 64
    assert dataset.sizes["unit"] == 64
