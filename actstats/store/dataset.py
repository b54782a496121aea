"""Open a store as a dataset, and find out which images and units a dataset holds after it was indexed.

Sums over the images of a partition cannot be taken apart, so an analysis of them has to know which images were
chosen. The index `image` numbers the images of the store, `partition` its partitions, and `images_read` counts the
images in the sums of a partition. All analyses start from `plain`, which undoes what does not change the data: other
indexes, swapped dimensions.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from xarray.backends import BackendArray, ZarrStore
from xarray.core import indexing
from xarray.indexes import PandasIndex

from actstats.attributes import WHOLE, entries_of, to_attributes
from actstats.errors import ActstatsError
from actstats.records import InvalidError
from actstats.store.manifest import Manifest
from actstats.store.store import Store

if TYPE_CHECKING:
    import zarr

_LAZY: Final = ("path", "provenance")
"""Coordinates that are read when they are first used: 100 MB for a million images, an object for each partition."""
_ENTRIES: Final = frozenset(entry.metadata.get("key", entry.name) for entry in fields(Manifest) if entry.init)
_FORMAT: Final = "actstats"
_MARKS: Final = {
    "image": ("image", "status", "path"),
    "unit": ("layer", "channel"),
    "partition": ("partition", "completed"),
}
"""Coordinates by which a dimension is recognised if it was renamed or swapped."""


def open_dataset(path: str | Path) -> xr.Dataset:
    """Open a store as a lazy dataset, in dask chunks of one partition and all units.

    `xarray.open_zarr` opens the same variables in the chunks of the store, 64 units each. These are better for
    reading a few units, but an analysis of all units would have very many dask tasks. Here,

    - coordinates are in memory, with strings as Python's; `path` and `provenance` are read when they are first used;
    - floats by image are f64, so that sums over images and squares keep all digits that are stored;
    - `image` and `partition` are indexes that number the store's images and partitions, and `images_read` counts the
      images of each partition that were read, so that analyses notice which were chosen;
    - attributes are text and numbers, as netCDF needs. Lists and dicts are JSON text that can be indexed
      (`dataset.attrs["data"]["classes"]`), and `manifest` holds the whole manifest as JSON.

    Raises:
        ActstatsError: there is no store at `path`, or it is damaged.
    """
    return dataset_of(Store.open(path))


def dataset_of(store: Store) -> xr.Dataset:
    """Return the results in an open store, as `open_dataset` does."""
    store.require_objects()
    stored = as_stored(store, drop=_LAZY)
    size, status = store.partition_size, store.statuses()
    known = {name: coordinate.variable for name, coordinate in stored.coords.items()}
    known |= {
        "image": ("image", np.arange(store.images), {"long_name": "index of the image in the store"}),
        "partition": ("partition", np.arange(store.partitions)),
        "completed": ("partition", store.completed),
        "status": ("image", status, stored["status"].attrs),
        "images_read": (
            "partition",
            np.add.reduceat(status == 0, np.arange(0, store.images, size), dtype=np.int64),
            {"long_name": "images of the partition that were read"},
        ),
    }
    for name in _LAZY:
        if name in store.group:
            array: Any = store.group[name]
            known[name] = _names(array)
    variables = stored.drop_vars(list(stored.coords))
    chunks = {dim: {"image": size, "partition": 1}.get(str(dim), -1) for dim in variables.dims}
    dataset: xr.Dataset = variables.chunk(chunks)
    for key, variable in dataset.data_vars.items():
        if "image" in variable.dims and variable.dtype.kind == "f":
            dataset[key] = variable.astype(np.float64)
    lazy = {name: known.pop(name) for name in _LAZY if name in known}
    dataset = dataset.assign_coords({name: in_memory(xr.as_variable(c)) for name, c in known.items()} | lazy)
    store.require_coordinates(
        {str(name): dataset[name].values for name in dataset.coords if name not in _LAZY}
    )
    dataset.attrs = to_attributes(store.manifest.json)
    return dataset.drop_encoding()


def find_manifest(dataset: xr.Dataset) -> Manifest | None:
    """Return the manifest in the attributes of a dataset, also after netCDF or from `xarray.open_zarr`; else None.

    Raises:
        ActstatsError: the attributes are not a manifest of this version.
    """
    if WHOLE in dataset.attrs:
        return _parsed(str(dataset.attrs[WHOLE]))
    if _FORMAT not in dataset.attrs:
        return None
    return _checked({name: value for name, value in dataset.attrs.items() if name in _ENTRIES})


def require_manifest(dataset: xr.Dataset, analysis: str) -> Manifest:
    """Return the manifest in the attributes of a dataset.

    Raises:
        ActstatsError: the dataset has lost its attributes, which the message for `analysis` asks for.
    """
    manifest = find_manifest(dataset)
    if manifest is None:
        raise ActstatsError(
            f"{analysis} needs the attributes of the store, which this dataset lacks: copy them, "
            "dataset.attrs = actstats.open_dataset(...).attrs"
        )
    return manifest


@functools.lru_cache(maxsize=64)
def _parsed(text: str) -> Manifest:
    return _checked(entries_of({WHOLE: text}))


def _checked(entries: Mapping[str, Any]) -> Manifest:
    try:
        return Manifest.from_json(entries)
    except InvalidError as error:
        raise ActstatsError(
            f"the attributes of the dataset are not the manifest of a store: {error}"
        ) from None


def as_stored(store: Store, drop: Sequence[str] = ()) -> xr.Dataset:
    """Return the arrays of an open store as a lazy dataset, without dask, by the metadata that were checked."""
    # Nothing is decoded by the conventions of CF: no array needs it, but a metric's `units` may mean a date.
    found = xr.open_dataset(ZarrStore(store.group, mode="r"), drop_variables=drop, decode_cf=False)
    return found.set_coords([name for name in found.data_vars if name not in store.manifest.outputs])


def in_memory(variable: xr.Variable) -> xr.Variable:
    """Return a coordinate in memory, with strings as Python's: some libraries do not support NumPy's new ones."""
    loaded = variable.compute()
    return loaded.astype(object) if loaded.dtype.kind in "TU" else loaded


class _Names(BackendArray):
    """Strings of an array of a store along one axis, which xarray reads when they are first used.

    Once read as a whole, they are kept for all copies of the dataset, which share no other cache.
    """

    def __init__(self, array: zarr.Array[Any]) -> None:
        self.array = array
        self._kept: NDArray[np.object_] | None = None
        self.shape = array.shape
        self.dtype = np.dtype(object)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> NDArray[np.object_]:
        return np.asarray(
            indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)
        )

    def _read(self, key: Any) -> NDArray[np.object_]:
        (along,) = key
        if self._kept is None:
            values = np.asarray(self.array.oindex[key]).astype(object)
            if not isinstance(along, slice) or along.indices(*self.shape) != (0, *self.shape, 1):
                return values
            self._kept = values
        return np.array(self._kept[along], dtype=object)


def _names(array: zarr.Array[Any]) -> xr.Variable:
    lazy: Any = indexing.LazilyIndexedArray(_Names(array))
    cached = indexing.MemoryCachedArray(indexing.CopyOnWriteArray(lazy))  # type: ignore[no-untyped-call]
    return xr.Variable(array.metadata.dimension_names, cached)  # type: ignore[union-attr]


def plain(dataset: xr.Dataset) -> xr.Dataset:
    """Return a dataset with the dimensions of a store and without indexes, which only label its data.

    >>> dataset = xr.Dataset({"mean": ("path", [1.0])}, coords={"path": ["a.png"], "image": ("path", [7])})
    >>> plain(dataset)["mean"].dims
    ('image',)
    """
    whole = [name for name in dataset.xindexes if dataset.xindexes[name].__class__ is not PandasIndex]
    dataset = dataset.drop_indexes(list(dataset.xindexes))
    dataset = dataset.drop_vars([name for name in whole if name in dataset.dims])  # tuples of the others
    for dim, marks in _MARKS.items():
        along = [dataset[name].dims for name in marks if name in dataset.coords]
        if dim not in dataset.dims and along and len(along[0]) == 1:
            dataset = dataset.swap_dims({along[0][0]: dim}).drop_indexes(dim, errors="ignore")
    return dataset


@dataclass(frozen=True)
class Images:
    """The images of a dataset.

    Attributes:
        numbers: the index of each image in the store, i64 [image].
        read: which of them were read, in complete partitions, bool [image].
        pending: which of them are in partitions that are not complete, bool [image].
        done: which partitions of the dataset are complete, bool [partition]; None without partitions.
    """

    numbers: NDArray[np.int64] | None
    read: NDArray[np.bool_]
    pending: NDArray[np.bool_]
    done: NDArray[np.bool_] | None


def images_of(dataset: xr.Dataset, names: Sequence[str], analysis: str) -> Images:
    """Return the images of a dataset that `plain` returned.

    Args:
        dataset: the dataset.
        names: the variables to analyse. Those without the dimension `image` are sums, or other reductions, over the
            images of a partition or of several, for which it must be known which images the dataset has.
        analysis: its name, for messages.

    Raises:
        ActstatsError: a coordinate is missing, or no partition is complete.
    """
    sums = [name for name in names if "image" not in dataset[name].dims]
    if sums and "image" not in dataset.variables:
        raise ActstatsError(
            f"{analysis} needs the coordinate image, which says whose {sums[0]} is summed: open the store with "
            f"actstats.open_dataset, and choose variables with it, dataset[['{sums[0]}', 'image']]"
        )
    status = _values(dataset, "status", "image", analysis)
    numbers = dataset["image"].values if "image" in dataset.variables else None
    if numbers is not None and numbers.dtype.kind not in "iu":
        raise ActstatsError(
            f"{analysis} needs the numbers of the images in the store, but the coordinate image holds "
            f"{numbers.dtype}: keep other labels in a coordinate of another name"
        )
    pending = status == -1
    done = None
    if "partition" in dataset.dims:
        done = _values(dataset, "completed", "partition", analysis).astype(bool)
        if not done.any():
            raise ActstatsError(
                f"{analysis} needs a complete partition, and this store has none: resume its sweep"
            )
        if not done.all() and numbers is not None:
            # A partition whose sweep was killed may hold some of its data.
            partitions = _values(dataset, "partition", "partition", analysis)
            pending |= np.isin(numbers // _partition_size(dataset, analysis), partitions[~done])
    if len(status) and pending.all():
        raise ActstatsError(
            f"{analysis} needs a complete partition, and this store has none: resume its sweep"
        )
    return Images(numbers, (status == 0) & ~pending, pending, done)


def require_whole(dataset: xr.Dataset, images: Images, names: Sequence[str], analysis: str) -> int:
    """Return how many images the sums of a dataset are of, all of which the dataset has; 0 if it has no sums.

    Args:
        dataset: of `plain`.
        images: its images.
        names: the variables that are analysed together.
        analysis: its name, for messages.

    Raises:
        ActstatsError: an image was left out or occurs twice, or sums and variables by image are of different images.
    """
    sums = [name for name in names if "image" not in dataset[name].dims]
    if not sums:
        return 0
    assert images.numbers is not None
    chosen = images.numbers[images.read]
    if len(np.unique(chosen)) < len(chosen):
        raise ActstatsError(
            f"{analysis} needs each image once: {sums[0]} is stored as a sum over all of them"
        )
    included = lost = further = 0
    if "partition" in dataset.dims:
        included, lost, further = _by_partition(dataset, images, chosen, analysis)
    merged = None
    counts = {dataset[name].attrs.get("images") for name in sums if "partition" not in dataset[name].dims}
    if counts:
        merged = counts.pop()
        if counts or merged is None:
            raise ActstatsError(
                f"{analysis} needs {sums[0]} by partition, or as merged by actstats.merge, which counts its images"
            )
        included = int(merged)
        lost, further = max(0, included - len(chosen)), max(0, len(chosen) - included)
    if lost:
        raise ActstatsError(
            f"{analysis} cannot leave out images: {sums[0]} is stored as a sum, and {lost:,} of its {included:,} "
            "images are not in the dataset; pass all images, or sweep the chosen ones by themselves"
        )
    if further and (merged is not None or len(sums) < len(names)):
        raise ActstatsError(
            f"{analysis} needs variables of the same images: {sums[0]} is of {included:,}, and the dataset has "
            f"{further:,} more; choose the images of the same partitions"
        )
    return included


def _by_partition(
    dataset: xr.Dataset, images: Images, chosen: NDArray[np.int64], analysis: str
) -> tuple[int, int, int]:
    """Return how many images went into the sums of the complete partitions, how many of them the dataset lacks, and
    how many others it has.
    """
    assert images.done is not None
    assert images.numbers is not None
    partitions = _values(dataset, "partition", "partition", analysis)[images.done].tolist()
    if len(set(partitions)) < len(partitions):
        raise ActstatsError(f"{analysis} needs each partition once: it would be counted twice")
    size = _partition_size(dataset, analysis)
    present = _counts(chosen // size)
    if "images_read" in dataset.variables:
        expected = dict(zip(partitions, dataset["images_read"].values[images.done].tolist(), strict=True))
    else:  # without that count, all images of a partition must be there, read or not
        total = require_manifest(dataset, analysis).data.images
        there = _counts(np.unique(images.numbers) // size)
        expected = {
            partition: min(size, total - partition * size)
            - there.get(partition, 0)
            + present.get(partition, 0)
            for partition in partitions
        }
    lost = sum(max(0, count - present.get(partition, 0)) for partition, count in expected.items())
    included = sum(expected.values())
    return included, lost, len(chosen) - (included - lost)


def _counts(values: NDArray[np.int64]) -> dict[int, int]:
    found, counts = np.unique(values, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def _partition_size(dataset: xr.Dataset, analysis: str) -> int:
    return require_manifest(dataset, analysis).partition_size


def _values(dataset: xr.Dataset, name: str, dim: str, analysis: str) -> NDArray[Any]:
    if name not in dataset.variables or dataset[name].dims != (dim,):
        raise ActstatsError(
            f"{analysis} needs the coordinate {name} along {dim}, which this dataset lacks: pass the dataset as "
            "actstats.open_dataset returns it, or indexed along its dimensions"
        )
    values: NDArray[Any] = dataset[name].values
    return values
