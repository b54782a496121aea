"""Plot results to a file: variables by layer, spectra, similarity, and clean against noisy."""

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
from actstats.analysis.tables import by_layer, columns_of, counts_of, unit_table
from actstats.errors import ActstatsError
from actstats.support import require_package
from actstats.text import for_plot

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS: Final = (".png", ".svg", ".pdf")
COLOURS: Final = {"S": "#1b5dbd", "R": "#c45000"}
"""Blue for the standard and orange for the robust network in every plot; both are legible as text on white."""
_FURTHER: Final = ("#176a37", "#7b2d8e", "#8a5a00", "#a3005c", "#00687a", "#5a5a5a")
_MARKS: Final = (("unit", "#767676", "o"), ("outlier: its change stands out in its layer", "#a3005c", "x"))
"""Label, colour and marker of units and outliers in the noise plot. The colours differ from those of the networks."""


def colours(count: int) -> list[str]:
    """Return `count` colours: those of S and R, then others that are legible on white; they repeat."""
    known = [*COLOURS.values(), *_FURTHER]
    return [known[at % len(known)] for at in range(count)]


def shades(colour: str, count: int) -> list[str]:
    """Return `count` shades of a colour such as #1b5dbd, from itself to one half-way to white.

    >>> shades("#000000", 3)
    ['#000000', '#404040', '#808080']
    """
    channels = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    shares = [0.5 * at / max(1, count - 1) for at in range(count)]
    return ["#" + "".join(f"{round(c + (255 - c) * share):02x}" for c in channels) for share in shares]


@dataclass(frozen=True)
class Style:
    """Size of plots in inches, size of text, and resolution.

    Attributes:
        column: width of a plot with one column of panels.
        page: width of a plot with five columns of panels.
        height: factor for the height of panels.
        text: size of text, in points.
        dpi: resolution of PNG files.
    """

    column: float
    page: float
    height: float
    text: float
    dpi: int


STYLES: Final = {"screen": Style(7, 11, 1, 10, 100), "paper": Style(3.25, 6.75, 0.85, 8, 300)}
"""`screen`, and `paper` for one column or the page width of a conference paper."""
_style: ContextVar[Style] = ContextVar("style", default=STYLES["screen"])


@contextmanager
def styled(name: str) -> Iterator[None]:
    """Use one of `STYLES` for plots in this context. Text in PDF files is stored as text.

    Raises:
        ActstatsError: matplotlib is not installed.
    """
    matplotlib = require_package("matplotlib", "a plot")
    style = STYLES[name]
    before = _style.set(style)
    sizes = {"font.size": style.text, "savefig.dpi": style.dpi, "pdf.fonttype": 42}
    fine = {
        "lines.linewidth": 1.0,
        "lines.markersize": 4.0,
        "axes.linewidth": 0.6,
        "figure.labelsize": "medium",
        **dict.fromkeys(("axes.labelsize", "legend.fontsize", "xtick.labelsize", "ytick.labelsize"), "small"),
    }
    try:
        with matplotlib.rc_context(sizes | (fine if name == "paper" else {})):
            yield
    finally:
        _style.reset(before)


def draw_layers(found: Mapping[str, xr.Dataset], numbers: Sequence[str], path: str | Path) -> None:
    """Draw variables over the layers in order, with one panel per variable and one line per result.

    A line is the median over a layer's units, with a band from the 10th to the 90th percentile; a panel's title says
    how many units that is if some have no value. For a bool variable, the line is the number of units for which it is
    True. A variable that is the same everywhere is mentioned in a line of text instead of a panel.

    Raises:
        ActstatsError: the file cannot be written, or matplotlib is not installed.
    """
    tables = {name: by_layer(result) for name, result in found.items()}
    first = next(iter(tables.values()))
    columns = columns_of(first, numbers)
    same = {
        column: value for column in columns if (value := _only_value(tables.values(), column)) is not None
    }
    columns = [column for column in columns if column not in same] or columns
    shades = dict(zip(tables, colours(len(tables)), strict=True))
    with _drawn(path, len(columns), 2.2, sharex=True) as (figure, panels):
        for axes, column in zip(panels, columns, strict=True):
            for name, table in tables.items():
                places = np.arange(len(table))
                if f"{column}_median" in table:
                    low, high = table[f"{column}_p10"], table[f"{column}_p90"]
                    axes.fill_between(
                        places, low, high, color=shades[name], alpha=0.2, linewidth=0,
                        label=f"{_entry(name)}, 10 % to 90 % of units",
                    )  # fmt: skip
                    axes.plot(
                        places,
                        table[f"{column}_median"],
                        marker=".",
                        color=shades[name],
                        label=f"{_entry(name)}, median",
                    )
                else:
                    axes.plot(
                        places,
                        table[column],
                        marker=".",
                        color=shades[name],
                        label=f"{_entry(name)}, number of units",
                    )
            axes.set_ylabel(_axis(next(iter(found.values())), str(column)))
            if partly := _partly(tables, column):
                axes.set_title(partly, fontsize="small", loc="left")
        _name_layers(panels[-1], first["layer"].tolist())
        # One entry per kind of line over all panels.
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
            ncols=min(2, len(labelled)) if _style.get().column > 4 else 1,
        )
        if same and len(columns) + len(same) > len(panels):
            text = ", ".join(f"{column} is {value:g}" for column, value in same.items())
            figure.supxlabel(f"in every layer, and for nearly all units: {text}", fontsize="small")


def _partly(tables: Mapping[str, pd.DataFrame], column: str) -> str:
    """Return how many units have a value, for results in which some have none.

    >>> import pandas as pd
    >>> _partly({"S": pd.DataFrame({"units": [90, 6], "step": [1.0, 2.0], "step_units": [3, 0]})}, "step")
    'S: 3 of 96 units have a value'
    """
    return "; ".join(
        f"{name}: {table[count].sum():,} of {table['units'].sum():,} units have a value"
        for name, table in tables.items()
        for count in counts_of(table, [column]).values()
    )


def _only_value(tables: Iterable[pd.DataFrame], column: str) -> float | None:
    """Return the value of a variable if it is the same in all layers for at least 80 % of units, else None."""
    names = [column, *(f"{column}_{end}" for end in ("median", "p10", "p90"))]
    values = {
        float(value)
        for table in tables
        for name in (names[1:] if names[1] in table else names[:1])
        for value in table[name].dropna()
    }
    return values.pop() if len(values) == 1 else None


def draw_spectra(found: Mapping[str, xr.Dataset], numbers: Sequence[str], path: str | Path) -> None:
    """Draw the power per Fourier coefficient over frequency, log-log, with one panel per layer and one line per
    result.

    A line is the mean over a layer's units of the share of power in a radial bin, divided by the number of
    coefficients in it, so that white noise is flat. DC and bins that the maps do not resolve are excluded. All panels
    have the same axes. `numbers` is ignored.

    Raises:
        ActstatsError: the file cannot be written, or matplotlib is not installed.
    """
    curves = {name: _layer_curves(result) for name, result in found.items()}
    layers = list(dict.fromkeys(layer for curve in curves.values() for layer in curve))
    with _drawn(path, len(layers), 2.2, columns=min(5, len(layers)), sharex=True, sharey=True) as (
        figure,
        panels,
    ):
        for axes, layer in zip(panels, layers, strict=True):
            partly = []
            for (name, curve), colour in zip(curves.items(), colours(len(curves)), strict=True):
                if layer in curve:
                    frequency, density, alive, units = curve[layer]
                    axes.plot(
                        frequency,
                        density,
                        marker=".",
                        markersize=3,
                        linewidth=1,
                        color=colour,
                        label=_entry(name),
                    )
                    partly += [f"{alive} of {units} units"] * (alive < units)
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(lambda value, _: f"1/{1 / value:.0f}")
            axes.set_yscale("log", nonpositive="mask")
            axes.set_title("\n".join([str(layer), *partly]), fontsize="small")
            axes.tick_params(labelsize="x-small")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, frameon=False, loc="outside upper center", ncols=len(labels) or 1)
        figure.supxlabel("spatial frequency (cycles per pixel of the map)")
        figure.supylabel("share of power of one coefficient")


def _layer_curves(found: xr.Dataset) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64], int, int]]:
    """Return the frequencies and mean share of power per coefficient for each layer that resolves any.

    The last two numbers are those of the units that have a spectrum, and of all units of the layer.
    """
    density, frequency = (values.values for values in per_coefficient(found))
    layers = found["layer"].values
    curves = {}
    for layer in dict.fromkeys(layers.tolist()):
        # Dead units have no spectrum. The maps of a layer have the same size and resolve the same rings.
        here = np.asarray(layers == layer)
        alive = np.flatnonzero(here & np.isfinite(density).any(1))
        if len(alive):
            mean = density[alive].mean(0)
            kept = np.isfinite(mean)
            curves[str(layer)] = frequency[alive[0]][kept], mean[kept], len(alive), int(here.sum())
    return curves


def draw_similarity(found: xr.Dataset, path: str | Path) -> None:
    """Draw a heat map of layers against layers for each measure of `similarity`, with lines between networks.

    Colours go from 0 to 1; what lies below 0 has the colour of 0, and NaN is grey.

    Raises:
        ActstatsError: the file cannot be written, or matplotlib is not installed.
    """
    names = [str(name) for name in found]
    with _drawn(path, len(names), 6.0) as (figure, panels):
        networks, layers = found["network"].values.tolist(), found["layer"].values.tolist()
        several = len(set(networks)) > 1
        starts = [at for at in range(len(networks)) if not at or networks[at] != networks[at - 1]]
        middles = [
            (start + end - 1) / 2 for start, end in zip(starts, [*starts[1:], len(networks)], strict=True)
        ]
        places = list(range(0, len(layers), -(-len(layers) // 40)))
        for axes, name in zip(panels, names, strict=True):
            image = axes.imshow(np.ma.masked_invalid(found[name].values), vmin=0, vmax=1, cmap="viridis")
            axes.set_facecolor("#bbbbbb")
            axes.set_xticks(places, [for_plot(layers[at]) for at in places], rotation=90, fontsize="xx-small")
            axes.set_yticks(places, [for_plot(layers[at]) for at in places], fontsize="xx-small")
            for start in starts[1:]:
                axes.axhline(start - 0.5, color="white", linewidth=1)
                axes.axvline(start - 0.5, color="white", linewidth=1)
            if several:
                for side in (axes.secondary_xaxis("top"), axes.secondary_yaxis("right")):
                    side.tick_params(length=0, labelsize="small")
                axes.child_axes[0].set_xticks(middles, [for_plot(networks[at]) for at in starts])
                axes.child_axes[1].set_yticks(
                    middles, [for_plot(networks[at]) for at in starts], rotation=-90, va="center"
                )
            axes.set_title(str(found[name].attrs.get("long_name", name)), fontsize="medium")
            figure.colorbar(
                image, ax=axes, shrink=0.75, extend="min" if float(found[name].min()) < 0 else "neither"
            )


def draw_noise(found: xr.Dataset, path: str | Path) -> None:
    """Draw total variation on noisy against clean images, one point per unit and one panel per layer.

    Raises:
        ActstatsError: the file cannot be written, or matplotlib is not installed.
    """
    table = unit_table(found)
    layers = table["layer"].unique().tolist()
    with _drawn(path, len(layers), 2.4, columns=min(5, len(layers))) as (figure, panels):
        for axes, layer in zip(panels, layers, strict=True):
            units = table[table["layer"] == layer]
            for marked, (label, style, sign) in enumerate(_MARKS):
                some = units[units["outlier"] == bool(marked)]
                axes.scatter(some["clean"], some["noisy"], s=10, color=style, marker=sign, label=label)
            end = float(np.nanmax(units[["clean", "noisy"]].to_numpy(), initial=0)) or 1.0
            axes.plot([0, end], [0, end], color="grey", linewidth=0.8, zorder=0, label="no change")
            measured = int(units["change"].count())
            partly = [f"{measured} of {len(units)} units"] * (measured < len(units))
            axes.set_title("\n".join([str(layer), *partly]), fontsize="small")
            axes.tick_params(labelsize="x-small")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, frameon=False, loc="outside upper center", ncols=len(labels))
        figure.supxlabel("total variation, clean")
        figure.supylabel("total variation, noisy")


@contextmanager
def _drawn(
    path: str | Path, count: int, height: float, *, columns: int = 1, **options: Any
) -> Iterator[tuple[Figure, list[Axes]]]:
    """Yield a figure with `count` axes, created without pyplot and therefore without a display; save it at the end.

    Text is drawn as it is, not as mathematics, and without control characters: names come from files.
    """
    matplotlib = require_package("matplotlib", "a plot")
    figure_class = require_package("matplotlib.figure", "a plot").Figure
    rows, style = -(-count // columns), _style.get()
    width = style.column if columns == 1 else style.page * max(columns, 2) / 5
    with matplotlib.rc_context({"text.usetex": False}):
        figure = figure_class(figsize=(width, height * style.height * rows), layout="constrained")
        panels = np.atleast_1d(figure.subplots(rows, columns, **options)).ravel()
        for spare in panels[count:]:
            spare.remove()
        yield figure, list(panels[:count])
        for text in figure.findobj(matplotlib.text.Text):
            text.set_text("\n".join(map(for_plot, text.get_text().split("\n"))))
        try:
            figure.savefig(path, bbox_inches="tight" if style is STYLES["screen"] else None)
        except OSError as error:
            raise ActstatsError(f"cannot write {path}: {error.strerror or error}") from error


def _entry(name: str) -> str:
    """Return the name of a result for a legend, from which matplotlib leaves out what begins with an underscore."""
    return f" {name}" if name.startswith("_") else name


def _axis(found: xr.Dataset, column: str) -> str:
    units = found[column.partition("[")[0]].attrs.get("units", "")
    return f"{column} ({units})" if units not in ("", "1") else column


def _name_layers(axes: Axes, layers: Sequence[str], most: int = 30) -> None:
    """Label an axis with the layers' names, skipping some if there are many."""
    places = range(0, len(layers), -(-len(layers) // most))
    axes.set_xticks(list(places), [for_plot(layers[at]) for at in places], rotation=90, fontsize="x-small")
