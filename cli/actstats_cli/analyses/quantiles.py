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
    help="Which quantile, repeatable.",
)
@output.wanted
def quantiles(stores: tuple[Path, ...], q: tuple[float, ...], **wanted: Any) -> None:
    """Quantiles of the units' activations; dead and saturated units.

    They come from the histograms; error bounds how far the true quantile can be. sparsity is the share of zeros;
    dead are the units with no value above zero, saturated those with one of 65536 or more in magnitude.

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
