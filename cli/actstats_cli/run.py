"""`actstats run`: compute sweeps that were planned before, several of them in one pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Unpack

import click

from actstats.errors import ActstatsError
from actstats.sweeping.settings import Execution
from actstats_cli import options, plan
from actstats_cli.printing import ELSEWHERE, count, duration, note, print_json, say
from actstats_cli.progress import Reporter

if TYPE_CHECKING:
    from actstats.sweeping.options import RunningOptions
    from actstats.sweeping.planning import SweepPlan
    from actstats.sweeping.progress import Summary

SHOWN: Final = 5
"""Number of unreadable images that the summary lists."""
_LARGEST: Final = 1 << 28
"""Largest file with plans, in bytes."""


def _part(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, int]:
    """Return (I, N) for I/N."""
    first, slash, second = value.partition("/")
    if not (slash and first.isdecimal() and second.isdecimal() and int(first) < int(second)):
        raise click.BadParameter(f"{value!r} is not I/N with 0 <= I < N, such as 0/8", ctx, param)
    return int(first), int(second)


running_options: Final = options.together(
    options.workers,
    click.option(
        "--part",
        metavar="I/N",
        callback=_part,
        default="0/1",
        show_default=True,
        help="Compute every N-th partition, starting with the I-th, so that N processes can fill one store.",
    ),
    options.scheduler,
    click.option("--strict", is_flag=True, help="Stop at the first image that cannot be read."),
    click.option("--overwrite", is_flag=True, help="Replace a store of another sweep at the same path."),
    click.option(
        "--repair",
        is_flag=True,
        help="Check the store first, and recompute partitions with a damaged object.",
    ),
    click.option(
        "--max-failed",
        type=click.FloatRange(0, 1),
        default=Execution.max_failed,
        show_default=True,
        metavar="SHARE",
        help="Exit with status 1 if a larger share of the images could not be read.",
    ),
)
"""The options of how a sweep is computed, apart from the device: those of `RunningOptions`, and a scheduler."""


@click.command(cls=options.Grouped)
@click.argument("plans", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--trust",
    is_flag=True,
    help="Use the factories, metrics, functions, weights files and addresses that the plans name. Only for plans of "
    "your own.",
)
@options.device_of_the_sweep
@running_options
@options.as_json
@click.pass_context
def run(
    context: click.Context,
    plans: tuple[Path, ...],
    trust: bool,
    device: str | None,
    scheduler: str | None,
    as_json: bool,
    **running: Unpack[RunningOptions],
) -> None:
    """Compute the sweeps that `actstats plan` wrote to files, and write them to their stores.

    All sweeps run in one pass, so that each image is decoded once; they need the same images. An interrupted run
    resumes where it stopped: rerun the same command.

    \b
        actstats run plan.json
        actstats run standard.json robust.json --workers 4
        actstats run plan.json --part 0/8
        actstats run plan.json --scheduler tcp://host:8786
        actstats run own-metric.json --trust
    """
    import actstats

    context.meta[ELSEWHERE] = {
        option.name: option.opts[0]
        for option in plan.plan.params
        if option.name not in {own.name for own in context.command.params}
    }
    if scheduler and device:
        raise click.UsageError("--device cannot be combined with --scheduler; the plans say which kind it is")
    read = [each for path in plans for each in _read(path, trust=trust)]

    def compute(**how: Unpack[RunningOptions]) -> Sequence[Summary | ActstatsError]:
        return actstats.sweep_together(read, return_errors=True, device=device, **how)

    kind = read[0].manifest.device
    run_and_print(compute, scheduler=scheduler, device=kind, as_json=as_json, **running)


def _read(path: Path, *, trust: bool) -> list[SweepPlan]:
    """Return the plans in a file."""
    from actstats.sweeping.planning import SweepPlan

    with path.open("rb") as file:
        text = file.read(_LARGEST + 1)
    try:
        if len(text) > _LARGEST:
            raise ActstatsError(f"not a plan: it has more than {_LARGEST >> 20} MiB")
        return SweepPlan.all_from_json(text, trust=trust)
    except ActstatsError as error:
        raise ActstatsError(f"{path}: {error}") from None


def run_and_print(
    compute: Callable[..., Sequence[Summary | ActstatsError]],
    *,
    scheduler: str | None,
    device: str,
    as_json: bool,
    **running: Unpack[RunningOptions],
) -> None:
    """Call `compute` with `RunningOptions`, show its progress, and print the results and errors."""
    with options.client_of(scheduler, device) as client, Reporter() as reporter:
        try:
            results = compute(
                **running,
                client=client,
                on_progress=reporter.advance,
                on_start=reporter.started,
                on_note=reporter.note,
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(*_how_to_resume(reporter)) from None
    summaries = [result for result in results if not isinstance(result, ActstatsError)]
    if as_json:
        records = [_as_dict(summary) for summary in summaries]
        for record in records if len(results) == 1 else [{"sweeps": records}]:
            print_json(record)
    else:
        for line in (line for summary in summaries for line in _lines(summary)):
            say(line)
    for summary in summaries:
        if summary.attack is not None:
            note(f"the attack {summary.attack}")
        if len(summary.computed_on) > 1:
            where = "; ".join(f"{count(n, 'partition')} on {kind}" for kind, n in summary.computed_on.items())
            note(f"partitions were computed on machines that may differ in the last bits: {where}")
    raise_what_failed(results, running["max_failed"])


def raise_what_failed(results: Sequence[Summary | ActstatsError], max_failed: float) -> None:
    """Raise the first error of a sweep; print the others as notes."""
    errors = [result for result in results if isinstance(result, ActstatsError)]
    summaries = [result for result in results if not isinstance(result, ActstatsError)]
    errors += [ActstatsError(_set_aside(summary)) for summary in summaries if summary.aside]
    errors += [ActstatsError(_unavailable(summary)) for summary in summaries if summary.progress.unavailable]
    errors += [
        ActstatsError(
            f"more than {max_failed:.0%} of the images could not be read (`max_failed={max_failed:g}`); "
            f"see them with: actstats info {summary.store}"
        )
        for summary in summaries
        if summary.failed
    ]
    for error in errors[1:]:
        note(str(error))
    if errors:
        raise errors[0]


def _set_aside(summary: Summary) -> str:
    named = [f"{index} ({error})" for index, error in list(summary.aside.items())[:SHOWN]]
    more = f" and {len(summary.aside) - SHOWN} more" if len(summary.aside) > SHOWN else ""
    return (
        f"{count(len(summary.aside), 'partition')} failed repeatedly: {', '.join(named)}{more}; "
        "rerun the same command to try again"
    )


def _unavailable(summary: Summary) -> str:
    number = summary.progress.unavailable
    named = "an image" if number == 1 else f"{number:,} images"
    return (
        f"the machine failed to read {named}, recorded as missing in {summary.store}; "
        "rerun the same command to try again"
    )


def _how_to_resume(reporter: Reporter) -> list[str]:
    if not reporter.stores:
        return ["nothing was computed yet"]
    from actstats.store import Store

    done = [(store, Store.open(store).completed) for store in reporter.stores]
    told = [
        f"{int(flags.sum())} of {count(len(flags), 'partition')} complete in {store}" for store, flags in done
    ]
    return [*told[:-1], f"{told[-1]}; rerun the same command to resume"]


def _lines(summary: Summary) -> list[str]:
    """Return the summary as lines of text."""
    lines = [
        f"{summary.store}: {count(summary.images, 'image')}, {count(summary.units, 'unit')} "
        f"of {count(summary.layers, 'layer')}"
    ]
    done = summary.progress
    if done.total:
        lines.append(
            f"{count(done.done, 'image')} in {duration(done.seconds)}: {done.rate:.1f} images/s, "
            f"{done.waiting_share:.0%} of the time waiting for images"
        )
    elif summary.complete:
        lines.append("already complete, nothing to do")
    if not summary.complete and not summary.aside:
        lines.append("not all partitions are complete: the other parts (--part) have to compute the rest")
    return lines + failure_lines(summary)


def failure_lines(summary: Summary) -> list[str]:
    """Return the images that could not be read as lines of text."""
    failures = summary.failures
    if not failures:
        return []
    are = "is" if len(failures) == 1 else "are"
    lines = [f"{count(len(failures), 'image')} could not be read and {are} excluded:"]
    lines += [f"  {path}: {reason}" for path, reason in list(failures.items())[:SHOWN]]
    if len(failures) > SHOWN:
        lines.append(f"  and {len(failures) - SHOWN:,} more: actstats info {summary.store}")
    return lines


def _as_dict(summary: Summary) -> dict[str, Any]:
    done = summary.progress
    return {
        "store": str(summary.store),
        "images": summary.images,
        "layers": summary.layers,
        "units": summary.units,
        "complete": summary.complete,
        "run": {
            "images": done.done,
            "partitions": summary.partitions,
            "seconds": done.seconds,
            "images_per_second": done.rate,
            "waiting_share": done.waiting_share,
            "workers": dict(done.workers),
            "unavailable": done.unavailable,
        },
        "failures": summary.failures,
        "aside": summary.aside,
        "computed_on": summary.computed_on,
        "attack": None if summary.attack is None else dataclasses.asdict(summary.attack),
    }
