"""`actstats analyze noise`: what noise in the images does to each unit's maps and their total variation."""

from __future__ import annotations

from pathlib import Path

import click

from actstats.errors import ActstatsError
from actstats.support import located
from actstats_cli import options
from actstats_cli.analyses import output

_HEADLINE = [
    "layer",
    "units",
    "measured",
    "relative_map_change",
    "map_correlation",
    "blocked",
    "clean",
    "noisy",
    "increase",
    "relative_increase",
    "outliers",
    "outlier_share",
]


@click.command()
@click.argument("clean", type=located)
@click.argument("noisy", type=located)
@click.option(
    "--reference",
    metavar="STORE",
    type=located,
    help="The standard network's clean sweep, whose layers set the outlier rule's scale. Default: CLEAN.",
)
@click.option(
    "--share",
    type=click.FloatRange(min=0, min_open=True),
    default=0.2,
    show_default=True,
    help="A unit is an outlier if its change reaches this share of its layer's mean total variation.",
)
@click.option(
    "--of-input",
    is_flag=True,
    help="Report blocked and relative_increase relative to the change of the images themselves, not to that of the "
    "first layer; reads up to 256 images again.",
)
@click.option(
    "--data",
    metavar="IMAGES",
    help="Location of the images for --of-input, if they were moved since the sweep.",
)
@output.by
@output.out
@output.plot
@output.style
@options.scheduler
@options.as_json
def noise(
    clean: Path,
    noisy: Path,
    reference: Path | None,
    share: float,
    of_input: bool,
    data: str | None,
    by: str,
    out: Path | None,
    plot: Path | None,
    style: str,
    scheduler: str | None,
    as_json: bool,
) -> None:
    """Measure how noise in the images changes the maps of the units and their total variation.

    CLEAN and NOISY are sweeps of one network over the same images. If they were swept in one pass (sweep --changed),
    relative_map_change is the median over units of the mean square of the maps' change, relative to the variance
    of the clean maps; blocked is the share of the first layer's change (or, with --of-input, the images') that does
    not arrive. increase is the relative change of a layer's mean total variation, which does not say how much noise
    passes. --plot draws noisy against clean total variation, with one point per unit.

    \b
        actstats analyze noise clean.zarr noisy.zarr --plot noise.svg
        actstats analyze noise r.zarr r-noisy.zarr --reference s.zarr --by unit --out units.csv
    """
    from actstats.analysis import noise as analysis
    from actstats.analysis import noise_by_layer, notes, plotting, unit_table
    from actstats.probing.inputs import input_change, input_increase
    from actstats.store import open_dataset

    if data is not None and not of_input:
        raise ActstatsError("--data is the location of the images for --of-input: give that too")
    sweeps = [open_dataset(store) for store in (clean, noisy)]
    standard = None if reference is None else open_dataset(reference)
    with output.computing(scheduler):
        found = analysis(*sweeps, reference=standard, share=share).load()
    compared = "relative_map_change" in found
    increase = input_increase(*sweeps, data=data) if of_input else None
    change = input_change(*sweeps, data=data) if of_input and compared else None
    if by == "unit":
        table = printed = unit_table(found)
    else:
        table = noise_by_layer(found, input_increase=increase, input_change=change)
        shown = [name for name in _HEADLINE if name in table]
        printed = table[[name for name in shown if name != "measured" or any(table.measured < table.units)]]
    if plot is not None:
        with plotting.styled(style):
            plotting.draw_noise(found, plot)
    unmeasured = (
        "the change of the maps themselves is not measured: sweep both in one pass (sweep --changed), with the "
        "metrics mean and variance"
    )
    lines = notes(found) if compared else [*notes(found), unmeasured]
    output.put(table, printed, lines, out=out, as_json=as_json, plot=plot)
