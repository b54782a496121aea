"""Shared by the analyses: arguments for stores, options for the output, and running an analysis."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from actstats.errors import ActstatsError, nearest
from actstats.support import located
from actstats_cli import options
from actstats_cli.printing import message, note, print_json, say
from actstats_cli.printing import table as text_table

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

_NAMES: Final = ("layer", "variable")
_COMPARED: Final = (
    "units_s",
    "units_r",
    "mean_s",
    "mean_r",
    "difference",
    "cliffs_delta",
    "delta_low",
    "delta_high",
)


def path_of(kind: str) -> Callable[[click.Context, click.Parameter, Path | None], Path | None]:
    """Return a callback that checks a file's folder and suffix before anything is computed, for a `kind` of file."""

    def check(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
        if value is not None:
            from actstats.analysis import plotting, tables

            known = {"table": tables.FORMATS, "plot": plotting.FORMATS, "decisions": (".csv",)}[kind]
            if value.suffix not in known:
                raise click.BadParameter(f"{value.name} should end in {', '.join(known)}")
            if not value.parent.is_dir():
                raise click.BadParameter(f"there is no folder {value.parent} to write {value.name} to")
        return value

    return check


one_or_two = click.argument("stores", metavar="STORE [STORE]", nargs=-1, required=True, type=located)
some = click.argument("stores", metavar="STORE...", nargs=-1, required=True, type=located)
by = click.option(
    "--by",
    type=click.Choice(["layer", "unit"]),
    default="layer",
    show_default=True,
    help="One row per layer, or per unit.",
)
show = click.option(
    "--show",
    multiple=True,
    metavar="NAME",
    help="Print and draw only this column; repeatable. --out and --json have all.",
)
out = click.option(
    "--out",
    metavar="FILE",
    type=options.LocalPath(dir_okay=False),
    callback=path_of("table"),
    help="Write the whole table: .csv, .parquet or .json.",
)
plot = click.option(
    "--plot",
    metavar="FILE",
    type=options.LocalPath(dir_okay=False),
    callback=path_of("plot"),
    help="Draw a plot: .png, .svg or .pdf.",
)
style = click.option(
    "--style",
    type=click.Choice(("screen", "paper")),
    default="screen",
    show_default=True,
    help="Style of --plot: paper is as wide as a column or page of a paper, with 300 dpi.",
)
common = options.together(by, show, out, plot, style, options.scheduler, options.as_json)
"""The options of an analysis of one store or two."""


def run(
    analysis: Callable[[xr.Dataset], xr.Dataset],
    stores: Sequence[Path],
    headline: Sequence[str],
    *,
    draw: Callable[[dict[str, xr.Dataset], Sequence[str], Path], None] | None = None,
    by: str,
    show: Sequence[str],
    out: Path | None,
    plot: Path | None,
    style: str,
    scheduler: str | None,
    as_json: bool,
) -> None:
    """Run an analysis of one store, or compare two; print, write and draw the results.

    `headline` names the numbers that are printed and drawn without `--show`; `draw` draws them, by default by layer.
    """
    from actstats.analysis import by_layer, compare_units, notes, plotting, unit_table
    from actstats.analysis.tables import columns_of, counts_of
    from actstats.store import open_dataset

    if len(stores) > 2:
        raise ActstatsError(f"one store or two can be analysed at once, not {len(stores)}")
    if len(stores) == 2 and by == "unit":
        raise ActstatsError("two stores are compared by layer: their units are not each other's counterparts")
    names = [
        str(store)
        if len({store.name for store in stores}) < len(stores)
        else store.name.removesuffix(".zarr")
        for store in stores
    ]
    with computing(scheduler):
        found = {
            name: analysis(open_dataset(store)).load() for name, store in zip(names, stores, strict=True)
        }
    numbers = _known(show, found[names[0]]) or list(headline)
    if len(stores) == 2:
        table = compare_units(found[names[0]], found[names[1]])
        printed = table[table["variable"].isin(numbers)][[*reversed(_NAMES), *_COMPARED]]
    elif by == "unit":
        table = unit_table(found[names[0]])
        printed = table[["layer", "channel", *columns_of(table, numbers)]]
    else:
        table = by_layer(found[names[0]])
        columns = columns_of(table, numbers)
        counts = counts_of(table, columns)
        shown = [name for column in columns for name in (column, counts.get(column)) if name]
        printed = table[["layer", "units", *shown]]
    said = [f"{name}: {note}" if len(stores) == 2 else note for name in names for note in notes(found[name])]
    if len(stores) == 1 and by == "layer":
        said.append("means over the units of each layer; --out also has the medians and percentiles")
        if counts_of(table, columns_of(table, numbers)):
            said.append("NAME_units is the number of units that have a value, which the mean is over")
    if plot is not None:
        with plotting.styled(style):
            (draw or plotting.draw_layers)(found, numbers, plot)
    put(table, printed, said, out=out, as_json=as_json, plot=plot)


def put(
    table: pd.DataFrame,
    printed: pd.DataFrame,
    notes: Sequence[str],
    *,
    out: Path | None,
    as_json: bool,
    plot: Path | None = None,
) -> None:
    """Write the whole table to `out`, and print it as JSON, or `printed` as text; notes go to stderr."""
    import pandas as pd

    from actstats.analysis.tables import to_json, write_table

    if out is not None:
        write_table(table, out)
    if as_json:
        print_json({"notes": list(notes), "rows": json.loads(to_json(table))})
    else:
        rows = [
            [str(name) for name in printed],
            *([_cell(x) for x in row] for row in printed.itertuples(index=False)),
        ]
        texts = [not pd.api.types.is_numeric_dtype(printed[name]) for name in printed]
        for line in text_table(rows, "".join("<" if text else ">" for text in texts)):
            say(line)
    for text in notes:
        note(text)
    for path in filter(None, (out, plot)):
        message(f"wrote {path}")


@contextmanager
def computing(scheduler: str | None) -> Iterator[None]:
    """Run dask computations inside the block on the cluster at this address; on this machine's cores if None.

    Raises:
        ActstatsError: as `connect`.
    """
    with options.client_of(scheduler) as client:
        if client is None:
            yield
            return
        import dask

        with dask.config.set(scheduler=client):
            yield


def _known(show: Sequence[str], found: xr.Dataset) -> list[str]:
    known = [str(name) for name in found]
    for name in show:
        if name not in known:
            hint = nearest(name, known) or f"; choose from {', '.join(known)}"
            raise ActstatsError(f"the result has no variable {name!r}{hint}")
    return list(show)


def _cell(value: Any) -> str:
    """Return a cell's text: names as they are, counts in full, other numbers to four digits.

    >>> _cell("conv1"), _cell(7280), _cell(0.123456), _cell(float("nan"))
    ('conv1', '7,280', '0.1235', '-')
    """
    if isinstance(value, str):
        return value
    if float(value).is_integer() and abs(value) < 1e15 and not isinstance(value, float):
        return f"{int(value):,}"
    return "-" if value != value else f"{value:.4g}"
