"""Analyses of datasets that were indexed, reordered, combined and stored: NumPy's numbers, or one line."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import actstats
from actstats import analysis
from actstats.errors import ActstatsError
from tests.analysis.made import make_store

IMAGES, UNREADABLE, SIZE = 22, 5, 6
LABELS = np.array([0, 1, 2, -1, 1, 0, 2, 1, 0, 2, 1] * 2)
READ = np.arange(IMAGES) != UNREADABLE
LAYER = np.array(["0.1"] * 4 + ["0.10"] * 3)
CHANNEL = np.array([0, 1, 2, 3, 0, 1, 2])


def _maps(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shared = np.random.default_rng(0).normal(size=(IMAGES, 4, 1, 1))  # so that stores of two seeds correlate
    return {
        "0.1": (rng.normal(size=(IMAGES, 4, 6, 5)) + shared).astype(np.float32).clip(-0.5),
        "0.10": (rng.normal(size=(IMAGES, 3, 4, 4)) + shared[:, :3]).astype(np.float32).clip(0),
    }


MAPS = [_maps(seed) for seed in (1, 2)]
UNITS = [
    [maps[layer][:, channel].astype(np.float64) for layer, channel in zip(LAYER, CHANNEL, strict=True)]
    for maps in MAPS
]
"""Maps [image, H, W] of each unit, of both stores."""


def _each(function: Callable[[np.ndarray], np.ndarray], store: int = 0) -> np.ndarray:
    """Return a number for each image and unit, [image, unit], NaN for the unreadable image."""
    values = np.stack([function(unit) for unit in UNITS[store]], 1)
    values[UNREADABLE] = np.nan
    return values


def _variation(unit: np.ndarray) -> np.ndarray:
    return sum(np.abs(np.diff(unit, axis=axis)).sum((1, 2)) for axis in (1, 2))


MEAN = [_each(lambda unit: unit.mean((1, 2)), store) for store in (0, 1)]
VARIATION = [_each(_variation, store) for store in (0, 1)]
ARGMAX = _each(lambda unit: unit.reshape(IMAGES, -1).argmax(1).astype(float))
MAXIMUM = _each(lambda unit: unit.max((1, 2)))


@pytest.fixture(scope="module")
def datasets(tmp_path_factory) -> list[xr.Dataset]:
    folder = tmp_path_factory.mktemp("stores")
    stores = [
        make_store(folder / f"{n}.zarr", maps, LABELS, partition_size=SIZE, unreadable=[UNREADABLE], top_k=4)
        for n, maps in enumerate(MAPS)
    ]
    # Where each row and column comes from, carried along by xarray alone.
    return [
        store.assign_coords(row=("image", np.arange(IMAGES)), column=("unit", np.arange(len(LAYER))))
        for store in stores
    ]


def _floats(d: xr.Dataset, images: slice) -> xr.Dataset:
    return d[["mean", "variance", "total_variation"]].isel({d["row"].dims[0]: images})


KEEP = {
    "load": lambda d: d.compute(),
    "rechunk": lambda d: d.chunk({"unit": 2, "bin": 7}),
    "pickle": lambda d: pickle.loads(pickle.dumps(d)),
    "swap dimensions": lambda d: d.swap_dims(image="path") if "image" in d.dims else d,
    "index units": lambda d: (
        d.drop_indexes("unit", errors="ignore").set_xindex(["layer", "channel"])
        if "layer" not in d.xindexes
        else d
    ),
    "drop an index": lambda d: d.drop_indexes("image") if "image" in d.xindexes else d,
    "more variables": lambda d: d.assign(further=("unit", np.arange(d.sizes["unit"]))).assign_coords(
        note=("unit", ["x"] * d.sizes["unit"])
    ),
    "reverse images": lambda d: d.isel({d["row"].dims[0]: slice(None, None, -1)}),
    "shuffle images": lambda d: d.isel(
        {d["row"].dims[0]: np.random.default_rng(3).permutation(d.sizes[d["row"].dims[0]])}
    ),
    "reverse units": lambda d: d.isel(unit=slice(None, None, -1)),
    "shuffle units": lambda d: d.isel(unit=np.random.default_rng(4).permutation(d.sizes["unit"])),
    "reverse partitions": lambda d: d.isel(partition=slice(None, None, -1)) if "partition" in d.dims else d,
    "sort by label": lambda d: d.sortby("label"),
    "without unreadable images": lambda d: d.isel({d["row"].dims[0]: d["status"].values == 0}),
    "merge": actstats.merge,
}
"""What leaves all images that were read in the dataset."""
CHOOSE = {
    "every second image": lambda d: d.isel({d["row"].dims[0]: slice(None, None, 2)}),
    "images of a class": lambda d: d.isel({d["row"].dims[0]: d["label"].values != 1}),
    "images where": lambda d: d[["mean", "variance", "total_variation", "argmax"]].where(
        d["label"] > 0, drop=True
    ),
    "images twice": lambda d: d.isel({d["row"].dims[0]: [1, 1, *range(min(9, d.sizes[d["row"].dims[0]]))]}),
    "one image": lambda d: d.isel({d["row"].dims[0]: [2]}),
    "no image": lambda d: d.isel({d["row"].dims[0]: []}),
    "an image": lambda d: d.isel({d["row"].dims[0]: 2}),
    "two parts": lambda d: xr.concat([_floats(d, slice(12, None)), _floats(d, slice(4))], d["row"].dims[0]),
    "one partition": lambda d: d.isel(partition=[1]) if "partition" in d.dims else d,
    "a partition twice": lambda d: d.isel(partition=[0, 0, 1, 2, 3]) if d.sizes.get("partition") == 4 else d,
    "units of a layer": lambda d: d.isel(unit=d["layer"].values == "0.10"),
    "three units": lambda d: d.isel(unit=[0, -1, 1]),
    "no unit": lambda d: d.isel(unit=[]),
    "some variables": lambda d: d[[name for name in ("mean", "power_spectrum", "histogram") if name in d]],
    "without status": lambda d: d.drop_vars("status"),
    "without layers": lambda d: d.drop_vars("layer"),
    "fewer bins": lambda d: d.isel(bin=slice(0, 300)) if "bin" in d.dims else d,
    "without attributes": lambda d: d.drop_attrs(deep=False),
    "renamed": lambda d: d.rename(total_variation="tv") if "total_variation" in d else d,
    "renamed dimension": lambda d: d.rename_dims(unit="feature"),
}
"""What leaves something out, or more."""


def _check_smoothness(d: xr.Dataset, rows: np.ndarray, columns: np.ndarray, _: xr.Dataset) -> None:
    found = analysis.smoothness(d).compute()
    np.testing.assert_allclose(
        found["total_variation"], np.nanmean(VARIATION[0][rows][:, columns], 0), rtol=1e-5
    )
    assert analysis.by_layer(found)["units"].sum() == len(columns)
    assert analysis.unit_table(found)["layer"].tolist() == LAYER[columns].tolist()


def _check_class_means(d: xr.Dataset, rows: np.ndarray, columns: np.ndarray, _: xr.Dataset) -> None:
    for name, values in (("mean", MEAN[0]), ("argmax", ARGMAX)):
        if name not in d:
            continue
        found = analysis.class_means(d, name).transpose("label", "unit").compute()
        read = rows[READ[rows]]
        for label, got in zip(found["label"].values.tolist(), found.values, strict=True):
            np.testing.assert_allclose(
                got, values[read[LABELS[read] == label]][:, columns].mean(0), rtol=1e-4, atol=1e-6
            )


def _check_spectrum(d: xr.Dataset, rows: np.ndarray, columns: np.ndarray, _: xr.Dataset) -> None:
    found = analysis.spectrum(d).compute()
    rows = _swept_rows(d, rows)
    square = _each(lambda unit: (unit**2).mean((1, 2)))
    np.testing.assert_allclose(
        found["power"].sum("frequency"), np.nanmean(square[rows][:, columns], 0), rtol=1e-5
    )
    assert found.attrs["images_read"] == READ[rows].sum()


def _check_quantiles(d: xr.Dataset, rows: np.ndarray, columns: np.ndarray, _: xr.Dataset) -> None:
    found = analysis.quantiles(d, [0.3, 0.99996]).compute()
    rows = _swept_rows(d, rows)
    for at, column in enumerate(columns.tolist()):
        values = UNITS[0][column][rows[READ[rows]]]
        np.testing.assert_allclose(found["sparsity"][at], (values == 0).mean())
        right = np.quantile(values, [0.3, 0.99996], method="inverted_cdf")
        assert (abs(found["value"][at].values - right) <= found["error"][at].values + 1e-6).all()
    assert {"value[0.3]", "value[0.99996]"} <= set(analysis.unit_table(found))


def _check_selectivity(d: xr.Dataset, rows: np.ndarray, columns: np.ndarray, _: xr.Dataset) -> None:
    found = analysis.selectivity(d).compute()
    read = rows[READ[rows]]
    means = np.stack([MEAN[0][read[LABELS[read] == label]][:, columns].mean(0) for label in range(3)])
    assert found["preferred_class"].values.tolist() == means.argmax(0).tolist()
    for at, column in enumerate(columns.tolist()):
        top = LABELS[np.array(sorted(read.tolist(), key=lambda row: (-MAXIMUM[row, column], row))[:4])]
        assert found["top_classes"].values[at] == len(set(top[top >= 0].tolist()))
    assert analysis.variety(d)["units"].sum() == len(columns)


def _check_noise(d: xr.Dataset, rows: np.ndarray, columns: np.ndarray, other: xr.Dataset) -> None:
    found = analysis.noise(d, other).compute()
    right = np.nanmean((VARIATION[1] - VARIATION[0])[rows][:, columns], 0)
    np.testing.assert_allclose(found["change"], right, rtol=1e-4, atol=1e-5)
    assert found["channel"].values.tolist() == CHANNEL[columns].tolist()


def _check_match(d: xr.Dataset, rows: np.ndarray, columns: np.ndarray, other: xr.Dataset) -> None:
    found = analysis.match(d, other).compute()
    read = rows[READ[rows]]
    for at, column in enumerate(columns.tolist()):
        layer = np.flatnonzero(LAYER[column] == LAYER)
        with np.errstate(invalid="ignore"):
            right = [np.corrcoef(MEAN[0][read, column], MEAN[1][read, to])[0, 1] for to in layer]
        np.testing.assert_allclose(found["correlation"][at], max(right), rtol=1e-4)
        np.testing.assert_allclose(found["same_channel"][at], right[CHANNEL[column]], rtol=1e-4, atol=1e-6)
        assert found["best"].values[at] == layer[np.argmax(right)]
    moved = analysis.compare_matched(
        analysis.smoothness(d), analysis.smoothness(other), found["counterpart"], ["step"], resamples=3
    )
    assert moved["units"].sum() == len(columns)


def _check_similarity(d: xr.Dataset, rows: np.ndarray, columns: np.ndarray, other: xr.Dataset) -> None:
    found = analysis.similarity({"a": d, "b": other}, sample=3)
    read = rows[READ[rows]]
    names = [*dict.fromkeys(LAYER[columns].tolist())]
    x = MEAN[0][read][:, columns[LAYER[columns] == names[0]]]
    y = MEAN[1][read][:, LAYER == "0.10"]
    x, y = x - x.mean(0), y - y.mean(0)
    right = ((x.T @ y) ** 2).sum() / np.linalg.norm(x.T @ x) / np.linalg.norm(y.T @ y)
    at = found["other_layer"].values.tolist().index("0.10", len(names))
    np.testing.assert_allclose(found["cka"][0, at], right, rtol=1e-4)


def _check_merge(d: xr.Dataset, rows: np.ndarray, columns: np.ndarray, _: xr.Dataset) -> None:
    merged = actstats.merge(d)
    if merged.sizes.get("bin") != 520:
        return  # without counts, or without some of them
    counts = merged["histogram"].sum("bin").transpose("unit").compute()
    positions = np.where(LAYER == "0.1", 30, 16)[columns]
    assert counts.values.tolist() == (READ[_swept_rows(d, rows)].sum() * positions).tolist()


def _swept_rows(d: xr.Dataset, rows: np.ndarray) -> np.ndarray:
    """Return the images of the partitions in a dataset, or all of it where partitions were merged."""
    return rows[np.isin(rows // SIZE, d["partition"].values)] if "partition" in d.dims else rows


CHECKS = {
    "smoothness": _check_smoothness,
    "class_means": _check_class_means,
    "spectrum": _check_spectrum,
    "quantiles": _check_quantiles,
    "selectivity": _check_selectivity,
    "noise": _check_noise,
    "match": _check_match,
    "similarity": _check_similarity,
    "merge": _check_merge,
}


def _apply(dataset: xr.Dataset, steps: list[str]) -> xr.Dataset | None:
    """Return the dataset after these steps; None if one of them cannot be applied to what those before it left."""
    for step in steps:
        try:
            dataset = (KEEP | CHOOSE)[step](dataset)
        except (ActstatsError, KeyError, ValueError, IndexError, TypeError):  # the last four: xarray's
            return None
    return dataset


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    check=st.sampled_from(sorted(CHECKS)),
    steps=st.lists(st.sampled_from(sorted(KEEP | CHOOSE)), max_size=4),
)
def test_an_analysis_of_an_indexed_dataset_is_numpys_or_ends_in_one_line(datasets, check, steps):
    dataset = _apply(datasets[0], steps)
    if dataset is None:
        return
    rows, columns = (np.atleast_1d(dataset[name].values.astype(int)) for name in ("row", "column"))
    line = ""
    try:
        CHECKS[check](dataset, rows, columns, datasets[1])
    except ActstatsError as error:
        line = str(error)
    assert "\n" not in line


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    check=st.sampled_from(sorted(CHECKS)),
    steps=st.lists(st.sampled_from(sorted(KEEP)), max_size=3, unique=True),
)
def test_an_analysis_of_a_reordered_dataset_is_numpys(datasets, check, steps):
    dataset = datasets[0]
    for step in steps:
        dataset = KEEP[step](dataset)
    CHECKS[check](dataset, dataset["row"].values, dataset["column"].values, datasets[1])
