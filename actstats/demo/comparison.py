"""What a robust network's units have less of: the numbers of a pair, layer by layer and all together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
import xarray as xr
from torch import nn

from actstats.analysis import compare_units, kernel_smoothness, noise, selectivity, smoothness, spectrum
from actstats.demo.sweeping import Stores

MEASURES: Final = {
    "kernels": "roughness of the first kernels",
    "kernels_tv": "total variation of the first kernels",
    "roughness": "roughness of the activations",
    "total_variation": "total variation of the activations",
    "noisy_roughness": "roughness under noise",
    "noisy_total_variation": "total variation under noise",
    "relative_change": "rise of total variation by noise",
    "centroid": "spectral centroid, cycles/pixel",
    "top_classes": "distinct classes among the top images",
}
"""What is measured, in the order of the table, and how it is called."""
_RESAMPLES: Final = 400


@dataclass(frozen=True)
class Row:
    """One measure of both networks.

    `standard` and `robust` are medians over all units; `delta` is Cliff's delta of R against S with the `low` and
    `high` end of its 95 % bootstrap interval over units. In `lower` and `higher` of `layers` layers R lies lower
    and higher, by an interval that leaves out 0.
    """

    measure: str
    standard: float
    robust: float
    delta: float
    low: float
    high: float
    lower: int
    higher: int
    layers: int


def units_of(stores: Stores) -> tuple[xr.Dataset, xr.Dataset]:
    """Return every number that a unit of S and of R has by itself, in memory, f64 [unit]."""
    found = []
    for clean, noisy in zip(stores.opened(), stores.opened(noisy=True), strict=True):
        calm, rough = smoothness(clean), smoothness(noisy)
        variables = {
            "roughness": calm["roughness"],
            "total_variation": calm["total_variation"],
            "noisy_roughness": rough["roughness"],
            "noisy_total_variation": rough["total_variation"],
            "relative_change": noise(clean, noisy)["relative_change"],
            "centroid": spectrum(clean)["centroid"],
            "top_classes": selectivity(clean)["top_classes"],
        }
        found.append(xr.Dataset(variables).astype(float).compute())
    return found[0], found[1]


def kernels_of(model: nn.Module) -> xr.Dataset:
    """Return roughness and total variation of every filter with kernels larger than 1 x 1, f64 [unit]."""
    found = kernel_smoothness(model)
    found = found.isel(unit=np.flatnonzero(found["roughness"].notnull()))
    return found[["roughness", "total_variation"]].rename(roughness="kernels", total_variation="kernels_tv")


def compare_layers(standard: xr.Dataset, robust: xr.Dataset) -> pd.DataFrame:
    """Return `compare_units` of all numbers, a row for each measure and layer."""
    return compare_units(standard, robust, resamples=_RESAMPLES)


def compare_pair(stores: Stores, standard: nn.Module, robust: nn.Module) -> tuple[list[Row], pd.DataFrame]:
    """Return the table of a pair, in the order of `MEASURES`, and `compare_layers` of all that it is made of.

    Raises:
        ActstatsError: as the analyses, for sweeps that lack what they need.
    """
    kernels = tuple(kernels_of(model) for model in (standard, robust))
    first = kernels[0]["layer"].values[0]
    parts = [
        tuple(found.isel(unit=found["layer"].values == first) for found in kernels),
        units_of(stores),
    ]
    rows: list[Row] = []
    tables = []
    for part in parts:
        layers, whole = compare_layers(*part), compare_layers(*(_as_one_layer(found) for found in part))
        tables.append(layers)
        rows += [
            _row(str(name), part, whole, layers[layers["variable"] == name]) for name in part[0].data_vars
        ]
    return rows, pd.concat(tables, ignore_index=True)


def _row(name: str, pair: tuple[xr.Dataset, ...], whole: pd.DataFrame, layers: pd.DataFrame) -> Row:
    standard, robust = (float(np.nanmedian(found[name])) for found in pair)
    of_all = whole[whole["variable"] == name].iloc[0]
    return Row(
        measure=MEASURES[name],
        standard=standard,
        robust=robust,
        delta=float(of_all["cliffs_delta"]),
        low=float(of_all["delta_low"]),
        high=float(of_all["delta_high"]),
        lower=int((layers["delta_high"] < 0).sum()),
        higher=int((layers["delta_low"] > 0).sum()),
        layers=int(layers["delta_low"].notnull().sum()),
    )


def _as_one_layer(found: xr.Dataset) -> xr.Dataset:
    return found.assign_coords(layer=("unit", np.full(found.sizes["unit"], "all", dtype=object)))
