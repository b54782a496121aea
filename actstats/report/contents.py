"""What the page's script reads: the overview of all units, and one part for each layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from actstats.layers.receptive import ReceptiveField
from actstats.report.measures import Measure
from actstats.report.parts import pack, shortened
from actstats.report.pictures import Pictures
from actstats.report.sides import Side, histogram_edges_shown
from actstats_kernels.bins import frequencies


def overview_part(
    title: str,
    names: Sequence[str],
    manifest: dict[str, Any],
    classes: Sequence[str],
    measures: Sequence[Measure],
    measured: Sequence[xr.Dataset],
    fields: dict[str, ReceptiveField],
    pictures: Pictures,
    kept: Sequence[bool],
) -> str:
    """Return the part `overview`: stores, layers, measures of every unit, and which image each picture is."""
    crop = int(manifest["preprocessing"]["crop"])
    layers, start = [], 0
    for entry in manifest["layers"]:
        layer = {key: entry[key] for key in ("name", "units", "height", "width")}
        layers.append({**layer, "start": start, "field": _shares(fields.get(entry["name"]), crop)})
        start += entry["units"]
    content = {
        "title": title,
        "stores": [{"name": name} for name in names],
        "units": start,
        "crop": crop,
        "layers": layers,
        "measures": [
            {"key": measure.key, "name": measure.name, "unit": measure.unit, "about": measure.about}
            for measure in measures
        ],
        "classes": list(classes),
        "frequency": frequencies().tolist(),
        "histogram": histogram_edges_shown().tolist(),
        "pictures": {"paths": pictures.paths, "kept": [int(has) for has in kept]},
    }
    arrays: dict[str, NDArray[Any]] = {
        f"{measure.key}:{store}": shortened(units[measure.key].values)
        for store, units in enumerate(measured)
        for measure in measures
    }
    return pack(content, {**arrays, "picture:label": pictures.labels})


def layer_parts(
    manifest: dict[str, Any], sides: Sequence[Side], numbers: Sequence[NDArray[np.int32] | None]
) -> Iterator[tuple[str, str]]:
    """Yield name and text of a part for each layer: top images, spectra, histograms and classes of its units.

    `numbers` are the pictures' numbers of each side's top images, i4 [unit, rank].
    """
    start = 0
    for index, entry in enumerate(manifest["layers"]):
        units = slice(start, start + entry["units"])
        start = units.stop
        arrays: dict[str, NDArray[Any]] = {}
        content: dict[str, Any] = {"ranks": [], "classes": [], "others": []}
        for store, (side, pictures) in enumerate(zip(sides, numbers, strict=True)):
            arrays |= {f"{name}:{store}": values for name, values in _of_units(side, pictures, units).items()}
            content["ranks"].append(0 if pictures is None else pictures.shape[1])
            content["classes"].append(0 if side.profile is None else side.profile.label.shape[1])
            content["others"].append(0 if side.profile is None else side.profile.others)
        yield f"layer-{index}", pack(content, arrays)


def _of_units(side: Side, pictures: NDArray[np.int32] | None, units: slice) -> dict[str, NDArray[Any]]:
    found: dict[str, NDArray[Any]] = {}
    if side.top is not None and pictures is not None:
        value, _, position = side.top
        found |= {
            "picture": pictures[units],
            "position": position[units],
            "value": shortened(value[units], 12),
        }
    if side.spectrum is not None:
        power = side.spectrum[units]
        found |= {"spectrum": shortened(power), "mean-spectrum": _mean_share(power, side.coefficients[units])}
    if side.histogram is not None:
        found["histogram"] = shortened(side.histogram[units], 8)
    if side.profile is not None:
        profile = side.profile
        found |= {"class": profile.label[units], "class-mean": shortened(profile.mean[units])}
        found["class-rest"] = shortened(profile.rest[units])
    return found


def _mean_share(power: NDArray[np.float32], coefficients: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the mean over units of a coefficient's share of the unit's power, DC apart, [frequency].

    Units without any power are left out.
    """
    varying = np.nansum((power * coefficients)[:, 1:], 1, keepdims=True)
    active = varying[:, 0] > 0
    if not active.any():
        return np.full(power.shape[1], np.nan, dtype=np.float32)
    return np.asarray((power[active] / varying[active]).mean(0), dtype=np.float32)


def _shares(field: ReceptiveField | None, crop: int) -> dict[str, list[float]] | None:
    """Return a receptive field's edges as shares of the input's side, the last pixel's far edge."""
    if field is None:
        return None
    edges = {"top": field.top, "bottom": field.bottom + 1, "left": field.left, "right": field.right + 1}
    return {name: np.round(values / crop, 4).tolist() for name, values in edges.items()}
