"""Network dissection: which concepts units detect, by where they are active and what is labelled there.

Bau, Zhou, Khosla, Oliva, Torralba 2017, arXiv 1704.05796.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from actstats.analysis.histograms import quantiles
from actstats.data import ImageError
from actstats.data.preprocessing import Preprocessing, of_images
from actstats.errors import ActstatsError
from actstats.layers import Layer, watch
from actstats.models import Loaded
from actstats.probing.concepts import Concepts, Labels, Segmented
from actstats.probing.forward import Passes, inputs, prepared, running
from actstats.store.manifest import UnitAxis
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
    passes: Passes | None = None,
) -> xr.Dataset:
    """Count, in one pass over the images, where each unit is active (above its threshold) and what is labelled there.

    Args:
        loaded: the network with its preprocessing.
        segmented: the images and their concepts (`open_segmented`).
        layers: those whose units are dissected (`select_layers`).
        threshold: of each unit, f64 [unit], the layers' units one after the other (`thresholds`).
        resolution: rows and columns of the grid; None: 112, or the network's input if that is smaller.
        passes: batch size, device, progress.

    Returns:
        Integers: `intersection` i64 [unit, concept], the positions that are active and labelled; `active` i64 [unit,
        category], the active positions of the images in which something of that category is labelled; `area` i64
        [concept], the labelled positions. With `name` and `category` of each concept that occurs, and `layer`,
        `channel`, `threshold` of each unit. Images whose pixels or masks cannot be read are excluded.

    Raises:
        ActstatsError: no image that can be read, a threshold for another number of units, a resolution below 1.
    """
    units, concepts = sum(layer.units for layer in layers), segmented.concepts
    if len(threshold) != units:
        raise ActstatsError(f"there are {len(threshold)} thresholds for the {units} units of these layers")
    preprocessing = of_images(loaded.preprocessing, "dissection")
    grid = min(RESOLUTION, preprocessing.crop) if resolution is None else resolution
    if grid < 1:
        raise ActstatsError(f"the resolution is {grid}; it must be at least 1")
    passes = passes or Passes()
    target = prepared(loaded, passes.device)
    counts = _Counts(concepts, layers, threshold, target)
    pool = ThreadPoolExecutor(
        max(1, passes.workers if passes.workers is not None else 4), thread_name_prefix="actstats-masks"
    )

    def labelled(index: int) -> NDArray[np.int32] | None:
        try:
            return labels_on_grid(
                segmented.labels(index), segmented.size(index), concepts, preprocessing, grid
            )
        except ImageError:
            return None

    batches = inputs(loaded, segmented.source, target, passes)
    with (
        pool,
        running(loaded, passes.batch_size),
        closing(batches),
        watch(loaded.model, layers, counts.update),
    ):
        for batch, images in batches:
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
        axis = UnitAxis.of(layers)
        self._places = list(axis.values())
        self._limits = torch.from_numpy(threshold.astype(np.float64))
        self._both = torch.zeros(axis.total, len(concepts.names), dtype=torch.int64, device=device)
        self._active = np.zeros((axis.total, len(concepts.categories)), dtype=np.int64)
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


def iou(counts: xr.Dataset) -> xr.DataArray:
    """Return the overlap of each unit with each concept, f64 [unit, concept], from the counts of `overlaps`.

    IoU = intersection / (active + area - intersection), all summed over the images in which something of the
    concept's category is labelled (Bau et al. 2017, section 2); 0 where the union is empty.
    """
    categories = counts["category"].values.tolist()
    at = [categories.index(name) for name in counts["concept_category"].values.tolist()]
    both = counts["intersection"].values
    union = counts["active"].values[:, at] + counts["area"].values - both
    shares = both / np.where(union > 0, union, 1)
    return xr.DataArray(shares, dims=("unit", "concept"), coords=counts["intersection"].coords)


def dissection(counts: xr.Dataset, least: float = LEAST_IOU) -> xr.Dataset:
    """Return the concept that each unit overlaps most, and the best of each category.

    Args:
        counts: of `overlaps`.
        least: the IoU from which on a unit counts as a detector.

    Returns:
        By unit: `threshold`, `concept_name` and `concept_category` of the greatest IoU (empty where all are 0; of
        equal ones the lowest number), `iou`, `detects` (bool), and for each category `<category>_name` and
        `<category>_iou`.

    Raises:
        ActstatsError: `least` outside (0, 1].
    """
    if not 0 < least <= 1:
        raise ActstatsError(f"the least IoU of a detector is in (0, 1], not {least}")
    shares = iou(counts).values
    names, categories = (counts[key].values.astype(object) for key in ("name", "concept_category"))
    name, best, where = _best(shares, names)
    found: dict[str, Any] = {
        "concept_name": name,
        "concept_category": np.where(best > 0, np.append(categories, "")[where], ""),
        "iou": best,
        "detects": best >= least,
    }
    for category in counts["category"].values.tolist():
        name, best, _ = _best(np.where(categories == category, shares, 0.0), names)
        found |= {f"{category}_name": name, f"{category}_iou": best}
    kept = {key: counts[key] for key in ("layer", "channel", "threshold") if key in counts.coords}
    made = xr.Dataset({key: ("unit", values) for key, values in found.items()}, coords=kept)
    return made.reset_coords("threshold" if "threshold" in kept else []).assign_attrs(
        {**counts.attrs, "least_iou": least}
    )


def detectors(found: xr.Dataset) -> pd.DataFrame:
    """Return how many units of each layer detect something, in all and by category.

    Returns:
        A row for each layer and category that `dissection` knows, and for each layer a row of `all` categories:
        `layer`, `category`, `units` (of the layer), `detectors`, `share` of the units, and `concepts`, how many
        different concepts they detect.
    """
    layers = found["layer"].values.astype(object)
    detects, category = found["detects"].values, found["concept_category"].values
    categories = [str(name)[: -len("_iou")] for name in found if str(name).endswith("_iou")]
    rows = []
    for layer in dict.fromkeys(layers):
        here = layers == layer
        for kind in ("all", *categories):
            chosen = here & detects if kind == "all" else here & detects & (category == kind)
            # Two categories may have a concept of one name, such as a number without a name.
            concepts = len(set(zip(category[chosen], found["concept_name"].values[chosen], strict=True)))
            count, units = int(chosen.sum()), int(here.sum())
            rows.append((layer, kind, units, count, count / units, concepts))
    return pd.DataFrame(rows, columns=["layer", "category", "units", "detectors", "share", "concepts"])


def _best(
    shares: NDArray[np.float64], names: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[np.float64], NDArray[np.int64]]:
    """Return name, value and index of the greatest of `shares` [unit, concept]; "" and 0 where none is above 0."""
    if shares.shape[1] == 0:
        return (
            np.full(len(shares), "", dtype=object),
            np.zeros(len(shares)),
            np.zeros(len(shares), dtype=np.int64),
        )
    where = shares.argmax(1)
    best = np.take_along_axis(shares, where[:, None], 1)[:, 0]
    return np.where(best > 0, names[where], ""), best, where
