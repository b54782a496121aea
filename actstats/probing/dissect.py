"""Network dissection: which concept each unit detects, by where it is active and what is labelled there.

Bau, Zhou, Khosla, Oliva, Torralba 2017, "Network dissection: quantifying interpretability of deep visual
representations" (arXiv 1704.05796). Thresholds come from the histograms of a first pass (`thresholds`), overlaps
from a second (`overlaps`), and `dissection` finds the concept of each unit.

**Positions.** Overlaps are counted on a grid over what the network sees of an image, by default 112 x 112 as in
Broden, to which maps are brought bilinearly and masks by the nearest position, after the crop that the
preprocessing makes.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any, Final

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from actstats.analysis.quantiles import quantiles
from actstats.data import ImageError
from actstats.data.preprocessing import Preprocessing
from actstats.errors import ActstatsError
from actstats.layers import Layer, watch
from actstats.models import Loaded
from actstats.probing.concepts import Concepts, Labels, Segmented
from actstats.probing.forward import Advance, inputs, prepared, running
from actstats_kernels.overlap import add_overlap

TOP: Final = 0.005
"""The share of a unit's activations above its threshold, as published."""
LEAST_IOU: Final = 0.04
"""The overlap from which on a unit counts as a detector, as published."""
RESOLUTION: Final = 112


def thresholds(dataset: xr.Dataset, top: float = TOP) -> NDArray[np.float64]:
    """Return the activation that a share `top` of each unit's activations is above, f64 [unit], from the histograms.

    It is `quantiles` at 1 - `top`, with that function's error bound. NaN where a unit has no activation.

    Raises:
        ActstatsError: a share outside (0, 1), or no complete histogram.
    """
    if not 0 < top < 1:
        raise ActstatsError(f"the share of activations above the threshold is in (0, 1), not {top}")
    found: NDArray[np.float64] = quantiles(dataset, 1 - top)["value"].isel(quantile=0).values
    return found


def overlaps(
    loaded: Loaded,
    segmented: Segmented,
    layers: Sequence[Layer],
    threshold: NDArray[np.float64],
    *,
    resolution: int | None = None,
    batch_size: int = 32,
    device: str = "auto",
    workers: int | None = None,
    advance: Advance | None = None,
) -> xr.Dataset:
    """Count, in one pass over the images, where each unit is active (above its threshold) and what is labelled there.

    Args:
        loaded: the network with its preprocessing.
        segmented: the images and their concepts (`open_segmented`).
        layers: those whose units are dissected (`select_layers`).
        threshold: of each unit, f64 [unit], the layers' units one after the other (`thresholds`).
        resolution: rows and columns of the grid; None: 112, or the network's input if that is smaller.
        batch_size: images a forward pass.
        device: "cpu", "cuda", or "auto".
        workers: threads that decode; None: one for each core but at most 8.
        advance: called after each batch.

    Returns:
        Integers: `intersection` i64 [unit, concept], the positions that are active and labelled; `active` i64 [unit,
        category], the active positions of the images in which something of that category is labelled; `area` i64
        [concept], the labelled positions. With `name` and `category` of each concept that occurs, and `layer`,
        `channel`, `threshold` of each unit. Images that cannot be read, or whose masks cannot, take no part.

    Raises:
        ActstatsError: no image that can be read, a threshold for another number of units, a resolution below 1.
    """
    units, concepts = sum(layer.units for layer in layers), segmented.concepts
    if len(threshold) != units:
        raise ActstatsError(f"there are {len(threshold)} thresholds for the {units} units of these layers")
    grid = min(RESOLUTION, loaded.preprocessing.crop) if resolution is None else resolution
    if grid < 1:
        raise ActstatsError(f"the resolution is {grid}; it must be at least 1")
    target = prepared(loaded, device)
    counts = _Counts(concepts, layers, threshold, target)
    pool = ThreadPoolExecutor(
        max(1, workers if workers is not None else 4), thread_name_prefix="actstats-masks"
    )

    def labelled(index: int) -> NDArray[np.int32] | None:
        try:
            return labels_on_grid(
                segmented.labels(index), segmented.size(index), concepts, loaded.preprocessing, grid
            )
        except ImageError:
            return None

    passes = inputs(loaded, segmented.source, target, batch_size=batch_size, workers=workers, advance=advance)
    with pool, running(loaded, batch_size), closing(passes), watch(loaded.model, layers, counts.update):
        for batch, images in passes:
            counts.labels = list(pool.map(labelled, (batch.position + batch.start).tolist()))
            loaded.model(images)
    return counts.dataset(len(segmented.source))


class _Counts:
    """The counts so far; `labels` are those of the images of the next forward pass."""

    def __init__(
        self,
        concepts: Concepts,
        layers: Sequence[Layer],
        threshold: NDArray[np.float64],
        device: torch.device,
    ) -> None:
        self.concepts, self.layers, self.threshold = concepts, layers, threshold
        ends = np.cumsum([layer.units for layer in layers]).tolist()
        self._places = [slice(end - layer.units, end) for end, layer in zip(ends, layers, strict=True)]
        self._limits = torch.from_numpy(threshold.astype(np.float64))
        self._both = torch.zeros(ends[-1], len(concepts.names), dtype=torch.int64, device=device)
        self._active = np.zeros((ends[-1], len(concepts.categories)), dtype=np.int64)
        self._area = np.zeros(len(concepts.names), dtype=np.int64)
        self._images = 0
        self._labels: list[NDArray[np.int32] | None] = []
        self._present: list[NDArray[np.bool_]] = []

    @property
    def labels(self) -> list[NDArray[np.int32] | None]:
        return self._labels

    @labels.setter
    def labels(self, labels: list[NDArray[np.int32] | None]) -> None:
        self._labels, self._present = labels, []
        for label in labels:
            area = np.bincount(label.ravel() if label is not None else [], minlength=len(self._area))
            area[0] = 0
            self._area += area
            self._images += label is not None
            there = self.concepts.category[np.flatnonzero(area)]
            self._present.append(np.isin(np.arange(self._active.shape[1]), there))

    def update(self, layer: int, maps: Tensor) -> None:
        """Count one layer's maps [N, C, H, W] of the batch."""
        place = self._places[layer]
        for image, label, present in zip(maps, self._labels, self._present, strict=True):
            if label is not None and present.any():
                active = add_overlap(image, self._limits[place], torch.from_numpy(label), self._both[place])
                self._active[place] += active.cpu().numpy()[:, None] * present

    def dataset(self, images: int) -> xr.Dataset:
        """Return the counts, of those concepts that occur."""
        kept = np.flatnonzero(self._area)
        names = np.array(self.concepts.names, dtype=object)
        categories = np.array(self.concepts.categories, dtype=object)
        described: dict[str, Any] = {
            "layer": [layer.name for layer in self.layers for _ in range(layer.units)],
            "channel": np.concatenate([np.arange(layer.units) for layer in self.layers]),
            "threshold": self.threshold,
        }
        return xr.Dataset(
            {
                "intersection": (("unit", "concept"), self._both.cpu().numpy()[:, kept]),
                "active": (("unit", "category"), self._active),
                "area": ("concept", self._area[kept]),
            },
            coords={
                **{name: ("unit", values) for name, values in described.items()},
                "category": categories,
                "number": ("concept", kept),
                "name": ("concept", names[kept]),
                "concept_category": ("concept", categories[self.concepts.category[kept]]),
            },
            attrs={
                "analysis": "dissect",
                "images": images,
                "images_read": self._images,
                "images_unreadable": images - self._images,
                "images_pending": 0,
            },
        )


def labels_on_grid(
    labels: Labels, size: tuple[int, int], concepts: Concepts, preprocessing: Preprocessing, grid: int
) -> NDArray[np.int32]:
    """Return the labels of one image where the network sees it, i32 [D, grid, grid], none twice at a position.

    `labels` are those of the whole image of `size` (width, height). Position i of the grid shows the mask's position
    under its centre, i + 1/2; outside the image nothing is labelled.
    """
    resized, crop = preprocessing.resized(size), preprocessing.crop
    corner = preprocessing.corner(resized)

    def seen(height: int, width: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the row and the column of a mask of that size that each of the grid's shows; -1 outside."""
        rows = _positions(resized[1], corner[1], crop, height, grid)
        return rows, _positions(resized[0], corner[0], crop, width, grid)

    layers: list[NDArray[np.int32]] = []
    for label in labels:
        mask = np.full((1, 1), label, dtype=np.int32) if isinstance(label, int) else label
        rows, columns = seen(*mask.shape)
        shown = np.where((rows[:, None] >= 0) & (columns >= 0), mask[rows[:, None], columns], 0)
        shown = np.where(concepts.category[shown] >= 0, shown, 0)
        for other in layers:
            shown[shown == other] = 0
        if shown.any():
            layers.append(shown.astype(np.int32))
    return np.stack(layers) if layers else np.zeros((0, grid, grid), dtype=np.int32)


def _positions(resized: int, corner: int, crop: int, count: int, grid: int) -> NDArray[np.int64]:
    """Return which of a mask's `count` positions each of `grid` positions shows, along one side; -1 outside.

    The image's side is brought to `resized`, and `crop` of it cut out from `corner` on. In integers, so that a
    position on an edge falls on the same side everywhere.
    """
    twice = (2 * np.arange(grid, dtype=np.int64) + 1) * crop + 2 * corner * grid
    at = twice * count // (2 * grid * resized)
    return np.where((at >= 0) & (at < count), at, -1)
