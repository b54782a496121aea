"""`actstats analyze quantiles`: quantiles of every unit's activations; sparse, dead and saturated units."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from actstats_cli.analyses import output


@click.command()
@output.one_or_two
@click.option(
    "--q",
    multiple=True,
    type=click.FloatRange(0, 1),
    default=(0.01, 0.5, 0.99, 0.995),
    show_default=True,
    help="Quantile to estimate, repeatable.",
)
@output.common
def quantiles(stores: tuple[Path, ...], q: tuple[float, ...], **wanted: Any) -> None:
    """Estimate quantiles of the activations, and count dead and saturated units.

    Quantiles are read from the histograms; error bounds the distance to the true quantile. sparsity is the share of
    zeros. A unit is dead if it has no positive value, and saturated if it has a value of magnitude 65536 or more.

    \b
        actstats analyze quantiles googlenet.zarr --q 0.5 --q 0.999
        actstats analyze quantiles googlenet.zarr --by unit --out units.parquet
    """
    from actstats import analysis

    output.run(
        lambda dataset: analysis.quantiles(dataset, q),
        stores,
        ["sparsity", "dead", "saturated", "value"],
        **wanted,
    )
