"""`actstats analyze ablate`: what a network loses when units are set to zero."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from actstats.errors import ActstatsError
from actstats_cli import options
from actstats_cli.analyses import output, passing

if TYPE_CHECKING:
    from actstats.layers import Layer
    from actstats.probing.unit_sets import UnitSet

SHOWN = 20
"""Number of ablations that are printed, those with the largest changes, below the intact network."""


@click.command()
@click.argument("network")
@click.option(
    "--data",
    metavar="IMAGES",
    help="Images in class folders to measure accuracy on. Default: demo (included).",
)
@click.option(
    "--stimuli",
    metavar="IMAGES",
    help="Measure shape and texture decisions on these images (or demo) instead.",
)
@options.layers_or_all
@click.option(
    "--unit",
    "units",
    multiple=True,
    metavar="UNITS",
    help="A set of units to ablate together: LAYER/CHANNEL, separated by commas; repeatable.",
)
@click.option(
    "--concepts",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Ablate the detectors of each category in each layer, from `analyze dissect --by unit --out FILE`.",
)
@click.option(
    "--rank",
    metavar="FILE:COLUMN",
    help="Ablate the units of each layer with the lowest and with the highest values in a table by unit, such as "
    "roughness from `analyze smoothness --by unit --out FILE`.",
)
@click.option(
    "--share",
    "shares",
    multiple=True,
    type=float,
    metavar="SHARE",
    help="Share of a layer's units in each set of --rank, repeatable. Default: 0.25.",
)
@click.option(
    "--keep", is_flag=True, help="Keep only the set, and set the other units of its layers to zero."
)
@click.option(
    "--random",
    "random",
    type=click.IntRange(min=1),
    metavar="N",
    help="Compare each set with N random sets of as many living units of the same layers, active on some image.",
)
@click.option(
    "--matched", is_flag=True, help="Draw the random sets from units of about the same activity as the set's."
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the random sets."
)
@passing.classes
@passing.learn_from
@options.limit
@options.number("--at-once", "Number of ablations in one pass, each of a batch of images.", default=8)
@passing.how
@options.offline
@options.trust
@output.out
@options.as_json
def ablate(
    network: str,
    data: str | None,
    stimuli: str | None,
    layers: tuple[str, ...],
    units: tuple[str, ...],
    concepts: Path | None,
    rank: str | None,
    shares: tuple[float, ...],
    keep: bool,
    random: int | None,
    matched: bool,
    seed: int,
    classes: tuple[str, ...],
    learn_from: str | None,
    limit: int | None,
    at_once: int,
    offline: bool,
    trust: bool,
    out: Path | None,
    as_json: bool,
    **how: Any,
) -> None:
    """Measure what a network loses when units are set to zero.

    Without a set, each unit of --layers is ablated by itself. Prints the largest changes first; --out and --json
    have all sets, in order. The network runs up to a layer only once for all ablations in it. NETWORK is ARCH,
    ARCH=WEIGHTS, ARCH+robust or ARCH+robust=l2:3, as for --arch, --weights and --robust of sweep, or a store.

    \b
        actstats analyze ablate googlenet=demo --layers conv1
        actstats analyze ablate alexnet --layers features.11 --stimuli stimuli/
        actstats analyze ablate alexnet --data val/ --unit features.1/3,features.1/7
        actstats analyze ablate alexnet.zarr --data val/ --concepts units.csv --keep
        actstats analyze ablate alexnet.zarr --stimuli stimuli/ --rank smooth.csv:roughness --share 0.1
        actstats analyze ablate googlenet=demo --unit conv1/3,conv1/7 --random 99 --matched
    """
    import torch

    from actstats.layers import named_layers, select_layers
    from actstats.probing.ablate import ablate_accuracy, ablate_decisions
    from actstats.probing.controls import Control
    from actstats.probing.networks import open_network
    from actstats.probing.unit_sets import check_units, complement, each_unit

    if data is not None and stimuli is not None:
        raise ActstatsError("give either --data, to measure accuracy, or --stimuli, for shape and texture")
    context = click.get_current_context()
    for name in ("matched", "seed"):
        if random is None and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise ActstatsError(f"--{name} is for random sets: give --random too")
    sets = _sets(units, concepts, rank, shares or (0.25,))
    names = layers or tuple(dict.fromkeys(layer for chosen in sets for layer in chosen.units))
    if not names:
        raise ActstatsError(
            "give --layers, whose units are ablated one by one, or sets: --unit, --concepts, --rank"
        )
    if stimuli is not None:
        source, taught = passing.stimuli(stimuli, learn_from, limit)
    else:
        source, taught = passing.labelled(data or "demo", learn_from, limit)
    loaded = open_network(network, offline=offline, trust=trust)
    choose = select_layers if layers else named_layers
    found_layers: list[Layer] = choose(loaded.model, torch.zeros(2, *loaded.preprocessing.shape), names)
    sets = sets or each_unit(found_layers)
    check_units(sets, found_layers)
    if keep:
        sets = [complement(chosen, found_layers) for chosen in sets]
    with passing.passes(how) as passes:
        measure = ablate_decisions if stimuli is not None else ablate_accuracy
        table = measure(
            loaded,
            source,
            found_layers,
            sets,
            classes=classes or None,
            learn_from=taught,
            control=None if random is None else Control(random, matched, seed),
            at_once=at_once,
            passes=passes,
        )
    change = "shape_change" if stimuli is not None else "change"
    order = table[change].abs().fillna(0).iloc[1:].sort_values(ascending=False, kind="stable").index
    printed = table.loc[[0, *order[:SHOWN]]].drop(columns="layers")
    notes = list(table.attrs["notes"])
    if len(order) > SHOWN:
        notes.append(f"{SHOWN} of {len(order):,} ablations are shown; --out has all")
    output.put(table, printed, notes, out=out, as_json=as_json)


def _sets(
    units: tuple[str, ...], concepts: Path | None, rank: str | None, shares: tuple[float, ...]
) -> list[UnitSet]:
    from actstats.probing.unit_sets import by_category, by_rank, read_units, units_named

    sets = [units_named([name.strip() for name in group.split(",") if name.strip()]) for group in units]
    if concepts is not None:
        sets += by_category(read_units(concepts))
    if rank is not None:
        file, colon, column = rank.rpartition(":")
        if not (file and colon and column):
            raise ActstatsError(f"--rank must be FILE:COLUMN, such as smoothness.csv:roughness, not {rank!r}")
        sets += by_rank(read_units(Path(file)), column, shares)
    return sets
