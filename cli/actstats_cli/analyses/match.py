"""`actstats analyze match`: which unit of another network corresponds to each unit."""

from __future__ import annotations

from pathlib import Path

import click

from actstats.support import located
from actstats_cli import options
from actstats_cli.analyses import output

VARIABLE = click.option(
    "--variable",
    type=click.Choice(["mean", "maximum"]),
    default="mean",
    show_default=True,
    help="The per-image value of the units to compare.",
)


@click.command()
@click.argument("first", type=located)
@click.argument("second", type=located)
@VARIABLE
@click.option(
    "--least",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="Smallest correlation on held-out images for two units to be counterparts.",
)
@click.option(
    "--across",
    is_flag=True,
    help="Search the units of all layers, not only of the layer with the same name.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Seed for the halves and the permutations.",
)
@output.by
@output.out
@options.scheduler
@options.as_json
def match(
    first: Path,
    second: Path,
    variable: str,
    least: float,
    across: bool,
    seed: int,
    by: str,
    out: Path | None,
    scheduler: str | None,
    as_json: bool,
) -> None:
    """Find the counterpart of each unit of FIRST among the units of the same layer of SECOND.

    Both are sweeps over the same images. held_out is the correlation on one half of the images with the unit chosen
    on the other half, p its p-value in a permutation test, q the false discovery rate within the layer, reciprocal
    whether both units are each other's best on both halves, same_channel the correlation of units paired by channel.
    A counterpart has held_out >= --least and q <= 0.05, and is reciprocal. Pass a table --by unit to compare as
    --matches.

    \b
        actstats analyze match standard.zarr robust.zarr
        actstats analyze match standard.zarr robust.zarr --by unit --out matches.csv
        actstats compare standard.zarr robust.zarr --matches matches.csv
    """
    from actstats.analysis import by_layer, match_table, notes
    from actstats.analysis import match as analysis
    from actstats.store import open_dataset

    with output.computing(scheduler):
        found = analysis(
            open_dataset(first), open_dataset(second), variable, across=across, least=least, seed=seed
        )
    if by == "unit":
        table = match_table(found)
        shown = ["layer", "channel", *(["counterpart_layer"] if across else []), "counterpart_channel"]
        shown += ["correlation", "held_out", "q", "reciprocal", "margin"]
    else:
        table = by_layer(found.assign(matched=found["counterpart"] >= 0))
        numbers = ("correlation", "held_out", "q", "margin", "same_channel")
        shown = ["layer", "units", "matched", "reciprocal", *(f"{name}_median" for name in numbers)]
    matched = int((found["counterpart"] >= 0).sum())
    said = [*notes(found), f"{matched:,} of {found.sizes['unit']:,} units have a counterpart"]
    output.put(table, table[shown], said, out=out, as_json=as_json)
