"""Read stores of the same images side by side, in blocks of images, so that memory use is bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, Final, TypeVar

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from actstats.analysis.comparing import pair_images
from actstats.analysis.coverage import usable, values_of
from actstats.errors import ActstatsError
from actstats.store.dataset import images_of, require_manifest
from actstats.store.manifest import UnitAxis
from actstats.store.merging import hold, on_cluster

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]
Job = TypeVar("Job")
Found = TypeVar("Found")

_ROWS: Final = 1024
"""Minimum number of images in a block, except for the last one."""
_STRIP: Final = 2048
"""Maximum number of units that one job compares with another store, unless one layer has more."""


@dataclass(frozen=True)
class Aligned:
    """A per-image statistic of several stores of the same images.

    Attributes:
        arrays: values of each store, lazy, [image, unit], with the units of each layer side by side.
        units: for each store, the position of each of these units in the dataset, i64 [unit].
        channels: for each store, their channels, [unit].
        layers: for each store, the slice of units of every layer, by layer name.
        rows: indices of the images that every store has read and whose values are all finite, i64.
        centres: for each store, the mean of every unit over `rows`, f64 [unit]; exact for constant units.
        attrs: counts of images, and the variable: `images`, `images_read`, `images_unreadable`, `images_pending`,
            `images_not_finite`, `variable`.
    """

    arrays: list[xr.DataArray]
    units: list[NDArray[np.int64]]
    channels: list[NDArray[np.integer[Any]]]
    layers: list[UnitAxis]
    rows: Rows
    centres: list[Floats]
    attrs: dict[str, Any]

    def blocks(
        self, stores: Sequence[int], columns: Sequence[slice], rows: Rows | None = None
    ) -> Iterator[tuple[Rows, list[Floats]]]:
        """Yield the centred values of some stores' units, one block of images at a time.

        Args:
            stores: indices of the stores.
            columns: slice of units for each of them.
            rows: indices of the images, sorted. Default: all of `self.rows`.

        Yields:
            The indices of the images in the block, and for each of `stores` the values, f64
            [image of the block, unit].
        """
        for at, values in _blocks(
            [self.arrays[store] for store in stores], columns, self.rows if rows is None else rows
        ):
            yield (
                at,
                [
                    block - self.centres[store][place]
                    for store, place, block in zip(stores, columns, values, strict=True)
                ],
            )

    def strips(self, store: int) -> list[list[str]]:
        """Return the layers of a store in groups of consecutive layers, each small enough for one job."""
        return _strips(self.layers[store])


def align(stores: Sequence[xr.Dataset], analysis: str, variable: str, least: int) -> Aligned:
    """Align stores of the same images. Reads each store once, or twice if some values are not finite.

    The values are then in memory if they are few (`hold`), and else read again by `blocks`.

    Raises:
        ActstatsError: the stores contain different images or a different order, lack `variable`, or share fewer than
            `least` images with values. The message calls the analysis `analysis`.
    """
    stores = hold(pair_images(stores, analysis), [variable])
    images = [images_of(store, (), analysis) for store in stores]
    pending = np.any([one.pending for one in images], axis=0)
    read = np.all([one.read for one in images], axis=0)
    arrays, units, channels, layers = [], [], [], []
    for store in stores:
        order, axis = _by_layer(usable(store, analysis, variable))
        if {*store[variable].dims} != {"image", "unit"}:
            raise ActstatsError(f"{analysis} needs one value per image and unit, and {variable} has more")
        # The rows of pending images are not excluded here, as `read` excludes them.
        values = values_of(store, variable).transpose("image", "unit").reset_coords(drop=True)
        arrays.append(values if np.array_equal(order, np.arange(len(order))) else values.isel(unit=order))
        units.append(order)
        channels.append(store["channel"].values[order])
        layers.append(axis)
    rows, offered = np.flatnonzero(read), int(read.sum())
    jobs = [
        (at, cover([of[name] for name in names])) for at, of in enumerate(layers) for names in _strips(of)
    ]
    while True:
        if len(rows) < least:
            lost = offered - len(rows)
            reason = f"; {lost:,} have a value that is not finite" if lost else ""
            raise ActstatsError(
                f"{analysis} needs {least} images or more with values in every store, not {len(rows)}{reason}"
            )
        scanned = spread(partial(_scan, arrays, rows), jobs)
        finite = np.all([good for _, good in scanned], axis=0)
        if finite.all():
            break
        rows = rows[finite]
    centres = [
        np.concatenate([centre for (at, _), (centre, _) in zip(jobs, scanned, strict=True) if at == store])
        for store in range(len(stores))
    ]
    attrs = {
        "analysis": analysis,
        "images": len(read),
        "images_read": len(rows),
        "images_unreadable": int((~pending & ~read).sum()),
        "images_pending": int(pending.sum()),
        "images_not_finite": offered - len(rows),
        "variable": variable,
        "outdated": next(filter(None, (require_manifest(store, analysis).outdated for store in stores)), ""),
    }
    return Aligned(arrays, units, channels, layers, rows, centres, attrs)


def _by_layer(dataset: xr.Dataset) -> tuple[NDArray[np.int64], UnitAxis]:
    """Return the positions of the units with those of a layer side by side, and the axis on which they are so."""
    names = dataset["layer"].values
    layers = {str(name): np.flatnonzero(names == name) for name in dict.fromkeys(names.tolist())}
    axis = UnitAxis({name: len(positions) for name, positions in layers.items()})
    return np.concatenate(list(layers.values())), axis


def cover(places: Sequence[slice]) -> slice:
    """Return the smallest slice that contains all of these."""
    return slice(min(place.start for place in places), max(place.stop for place in places))


def within(place: slice, whole: slice) -> slice:
    """Return the position of a slice relative to a slice that contains it."""
    return slice(place.start - whole.start, place.stop - whole.start)


def spread(function: Callable[[Job], Found], jobs: Sequence[Job]) -> list[Found]:
    """Run a function for each job, on the current dask cluster or else sequentially, each on all cores."""
    if not on_cluster():
        return [function(job) for job in jobs]
    dask: Any = import_module("dask")
    tasks = [dask.delayed(function, pure=False, traverse=False)(job) for job in jobs]
    return list(dask.compute(*tasks))


def _strips(layers: UnitAxis) -> list[list[str]]:
    strips: list[list[str]] = []
    start = 0
    for name, place in layers.items():
        if not strips or place.stop - start > _STRIP:
            strips.append([])
            start = place.start
        strips[-1].append(name)
    return strips


def _scan(
    arrays: Sequence[xr.DataArray], rows: Rows, job: tuple[int, slice]
) -> tuple[Floats, NDArray[np.bool_]]:
    """Return the mean of some units of one store over images, and which images have only finite values."""
    store, columns = job
    start, total, good, at = np.zeros(0), 0.0, [], 0
    for _, (block,) in _blocks([arrays[store]], [columns], rows):
        finite = np.isfinite(block).all(1)
        good.append(finite)
        if not at and finite.any():
            # Start from the values of an image rather than zero, so that constant units deviate by exactly 0.
            start = block[finite][0].astype(np.float64)
        at += int(finite.sum())
        if at:
            total = total + (block[finite] - start).sum(0)
    return start + total / max(at, 1), np.concatenate(good)


def _blocks(
    arrays: Sequence[xr.DataArray], columns: Sequence[slice], rows: Rows
) -> Iterator[tuple[Rows, list[NDArray[np.float32]]]]:
    """Yield the values of images in blocks that are aligned with the chunks of the first store."""
    sizes = arrays[0].chunksizes.get("image", (arrays[0].sizes["image"],))
    start = 0
    for end in np.cumsum(sizes).tolist():
        if end - start < _ROWS and end < arrays[0].sizes["image"]:
            continue
        for low in range(start, end, 2 * _ROWS):
            here = rows[np.searchsorted(rows, low) : np.searchsorted(rows, min(end, low + 2 * _ROWS))]
            if len(here):
                window = slice(int(here[0]), int(here[-1]) + 1)
                # Use threads on a worker, too. Otherwise reads would become tasks of the cluster.
                found = [
                    array.isel(image=window, unit=place).compute(scheduler="threads").values
                    for array, place in zip(arrays, columns, strict=True)
                ]
                yield (
                    here,
                    [values if len(values) == len(here) else values[here - here[0]] for values in found],
                )
        start = end
