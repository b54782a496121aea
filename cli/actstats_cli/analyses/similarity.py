"""`actstats analyze similarity`: how similarly the layers of one or several networks represent images."""

from __future__ import annotations

from pathlib import Path

import click

from actstats.errors import ActstatsError
from actstats.support import located
from actstats_cli import options
from actstats_cli.analyses import output
from actstats_cli.analyses.match import VARIABLE


@click.command()
@click.argument("stores", metavar="STORE...", nargs=-1, required=True, type=located)
@click.option("--name", "names", multiple=True, metavar="NAME", help="Name of a store; repeat it for each.")
@VARIABLE
@click.option(
    "--sample",
    type=click.IntRange(3, 20_000),
    default=1000,
    show_default=True,
    help="Images in the dissimilarity matrices of RSA.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed for drawing those images."
)
@output.out
@output.plot
@output.style
@options.scheduler
@options.as_json
def similarity(
    stores: tuple[Path, ...],
    names: tuple[str, ...],
    variable: str,
    sample: int,
    seed: int,
    out: Path | None,
    plot: Path | None,
    style: str,
    scheduler: str | None,
    as_json: bool,
) -> None:
    """Compare all layers with one another, within and across networks: linear CKA and RSA.

    The stores are sweeps over the same images. One row per pair of layers: cka, cka_unbiased (for fewer images than
    units), rsa. --plot draws them as heat maps.

    \b
        actstats analyze similarity googlenet.zarr --plot similarity.svg
        actstats analyze similarity s.zarr r.zarr --name S --name R --out similarity.csv
    """
    from actstats.analysis import notes, plotting
    from actstats.analysis import similarity as analysis
    from actstats.store import open_dataset

    if names and len(names) != len(stores):
        raise ActstatsError(f"give --name once for each store: {len(stores)} times, not {len(names)}")
    called = names or tuple(str(s) if len({x.name for x in stores}) < len(stores) else s.name for s in stores)
    if len(set(called)) < len(called):
        raise ActstatsError("names of stores must be unique; set them with --name")
    with output.computing(scheduler):
        opened = {name: open_dataset(store) for name, store in zip(called, stores, strict=True)}
        found = analysis(opened, variable, sample=sample, seed=seed)
    if plot is not None:
        with plotting.styled(style):
            plotting.draw_similarity(found, plot)
    table = found.to_dataframe().reset_index()
    # The measures are symmetric, so keep each pair once.
    table = table[table["row"] <= table["column"]].drop(columns=["row", "column"])
    table = table[["network", "layer", "other_network", "other_layer", "cka", "cka_unbiased", "rsa"]]
    said = notes(found)
    output.put(table, table, said, out=out, as_json=as_json, plot=plot)
