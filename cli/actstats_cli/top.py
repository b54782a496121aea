"""`actstats top`: the images that excite one unit most, as a list and as a picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from actstats.support import located
from actstats_cli import options
from actstats_cli.printing import note, print_json, say, table

if TYPE_CHECKING:
    from actstats.store.sweep import TopImage


@click.command()
@click.argument("store", type=located)
@click.argument("unit", metavar="LAYER/CHANNEL")
@click.option(
    "--out",
    type=options.LocalPath(dir_okay=False),
    help="Draw the images into this file, such as sheet.png.",
)
@click.option("--data", metavar="IMAGES", help="Location of the images, if they were moved since the sweep.")
@click.option("--maps", is_flag=True, help="With --out: draw the unit's activation map over each image.")
@options.factory
@options.trust
@options.as_json
def top(
    store: Path,
    unit: str,
    out: Path | None,
    data: str | None,
    maps: bool,
    arch: str | None,
    trust: bool,
    as_json: bool,
) -> None:
    """List the images in which a unit has its greatest activations.

    With --out, also draw them and mark the position of the maximum in each. --maps runs the network on them again
    and draws the unit's activation map over each in magenta.

    \b
        actstats top googlenet.zarr inception4c.branch1/17
        actstats top googlenet.zarr conv1/0 --out sheet.png --maps
        actstats top googlenet.zarr conv1/0 --out sheet.png --data /moved/photographs
    """
    from actstats.report.contact_sheet import save_contact_sheet
    from actstats.store.sweep import open_sweep

    sweep = open_sweep(store, trust=trust)
    hits = sweep.top(unit)
    if out is not None:
        save_contact_sheet(sweep, unit, out, data=data, maps=maps, arch=arch, hits=hits)
    if as_json:
        found = {"store": str(store), "unit": unit, "images": [dataclasses.asdict(hit) for hit in hits]}
        print_json(found if out is None else {**found, "sheet": str(out)})
        return
    for line in table(_rows(hits), ">><>>"):
        say(line)
    if still := sum(hit.value == 0 for hit in hits):
        note(f"{still} of {len(hits)} images do not activate {unit}; their order is that of the sweep")
    if out is not None:
        say(f"drawn to {out}")


def _rows(hits: Sequence[TopImage]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("rank", "value", "image", "row", "column")]
    return rows + [
        (str(hit.rank), f"{hit.value:.5g}", hit.path, str(hit.row), str(hit.column)) for hit in hits
    ]
