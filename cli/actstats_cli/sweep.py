"""`actstats sweep`: write the statistics of every unit to a store, in one pass over the images."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Unpack

import click
from click.core import ParameterSource

from actstats.errors import ActstatsError
from actstats.sweeping.options import RunningOptions
from actstats.sweeping.settings import Execution
from actstats_cli import options
from actstats_cli.plan import (
    DEMO,
    choose_defaults,
    open_images,
    plan_network,
    plan_without_download,
    planning_options,
    print_plans,
    store_option,
)
from actstats_cli.run import run_and_print, running_options

if TYPE_CHECKING:
    from actstats.sweeping.progress import Summary

_OF_THE_PASS: Final = frozenset({"offline", "limit", "sample", "batch_size", "partition_size", "device"})
"""Options of a plan that several networks share."""


@click.command(cls=options.Grouped)
@planning_options
@click.option(
    "--also",
    multiple=True,
    metavar="OPTIONS",
    help="Sweep another network in the same pass, so that images are decoded once: in quotes, its --out and the "
    "options in which it differs from the first. Another --arch has weights and preprocessing of its own; --weights "
    "replaces --robust, and --robust replaces --weights other than demo. Repeatable.",
)
@store_option("--out")
@running_options
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print what would be computed and how large it is; download no weights and create nothing.",
)
@click.option("--measure", is_flag=True, help="With --dry-run: run a few batches to estimate the time.")
@options.as_json
def sweep(
    also: tuple[str, ...],
    data: str | None,
    scheduler: str | None,
    dry_run: bool,
    measure: bool,
    as_json: bool,
    **planning: Any,
) -> None:
    """Compute statistics of every unit over all images, and write them to a store.

    An interrupted sweep resumes where it stopped: rerun the same command. Images that cannot be read are
    recorded and skipped. Without --data, it sweeps the demo photographs, with a GoogLeNet that comes with
    actstats if the network's own weights are not available.

    \b
        actstats sweep --arch googlenet --robust
        actstats sweep --arch googlenet --data photographs/ --out googlenet.zarr
        actstats sweep --arch resnet50 --robust l2:3 --data photographs/ --dry-run
        actstats sweep --arch resnet50 --weights resnet50.pth --data val.tar --out val.zarr \\
            --layers block,conv1 --metrics mean,total_variation --sample 5000
        actstats sweep --arch alexnet --data photographs/ --metric my_metrics:Kurtosis
        actstats sweep --arch alexnet --data photographs/ --distort scramble:4+noise:0.1
        actstats sweep --arch resnet50 --data photographs/ --out s.zarr --also "--robust --out r.zarr"
        actstats sweep --arch resnet50 --data photographs/ --out clean.zarr --changed noise:0.1=noisy.zarr
        actstats sweep --arch resnet50 --data /shared/val.tar --out /shared/val.zarr --scheduler tcp://host:8786
    """
    import actstats

    running = {name: planning.pop(name) for name in RunningOptions.__annotations__ if name in planning}
    if measure and not dry_run:
        raise click.UsageError("--measure requires --dry-run")
    networks = [planning, *(_another(words, planning) for words in also)]
    if scheduler and dry_run:
        raise click.UsageError("--dry-run cannot be combined with --scheduler")
    for network in networks:
        choose_defaults(network, data, download=not dry_run)
    if dry_run:
        source = open_images(data, planning)
        planned = [plan_without_download(source, network) for network in networks]
        print_plans(planned, measure=measure, as_json=as_json)
        return

    def compute(**how: Unpack[RunningOptions]) -> Sequence[Summary | ActstatsError]:
        if not also and not planning["changed"]:
            model = planning.pop("arch")
            return [actstats.sweep(model, data or DEMO, **planning | {"changed": None}, **how)]
        from actstats.sweeping.sweeps import device_for

        source = open_images(data, planning)
        device = device_for(Execution(**how), planning["device"])
        plans = [plan for network in networks for plan in plan_network(source, network, device)]
        return actstats.sweep_together(plans, return_errors=True, device=device, **how)

    run_and_print(compute, scheduler=scheduler, device=planning["device"], as_json=as_json, **running)


def _another(words: str, first: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of another network: those in `words`, and otherwise those of the first.

    The store is never that of the first, nor are weights of another architecture, or weights together with --robust.

    Raises:
        click.UsageError: an option does not exist, or applies to the whole pass.
    """
    outer = click.get_current_context()
    try:
        arch = {"arch": first["arch"]}
        inner = sweep.make_context(str(outer.info_name), shlex.split(words), default_map=arch)
    except ValueError as error:
        raise click.UsageError(f"--also {words!r}: {error}") from None
    except click.UsageError as error:
        raise click.UsageError(f"--also {words!r}: {error.format_message()}", outer) from None
    named = {
        name: option.opts[0]
        for option in sweep.params
        if (name := option.name) and inner.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    if shared := named.keys() - first.keys() | named.keys() & _OF_THE_PASS:
        raise click.UsageError(f"--also {words!r}: {named[min(shared)]} applies to all networks", outer)
    fresh = {"store", "changed"}
    if "arch" in named:
        fresh |= {"weights", "robust", "preprocessing"}
    if "weights" in named:
        fresh |= {"robust"}
    if "robust" in named and first["weights"] != DEMO:
        fresh |= {"weights"}
    return {**first, **{name: inner.params[name] for name in fresh | named.keys()}}
