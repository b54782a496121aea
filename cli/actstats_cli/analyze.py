"""`actstats analyze`: a table of analyses, each in its own module, which is imported when it is used."""

from __future__ import annotations

from typing import Final

import click

from actstats_cli.lazy import LazyGroup

ANALYSES: Final = {
    "smoothness": "actstats_cli.analyses.smoothness",
    "kernels": "actstats_cli.analyses.kernels",
    "noise": "actstats_cli.analyses.noise",
    "spectrum": "actstats_cli.analyses.spectrum",
    "selectivity": "actstats_cli.analyses.selectivity",
    "quantiles": "actstats_cli.analyses.quantiles",
    "match": "actstats_cli.analyses.match",
    "similarity": "actstats_cli.analyses.similarity",
    "shape-bias": "actstats_cli.analyses.shape_bias",
    "cues": "actstats_cli.analyses.cues",
    "dissect": "actstats_cli.analyses.dissect",
    "ablate": "actstats_cli.analyses.ablate",
}
"""Each analysis's name, in the order of `actstats analyze --help`, and the module that defines it."""


@click.group(cls=LazyGroup, table=ANALYSES)
def analyze() -> None:
    """Compute tables and plots from stores.

    Each prints a table with one row per layer or unit, and can write CSV, Parquet or JSON. Most take one store, or
    two to compare: first a standard network, then a robust one with the same layers. Stores are read partition by
    partition and may be larger than memory.

    \b
        actstats analyze smoothness googlenet.zarr
        actstats analyze spectrum standard.zarr robust.zarr --plot spectrum.svg
        actstats analyze selectivity googlenet.zarr --by unit --out units.parquet
    """
