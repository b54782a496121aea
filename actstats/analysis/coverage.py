"""What of a store an analysis may use: complete partitions, the variables it needs, and what to say of the rest."""

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
    "images_pending": "are not swept yet and left out",
    "images_unreadable": "could not be read and are left out",
    "images_not_finite": "have a value that is not finite and are left out",
}


def usable(dataset: xr.Dataset, analysis: str, *variables: str) -> xr.Dataset:
    """Return a store's `variables` as far as they are complete, lazily, with the small coordinates in memory.

    Partitions that are not complete are left out, and their images. Images that could not be read stay, since their
    rows are NaN. The attributes hold `analysis`, `arch`, and how many images there are: `images`, `images_read`,
    `images_unreadable`, `images_pending`; `notes` puts that into words.

    Raises:
        ActstatsError: a variable that this store lacks, or no partition that is complete.
    """
    for name in variables:
        if name not in dataset:
            per_image = name in _METRICS and BUILTINS[_METRICS[name]].outputs[0].per_image
            raise ActstatsError(
                f"{analysis} needs the variable {name}, which this store lacks: sweep with "
                f"--metrics {_METRICS.get(name, name)},...{' and without --no-per-image' if per_image else ''}"
            )
    known = {name: dataset[name].load() for name in _SMALL if name in dataset.coords}
    if "layer" in known:  # not every library that groups by it knows NumPy's new strings
        known["layer"] = known["layer"].astype(object)
    status = known["status"].values if "status" in known else np.zeros(0, dtype=np.int8)
    done = known["completed"].values if "completed" in known else np.ones(1, dtype=bool)
    if not done.any():
        raise ActstatsError(
            f"{analysis} needs a complete partition, and this store has none: go on with its sweep"
        )
    pending = _pending(dataset.attrs, status, done)
    kept = dataset[list(variables)].assign_coords(known)
    # Only where something has to go: an index cuts a store's chunks anew.
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
    """Return which images belong to partitions that are complete, bool [image]."""
    status, done = (dataset[name].values for name in ("status", "completed"))
    return ~_pending(dataset.attrs, status, done)


def _pending(
    attributes: Mapping[str, Any], status: NDArray[np.int8], done: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Return which images belong to partitions that are not complete."""
    size = attributes.get("partition_size")
    if size is not None and len(status) == attributes["data"]["images"]:
        found = np.repeat(~done, size)[: len(status)]
    else:  # of a selection of images the status is all that can be known
        found = status == -1
    return np.asarray(found, dtype=bool)


def result(variables: Mapping[str, xr.DataArray], source: xr.Dataset) -> xr.Dataset:
    """Return `variables` by unit as one dataset, with the coordinates of units and the attributes of `source`."""
    found = xr.Dataset(
        {name: variable.reset_coords(drop=True) for name, variable in variables.items()}, attrs=source.attrs
    )
    return found.assign_coords({name: source[name] for name in _OF_UNITS if name in source.coords})


def notes(found: xr.Dataset) -> list[str]:
    """Return what a reader of a result has to know of its images, a line each; none if every image took part.

    >>> notes(xr.Dataset(attrs={"images": 9, "images_read": 6, "images_unreadable": 1, "images_pending": 2}))
    ['2 of 9 images are not swept yet and left out', '1 of 9 images could not be read and are left out']
    """
    return [
        f"{found.attrs[name]:,} of {found.attrs['images']:,} images {text}"
        for name, text in _COUNTS.items()
        if found.attrs.get(name)
    ]
