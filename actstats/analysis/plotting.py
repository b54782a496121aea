"""Plots of results: numbers by layer, spectra, clean against noisy; written to a file, never shown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from actstats.analysis.spectra import per_coefficient
from actstats.analysis.tables import by_layer, columns_of
from actstats.errors import ActstatsError
from actstats.support import require_extra

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS: Final = (".png", ".svg", ".pdf")
COLOURS: Final = {"S": "#1b5dbd", "R": "#c45000"}
"""Blue for the standard network and orange for the robust one, in every plot; both can be read as text on white."""
_MARKS: Final = (("unit", "#767676", "o"), ("outlier: its change stands out in its layer", "#a3005c", "x"))
"""What stands for a unit on clean against noisy images, and for an outlier: neither network's colour."""


@dataclass(frozen=True)
class Style:
    """How large plots are, in inches, and how fine.

    Attributes:
        column: width of a plot whose panels lie one above the other.
        page: width of one with panels side by side, where five fit.
        height: factor of a panel's height.
        text: size of text, in points.
        dpi: of a PNG.
    """

    column: float
    page: float
    height: float
    text: float
    dpi: int


STYLES: Final = {"screen": Style(7, 11, 1, 10, 100), "paper": Style(3.25, 6.75, 0.72, 8, 300)}
"""`screen`, and `paper` for the column and the page of a conference paper."""
_style: ContextVar[Style] = ContextVar("style", default=STYLES["screen"])


@contextmanager
def styled(name: str) -> Iterator[None]:
    """Draw what is drawn inside in one of `STYLES`; text in PDF files stays text.

    Raises:
        ActstatsError: no matplotlib.
    """
    matplotlib = require_extra("matplotlib", "analysis", "--plot")
    style = STYLES[name]
    before = _style.set(style)
    sizes = {"font.size": style.text, "savefig.dpi": style.dpi, "pdf.fonttype": 42}
    lines = (
        {"lines.linewidth": 1.0, "lines.markersize": 4.0, "axes.linewidth": 0.6} if name == "paper" else {}
    )
    try:
        with matplotlib.rc_context(sizes | lines):
            yield
    finally:
        _style.reset(before)


def draw_layers(found: Mapping[str, xr.Dataset], numbers: Sequence[str], path: str | Path) -> None:
    """Draw numbers over the layers in their order, one panel a number, one line a result.

    A line is the median of a layer's units, its band goes from the 10th to the 90th percentile; of a bool number the
    line is how many units hold it. A number that is the same everywhere gets no panel but a line of text.

    Raises:
        ActstatsError: a file that cannot be written, or no matplotlib.
    """
    tables = {name: by_layer(result) for name, result in found.items()}
    first = next(iter(tables.values()))
    columns = columns_of(first, numbers)
    same = {
        column: value for column in columns if (value := _only_value(tables.values(), column)) is not None
    }
    columns = [column for column in columns if column not in same] or columns
    colours = dict(zip(tables, COLOURS.values(), strict=False))
    figure, panels = _panels(len(columns), 2.2, sharex=True)
    for axes, column in zip(panels, columns, strict=True):
        for name, table in tables.items():
            places = np.arange(len(table))
            if f"{column}_median" in table:
                low, high = table[f"{column}_p10"], table[f"{column}_p90"]
                axes.fill_between(
                    places, low, high, color=colours[name], alpha=0.2, linewidth=0,
                    label=f"{name}, 10 % to 90 % of units",
                )  # fmt: skip
                axes.plot(
                    places,
                    table[f"{column}_median"],
                    marker=".",
                    color=colours[name],
                    label=f"{name}, median",
                )
            else:
                axes.plot(
                    places, table[column], marker=".", color=colours[name], label=f"{name}, number of units"
                )
        axes.set_ylabel(_axis(next(iter(found.values())), str(column)))
    _name_layers(panels[-1], first["layer"].tolist())
    # Each kind of line once, whatever panel it is in.
    labelled = {
        label: handle
        for axes in panels
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        list(labelled.values()),
        list(labelled),
        frameon=False,
        loc="outside upper center",
        ncols=min(2, len(labelled)),
    )
    if same and len(columns) + len(same) > len(panels):
        text = ", ".join(f"{column} is {value:g}" for column, value in same.items())
        figure.supxlabel(f"in every layer, and for nearly all units: {text}", fontsize="small")
    _save(figure, path)


def _only_value(tables: Iterable[pd.DataFrame], column: str) -> float | None:
    """Return the value of a number if it is the same in all layers, for 80 % of units or more; else None."""
    names = [column, *(f"{column}_{end}" for end in ("median", "p10", "p90"))]
    values = {
        float(value)
        for table in tables
        for name in (names[1:] if names[1] in table else names[:1])
        for value in table[name].dropna()
    }
    return values.pop() if len(values) == 1 else None


def draw_spectra(found: Mapping[str, xr.Dataset], numbers: Sequence[str], path: str | Path) -> None:
    """Draw the power of one Fourier coefficient over frequency, log-log: a panel a layer, a line a result.

    A line is the mean over a layer's units of the share of power in a radial bin, divided by the number of
    coefficients in it, so that white noise is flat; without DC, at the bins that the maps resolve. All panels have
    the same axes. `numbers` changes nothing.

    Raises:
        ActstatsError: a file that cannot be written, or no matplotlib.
    """
    curves = {name: _layer_curves(result) for name, result in found.items()}
    layers = list(dict.fromkeys(layer for curve in curves.values() for layer in curve))
    figure, panels = _panels(len(layers), 2.2, columns=min(5, len(layers)), sharex=True, sharey=True)
    for axes, layer in zip(panels, layers, strict=True):
        for (name, curve), colour in zip(curves.items(), COLOURS.values(), strict=False):
            if layer in curve:
                axes.plot(*curve[layer], marker=".", markersize=3, linewidth=1, color=colour, label=name)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"1/{1 / value:.0f}")
        axes.set_yscale("log", nonpositive="mask")
        axes.set_title(str(layer), fontsize="small")
        axes.tick_params(labelsize="x-small")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside upper center", ncols=len(labels) or 1)
    figure.supxlabel("spatial frequency (cycles per pixel of the map)")
    figure.supylabel("share of power of one coefficient")
    _save(figure, path)


def _layer_curves(found: xr.Dataset) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Return frequencies and the mean share of power of a coefficient of each layer that resolves any."""
    density, frequency = (values.values for values in per_coefficient(found))
    layers = found["layer"].values
    curves = {}
    for layer in dict.fromkeys(layers.tolist()):
        # A dead unit has no spectrum. The maps of a layer are of one size, and so resolve the same rings.
        alive = np.flatnonzero(np.asarray(layers == layer) & np.isfinite(density).any(1))
        if len(alive):
            mean = density[alive].mean(0)
            kept = np.isfinite(mean)
            curves[str(layer)] = frequency[alive[0]][kept], mean[kept]
    return curves


def draw_similarity(found: xr.Dataset, path: str | Path) -> None:
    """Draw a heat map of layers by layers for each measure of `similarity`, with lines between the networks.

    Raises:
        ActstatsError: a file that cannot be written, or no matplotlib.
    """
    names = [str(name) for name in found]
    figure, panels = _panels(len(names), 5.0)
    networks = found["network"].values.tolist()
    several = len(set(networks)) > 1
    labels = [
        f"{network} {layer}" if several else str(layer)
        for network, layer in zip(networks, found["layer"].values.tolist(), strict=True)
    ]
    for axes, name in zip(panels, names, strict=True):
        image = axes.imshow(found[name].values, vmin=0, vmax=1, cmap="viridis")
        _name_layers(axes, labels)
        places = range(0, len(labels), -(-len(labels) // 30))
        axes.set_yticks(list(places), [labels[at] for at in places], fontsize="x-small")
        for at in range(1, len(networks)):
            if networks[at] != networks[at - 1]:
                axes.axhline(at - 0.5, color="white", linewidth=1)
                axes.axvline(at - 0.5, color="white", linewidth=1)
        figure.colorbar(image, ax=axes, label=str(found[name].attrs.get("long_name", name)))
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
        for marked, (label, style, sign) in enumerate(_MARKS):
            some = units[units["outlier"] == bool(marked)]
            axes.scatter(some["clean"], some["noisy"], s=10, color=style, marker=sign, label=label)
        end = float(np.nanmax(units[["clean", "noisy"]].to_numpy(), initial=0)) or 1.0
        axes.plot([0, end], [0, end], color="grey", linewidth=0.8, zorder=0, label="no change")
        axes.set_title(str(layer), fontsize="small")
        axes.tick_params(labelsize="x-small")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside upper center", ncols=len(labels))
    figure.supxlabel("total variation, clean")
    figure.supylabel("total variation, noisy")
    _save(figure, path)


def _panels(count: int, height: float, *, columns: int = 1, **options: Any) -> tuple[Figure, list[Axes]]:
    """Return a figure outside of pyplot, which needs no display, and `count` axes in it."""
    figure_class = require_extra("matplotlib.figure", "analysis", "--plot").Figure
    rows, style = -(-count // columns), _style.get()
    width = style.column if columns == 1 else style.page * max(columns, 2) / 5
    figure = figure_class(figsize=(width, height * style.height * rows), layout="constrained")
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
    axes.set_xticks(list(places), [layers[at] for at in places], rotation=90, fontsize="x-small")


def _save(figure: Figure, path: str | Path) -> None:
    try:
        figure.savefig(path, bbox_inches="tight" if _style.get() is STYLES["screen"] else None)
    except OSError as error:
        raise ActstatsError(f"cannot write {path}: {error.strerror or error}") from error
