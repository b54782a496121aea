"""One side of a report: what a store tells about each of its units, in memory and short."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from actstats.analysis import class_means, spectrum
from actstats.analysis.coverage import usable
from actstats.errors import ActstatsError
from actstats.store.merging import merge
from actstats_kernels.bins import (
    BIN_NEGATIVE_OVERFLOW,
    BIN_NEGATIVE_UNDERFLOW,
    BIN_POSITIVE_INFINITY,
    BIN_POSITIVE_OVERFLOW,
    BIN_POSITIVE_UNDERFLOW,
    FREQUENCY_BINS,
    histogram_edges,
    radial_bins,
)

_TOP: Final = ("top_value", "top_image", "top_position")
_TOGETHER: Final = 4
"""Histogram bins that are shown as one: half an octave."""
_CLASSES: Final = 10
"""Classes of a unit that are named, those with its greatest mean activation."""


@dataclass(frozen=True)
class Classes:
    """The classes of all stores, each once, and for each store the class's number here by its label there.

    `tables` are i4 [labels + 1], with -1 at the end for images without a label.
    """

    names: list[str]
    tables: list[NDArray[np.int32]]


def class_names(datasets: Sequence[xr.Dataset]) -> Classes:
    """Return the classes of stores, by name, since their labels may be of different sources."""
    numbers: dict[str, int] = {}
    tables = []
    for dataset in datasets:
        known = dataset.attrs["data"]["classes"]
        highest = int(dataset["label"].max())
        names = [known[n] if n < len(known) else f"class {n}" for n in range(max(highest + 1, len(known)))]
        found = [numbers.setdefault(name, len(numbers)) for name in names]
        tables.append(np.array([*found, -1], dtype=np.int32))
    return Classes(list(numbers), tables)


@dataclass(frozen=True)
class Profile:
    """Mean activation by class: the greatest `label` i4 and `mean` f4 [unit, shown], and the mean of the `others`."""

    label: NDArray[np.int32]
    mean: NDArray[np.float32]
    rest: NDArray[np.float32]
    others: int


@dataclass(frozen=True)
class Side:
    """What the report shows of the units of one store; None where it lacks the variable.

    `top` is value f4, image i8 and flat position i4, [unit, rank] each; `spectrum` the mean power f4
    [unit, frequency] of one coefficient, with `coefficients` i8 [unit, frequency] how many there are; `histogram`
    shares of positions f4 [unit, shown bin].
    """

    top: tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int32]] | None
    spectrum: NDArray[np.float32] | None
    coefficients: NDArray[np.int64]
    histogram: NDArray[np.float32] | None
    profile: Profile | None


def read_side(dataset: xr.Dataset, ranks: int, classes: NDArray[np.int32]) -> Side:
    """Read from a store what is shown of each unit, `ranks` top images of it; one variable at a time is in memory.

    `classes` is the store's table of `Classes`.
    """
    top = None
    if all(name in dataset for name in _TOP):
        lists = merge(usable(dataset, "the report", *_TOP)).isel(rank=slice(0, ranks)).compute()
        value, image, position = (lists[name].transpose("unit", "rank").values for name in _TOP)
        top = value, image, position
    power, coefficients = None, _coefficients(dataset["height"].values, dataset["width"].values)
    if "power_spectrum" in dataset:
        summed = spectrum(dataset)["power"].transpose("unit", "frequency").values
        power = (summed / np.maximum(coefficients, 1)).astype(np.float32)
    shares = None
    if "histogram" in dataset:
        shares = _histogram(usable(dataset, "the report", "histogram"))
    return Side(top, power, coefficients, shares, _profile(dataset, classes))


def histogram_edges_shown() -> NDArray[np.float64]:
    """Return the edges [shown bins + 1] of the histogram's shown bins: half octaves, what is nearest to 0 as one."""
    left, right = histogram_edges()
    starts = _starts()
    edges = np.append(left[starts], right[BIN_POSITIVE_OVERFLOW])
    edges[[0, -1]] = (
        right[BIN_NEGATIVE_OVERFLOW] * 1.5,
        left[BIN_POSITIVE_OVERFLOW] * 1.5,
    )  # not the infinities
    return edges


def _starts() -> NDArray[np.int64]:
    """Return the first bin of each shown one: what is beyond the range joins the outermost, -0 to +0 is one."""
    negative = np.arange(BIN_NEGATIVE_OVERFLOW + 1, BIN_NEGATIVE_UNDERFLOW, _TOGETHER)
    positive = np.arange(BIN_POSITIVE_UNDERFLOW + 1, BIN_POSITIVE_OVERFLOW, _TOGETHER)
    outer = [BIN_NEGATIVE_OVERFLOW], [BIN_POSITIVE_OVERFLOW]
    return np.concatenate([outer[0], negative, [BIN_NEGATIVE_UNDERFLOW], positive, outer[1]])


def _coefficients(heights: NDArray[np.int32], widths: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return how many coefficients of each unit's map fall in each radial bin, i8 [unit, frequency]."""
    sizes, which = np.unique(np.stack([heights, widths], 1), axis=0, return_inverse=True)
    counts = [np.bincount(radial_bins(*size).ravel(), minlength=FREQUENCY_BINS) for size in sizes.tolist()]
    return np.stack(counts)[which]


def _histogram(swept: xr.Dataset) -> NDArray[np.float32]:
    counts = merge(swept)["histogram"].chunk({"bin": -1})
    found = xr.apply_ufunc(
        _shares,
        counts,
        input_core_dims=[["bin"]],
        output_core_dims=[["shown"]],
        dask="parallelized",
        output_dtypes=[np.float32],
        dask_gufunc_kwargs={"output_sizes": {"shown": len(_starts())}},
    )
    return np.asarray(found.transpose("unit", "shown").values)


def _shares(counts: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
    """Return the share of all finite values in each shown bin, [..., shown], of counts [..., bin]."""
    finite = counts[..., :BIN_POSITIVE_INFINITY].astype(np.float64)
    summed = np.add.reduceat(finite, _starts(), axis=-1)
    return np.asarray(summed / np.maximum(summed.sum(-1, keepdims=True), 1), dtype=np.float32)


def _profile(dataset: xr.Dataset, classes: NDArray[np.int32]) -> Profile | None:
    try:
        means = class_means(dataset).transpose("unit", "label").compute()
    except ActstatsError:  # No labels, or no variable `mean`; what else there is can be shown without.
        return None
    values, label = means.values.astype(np.float32), classes[means["label"].values]
    order = np.argsort(-np.nan_to_num(values, nan=-np.inf), axis=1, kind="stable")
    first, others = order[:, :_CLASSES], order[:, _CLASSES:]
    rest = np.full(len(values), np.nan, dtype=np.float32)
    if others.shape[1]:
        rest = np.take_along_axis(values, others, 1).mean(1)
    return Profile(label[first], np.take_along_axis(values, first, 1), rest, others.shape[1])
