"""What a change of the images does to the maps of each unit, from a sweep that compared them with the clean maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import xarray as xr

from actstats.analysis.comparing import pair_images, pair_units, require_same_network
from actstats.analysis.coverage import result, usable
from actstats.errors import ActstatsError
from actstats.store.dataset import find_manifest, images_of, require_manifest
from actstats_kernels.bins import PAIRED

CLEAN: Final = ("mean", "variance")
"""The variables of the clean sweep that `map_changes` needs."""
_DESCRIBED: Final = {
    "map_change": ("activation^2", "mean over positions and images of (changed - clean)^2"),
    "map_variance": ("activation^2", "variance of the clean maps over positions and images"),
    "relative_map_change": ("1", "map_change / map_variance"),
    "map_correlation": ("1", "correlation of the changed and the clean map, mean over images"),
}


def map_changes(clean: xr.Dataset, changed: xr.Dataset) -> xr.Dataset:
    """Return how much each unit's maps change, relative to how much the clean maps vary, lazily.

    `changed` is a sweep that compared its maps with those of `clean`, as `sweep --changed` writes it. Over the images
    that have a value in both:

    - `map_change` = mean of the stored `map_change`, so over positions and images of (changed - clean)^2;
    - `map_variance` = variance of the clean maps over positions and images: the mean of their `variance` plus the
      variance over images of their `mean`, so that 1 x 1 maps have one;
    - `relative_map_change` = map_change / map_variance: 0 if nothing changes, 2 if the changed maps have nothing in
      common with the clean ones, and as much variance. NaN only if all clean maps together are constant;
    - `map_correlation` = mean of the stored `map_correlation` over the images for which it is defined.

    Args:
        clean: dataset of the clean sweep with `mean` and `variance`, as returned by `open_dataset`.
        changed: dataset with `map_change` and `map_correlation`, for the same network and images.

    Returns:
        The variables above, f64 [unit].

    Raises:
        ActstatsError: `changed` was not compared with `clean`, the sweeps differ in images, layers or weights, a
            variable is missing, or no partition is complete.
    """
    require_compared(clean, changed, "map_changes")
    before, after = paired_sweeps(clean, changed, "map_changes", CLEAN, PAIRED)
    change, correlation = after["map_change"], after["map_correlation"]
    both = change.notnull() & before["mean"].notnull()
    mean, variance = (before[name].where(both) for name in CLEAN)
    # Rounding errors of a mean of equal numbers are no variance.
    varies = (mean.max("image") > mean.min("image")) | (variance.max("image") > 0)
    found = {
        "map_change": change.where(both).mean("image"),
        "map_variance": (variance.mean("image") + mean.var("image")).where(
            varies | mean.isnull().all("image"), 0
        ),
        "map_correlation": correlation.where(both).mean("image"),
    }
    found["relative_map_change"] = found["map_change"] / found["map_variance"].where(
        found["map_variance"] > 0
    )
    described = {n: found[n].assign_attrs(units=u, long_name=text) for n, (u, text) in _DESCRIBED.items()}
    return result(described, before)


def is_compared(changed: xr.Dataset) -> bool:
    """Return whether the maps of a sweep were compared with those of a clean one."""
    return bool((manifest := find_manifest(changed)) and manifest.paired_with)


def require_compared(clean: xr.Dataset, changed: xr.Dataset, analysis: str) -> None:
    """Raise an `ActstatsError` unless the maps of `changed` were compared with those of `clean`."""
    require_same_network(clean, changed, analysis)
    if not is_compared(changed):
        raise ActstatsError(
            f"{analysis} needs maps that were compared with the clean ones: sweep both in one pass, with `changed=`"
        )
    if require_manifest(changed, analysis).paired_with != require_manifest(clean, analysis).identity:
        raise ActstatsError(
            f"{analysis}: the maps were compared with those of another clean sweep, which differs in images, network "
            "or settings; open that one, or sweep both again in one pass"
        )


def paired_sweeps(
    clean: xr.Dataset, changed: xr.Dataset, analysis: str, of_clean: Sequence[str], of_changed: Sequence[str]
) -> tuple[xr.Dataset, xr.Dataset]:
    """Return variables of two sweeps of one network, of the same units for the images that are complete in both.

    Raises:
        ActstatsError: the sweeps differ in images, layers or weights, a variable is missing, or no partition is
            complete.
    """
    require_same_network(clean, changed, analysis)
    both = pair_images([clean, changed], analysis)
    both[1] = pair_units(*both)
    images = [images_of(dataset, (), analysis) for dataset in both]
    pending = images[0].pending | images[1].pending
    if pending.any():
        both = [dataset.isel(image=np.flatnonzero(~pending)) for dataset in both]
    first, second = (
        usable(dataset, analysis, *names) for dataset, names in zip(both, (of_clean, of_changed), strict=True)
    )
    read = int((images[0].read & images[1].read).sum())
    first.attrs |= {
        "outdated": first.attrs["outdated"] or second.attrs["outdated"],
        "images": len(pending),
        "images_read": read,
        "images_pending": int(pending.sum()),
        "images_unreadable": int((~pending).sum()) - read,
    }
    return first, second.assign_coords(image=first["image"]) if "image" in first.coords else second
