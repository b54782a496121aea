"""From the counts of a network dissection to what each unit detects, and how many detectors a layer has.

>>> import xarray as xr
>>> counts = xr.Dataset(
...     {
...         "intersection": (("unit", "concept"), [[30, 5]]),
...         "active": (("unit", "category"), [[40, 20]]),
...         "area": ("concept", [90, 50]),
...     },
...     coords={
...         "category": ["colour", "object"],
...         "concept_category": ("concept", ["colour", "object"]),
...         "name": ("concept", ["red", "cat"]),
...         "layer": ("unit", ["conv1"]),
...         "channel": ("unit", [0]),
...     },
... )
>>> iou(counts).values.round(3).tolist()
[[0.3, 0.077]]
>>> dissection(counts)[["concept_name", "iou", "detects"]].isel(unit=0).to_pandas().tolist()
['red', 0.3, True]
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from actstats.errors import ActstatsError
from actstats.probing.dissect import LEAST_IOU


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
            concepts = len(set(found["concept_name"].values[chosen]))
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
