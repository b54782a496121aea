"""`actstats analyze` on real sweeps of a small network: tables, files, plots, two stores, noise, a cluster."""

from __future__ import annotations

import json
import shlex

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from click.testing import CliRunner, Result
from PIL import Image
from torch import nn

import actstats
from actstats.analysis import (
    by_layer,
    kernel_smoothness,
    noise,
    noise_by_layer,
    selectivity,
    smoothness,
    variety,
)
from actstats.models import load_model
from actstats_cli.main import main
from tests.conftest import SmallNet

ANALYSES = ["smoothness", "spectrum", "selectivity", "quantiles"]


def run(command: str) -> Result:
    return CliRunner().invoke(main, shlex.split(f"analyze {command}"), catch_exceptions=False)


def output_of(command: str) -> str:
    result = run(command)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def sweeps(photographs, tmp_path_factory):
    """Sweeps of one small network: `clean`, `noisy`, and `smooth`, whose first kernels are averages."""
    folder = tmp_path_factory.mktemp("sweeps")
    preprocessing = actstats.Preprocessing.imagenet(size=48, resize=56)
    smooth = SmallNet()
    nn.init.constant_(smooth.first[0].weight, 1 / 27)
    for name, network, distort in (
        ("clean", SmallNet(), []), ("noisy", SmallNet(), ["noise:0.1"]), ("smooth", smooth, []),
    ):  # fmt: skip
        actstats.sweep(
            network, photographs, folder / f"{name}.zarr", preprocessing=preprocessing, layers=["conv"],
            distort=distort, partition_size=6, batch_size=3, top_k=4, device="cpu",
        )  # fmt: skip
    return folder


@pytest.mark.parametrize("name", ANALYSES)
def test_one_store_is_a_table_by_layer_or_unit_as_text_and_files(sweeps, tmp_path, name):
    store = sweeps / "clean.zarr"
    lines = output_of(f"{name} {store}").splitlines()
    assert lines[0].split()[:2] == ["layer", "units"]
    assert [line.split()[:2] for line in lines[1:]] == [["first", "5"], ["second", "11"]]
    files = [tmp_path / f"t.{ending}" for ending in ("csv", "parquet", "json")]
    said = json.loads(output_of(f"{name} {store} --by unit --json --out {files[0]} --plot {tmp_path}/p.svg"))
    assert said["notes"] == []
    assert [row["channel"] for row in said["rows"]] == [*range(5), *range(11)]
    for file in files[1:]:
        output_of(f"{name} {store} --by unit --out {file}")
    tables = [
        pd.read_csv(files[0]),
        pd.read_parquet(files[1]),
        pd.DataFrame(json.loads(files[2].read_text())),
    ]
    for other in tables[1:]:
        assert list(other) == list(tables[0])
        assert other["layer"].tolist() == tables[0]["layer"].tolist()
        for number in list(other)[1:]:
            expected, found = (table[number].to_numpy(dtype=float) for table in (tables[0], other))
            np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert pd.DataFrame(said["rows"]).shape == tables[0].shape
    assert "<svg" in (tmp_path / "p.svg").read_text()


@pytest.mark.parametrize("name", ANALYSES)
def test_two_stores_are_set_side_by_side(sweeps, tmp_path, name):
    two = f"{sweeps}/clean.zarr {sweeps}/smooth.zarr"
    table = tmp_path / "t.csv"
    lines = output_of(f"{name} {two} --out {table} --plot {tmp_path}/p.png").splitlines()
    assert lines[0].split()[:6] == ["variable", "layer", "units_s", "units_r", "mean_s", "mean_r"]
    assert (tmp_path / "p.png").stat().st_size > 1000
    rows = pd.read_csv(table)
    assert len(rows) % 2 == 0
    assert {"difference_low", "cliffs_delta"} <= set(rows)
    if name == "smoothness":
        first = rows[(rows["variable"] == "roughness") & (rows["layer"] == "first")].iloc[0]
        assert first["cliffs_delta"] == -1, "averages are smoother"
        assert output_of(f"{name} {two} --show step").split().count("step") == 2


@pytest.mark.parametrize(
    ("command", "inches"),
    [
        ("smoothness {0}/clean.zarr {0}/smooth.zarr", 3.25),
        ("spectrum {0}/clean.zarr {0}/smooth.zarr", 6.75 * 2 / 5),
        ("noise {0}/clean.zarr {0}/noisy.zarr", 6.75 * 2 / 5),
    ],
)
def test_plots_for_a_paper_have_its_widths_and_300_dpi(sweeps, tmp_path, command, inches):
    output_of(f"{command.format(sweeps)} --plot {tmp_path}/p.png --style paper")
    with Image.open(tmp_path / "p.png") as image:
        assert image.width == pytest.approx(inches * 300, abs=1)
        assert image.info["dpi"] == pytest.approx((300, 300), abs=1)
        ink = np.asarray(image.convert("L")) < 255
    # Nothing is cut off at an edge.
    assert not np.concatenate([ink[0], ink[-1], ink[:, 0], ink[:, -1]]).any()


def test_values_are_those_of_the_functions(sweeps):
    dataset = xr.open_zarr(sweeps / "clean.zarr")
    rows = pd.DataFrame(json.loads(output_of(f"smoothness {sweeps}/clean.zarr --json"))["rows"])
    pd.testing.assert_frame_equal(rows, by_layer(smoothness(dataset)), check_dtype=False, rtol=1e-5)
    assert variety(dataset)["distinct_classes"].tolist() == [2, 2]
    assert selectivity(dataset)["selectivity"].notnull().any()


def test_noise_of_real_sweeps(sweeps, tmp_path):
    pair = f"{sweeps}/clean.zarr {sweeps}/noisy.zarr"
    lines = output_of(f"noise {pair} --plot {tmp_path}/n.svg").splitlines()
    assert lines[0].split() == [
        "layer",
        "units",
        "clean",
        "noisy",
        "increase",
        "relative_increase",
        "outliers",
        "outlier_share",
    ]
    first, second = json.loads(output_of(f"noise {pair} --json"))["rows"]
    assert first["increase"] > 0, "noise makes rough"
    assert first["relative_increase"] == 1
    assert second["relative_increase"] == pytest.approx(second["increase"] / first["increase"], rel=1e-5)
    of_input = json.loads(output_of(f"noise {pair} --of-input --json"))["rows"]
    # The first layer averages over 27 values, so it is less rough than the images with noise are.
    assert 0 < of_input[0]["relative_increase"] < 1
    units = output_of(f"noise {pair} --by unit --reference {sweeps}/smooth.zarr").splitlines()
    assert len(units) == 1 + 16
    datasets = [xr.open_zarr(sweeps / f"{name}.zarr") for name in ("clean", "noisy")]
    expected = noise_by_layer(noise(*datasets))
    np.testing.assert_allclose([first["increase"], second["increase"]], expected["increase"], rtol=1e-5)


def test_the_input_is_as_much_rougher_as_pixels_say(photographs, sweeps):
    from PIL import Image

    from actstats.distort import Place, parse
    from actstats.probing.inputs import input_increase

    preprocessing, chain = actstats.Preprocessing.imagenet(size=48, resize=56), parse(["noise:0.1"])
    totals = np.zeros(2)
    for index, path in enumerate(sorted(photographs.rglob("*.png"))):
        pixels = preprocessing.pixels(Image.open(path))
        noisy = chain.image(pixels, Place(index, str(path.relative_to(photographs)), preprocessing))
        for at, x in enumerate((pixels / 255, noisy.astype(np.float64))):
            totals[at] += np.abs(np.diff(x, axis=0)).sum() + np.abs(np.diff(x, axis=1)).sum()
    clean, noisy = (xr.open_zarr(sweeps / f"{name}.zarr") for name in ("clean", "noisy"))
    assert input_increase(clean, noisy) == pytest.approx(totals[1] / totals[0] - 1, rel=1e-5)


def test_kernels_of_a_network_that_was_swept(photographs, tmp_path):
    store = tmp_path / "s.zarr"
    actstats.sweep(
        "squeezenet1_1", photographs, store, weights="none", layers=["features.1"], limit=2, device="cpu"
    )
    table = tmp_path / "k.parquet"
    lines = output_of(f"kernels {store} --out {table}").splitlines()
    expected = by_layer(kernel_smoothness(load_model("squeezenet1_1", "none").model))
    pd.testing.assert_frame_equal(pd.read_parquet(table), expected, check_dtype=False)
    assert lines[1].split()[0] == "features.0"
    point = next(line.split() for line in lines if line.startswith("features.3.squeeze "))
    assert point[2:6] == ["-", "0", "-", "0"], "a kernel of one weight has no step"


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("smoothness {0}/none.zarr", 1, "no store at"),
        ("smoothness {0}/clean.zarr {0}/clean.zarr {0}/clean.zarr", 1, "one store or two"),
        ("smoothness {0}/clean.zarr {0}/smooth.zarr --by unit", 1, "are compared by layer"),
        ("smoothness {0}/clean.zarr --show stepp", 1, "no variable 'stepp'; did you mean step?"),
        ("smoothness {0}/clean.zarr --out t.xlsx", 2, "t.xlsx should end in .csv, .parquet, .json"),
        ("smoothness {0}/clean.zarr --plot p.txt", 2, "p.txt should end in .png, .svg, .pdf"),
        ("smoothness {0}/clean.zarr --out {0}/nowhere/t.csv", 2, "nowhere to write t.csv to"),
        ("quantiles {0}/clean.zarr --q 2", 2, "0<=x<=1"),
        ("noise {0}/clean.zarr {0}/smooth.zarr", 1, "different networks: weights.sha256"),
        ("noise {0}/clean.zarr {0}/noisy.zarr --of-input --data {0}", 1, "no images in"),
        ("noise {0}/clean.zarr {0}/noisy.zarr --data {0}", 1, "for --of-input: give that too"),
        ("kernels {0}/clean.zarr", 1, "object, which cannot be rebuilt by name"),
        ("smoothness {0}/clean.zarr --scheduler nowhere", 1, "no dask scheduler"),
    ],
)
def test_what_cannot_be_done_is_one_line(sweeps, command, code, said):
    result = run(command.format(sweeps))
    assert result.exit_code == code
    assert said in result.stderr
    if code == 1:
        assert result.stderr.startswith("actstats: error: ")
        assert len(result.stderr.strip().splitlines()) == 1
    assert result.stdout == ""


def test_analyses_run_unchanged_on_a_distributed_cluster(sweeps):
    distributed = pytest.importorskip("distributed")
    alone = {name: json.loads(output_of(f"{name} {sweeps}/clean.zarr --json")) for name in ANALYSES}
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None, memory_limit=None
    )
    with cluster:
        for name, expected in alone.items():
            found = json.loads(
                output_of(f"{name} {sweeps}/clean.zarr --json --scheduler {cluster.scheduler_address}")
            )
            assert found == expected, name
        # In Python a client is all that it takes.
        with distributed.Client(cluster):
            found = smoothness(xr.open_zarr(sweeps / "clean.zarr")).compute()
    assert by_layer(found)["step"].tolist() == pytest.approx(
        [row["step"] for row in alone["smoothness"]["rows"]]
    )
