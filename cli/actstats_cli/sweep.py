"""`actstats sweep`: one pass over the images, every unit's statistics into one store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from actstats_cli import options
from actstats_cli.printing import count, duration, print_json
from actstats_cli.progress import Reporter

if TYPE_CHECKING:
    from actstats.sweeping.progress import Summary

SHOWN = 5
"""Images that could not be read which are named in the summary."""


class Part(click.ParamType[tuple[int, int]]):
    """I/N: the I-th of N processes, counted from 0."""

    name = "I/N"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Return (I, N)."""
        if isinstance(value, tuple):
            return value
        first, slash, second = str(value).partition("/")
        if not (slash and first.isdecimal() and second.isdecimal() and int(first) < int(second)):
            self.fail(f"{value!r} is not I/N with 0 <= I < N, such as 0/8", param, ctx)
        return int(first), int(second)


class Images(click.types.StringParamType):
    """A source of images."""

    def get_missing_message(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """Return what to give."""
        return "Give a folder of images, a .tar, or demo: photographs that come with actstats."


class NewStore(click.Path):
    """A store to fill."""

    def get_missing_message(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """Return what to give."""
        return "Give a folder for the results, googlenet.zarr say."


@click.command()
@options.network
@click.option(
    "--data",
    required=True,
    type=Images(),
    metavar="IMAGES",
    help="A folder, a .tar, a folder of tars, 'shard-{000..009}.tar', or demo.",
)
@click.option("--out", required=True, type=NewStore(path_type=Path), help="The store to fill, a folder.")
@options.distort
@options.layers
@options.stored
@options.limit
@options.batch_size
@options.device
@click.option(
    "--amp",
    type=click.Choice(["off", "bf16", "fp16"]),
    default="off",
    show_default=True,
    help="Run the forward pass under autocast in this dtype.",
)
@options.workers
@click.option(
    "--decode",
    type=click.Choice(["pillow", "device"]),
    default="pillow",
    show_default=True,
    help="device: decode JPEGs on the GPU; faster, but not the same pixels to the last bit.",
)
@click.option(
    "--bitround",
    type=click.IntRange(1, 23),
    metavar="N",
    help="Keep so many mantissa bits of per-image floats, which then compress better.",
)
@click.option(
    "--compression",
    default="zstd:1",
    show_default=True,
    metavar="CODEC",
    help="zstd:LEVEL (1 to 22), or none.",
)
@click.option(
    "--part",
    type=Part(),
    default="0/1",
    show_default=True,
    help="Do every N-th partition, from the I-th: N processes fill one store.",
)
@click.option("--strict", is_flag=True, help="Stop at the first image that cannot be read.")
@click.option("--overwrite", is_flag=True, help="Remove another sweep's store that is in the way.")
@options.as_json
def sweep(arch: str, data: str, out: Path, metrics: tuple[str, ...], as_json: bool, **settings: Any) -> None:
    """Compute statistics of every unit over all images, into one store.

    A sweep that was stopped, however, goes on where it was: run the same command again. An image that cannot be
    read is recorded and stops nothing.

    \b
        actstats sweep --arch googlenet --data photographs/ --out googlenet.zarr
        actstats sweep --arch googlenet --weights none --data demo --out demo.zarr
        actstats sweep --arch resnet50 --robust l2:3 --data photographs/ --out robust.zarr
        actstats sweep --arch resnet50 --weights resnet50.pth --data val.tar --out val.zarr \\
            --layers block,conv1 --metrics mean,total_variation --limit 5000
        actstats sweep --arch alexnet --data photographs/ --out own.zarr --metric my_metrics:Kurtosis
        actstats sweep --arch alexnet --data photographs/ --out noisy.zarr --distort scramble:4+noise:0.1
    """
    import actstats

    if metrics:
        settings["metrics"] = metrics
    with Reporter() as reporter:
        try:
            summary = actstats.sweep(
                arch, data, out, **settings, progress=reporter.advance, started=reporter.started
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(*_how_to_go_on(reporter)) from None
    if as_json:
        print_json(_as_dict(summary))
    else:
        for line in _lines(summary):
            click.echo(line)


def _how_to_go_on(reporter: Reporter) -> list[str]:
    if reporter.store is None:
        return ["nothing was computed yet"]
    completed = reporter.store.completed
    done = f"{int(completed.sum())} of {count(len(completed), 'partition')} complete in {reporter.store.path}"
    return [f"{done}; run the same command to go on"]


def _lines(summary: Summary) -> list[str]:
    """Return the summary for a reader."""
    lines = [
        f"{summary.store}: {count(summary.images, 'image')}, {count(summary.units, 'unit')} "
        f"of {count(summary.layers, 'layer')}"
    ]
    done = summary.progress
    if done.total:
        lines.append(
            f"{count(done.done, 'image')} in {duration(done.seconds)}: {done.rate:.1f} images/s, "
            f"{done.waiting_share:.0%} of the time waiting for data"
        )
    elif summary.complete:
        lines.append("it was complete, there was nothing to do")
    if not summary.complete:
        lines.append("not all partitions are complete: other parts (--part) have to do the rest")
    if failures := summary.failures:
        lines.append(f"{count(len(failures), 'image')} could not be read, and count for nothing:")
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
        },
        "failures": summary.failures,
    }
