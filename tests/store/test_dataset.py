"""The dataset that `open_dataset` returns, used as xarray's documentation uses datasets."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
import xarray as xr
import zarr
from torch.utils.data import Dataset, TensorDataset

import actstats
from actstats import analysis
from actstats.errors import ActstatsError, ManifestMismatchError
from actstats.store import Store
from tests.analysis.made import make_store

LABELS = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1])


@pytest.fixture(scope="module")
def maps() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        name: rng.normal(size=(11, units, 5, 6)).astype(np.float32) for name, units in (("b", 3), ("a.1", 2))
    }


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, maps) -> xr.Dataset:
    return make_store(tmp_path_factory.mktemp("stores") / "s.zarr", maps, LABELS, unreadable=[6])


@pytest.fixture(scope="module")
def mean(maps) -> np.ndarray:
    found = np.concatenate([of.astype(np.float64).mean((2, 3)) for of in maps.values()], 1)
    found[6] = np.nan
    return found


def close(found: xr.DataArray, right: np.ndarray) -> None:
    np.testing.assert_allclose(found.values, right, rtol=1e-5, atol=1e-6)


def test_it_is_grouped_and_chosen_by_its_coordinates(dataset, mean):
    at = {name: dataset["layer"].values == name for name in ("a.1", "b")}
    values = dataset["mean"]
    assert values.chunks is not None, "not lazy"
    by_layer = values.mean("image").groupby("layer").mean()
    assert by_layer["layer"].values.tolist() == ["a.1", "b"]
    close(by_layer, [np.nanmean(mean[:, where]) for where in at.values()])
    close(values.groupby("label").mean(), [np.nanmean(mean[label == LABELS], 0) for label in range(3)])
    close(values.where(dataset["layer"] == "b", drop=True), mean[:, :3])
    close(values.isel(unit=dataset["layer"].isin(["b"]) & (dataset["channel"] > 0)), mean[:, 1:3])
    close(values.isel(image=dataset["status"] == 0), np.delete(mean, 6, 0))
    close(values.isel(image=dataset["path"].isin(["003.png", "004.png"])), mean[3:5])
    close(values.isel(unit=dataset["layer"].str.startswith("a")), mean[:, 3:])
    close(values.sel(image=[4, 2]), mean[[4, 2]])
    close(dataset.set_xindex(["layer", "channel"]).sel(layer="a.1", channel=1)["mean"], mean[:, 4])
    merged = actstats.merge(dataset)
    top = dataset["label"].sel(image=merged["top_image"].isel(rank=0).compute())
    assert top.values.tolist() == LABELS[merged["top_image"].values[:, 0]].tolist()
    assert merged["power_spectrum"].groupby("layer").sum().compute().sizes["layer"] == 2


def test_strings_are_pythons(dataset, mean):
    assert dataset["layer"].values.astype(str).tolist() == ["b"] * 3 + ["a.1"] * 2
    greatest = dataset.swap_dims(image="path")["mean"].fillna(-9).idxmax("path").values
    assert greatest.tolist() == [f"{row:03}.png" for row in np.nanargmax(mean, 0)]
    assert dataset["mean"].to_series().index.get_level_values("image").max() == 10
    assert set(dataset[["mean"]].to_dataframe()["layer"]) == {"b", "a.1"}
    assert {type(path) for path in dataset["path"].values.tolist()} == {str}
    assert pickle.loads(pickle.dumps(dataset))["path"].values.tolist() == dataset["path"].values.tolist()


def test_variances_over_the_dataset_hold_where_means_are_large(tmp_path):
    maps = (20 + np.random.default_rng(0).normal(size=(300, 4, 6, 6)) / 100).astype(np.float32)
    found = make_store(tmp_path / "s.zarr", {"layer": maps}, partition_size=64, metrics=("mean", "variance"))
    right = maps.astype(np.float64).var((0, 2, 3))
    mean = found["mean"].mean("image")
    for variance in (
        found["variance"].mean("image") + found["mean"].var("image"),
        (found["variance"] + found["mean"] ** 2).mean("image") - mean**2,
    ):
        np.testing.assert_allclose(variance, right, rtol=0.01)


def test_attributes_are_text_and_numbers_that_can_be_indexed(dataset, maps):
    attrs = dataset.attrs
    assert {type(value).__mro__[-2] for value in attrs.values()} <= {str, int, float}
    assert attrs["data"]["classes"] == ["class0", "class1", "class2"]
    assert [layer["name"] for layer in attrs["layers"]] == list(maps)
    assert len(attrs["layers"]) == 2
    assert "images" in attrs["data"]
    assert attrs["data"].get("none", 3) == 3
    assert json.loads(attrs["manifest"])["data"]["images"] == 11
    assert pickle.loads(pickle.dumps(attrs))["layers"][1]["units"] == 2


@pytest.mark.parametrize("how", ["netcdf", "zarr"])
def test_it_is_analysed_after_it_was_saved_and_opened_again(dataset, tmp_path, how):
    path = tmp_path / "copy"
    if how == "netcdf":
        # scipy's netCDF has no unsigned integers
        dataset.drop_vars("histogram").to_netcdf(path, engine="scipy")
        again = xr.open_dataset(path, engine="scipy")
    else:
        dataset.to_zarr(path)
        again = xr.open_zarr(path)
    for function in (analysis.smoothness, analysis.spectrum, analysis.selectivity):
        right, found = function(dataset).compute(), function(again).compute()
        for name in right:
            np.testing.assert_allclose(found[name], right[name], rtol=1e-6)
    np.testing.assert_allclose(analysis.noise(dataset, again)["change"], 0, atol=1e-6)


def test_where_without_drop_leaves_units_without_values(dataset):
    for function in (analysis.quantiles, analysis.spectrum, analysis.smoothness):
        found = function(dataset.where(dataset["layer"] == "b")).compute()
        right = function(dataset).compute()
        for name in ("sparsity", "centroid", "roughness"):
            if name in found:
                np.testing.assert_allclose(found[name][:3], right[name][:3])
                assert found[name][3:].isnull().all()


class Some(Dataset):
    """Images of which some cannot be read."""

    fingerprint = "some"

    def __len__(self):
        return 12

    def __getitem__(self, at):
        if 4 <= at < 8:
            raise OSError("damaged")
        return torch.full((3, 8, 8), at / 12), at % 2


class Rare(actstats.Metric):
    """Counts what does not occur."""

    outputs = (actstats.Output("rare", ("partition", "unit"), "int64"),)

    def update(self, activation, state):
        state["rare"] += (activation > 1e6).sum((0, 2, 3))


@pytest.fixture
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)).eval()


def test_partitions_that_hold_only_fill_values_are_complete(network, tmp_path):
    options = {"layers": ["0"], "partition_size": 4, "batch_size": 4, "custom": Rare()}
    actstats.sweep(network, Some(), tmp_path / "s.zarr", **options)
    assert list(Store.open(tmp_path / "s.zarr").damage()) == []
    found = actstats.open_dataset(tmp_path / "s.zarr")
    with torch.no_grad():
        right = network(torch.stack([torch.full((3, 8, 8), at / 12) for at in (*range(4), *range(8, 12))]))
    np.testing.assert_allclose(found["mean"].mean("image"), right.mean((0, 2, 3)), rtol=1e-5)
    assert actstats.merge(found)["rare"].values.tolist() == [0] * 4
    assert found["images_read"].values.tolist() == [4, 0, 4]


def _of_version(path, version: str) -> None:
    group = zarr.open_group(path, mode="r+")
    group.attrs["versions"] = {**group.attrs["versions"], "actstats": version}
    manifest = {name: value for name, value in group.attrs.asdict().items() if name != "coordinates"}
    from actstats.store import manifest as manifests

    group.attrs["checksum"] = manifests.checksum(manifest)
    zarr.consolidate_metadata(group.store)


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_a_store_of_an_earlier_version_is_read_and_named_but_not_resumed(network, tmp_path):
    images = TensorDataset(
        torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 2
    )
    path = tmp_path / "s.zarr"
    actstats.sweep(network, images, path, layers=["0"], partition_size=3, batch_size=3)
    right = analysis.smoothness(actstats.open_dataset(path)).compute()
    assert analysis.notes(right) == []
    _of_version(path, "0.1.0")
    found = analysis.smoothness(actstats.open_dataset(path)).compute()
    np.testing.assert_array_equal(found["step"], right["step"])
    assert len(analysis.notes(found)) == 1
    assert "swept by actstats 0.1.0, and numbers have been corrected since" in analysis.notes(found)[0]
    with pytest.raises(
        ManifestMismatchError, match=r"begun by actstats 0\.1\.0, and numbers have been corrected"
    ):
        actstats.sweep(network, images, path, layers=["0"], partition_size=3, batch_size=3)
    actstats.sweep(network, images, path, layers=["0"], partition_size=3, batch_size=3, overwrite=True)
    assert analysis.notes(analysis.smoothness(actstats.open_dataset(path))) == []


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_partitions_without_a_read_image_of_an_earlier_version_are_read(network, tmp_path):
    path = tmp_path / "s.zarr"
    actstats.sweep(network, Some(), path, layers=["0"], partition_size=4, batch_size=4)
    names = set(Store.open(path).manifest.outputs)
    for name in names:
        (found,) = [file for file in (path / name).iterdir() if file.name.startswith("c.1.")]
        found.unlink()
    with pytest.raises(ActstatsError, match="damaged"):
        actstats.open_dataset(path)
    _of_version(path, "0.1.0")
    found = actstats.open_dataset(path)
    assert found["mean"].isnull().values.all(1).tolist() == [False] * 4 + [True] * 4 + [False] * 4
    assert int(actstats.merge(found)["histogram"].isel(unit=0).sum()) == 8 * 36


def test_tables_name_columns_in_full_and_count_units_with_a_value(dataset):
    means = analysis.class_means(dataset.assign_coords(label=dataset["label"] + 20001))
    found = means.assign_coords({name: dataset[name] for name in ("layer", "channel")}).to_dataset(
        name="mean"
    )
    assert list(analysis.unit_table(found))[2:] == [f"mean[{label}]" for label in (20001, 20002, 20003)]
    units = analysis.smoothness(dataset).compute()
    units["step"][:2] = np.nan
    table = analysis.by_layer(units)
    assert table["units"].tolist() == [3, 2]
    assert table["step_units"].tolist() == [1, 2]
    assert table["roughness_units"].tolist() == [3, 2]


def test_names_that_look_like_numbers_or_missing_values_are_read_back(dataset, tmp_path):
    from actstats.probing.unit_sets import read_units

    table = analysis.unit_table(analysis.smoothness(dataset)).assign(
        layer=["0.1", "0.10", "null", "NA", "1e3"],
        concept_name=["null", "", "NA", "7", "nan"],
        detects=[True] * 5,
    )
    table.loc[0, "step"] = np.nan
    for suffix in (".csv", ".json", ".parquet"):
        analysis.write_table(table, tmp_path / f"units{suffix}")
        again = read_units(tmp_path / f"units{suffix}")
        for name in ("layer", "concept_name", "detects", "channel"):
            assert again[name].tolist() == table[name].tolist(), (suffix, name)
        np.testing.assert_allclose(again["step"].astype(float), table["step"], rtol=1e-6)


def test_arguments_that_make_no_sense_end_in_one_line(dataset):
    found = analysis.smoothness(dataset).compute()
    once, twice = (
        analysis.compare_units(found, found, names, resamples=9) for names in (["step"], ["step"] * 2)
    )
    assert twice["units_s"].tolist() == once["units_s"].tolist() == [3, 2]
    for options in ({"resamples": 0}, {"confidence": 1.5}, {"variables": []}):
        with pytest.raises(ActstatsError):
            analysis.compare_units(found, found, **options)
    with pytest.raises(ActstatsError, match="counterpart"):
        analysis.compare_matched(found, found, np.array([0]), ["step"])
    with pytest.raises(ActstatsError, match="`q=`"):
        analysis.quantiles(dataset, [])
    with pytest.raises(ActstatsError, match="top_value, top_image, top_position together"):
        actstats.merge(dataset[["top_image", "image"]])
