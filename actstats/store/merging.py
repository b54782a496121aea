"""Merge the partitions of a store: reductions over `partition`, which are computed on reading."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any, Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from actstats.errors import ActstatsError
from actstats.store.dataset import images_of, plain, require_whole

_RANKED = ("top_value", "top_image", "top_position")
HELD: Final = 1 << 28
"""Most bytes that `hold` keeps in memory."""


def merge(dataset: xr.Dataset) -> xr.Dataset:
    """Merge the `partition` dimension of each variable according to its `merge` attribute.

    Sums, minima and maxima are reduced over the partitions. The top-k lists are merged into one list of the same
    length, in which equal values are ordered by image. Per-image variables are unchanged. Incomplete partitions are
    ignored. The attribute `images` of a merged variable is the number of images that it is of. The result is lazy if
    the dataset is.

    Raises:
        ActstatsError: a variable has no merge rule, no partition is complete, or the dataset does not have all images
            of its partitions, and only those.
    """
    base = plain(dataset)
    names = [
        str(name) for name, variable in base.data_vars.items() if {"image", "partition"} & {*variable.dims}
    ]
    done, count = None, None
    if "partition" in base.dims:
        if "image" in base.variables:
            images = images_of(base, names, "merge")
            count, done = require_whole(base, images, names, "merge"), images.done
        elif "completed" in base.variables:
            done = base["completed"].values.astype(bool)
        if done is not None and not done.any():
            raise ActstatsError("no partition of this store is complete; rerun its sweep to resume")
        if count is None and "images_read" in base.variables:
            count = int(base["images_read"].values[slice(None) if done is None else done].sum())
    kept = dataset if dataset.sizes == base.sizes else base
    if done is not None and not done.all():
        # A partition whose sweep was killed while writing it may hold some of its data.
        kept = kept.isel(partition=np.flatnonzero(done))
    return reduce_partitions(kept, count)


def hold(datasets: Sequence[xr.Dataset], names: Sequence[str]) -> list[xr.Dataset]:
    """Return datasets with the variables `names` in memory, merged over partitions, for analyses that share them.

    Then each is read once. Variables that a dataset lacks are ignored. Nothing changes if they take more than `HELD`
    bytes, on a dask cluster, whose workers would be sent the values, or for a dataset without a complete partition.
    """
    try:
        merged = [merge(dataset[[name for name in names if name in dataset]]) for dataset in datasets]
    except ActstatsError:
        return list(datasets)
    if on_cluster() or sum(variable.nbytes for one in merged for variable in one.values()) > HELD:
        return list(datasets)
    # In the same chunks, on which the last digits of sums over images depend.
    return [
        dataset.assign({name: held[name].chunk(lazy[name].variable.chunksizes) for name in lazy})
        for dataset, lazy in zip(datasets, merged, strict=True)
        for held in [lazy.drop_vars(list(lazy.coords)).compute()]
    ]


def on_cluster() -> bool:
    """Whether dask computes on a cluster (`dask.distributed`) at the moment."""
    base: Any = import_module("dask.base")
    client = getattr(base.get_scheduler(), "__self__", None)
    return type(client).__module__.startswith("distributed")


def reduce_partitions(dataset: xr.Dataset, count: int | None = None) -> xr.Dataset:
    """Merge the complete partitions of a dataset; `count` is the number of images that they are of."""
    merged: dict[str, xr.DataArray] = {}
    for name, variable in dataset.data_vars.items():
        rule = variable.attrs.get("merge")
        if "partition" not in variable.dims:
            merged[str(name)] = variable
        elif rule in ("sum", "min", "max"):
            # Radial bins that a map cannot resolve are NaN in every complete partition, and must remain NaN.
            reduced = getattr(variable, rule)("partition", skipna=False, keep_attrs=True)
            merged[str(name)] = reduced if count is None else reduced.assign_attrs(images=count)
        elif rule != "rank":
            raise ActstatsError(f"variable {name!r} has no rule to merge its partitions (attribute `merge`)")
    if any(name in dataset and "partition" in dataset[name].dims for name in _RANKED):
        if missing := [name for name in _RANKED if name not in dataset]:
            raise ActstatsError(f"merge needs {', '.join(_RANKED)} together, but {missing[0]} is missing")
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
        for name, variable in zip(_RANKED, ranked, strict=True):
            merged[name] = variable if count is None else variable.assign_attrs(images=count)
    return xr.Dataset(merged, attrs=dataset.attrs).assign_coords(
        {n: c for n, c in dataset.coords.items() if "partition" not in c.dims}
    )


def _rank(
    value: NDArray[np.float32], image: NDArray[np.int64], position: NDArray[np.int32]
) -> tuple[NDArray[Any], ...]:
    """Merge lists [..., partition, rank] to [..., rank]."""
    k = value.shape[-1]
    flat = [a.reshape(*a.shape[:-2], -1) for a in (value, image, position)]
    # Ties are ordered by image. NaN are sorted last.
    order = np.lexsort((flat[1], -flat[0]), axis=-1)[..., :k]
    return tuple(np.take_along_axis(a, order, axis=-1) for a in flat)
