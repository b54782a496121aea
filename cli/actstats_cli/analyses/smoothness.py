"""`actstats analyze smoothness`: total variation of units, raw, per step and independent of scale."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from actstats_cli.analyses import output


@click.command()
@output.one_or_two
@output.common
def smoothness(stores: tuple[Path, ...], **wanted: Any) -> None:
    """Measure how rough the activation maps of the units are.

    step is the mean absolute difference between neighbouring positions. roughness divides it by the map's standard
    deviation, so it does not depend on size and scale: 1.13 for white noise, near 0 for a smooth gradient. For two
    stores: means, and Cliff's delta with a bootstrap interval.

    \b
        actstats analyze smoothness googlenet.zarr
        actstats analyze smoothness standard.zarr robust.zarr --out smoothness.csv --plot smoothness.svg
    """
    from actstats import analysis

    output.run(analysis.smoothness, stores, ["roughness", "step", "total_variation"], **wanted)
