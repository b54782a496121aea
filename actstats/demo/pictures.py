"""Pictures of a pair: the first kernels of S and R side by side, and what changes from layer to layer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from actstats.demo.comparison import MEASURES

_SIDE, _GAP, _HEAD = 42, 6, 28
_SHOWN: Final = ("roughness", "noisy_roughness", "relative_change", "centroid")
_COLOURS: Final = {"S": "#c2571a", "R": "#00756b"}


def kernel_sheet(standard: nn.Module, robust: nn.Module) -> Image.Image:
    """Return the kernels of both networks' first convolutions, S on the left, RGB.

    Each kernel is scaled by its own greatest weight, 0 in mid-grey, so that its shape shows and not its size.
    """
    halves = [_kernels(model) for model in (standard, robust)]
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
    """Draw the mean over each layer's units of some measures of S and R into `file`, .png or .svg.

    `table` is that of `compare_pair`. The band is the difference's 95 % interval, laid around R.
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
                label=network,
                color=_COLOURS[network],
            )
        low, high = (rows["mean_s"] + rows[f"difference_{end}"] for end in ("low", "high"))
        axes.fill_between(places, low, high, color=_COLOURS["R"], alpha=0.2, lw=0)
        axes.set_title(MEASURES[name], fontsize=10)
        axes.set_xticks(places, rows["layer"], rotation=60, ha="right", fontsize=7)
        axes.grid(alpha=0.3)
    figure.axes[0].legend(frameon=False)
    figure.savefig(file, dpi=150)


def _kernels(model: nn.Module) -> list[NDArray[np.uint8]]:
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    weights: NDArray[Any] = first.weight.detach().float().cpu().numpy().transpose(0, 2, 3, 1)
    greatest = np.abs(weights).max((1, 2, 3), keepdims=True)
    scaled = 127.5 + 127.5 * weights / np.where(greatest > 0, greatest, 1)
    return list(scaled.round().astype(np.uint8))
