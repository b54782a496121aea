"""`actstats analyze selectivity`: how few kinds of image excite a unit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from actstats_cli.analyses import output


@click.command()
@output.one_or_two
@click.option(
    "--of",
    type=click.Choice(["mean", "maximum"]),
    default="mean",
    show_default=True,
    help="The activation that is averaged by class.",
)
@output.common
def selectivity(stores: tuple[Path, ...], of: str, **wanted: Any) -> None:
    """Measure how few classes of images excite the units.

    selectivity is (m - o) / (m + o), where m is the mean activation for the class that excites a unit most and o
    that for all other classes: 0 if all classes are alike, 1 if the unit responds to one class only. top_entropy is
    the entropy of the classes of its top images, in bits. Needs images with labels.

    \b
        actstats analyze selectivity googlenet.zarr
        actstats analyze selectivity standard.zarr robust.zarr --show top_classes
        actstats analyze selectivity googlenet.zarr --by unit --out units.csv
    """
    from actstats import analysis

    output.run(
        lambda dataset: analysis.selectivity(dataset, of),
        stores,
        ["selectivity", "top_entropy", "top_classes"],
        **wanted,
    )
