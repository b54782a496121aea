"""Quantiles of each unit's activations from the histograms, with error bounds; sparsity, dead and saturated units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from actstats.analysis.coverage import result, usable
from actstats.errors import ActstatsError
from actstats.store.merging import reduce_partitions
from actstats_kernels.bins import (
    BIN_NAN,
    BIN_NEGATIVE_INFINITY,
    BIN_NEGATIVE_OVERFLOW,
    BIN_POSITIVE_INFINITY,
    BIN_POSITIVE_OVERFLOW,
    BIN_ZERO,
    histogram_edges,
)

_BEYOND = [BIN_NEGATIVE_INFINITY, BIN_NEGATIVE_OVERFLOW, BIN_POSITIVE_OVERFLOW, BIN_POSITIVE_INFINITY]
_DESCRIBED = {
    "value": ("activation", "quantile of the unit's activations"),
    "error": ("activation", "bound of the quantile's error"),
    "sparsity": ("1", "share of values that are zero"),
    "positive_share": ("1", "share of values above zero"),
    "beyond_share": ("1", "share of values of 65536 or more in magnitude, infinities included"),
    "nan_share": ("1", "share of values that are NaN"),
    "dead": ("", "whether no value is above zero"),
    "saturated": ("", "whether a value is of 65536 or more in magnitude"),
}


def quantiles(dataset: xr.Dataset, q: float | Sequence[float] = (0.01, 0.5, 0.99, 0.995)) -> xr.Dataset:
    """Return the quantiles and sparsity of each unit's activations over all positions of all images, lazily.

    The q-quantile of n values is the value of rank r = ceil(q n), at least 1, in increasing order (Hyndman and Fan
    1996, definition 1; `numpy.quantile(..., method="inverted_cdf")`). The histogram determines its bin exactly. With
    b values below that bin, c values in it, and edges l and u, `value` = l + (r - b - 1/2) / c x (u - l), as if the
    values were spread evenly, and `error` = max(value - l, u - value) bounds the distance to the true quantile. It is
    at most 1/8 of the value, and 0 for zero and the infinities. Beyond 65536 only one edge is known: `value` is that
    edge and `error` is infinite.

    `sparsity` is the fraction of all values that are zero; `positive_share`, `beyond_share` and `nan_share` are those
    of other values. A unit is `dead` if no value is above zero, and `saturated` if a value is 65536 or more in
    magnitude, the limit of f16.

    Args:
        dataset: dataset of a sweep with `histogram`, as returned by `open_dataset`.
        q: quantiles in [0, 1]. 0.995 is the threshold of network dissection, its top 0.5 %.

    Returns:
        `value` and `error` f64 [unit, quantile], the rest [unit]. NaN if all values of a unit are NaN.

    Raises:
        ActstatsError: `q` is outside [0, 1], the variable is missing, or no partition is complete.
    """
    wanted = np.atleast_1d(np.asarray(q, dtype=np.float64))
    if wanted.ndim > 1 or not wanted.size:
        raise ActstatsError("`q=` is a quantile or a list of one or more")
    if not ((wanted >= 0) & (wanted <= 1)).all():
        raise ActstatsError(
            f"quantiles must be in [0, 1], not {wanted[~((wanted >= 0) & (wanted <= 1))][0]:g}"
        )
    swept = usable(dataset, "quantiles", "histogram")
    counts = reduce_partitions(swept)["histogram"]
    if counts.dtype.kind == "f":  # NaN for units that `where` excluded
        counts = counts.fillna(0)
    counts = counts.astype(np.int64).chunk({"bin": -1})
    names = list(_DESCRIBED)
    computed = xr.apply_ufunc(
        _summary,
        counts,
        kwargs={"q": wanted},
        input_core_dims=[["bin"]],
        output_core_dims=[["quantile"], ["quantile"], *[[]] * (len(names) - 2)],
        dask="parallelized",
        output_dtypes=[*[np.float64] * 6, bool, bool],
        dask_gufunc_kwargs={"output_sizes": {"quantile": len(wanted)}},
    )
    found = dict(zip(names, computed, strict=True))
    described = {n: found[n].assign_attrs(units=u, long_name=text) for n, (u, text) in _DESCRIBED.items()}
    return result(described, swept).assign_coords(quantile=wanted)


def _summary(counts: NDArray[np.int64], q: NDArray[np.float64]) -> tuple[NDArray[Any], ...]:
    """Return the variables in `_DESCRIBED`, in order, for counts [unit, bin]."""
    value, error = _quantiles(counts[..., :BIN_NAN], q)
    total, zero, nan = counts.sum(-1), counts[..., BIN_ZERO], counts[..., BIN_NAN]
    positive, beyond = counts[..., BIN_ZERO + 1 : BIN_NAN].sum(-1), counts[..., _BEYOND].sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = [part / total for part in (zero, positive, beyond, nan)]
    return value, error, *shares, (positive == 0) & (total > 0), beyond > 0


def _quantiles(
    counts: NDArray[np.int64], q: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return values and error bounds [unit, quantile] for counts [unit, bin] without the NaN bin."""
    left, right = (edge[:BIN_NAN] for edge in histogram_edges())
    reached = counts.cumsum(-1)
    total = reached[..., -1:]
    rank = np.maximum(np.ceil(q * total), 1)
    # The bin of a rank is the first whose cumulative count reaches it.
    at = np.stack([(reached < rank[..., j, None]).sum(-1) for j in range(len(q))], -1).clip(max=BIN_NAN - 1)
    inside = np.take_along_axis(counts, at, -1)
    before = np.take_along_axis(reached, at, -1) - inside
    low, high = left[at], right[at]
    with np.errstate(invalid="ignore", divide="ignore"):
        value = low + (rank - before - 0.5) / inside * (high - low)
        error = np.maximum(value - low, high - value)
    # Zero and the infinities are exact. Beyond the range, only one edge is known.
    value, error = np.where(low == high, low, value), np.where(low == high, 0.0, error)
    open_ended = (at == BIN_NEGATIVE_OVERFLOW) | (at == BIN_POSITIVE_OVERFLOW)
    value = np.where(open_ended, np.where(at == BIN_POSITIVE_OVERFLOW, low, high), value)
    error = np.where(open_ended, np.inf, error)
    return np.where(total > 0, value, np.nan), np.where(total > 0, error, np.nan)
