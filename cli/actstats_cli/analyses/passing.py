"""What the analyses share that run a network: the options of a pass, and how far it is."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from actstats.errors import ActstatsError
from actstats_cli import options
from actstats_cli.progress import EVERY

classes = click.option(
    "--classes",
    multiple=True,
    callback=options.split,
    metavar="NAMES",
    help="Names of the network's outputs in order, with commas between. Default: as its weights have them, or "
    "ImageNet's.",
)
names = click.option(
    "--name",
    "names",
    multiple=True,
    metavar="NAME",
    help="What to call a network in the result, repeatable, one per network in their order.",
)
passes = options.together(options.batch_size, options.device, options.workers)
"""How the network runs: --batch-size, --device, --workers."""


def named(networks: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Return what to call each network: as asked for, or a store by its file name and others as they are written.

    Raises:
        ActstatsError: a network is given twice, or a name is missing or used twice.
    """
    if len(set(networks)) < len(networks):
        raise ActstatsError("a network is given twice")
    if names and (len(names) != len(networks) or len(set(names)) < len(names)):
        raise ActstatsError(f"give one `name=` for each of the {len(networks)} networks, each another")
    short = [Path(n).name.removesuffix(".zarr") if Path(n).is_dir() else n for n in networks]
    called = names or (short if len(set(short)) == len(short) else networks)
    return dict(zip(networks, called, strict=True))


@contextmanager
def counting(noun: str = "images") -> Iterator[Callable[[int, int], None]]:
    """Give a function that shows on stderr how many of how many are done; close before anything is printed."""
    bar: Any = None
    last, begun = time.monotonic(), time.monotonic()

    def advance(done: int, total: int) -> None:
        nonlocal bar, last, begun
        if sys.stderr.isatty():
            if bar is None or bar.total != total or done < bar.n:
                if bar is not None:
                    bar.close()
                from tqdm import tqdm

                bar = tqdm(total=total, unit=f" {noun}", dynamic_ncols=True, leave=False)
            bar.update(done - bar.n)
        elif time.monotonic() - last >= EVERY:
            last = time.monotonic()
            click.echo(f"{done:,} of {total:,} {noun} ({done / total:.0%}), {last - begun:.0f} s", err=True)

    try:
        yield advance
    finally:
        if bar is not None:
            bar.close()
