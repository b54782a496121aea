"""Select what an analysis can use from a store: complete partitions and the variables it needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from actstats.errors import ActstatsError
from actstats.metrics.builtin import BUILTINS

_METRICS = {output.name: metric for metric, builtin in BUILTINS.items() for output in builtin.outputs}
_OF_UNITS: Final = ("layer", "channel", "height", "width")
_SMALL: Final = (*_OF_UNITS, "label", "status", "completed", "frequency", "bin_left", "bin_right")
_COUNTS: Final = {
    "images_pending": ("has not been swept yet and is excluded", "have not been swept yet and are excluded"),
    "images_unreadable": ("could not be read and is excluded", "could not be read and are excluded"),
    "images_not_finite": (
        "has a value that is not finite and is excluded",
        "have a value that is not finite and are excluded",
    ),
}


def usable(dataset: xr.Dataset, analysis: str, *variables: str) -> xr.Dataset:
    """Return the complete part of a store's `variables`, lazily, with the small coordinates in memory.

    Incomplete partitions and their images are excluded. Images that could not be read are kept, since their rows are
    NaN. The attributes are `analysis`, `arch`, and the numbers of images: `images`, `images_read`,
    `images_unreadable`, `images_pending`; `notes` describes them in words.

    Raises:
        ActstatsError: the store lacks a variable, or no partition is complete.
    """
    for name in variables:
        if name not in dataset:
            per_image = name in _METRICS and BUILTINS[_METRICS[name]].outputs[0].per_image
            raise ActstatsError(
                f"{analysis} needs the variable {name}, which this store lacks: sweep with "
                f"`metrics={_METRICS.get(name, name)},...`{' and `per_image=True`' if per_image else ''}"
            )
    known = {name: dataset[name].load() for name in _SMALL if name in dataset.coords}
    if "layer" in known:  # some libraries that group by it do not support NumPy's new strings
        known["layer"] = known["layer"].astype(object)
    status = known["status"].values if "status" in known else np.zeros(0, dtype=np.int8)
    done = known["completed"].values if "completed" in known else np.ones(1, dtype=bool)
    if not done.any():
        raise ActstatsError(
            f"{analysis} needs a complete partition, and this store has none: resume its sweep"
        )
    pending = _pending(dataset.attrs, status, done)
    kept = dataset[list(variables)].assign_coords(known)
    # Only index if something is excluded, since indexing changes the chunks.
    if pending.any() and "image" in kept.dims:
        kept = kept.isel(image=np.flatnonzero(~pending))
    if not done.all() and "partition" in kept.dims:
        kept = kept.isel(partition=np.flatnonzero(done))
    kept.attrs = {
        "analysis": analysis,
        "arch": str(dataset.attrs.get("arch", "")),
        "images": len(status),
        "images_read": int((status[~pending] == 0).sum()),
        "images_unreadable": int((status[~pending] > 0).sum()),
        "images_pending": int(pending.sum()),
    }
    return kept


def complete_images(dataset: xr.Dataset) -> NDArray[np.bool_]:
    """Return which images belong to complete partitions, bool [image]."""
    status, done = (dataset[name].values for name in ("status", "completed"))
    return ~_pending(dataset.attrs, status, done)


def _pending(
    attributes: Mapping[str, Any], status: NDArray[np.int8], done: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Return which images belong to incomplete partitions."""
    size = attributes.get("partition_size")
    if size is not None and len(status) == attributes["data"]["images"]:
        found = np.repeat(~done, size)[: len(status)]
    else:  # for a selection of images, only the status is known
        found = status == -1
    return np.asarray(found, dtype=bool)


def result(variables: Mapping[str, xr.DataArray], source: xr.Dataset) -> xr.Dataset:
    """Return `variables` by unit as one dataset, with the coordinates of units and the attributes of `source`."""
    found = xr.Dataset(
        {name: variable.reset_coords(drop=True) for name, variable in variables.items()}, attrs=source.attrs
    )
    return found.assign_coords({name: source[name] for name in _OF_UNITS if name in source.coords})


def notes(found: xr.Dataset) -> list[str]:
    """Return a line for each kind of image excluded from a result; empty if all images were used.

    >>> notes(xr.Dataset(attrs={"images": 9, "images_read": 6, "images_unreadable": 1, "images_pending": 2}))
    ['2 of 9 images have not been swept yet and are excluded', '1 of 9 images could not be read and is excluded']
    """
    return [
        f"{found.attrs[name]:,} of {found.attrs['images']:,} images {one if found.attrs[name] == 1 else several}"
        for name, (one, several) in _COUNTS.items()
        if found.attrs.get(name)
    ]
