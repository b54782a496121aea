"""`actstats analyze kernels`: how rough a network's convolution kernels are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from actstats_cli import options
from actstats_cli.analyses import output

if TYPE_CHECKING:
    import xarray as xr


@click.command()
@output.one_or_two
@click.option(
    "--weights", metavar="FILE", multiple=True, help="Location of the weights, one per store; repeatable."
)
@options.factory
@options.trust
@output.common
def kernels(
    stores: tuple[Path, ...], weights: tuple[str, ...], arch: str | None, trust: bool, **wanted: Any
) -> None:
    """Measure how rough the convolution kernels of a network are.

    The same numbers as `smoothness`, for weights: by layer, or by filter (--by unit). --show normed_filter and --show
    normed_kernels print the step of filters and of kernels scaled to norm 1, on which `actstats compare` decides. The
    swept network is rebuilt from the store's record. Kernels of 1 x 1 have no step.

    \b
        actstats analyze kernels googlenet.zarr
        actstats analyze kernels standard.zarr robust.zarr --plot kernels.svg
    """
    import actstats
    from actstats.analysis import kernel_smoothness
    from actstats.errors import ActstatsError

    if weights and len(weights) != len(stores):
        raise ActstatsError(
            f"{len(weights)} --weights for {len(stores)} stores: give one for each, in the same order"
        )
    files = iter(weights)

    def of_network(dataset: xr.Dataset) -> xr.Dataset:
        named = arch if ":" in str(dataset.attrs.get("arch")) else None
        model, _ = actstats.load_from_manifest(
            dataset.attrs, weights=next(files, None), arch=named, trust=trust
        )
        return kernel_smoothness(model)

    output.run(of_network, stores, ["roughness", "step", "total_variation"], **wanted)
