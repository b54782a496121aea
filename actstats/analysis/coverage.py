"""Select what an analysis can use from a store: complete partitions and the variables it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from actstats.errors import ActstatsError
from actstats.metrics.builtin import BUILTINS, PAIRS
from actstats.store.dataset import find_manifest, images_of, in_memory, plain, require_whole
from actstats.store.manifest import outdated_note
from actstats_kernels.bins import frequencies, histogram_edges

_METRICS = {output.name: metric for metric, builtin in BUILTINS.items() for output in builtin.outputs}
_AXES: Final[Mapping[str, tuple[str, Callable[[], NDArray[np.float64]]]]] = {
    "bin": ("bin_left", lambda: histogram_edges()[0]),
    "frequency": ("frequency", frequencies),
}
"""The coordinate of each axis of which an analysis needs all bins, in order, and its values."""
_OF_UNITS: Final = ("layer", "channel", "height", "width")
_COUNTS: Final = {
    "images_pending": ("has not been swept yet and is excluded", "have not been swept yet and are excluded"),
    "images_unreadable": ("could not be read and is excluded", "could not be read and are excluded"),
    "images_not_finite": (
        "has a value that is not finite and is excluded",
        "have a value that is not finite and are excluded",
    ),
}


def usable(dataset: xr.Dataset, analysis: str, *variables: str) -> xr.Dataset:
    """Return the complete part of a dataset's `variables`, lazily, with the small coordinates in memory.

    The dataset may have been indexed, reordered, loaded, rechunked or merged, and have other indexes and variables.
    Incomplete partitions and their images are excluded. Images that could not be read are kept, since their rows are
    NaN. The attributes are `analysis`, `arch`, `outdated`, and the numbers of images: `images`, `images_read`,
    `images_unreadable`, `images_pending`; `notes` describes them in words.

    Raises:
        ActstatsError: the dataset lacks a variable or what is needed beside its variables, no partition is complete,
            or images were chosen and a variable is a sum over all of them.
    """
    dataset = plain(dataset)
    for name in variables:
        _require_variable(dataset, analysis, name)
    images = images_of(dataset, variables, analysis)
    included = require_whole(dataset, images, variables, analysis)
    known = {
        name: in_memory(dataset[name].variable)
        for name in (*_OF_UNITS, *_AXES, "image", "label", "status")
        if name in dataset.variables
    }
    for name in ("layer", "channel"):
        if name not in known or known[name].dims != ("unit",):
            raise ActstatsError(
                f"{analysis} needs the coordinate {name} along unit, which this dataset lacks"
            )
    for dim in ("image", "unit"):
        if not dataset.sizes.get(dim, 1):
            raise ActstatsError(f"{analysis} needs one {dim} or more, and this dataset has none")
    kept = dataset[list(variables)].reset_coords(drop=True).assign_coords(known)
    # Only index if something is excluded, since indexing changes the chunks.
    if images.pending.any():
        kept = kept.isel(image=np.flatnonzero(~images.pending))
    if "partition" in kept.dims and images.done is not None and not images.done.all():
        kept = kept.isel(partition=np.flatnonzero(images.done))
    read = int(images.read.sum())
    manifest = find_manifest(dataset)
    kept.attrs = {
        "analysis": analysis,
        "arch": manifest.arch if manifest else "",
        "outdated": manifest.outdated if manifest else "",
        "images": len(images.read),
        "images_read": read,
        "images_unreadable": int((~images.read & ~images.pending).sum()),
        "images_pending": int(images.pending.sum()),
    }
    if included and included != read:  # sums over the images of chosen partitions
        kept.attrs |= {
            "images": included,
            "images_read": included,
            "images_unreadable": 0,
            "images_pending": 0,
        }
    return kept


def _require_variable(dataset: xr.Dataset, analysis: str, name: str) -> None:
    """Raise an `ActstatsError` if a dataset lacks a variable, or the variable has lost a dimension or bins."""
    outputs = (
        {output.name: output for output in BUILTINS[_METRICS[name]].outputs} if name in _METRICS else PAIRS
    )
    if name not in dataset.data_vars and name in PAIRS:
        raise ActstatsError(
            f"{analysis} needs the variable {name}, which this dataset lacks: sweep with `changed=`"
        )
    if name not in dataset.data_vars:
        per_image = name in outputs and outputs[name].per_image
        raise ActstatsError(
            f"{analysis} needs the variable {name}, which this dataset lacks: sweep with "
            f"`metrics={_METRICS.get(name, name)},...`{' and `per_image=True`' if per_image else ''}"
        )
    dims = set(map(str, dataset[name].dims))
    needed = set(outputs[name].dims if name in outputs else ("image", "unit"))
    further = dims - needed if name in outputs else dims & {"partition"}
    if further or not needed - {"partition"} <= dims:
        raise ActstatsError(
            f"{analysis} needs {name} with the dimensions {', '.join(sorted(needed))}, not "
            f"{', '.join(sorted(dims)) or 'none'}: choose along an axis with a list, isel(unit=[0])"
        )
    for dim in dims & _AXES.keys():
        coordinate, values = _AXES[dim]
        found = dataset[coordinate].values if coordinate in dataset.variables else None
        if found is None or not np.array_equal(found, values(), equal_nan=True):
            raise ActstatsError(
                f"{analysis} needs all of the axis {dim}, in order, with its coordinate {coordinate}"
            )


def values_of(swept: xr.Dataset, name: str) -> xr.DataArray:
    """Return a per-image variable of `usable`, NaN where there is no value, also if it holds integers."""
    values = swept[name]
    if values.dtype.kind == "f":
        return values
    known = swept["status"] == 0
    return values.where(known & (values >= 0) if name == "argmax" else known)


def result(variables: Mapping[str, xr.DataArray], source: xr.Dataset) -> xr.Dataset:
    """Return `variables` by unit as one dataset, with the coordinates of units and the attributes of `source`."""
    found = xr.Dataset(
        {name: variable.reset_coords(drop=True) for name, variable in variables.items()}, attrs=source.attrs
    )
    return found.assign_coords({name: source[name] for name in _OF_UNITS if name in source.coords})


def notes(found: xr.Dataset) -> list[str]:
    """Return a line for each kind of image excluded from a result, and one if the store is of an earlier version.

    The list is empty if all images were used.

    >>> notes(xr.Dataset(attrs={"images": 9, "images_read": 6, "images_unreadable": 1, "images_pending": 2}))
    ['2 of 9 images have not been swept yet and are excluded', '1 of 9 images could not be read and is excluded']
    """
    lines = [
        f"{found.attrs[name]:,} of {found.attrs['images']:,} images {one if found.attrs[name] == 1 else several}"
        for name, (one, several) in _COUNTS.items()
        if found.attrs.get(name)
    ]
    return [*lines, outdated_note(found.attrs["outdated"])] if found.attrs.get("outdated") else lines
