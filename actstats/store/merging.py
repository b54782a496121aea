"""Merge the partitions of a store: reductions over `partition`, which are computed on reading."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from actstats.errors import ActstatsError

_RANKED = ("top_value", "top_image", "top_position")


def merge(dataset: xr.Dataset) -> xr.Dataset:
    """Merge the `partition` dimension of each variable according to its `merge` attribute.

    Sums, minima and maxima are reduced over the partitions. The top-k lists are merged into one list of the same
    length, in which equal values are ordered by image. Per-image variables are unchanged. Incomplete partitions are
    ignored. The result is lazy if the dataset is.

    Raises:
        ActstatsError: a variable has no merge rule, or no partition is complete.
    """
    if "completed" in dataset.coords:
        # A partition whose sweep was killed while writing it may hold some of its data.
        done = dataset["completed"].values.astype(bool)
        if not done.any():
            raise ActstatsError("no partition of this store is complete; rerun its sweep to resume")
        if not done.all():
            dataset = dataset.isel(partition=np.flatnonzero(done))
    merged: dict[str, xr.DataArray] = {}
    for name, variable in dataset.data_vars.items():
        rule = variable.attrs.get("merge")
        if "partition" not in variable.dims:
            merged[str(name)] = variable
        elif rule in ("sum", "min", "max"):
            # Radial bins that a map cannot resolve are NaN in every complete partition, and must remain NaN.
            merged[str(name)] = getattr(variable, rule)("partition", skipna=False, keep_attrs=True)
        elif rule != "rank":
            raise ActstatsError(f"variable {name!r} has no rule to merge its partitions (attribute `merge`)")
    if _RANKED[0] in dataset:
        lists = [dataset[name].chunk({"partition": -1, "rank": -1}) for name in _RANKED]
        ranked = xr.apply_ufunc(
            _rank,
            *lists,
            input_core_dims=[["partition", "rank"]] * 3,
            output_core_dims=[["rank"]] * 3,
            dask="parallelized",
            output_dtypes=[variable.dtype for variable in lists],
            keep_attrs=True,
        )
        merged |= dict(zip(_RANKED, ranked, strict=True))
    return xr.Dataset(merged, attrs=dataset.attrs).assign_coords(
        {n: c for n, c in dataset.coords.items() if "partition" not in c.dims}
    )


def _rank(
    value: NDArray[np.float32], image: NDArray[np.int64], position: NDArray[np.int32]
) -> tuple[NDArray[Any], ...]:
    """Merge lists [..., partition, rank] to [..., rank]."""
    k = value.shape[-1]
    flat = [a.reshape(*a.shape[:-2], -1) for a in (value, image, position)]
    # Partitions, and ties within each list, are ordered by image, which a stable sort preserves. NaN are sorted last.
    order = np.argsort(-flat[0], axis=-1, kind="stable")[..., :k]
    return tuple(np.take_along_axis(a, order, axis=-1) for a in flat)
