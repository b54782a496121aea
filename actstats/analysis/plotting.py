"""Plots of results: numbers by layer, spectra, clean against noisy; written to a file, never shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import xarray as xr

from actstats.analysis.tables import by_layer, columns_of
from actstats.errors import ActstatsError
from actstats.support import require_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS: Final = (".png", ".svg", ".pdf")
COLOURS: Final = {"S": "#1b5dbd", "R": "#c45000"}
"""Blue for the standard network and orange for the robust one, in every plot; both can be read as text on white."""


def draw_layers(found: Mapping[str, xr.Dataset], numbers: Sequence[str], path: str | Path) -> None:
    """Draw numbers over the layers in their order, one panel a number, one line a result.

    A line is the median of a layer's units, its band goes from the 10th to the 90th percentile; of a bool number the
    line is how many units hold it.

    Raises:
        ActstatsError: a file that cannot be written, or no matplotlib.
    """
    tables = {name: by_layer(result) for name, result in found.items()}
    first = next(iter(tables.values()))
    columns = columns_of(first, numbers)
    figure, panels = _panels(len(columns), 2.2, sharex=True)
    for axes, column in zip(panels, columns, strict=True):
        for name, table in tables.items():
            places = np.arange(len(table))
            if f"{column}_median" in table:
                axes.fill_between(
                    places, table[f"{column}_p10"], table[f"{column}_p90"], alpha=0.2, linewidth=0
                )
                axes.plot(places, table[f"{column}_median"], marker=".", label=name)
            else:
                axes.plot(places, table[column], marker=".", label=name)
        axes.set_ylabel(_axis(next(iter(found.values())), str(column)))
    _name_layers(panels[-1], first["layer"].tolist())
    panels[0].legend(frameon=False)
    _save(figure, path)


def draw_spectra(found: Mapping[str, xr.Dataset], numbers: Sequence[str], path: str | Path) -> None:
    """Draw each layer's share of power over frequency, one panel a result, the layers from light to dark.

    A line is the mean over a layer's units, without DC, at the bins that its maps resolve. `numbers` changes nothing.

    Raises:
        ActstatsError: a file that cannot be written, or no matplotlib.
    """
    figure, panels = _panels(len(found), 3.4, sharex=True)
    for axes, (name, result) in zip(panels, found.items(), strict=True):
        curves = result["share"].groupby("layer").mean()
        layers = list(dict.fromkeys(result["layer"].values.tolist()))
        colours = require_extra("matplotlib", "analysis", "--plot").colormaps["viridis_r"]
        for at, layer in enumerate(layers):
            curve = curves.sel(layer=layer).dropna("frequency")
            label = layer if at in (0, len(layers) - 1) else None
            axes.plot(
                curve["frequency"],
                curve,
                marker=".",
                color=colours(at / max(1, len(layers) - 1)),
                label=label,
            )
        axes.set(title=name, ylabel="share of power", ylim=(0, None))
        axes.legend(frameon=False)
    panels[-1].set_xlabel("cycles a pixel of the map")
    _save(figure, path)


def draw_noise(found: xr.Dataset, path: str | Path) -> None:
    """Draw total variation on noisy against clean images, a point a unit, a panel a layer; outliers are marked.

    Raises:
        ActstatsError: a file that cannot be written, or no matplotlib.
    """
    table = found.load().to_dataframe()
    layers = table["layer"].unique().tolist()
    figure, panels = _panels(len(layers), 2.4, columns=min(5, len(layers)))
    for axes, layer in zip(panels, layers, strict=True):
        units = table[table["layer"] == layer]
        for marked, style in ((False, "C0"), (True, "C3")):
            some = units[units["outlier"] == marked]
            axes.scatter(some["clean"], some["noisy"], s=8, color=style, label="outlier" if marked else None)
        end = float(np.nanmax(units[["clean", "noisy"]].to_numpy(), initial=0)) or 1.0
        axes.plot([0, end], [0, end], color="grey", linewidth=0.8, zorder=0)
        axes.set_title(str(layer), fontsize=8)
        axes.tick_params(labelsize=7)
    figure.supxlabel("total variation, clean")
    figure.supylabel("total variation, noisy")
    _save(figure, path)


def _panels(count: int, height: float, *, columns: int = 1, **options: Any) -> tuple[Figure, list[Axes]]:
    """Return a figure outside of pyplot, which needs no display, and `count` axes in it."""
    figure_class = require_extra("matplotlib.figure", "analysis", "--plot").Figure
    rows = -(-count // columns)
    figure = figure_class(figsize=(7 if columns == 1 else 2.2 * columns, height * rows), layout="constrained")
    panels = np.atleast_1d(figure.subplots(rows, columns, **options)).ravel()
    for spare in panels[count:]:
        spare.remove()
    return figure, list(panels[:count])


def _axis(found: xr.Dataset, column: str) -> str:
    units = found[column.partition("[")[0]].attrs.get("units", "")
    return f"{column} ({units})" if units not in ("", "1") else column


def _name_layers(axes: Axes, layers: Sequence[str], most: int = 30) -> None:
    """Write the layers' names under an axis, every second or third where there are many."""
    places = range(0, len(layers), -(-len(layers) // most))
    axes.set_xticks(list(places), [layers[at] for at in places], rotation=90, fontsize=7)


def _save(figure: Figure, path: str | Path) -> None:
    try:
        figure.savefig(path)
    except OSError as error:
        raise ActstatsError(f"cannot write {path}: {error.strerror or error}") from error
