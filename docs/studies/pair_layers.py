"""The pair layer by layer: tables and figures of all statistics of its units."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from markdown_table import table

from actstats.analysis import (
    compare_units,
    noise,
    noise_by_layer,
    quantiles,
    selectivity,
    spectrum,
)
from actstats.demo.pair import (
    COMPARED,
    Stores,
    compare_layers,
    compare_pair,
    draw_layers,
    first_kernels_of,
    kernel_sheet,
    kernels_of,
    units_of,
)
from actstats.models import Loaded
from actstats.probing.inputs import input_change
from actstats.report.verdicts import SMALLEST_EFFECT, count_layers

BY_LAYER = {
    "total_variation": "Total variation of the activations, clean",
    "noisy_total_variation": "Total variation of the activations, with noise",
    "relative_map_change": "Change of the maps by noise",
    "relative_change": "Rise of total variation by noise",
    "roughness": "Roughness of the activations, clean",
    "noisy_roughness": "Roughness of the activations, with noise",
    "centroid": "Spectral centroid, clean, cycles/pixel",
}
COUNTED = f"the layers in which |delta| is at least {SMALLEST_EFFECT} and its 95 % interval excludes 0"
MORE = {
    "selectivity": "class selectivity index",
    "top_entropy": "entropy of the classes of the top images, bit",
    "high_share": "share of the power above half Nyquist",
    "slope": "slope of the power spectrum",
    "sparsity": "share of activations at zero",
}


def write(stores: Stores, pair: Mapping[str, Loaded], into: Path) -> None:
    """Write `pair.tables`, `pair-layers.png` and `pair-kernels.png`."""
    models = [loaded.model.cpu() for loaded in pair.values()]
    layers = compare_pair(stores, *models)
    rows = [
        *_of_all_units(tuple(map(first_kernels_of, models)), layers),
        *_of_all_units(units_of(stores), layers),
    ]
    kernels = compare_layers(*(kernels_of(model) for model in models))
    images = stores.opened()[0].sizes["image"]
    lines = [*_lines(images, rows, layers, kernels), *_more(stores), *_noise(stores)]
    (into / "pair.tables").write_text("\n".join(lines) + "\n")
    draw_layers(layers, into / "pair-layers.png")
    kernel_sheet(*models).save(into / "pair-kernels.png")


@dataclass(frozen=True)
class Row:
    """Comparison of both networks by one measure.

    Attributes:
        measure: name of the measure.
        standard: median over all units of S.
        robust: median over all units of R.
        delta: Cliff's delta of R against S, over all units together. The report's is the median over layers.
        low: lower end of the 95 % bootstrap interval of `delta` over units.
        high: upper end of that interval.
        lower: number of layers in which R is lower, as counted by `report.verdicts.count_layers`.
        higher: number of layers in which R is higher.
        layers: number of layers compared.
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


def _of_all_units(pair: tuple[xr.Dataset, ...], layers: pd.DataFrame) -> Iterator[Row]:
    """Yield a row for each measure of the units; `layers` is the table by layer."""
    whole = compare_layers(
        *(units.assign_coords(layer=("unit", np.full(units.sizes["unit"], "all", object))) for units in pair)
    ).set_index("variable")
    for name in map(str, pair[0].data_vars):
        of_all = whole.loc[name]
        lower, neither, higher = count_layers(layers[layers["variable"] == name])
        yield Row(
            COMPARED[name],
            *(float(np.nanmedian(units[name])) for units in pair),
            *(float(of_all[column]) for column in ("cliffs_delta", "delta_low", "delta_high")),
            *(lower, higher, lower + neither + higher),
        )


def _more(stores: Stores) -> Iterator[str]:
    """Yield the table of the remaining measures: selectivity, spectra, sparsity."""
    found = []
    for dataset in stores.opened():
        parts = (spectrum(dataset), selectivity(dataset), quantiles(dataset, 0.995))
        merged = {name: part[name] for name in MORE for part in parts if name in part}
        dead = int(parts[2]["dead"].sum())
        found.append((xr.Dataset(merged).astype(float).compute(), dead))
    (standard, dead_s), (robust, dead_r) = found
    compared = compare_units(standard, robust, resamples=400)
    rows: list[tuple[object, ...]] = []
    for name, title in MORE.items():
        here = compared[compared["variable"] == name]
        lower, neither, higher = count_layers(here)
        layers = lower + neither + higher
        medians = [float(np.nanmedian(part[name])) for part in (standard, robust)]
        rows.append((title, *medians, f"{lower} of {layers}", f"{higher} of {layers}"))
    rows.append(("units that are dead, a count", dead_s, dead_r, "", ""))
    yield from table(
        f"**More of the units**: medians, and {COUNTED}.",
        ("measure", "S", "R", "R lower in", "R higher in"),
        rows,
    )


def _noise(stores: Stores) -> Iterator[str]:
    """Yield the table of outliers by the paper's rule, and of how much noise changes the maps of each layer."""
    tables = []
    (standard, _), pairs = stores.opened(), zip(stores.opened(), stores.opened(noisy=True), strict=True)
    for clean, noisy in pairs:
        found = noise(clean, noisy, reference=standard)
        tables.append(noise_by_layer(found, input_change=input_change(clean, noisy)))
    yield from table(
        "**Noise**: outliers, the units whose total variation changes by a fifth of the layer's mean in S or more; "
        "the mean square of the maps' change over the variance of the clean maps, a median over units; and the share "
        "of the images' own change, likewise relative to their variance, that does not arrive.",
        ("layer", "units", "outliers S", "R", "change S", "R", "blocked S", "R"),
        (
            (
                *(s.layer, s.units, s.outliers, r.outliers),
                *(s.relative_map_change, r.relative_map_change, s.blocked, r.blocked),
            )
            for s, r in zip(*(found.itertuples() for found in tables), strict=True)
        ),
    )


def _lines(images: int, rows: list[Row], layers: pd.DataFrame, kernels: pd.DataFrame) -> Iterator[str]:
    yield from table(
        f"**All layers together**, {images} images: medians over units, Cliff's delta of R against S over all units, "
        f"and {COUNTED}.",
        ("measure", "S", "R", "delta, 95 % interval", "R lower in", "R higher in"),
        (
            (
                row.measure,
                row.standard,
                row.robust,
                f"{row.delta:+.2f} ({row.low:+.2f} to {row.high:+.2f})",
                f"{row.lower} of {row.layers}",
                f"{row.higher} of {row.layers}",
            )
            for row in rows
        ),
    )
    for name, title in BY_LAYER.items():
        yield from _by_layer(title, layers[layers["variable"] == name])
    for name, title in (
        ("kernels_tv", "Total variation of the kernels"),
        ("kernels", "Roughness of the kernels"),
    ):
        found = kernels[kernels["variable"] == name]
        yield from _by_layer(f"{title}, every convolution larger than 1 x 1", found)


def _by_layer(title: str, found: pd.DataFrame) -> Iterator[str]:
    rows = []
    for row in found.itertuples():
        difference = f"{row.difference:+.3g} ({row.difference_low:+.3g} to {row.difference_high:+.3g})"
        delta = f"{row.cliffs_delta:+.2f} ({row.delta_low:+.2f} to {row.delta_high:+.2f})"
        decided = "**" if np.sign(row.delta_low) == np.sign(row.delta_high) else ""
        rows.append(
            (row.layer, row.units_s, row.mean_s, row.mean_r, difference, f"{decided}{delta}{decided}")
        )
    columns = ("layer", "units", "S", "R", "R - S, 95 % interval", "delta, 95 % interval")
    yield from table(f"**{title}**: means over units.", columns, rows)
