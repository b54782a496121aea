"""Compare a standard and a robust network, S and R: four sweeps, a table of differences by layer, and plots."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from actstats.analysis import compare_units, kernel_smoothness, noise, selectivity, smoothness, spectrum
from actstats.analysis.measures import MEASURES
from actstats.analysis.plotting import COLOURS
from actstats.data import Source, open_source
from actstats.models import Loaded
from actstats.passes.images import Progress
from actstats.store import open_dataset
from actstats.sweeping.planning import plan
from actstats.sweeping.progress import Started, Summary
from actstats.sweeping.together import sweep_together

_NAMES = {measure.key: measure.name for measure in MEASURES}
COMPARED: Final = {
    "kernels": f"{_NAMES['roughness']} of the first kernels",
    "kernels_tv": f"{_NAMES['total_variation']} of the first kernels",
    "roughness": f"{_NAMES['roughness']} of the activations",
    "total_variation": f"{_NAMES['total_variation']} of the activations",
    "noisy_roughness": f"{_NAMES['roughness']} under noise",
    "noisy_total_variation": f"{_NAMES['total_variation']} under noise",
    "relative_map_change": f"{_NAMES['relative_map_change']}",
    "relative_change": f"{_NAMES['relative_change']}",
    "centroid": f"{_NAMES['centroid']}, cycles/pixel",
    "top_classes": f"{_NAMES['top_classes']}",
}
"""Display names of the compared measures, in the order of the table."""
_RESAMPLES: Final = 400
_SIDE, _GAP, _HEAD = 42, 6, 28
_SHOWN: Final = ("roughness", "noisy_roughness", "relative_map_change", "centroid")


@dataclass(frozen=True)
class Stores:
    """Paths of the four sweeps."""

    standard: Path
    robust: Path
    standard_noisy: Path
    robust_noisy: Path

    @classmethod
    def within(cls, folder: Path) -> Stores:
        """Return the paths of the stores in `folder`."""
        return cls(*(folder / f"{name}.zarr" for name in ("s", "r", "s-noisy", "r-noisy")))

    @property
    def clean(self) -> tuple[Path, Path]:
        """S and R on the clean images."""
        return self.standard, self.robust

    @property
    def noisy(self) -> tuple[Path, Path]:
        """S and R on the noisy images."""
        return self.standard_noisy, self.robust_noisy

    def opened(self, noisy: bool = False) -> tuple[xr.Dataset, xr.Dataset]:
        """Open the datasets of S and R lazily."""
        first, second = (open_dataset(path) for path in (self.noisy if noisy else self.clean))
        return first, second


def sweep_pair(
    standard: Loaded,
    robust: Loaded,
    images: str | Path | Source,
    folder: Path,
    *,
    noise: float = 0.1,
    layers: Sequence[str] = ("paper",),
    limit: int | None = None,
    device: str = "auto",
    overwrite: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    on_start: Callable[[Started], None] | None = None,
) -> tuple[Stores, list[Summary]]:
    """Sweep both networks over the images, clean and with noise of standard deviation `noise`, into `folder`.

    Images are decoded once, in a single pass, and both networks see the same noise, whose maps are compared with the
    clean ones. Complete sweeps are not repeated.

    Raises:
        ActstatsError: see `sweep_together`.
    """
    stores = Stores.within(folder)
    source = open_source(images, limit=limit)
    clean = [
        plan(loaded, source, place, layers=layers, device=device)
        for loaded, place in zip((standard, robust), stores.clean, strict=True)
    ]
    noisy = [of.changed(f"noise:{noise:g}", place) for of, place in zip(clean, stores.noisy, strict=True)]
    summaries = sweep_together(
        [*clean, *noisy], device=device, overwrite=overwrite, on_progress=on_progress, on_start=on_start
    )
    return stores, summaries


def units_of(stores: Stores) -> tuple[xr.Dataset, xr.Dataset]:
    """Return the measures of the units of S and of R, f64 [unit] each, loaded into memory."""
    found = []
    for clean, noisy in zip(stores.opened(), stores.opened(noisy=True), strict=True):
        calm, rough, changed = smoothness(clean), smoothness(noisy), noise(clean, noisy)
        variables = {
            "roughness": calm["roughness"],
            "total_variation": calm["total_variation"],
            "noisy_roughness": rough["roughness"],
            "noisy_total_variation": rough["total_variation"],
            "relative_map_change": changed["relative_map_change"],
            "relative_change": changed["relative_change"],
            "centroid": spectrum(clean)["centroid"],
            "top_classes": selectivity(clean)["top_classes"],
        }
        found.append(xr.Dataset(variables).astype(float).compute())
    return found[0], found[1]


def kernels_of(model: nn.Module) -> xr.Dataset:
    """Return the roughness and total variation of all filters with kernels larger than 1 x 1, f64 [unit]."""
    found = kernel_smoothness(model)
    found = found.isel(unit=np.flatnonzero(found["roughness"].notnull()))
    return found[["roughness", "total_variation"]].rename(roughness="kernels", total_variation="kernels_tv")


def compare_layers(standard: xr.Dataset, robust: xr.Dataset) -> pd.DataFrame:
    """Compare all variables with `compare_units`, with one row per variable and layer."""
    return compare_units(standard, robust, resamples=_RESAMPLES)


def compare_pair(stores: Stores, standard: nn.Module, robust: nn.Module) -> pd.DataFrame:
    """Return the table by layer of all measures in `COMPARED`, as from `compare_units`.

    The kernels are those of the first convolution only.

    Raises:
        ActstatsError: the sweeps lack a metric that an analysis needs.
    """
    first = tuple(first_kernels_of(model) for model in (standard, robust))
    return pd.concat([compare_layers(*first), compare_layers(*units_of(stores))], ignore_index=True)


def first_kernels_of(model: nn.Module) -> xr.Dataset:
    """Return what `kernels_of` does, of the first convolution only."""
    found = kernels_of(model)
    return found.isel(unit=found["layer"].values == found["layer"].values[0])


def kernel_sheet(standard: nn.Module, robust: nn.Module) -> Image.Image:
    """Draw the kernels of the first convolution of both networks as an RGB image, S on the left.

    Each kernel is scaled by its largest absolute weight, with 0 in mid-grey, to show its shape rather than its size.
    """
    halves = [_first_kernels(model) for model in (standard, robust)]
    across = math.ceil(math.sqrt(len(halves[0])))
    width = across * (_SIDE + _GAP) + _GAP
    down = math.ceil(len(halves[0]) / across)
    sheet = Image.new("RGB", (2 * width + 2 * _GAP, _HEAD + down * (_SIDE + _GAP) + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (name, kernels) in enumerate(zip("SR", halves, strict=True)):
        left = number * (width + 2 * _GAP)
        draw.text((left + _GAP, _GAP), name, "#1a1a1a", ImageFont.load_default(16))
        for at, kernel in enumerate(kernels):
            row, column = divmod(at, across)
            tile = Image.fromarray(kernel).resize((_SIDE, _SIDE), Image.Resampling.NEAREST)
            sheet.paste(tile, (left + _GAP + column * (_SIDE + _GAP), _HEAD + row * (_SIDE + _GAP)))
    return sheet


def draw_layers(table: pd.DataFrame, file: Path) -> None:
    """Plot the mean of some measures over the units of each layer, for S and R, to `file`, .png or .svg.

    `table` is from `compare_pair`. The band is the 95 % interval of the difference, added to S.
    """
    figure = Figure(figsize=(9, 5.6), layout="constrained")
    for axes, name in zip(figure.subplots(2, 2).flat, _SHOWN, strict=True):
        rows = table[table["variable"] == name]
        places = np.arange(len(rows))
        for network in "SR":
            axes.plot(
                places,
                rows[f"mean_{network.lower()}"],
                marker="o",
                ms=3,
                label=f"{network}, mean of the layer's units",
                color=COLOURS[network],
            )
        low, high = (rows["mean_s"] + rows[f"difference_{end}"] for end in ("low", "high"))
        label = "S + the 95 % interval of R - S"
        axes.fill_between(places, low, high, color=COLOURS["R"], alpha=0.2, lw=0, label=label)
        axes.set_title(COMPARED[name], fontsize=10)
        axes.set_xticks(places, rows["layer"], rotation=60, ha="right", fontsize=7)
        axes.grid(alpha=0.3)
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False
    )
    figure.savefig(file, dpi=150)


def _first_kernels(model: nn.Module) -> list[NDArray[np.uint8]]:
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    weights: NDArray[Any] = first.weight.detach().float().cpu().numpy().transpose(0, 2, 3, 1)
    greatest = np.abs(weights).max((1, 2, 3), keepdims=True)
    scaled = 127.5 + 127.5 * weights / np.where(greatest > 0, greatest, 1)
    return list(scaled.round().astype(np.uint8))
