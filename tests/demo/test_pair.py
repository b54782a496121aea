"""The pair: four sweeps, the table of what differs, and the demonstration with the embedded weights."""

from __future__ import annotations

import builtins
import json
from importlib.resources import files

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from click.testing import CliRunner
from PIL import Image
from safetensors import safe_open
from torch import nn

from actstats.analysis import kernel_smoothness, map_changes, smoothness
from actstats.data import open_source
from actstats.data.preprocessing import Preprocessing
from actstats.demo.pair import COMPARED, compare_pair, kernel_sheet, sweep_pair
from actstats.distort import Place, parse
from actstats.errors import ActstatsError
from actstats.models import Loaded, load_model
from actstats_cli.demo import _cue_rows
from actstats_cli.main import main
from tests.conftest import SmallNet

SMALL = Preprocessing.imagenet(size=32, resize=36)


def smoothed(model: nn.Module) -> nn.Module:
    """The network with its first kernels blurred."""
    with torch.no_grad():
        kernels = model.first[0].weight
        kernels.copy_(nn.functional.avg_pool2d(kernels, 3, 1, 1))
    return model


@pytest.fixture(scope="module")
def pair(photographs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    models = SmallNet().eval(), smoothed(SmallNet()).eval()
    loaded = [Loaded.of(model, SMALL) for model in models]
    stores, summaries = sweep_pair(
        *loaded, photographs, folder, noise=0.2, layers=("first", "second"), device="cpu"
    )
    assert all(summary.complete for summary in summaries)
    return stores, models


def test_the_four_sweeps_are_clean_and_noisy_of_both(pair):
    stores, _ = pair
    distorted = [dataset.attrs.get("distort") for noisy in (False, True) for dataset in stores.opened(noisy)]
    assert distorted == [None, None, ["noise:0.2"], ["noise:0.2"]]
    marks = [
        dataset.attrs["weights"]["sha256"] for noisy in (False, True) for dataset in stores.opened(noisy)
    ]
    assert marks[:2] == marks[2:]
    assert marks[0] != marks[1]
    for clean, noisy in zip(stores.opened(), stores.opened(noisy=True), strict=True):
        assert 0 < map_changes(clean, noisy)["relative_map_change"].compute().median() < 10


def test_the_table_has_every_measure_from_the_analyses(pair):
    stores, models = pair
    layers = compare_pair(stores, *models)
    assert list(dict.fromkeys(layers["variable"])) == list(COMPARED)
    (kernels,) = layers[layers["variable"] == "kernels"].itertuples()
    expected = [kernel_smoothness(model)["roughness"].values[:5] for model in models]
    assert (kernels.mean_s, kernels.mean_r) == pytest.approx([np.mean(values) for values in expected])
    assert kernels.mean_r < kernels.mean_s
    assert kernels.cliffs_delta == -1
    rough = layers[layers["variable"] == "noisy_roughness"].set_index("layer")
    for column, path in zip(("mean_s", "mean_r"), stores.noisy, strict=True):
        by_layer = smoothness(xr.open_zarr(path))["roughness"].compute().groupby("layer").mean()
        for layer in ("first", "second"):
            assert rough.loc[layer, column] == pytest.approx(float(by_layer.sel(layer=layer)), rel=1e-5)
    assert set(layers["layer"]) == {"first.0", "first", "second"}
    assert (layers["difference_low"] <= layers["difference_high"]).all()


def test_the_kernels_are_drawn_side_by_side():
    white, black = SmallNet(), SmallNet()
    with torch.no_grad():
        white.first[0].weight.fill_(1.0)
        black.first[0].weight.fill_(-0.1)
    sheet = np.asarray(kernel_sheet(white, black))
    row = sheet[40]
    assert (row == 255).all(1).sum() > (row == 0).all(1).sum() > 0
    assert (row[: len(row) // 2] != 0).any(1).all()


@pytest.fixture(scope="module")
def demonstrated(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "new"
    options = [
        "--out",
        str(out),
        "--limit",
        "16",
        "--layers",
        "conv1,inception3a",
        "--device",
        "cpu",
        "--json",
    ]
    result = CliRunner().invoke(main, ["demo", *options])
    assert result.exit_code == 0, result.output
    lines = result.stderr.splitlines()
    assert lines[0] == "classifying crops, clean and blurred (lowpass:8)"
    assert lines[-2:] == ["comparing the two networks", "writing the report"]
    return out, json.loads(result.stdout)


def test_the_demonstration_makes_stores_table_pictures_and_report(demonstrated):
    out, printed = demonstrated
    assert any(finding["claim"] == "R's activation maps are smoother" for finding in printed["findings"])
    assert printed["notes"][0].startswith("These 16 images are crops of 8 photographs")
    assert {path.name for path in out.iterdir()} == {
        "s.zarr", "r.zarr", "s-noisy.zarr", "r-noisy.zarr",
        "cues.csv", "comparison.csv", "kernels.png", "layers.png", "report.html",
    }  # fmt: skip
    for name in ("kernels.png", "layers.png"):
        with Image.open(out / name) as picture:
            assert picture.width > 400
    first = xr.open_zarr(out / "s.zarr")
    assert first.sizes["image"] == 16
    assert first.attrs["weights"]["source"] == "demo:s"
    assert xr.open_zarr(out / "r-noisy.zarr").attrs["weights"]["source"] == "demo:r"


def test_what_is_printed_is_what_the_report_and_the_table_say(demonstrated):
    out, printed = demonstrated
    page = (out / "report.html").read_text().replace("\N{MINUS SIGN}", "-")
    for finding in printed["findings"]:
        for comparison in finding["comparisons"]:
            assert comparison["difference"] in page
            assert comparison["words"] in page
    found = next(each for each in printed["findings"] if each["claim"] == "R's activation maps are smoother")
    table = pd.read_csv(out / "comparison.csv").query("variable == 'roughness'")
    (comparison,) = found["comparisons"]
    # The word has one meaning: the median over the layers.
    assert comparison["delta"] == pytest.approx(table["cliffs_delta"].median(), abs=1e-6)


def test_the_accuracies_are_those_of_the_nearest_mean(demonstrated):
    out, printed = demonstrated
    assert [(row["version"], row["network"]) for row in printed["cues"]] == [
        ("clean", "S"), ("clean", "R"), ("lowpass:8", "S"), ("lowpass:8", "R"),
    ]  # fmt: skip
    assert pd.read_csv(out / "cues.csv")["accuracy"].tolist() == [row["accuracy"] for row in printed["cues"]]
    # By hand: of two crops of each photograph the first defines its class, and the second is classified.
    source = open_source("demo", limit=16)
    for row in printed["cues"][:2]:
        loaded = load_model("googlenet", "demo", robust=row["network"] == "R")
        with torch.inference_mode():
            outputs = torch.stack(
                [loaded.model(loaded.preprocessing(source.image(i))[None])[0] for i in range(16)]
            )
        taught = [i for i in range(16) if i not in _tested(source)]
        means = {source.labels[i]: outputs[i] for i in taught}
        right = [
            min(means, key=lambda label: float((outputs[i] - means[label]).norm())) == source.labels[i]
            for i in _tested(source)
        ]
        assert row["images"] == len(right) == 8
        assert row["correct"] == sum(right)


def _tested(source):
    """The later crop of each photograph."""
    return [max(np.flatnonzero(source.labels == label)) for label in range(8)]


def test_the_tables_are_printed_for_a_reader(demonstrated):
    _, printed = demonstrated
    lines = list(_cue_rows(pd.DataFrame(printed["cues"])))
    assert lines[0] == ("accuracy on 8 crops", "S", "R", "difference", "p (McNemar)")
    assert [line[0] for line in lines[1:]] == ["clean", "blurred (lowpass:8)"]
    standard, robust = (row["accuracy"] for row in printed["cues"][2:])
    assert lines[2][1:4] == (f"{standard:.2f}", f"{robust:.2f}", f"{robust - standard:+.2f}")


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(main, ["demo", "--out", str(tmp_path / "file" / "demo")])
    assert result.exit_code == 1
    assert "cannot create the folder" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("robust", [False, True])
def test_the_embedded_weights_say_what_they_are(robust):
    name = "googlenet-r" if robust else "googlenet-s"
    with safe_open(str(files("actstats") / "demo" / "weights" / f"{name}.safetensors"), "pt") as file:
        notes = file.metadata()
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.float16, torch.int64}  # noqa: SIM118
    assert notes["arch"] == "googlenet"
    assert (json.loads(notes["training"])["epsilon"] > 0) is robust
    loaded = load_model("googlenet", "demo", robust=robust)
    assert loaded.preprocessing == Preprocessing.from_dict(json.loads(notes["preprocessing"]))
    assert loaded.preprocessing.shape == (3, 64, 64)
    assert loaded.model(torch.zeros(1, 3, 64, 64)).shape == (1, len(json.loads(notes["classes"])))


def test_a_missing_extra_is_named(monkeypatch, tmp_path):
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name.partition(".")[0] == "skimage":
            raise ModuleNotFoundError("no skimage", name="skimage")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ActstatsError, match=r"contour needs scikit-image; pip install scikit-image"):
        parse(["contour"]).image(np.zeros((8, 8, 3), np.uint8), Place(0, "a.png", Preprocessing(None, 8)))
