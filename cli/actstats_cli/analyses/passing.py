"""Shared by the analyses that run a network: the options of a pass, and its progress."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from actstats.errors import ActstatsError
from actstats_cli import options
from actstats_cli.printing import note
from actstats_cli.progress import Bar

if TYPE_CHECKING:
    from actstats.data import Source
    from actstats.probing.forward import Passes

classes = click.option(
    "--classes",
    multiple=True,
    callback=options.split,
    metavar="NAMES",
    help="Names of the network's outputs, in order, separated by commas. Default: from its weights, or ImageNet's.",
)
names = click.option(
    "--name",
    "names",
    multiple=True,
    metavar="NAME",
    help="Name of a network in the result; repeat it for each network, in the same order.",
)
learn_from = click.option(
    "--learn-from",
    metavar="IMAGES",
    help="Images in class folders that define the classes for a network with other outputs: an image is assigned to "
    "the class whose mean outputs on these are nearest. Default for demo: other crops of its photographs.",
)
how = options.together(options.batch_size, options.device, options.workers, options.decode)
"""How the images pass through the network, the fields of `Passes`."""


def named(networks: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Return the name of each network: from `names`, or else a store's file name or the network as written.

    Raises:
        ActstatsError: a network is given twice, or a name is missing or used twice.
    """
    if len(set(networks)) < len(networks):
        raise ActstatsError("a network is given twice")
    if names and (len(names) != len(networks) or len(set(names)) < len(names)):
        raise ActstatsError(f"give a different `name=` for each of the {len(networks)} networks")
    short = [Path(n).name.removesuffix(".zarr") if Path(n).is_dir() else n for n in networks]
    called = names or (short if len(set(short)) == len(short) else networks)
    return dict(zip(networks, called, strict=True))


@contextmanager
def passes(how: Mapping[str, Any]) -> Iterator[Passes]:
    """Yield the `Passes` for a command's options, with progress on stderr; leave the block before printing."""
    from actstats.probing.forward import Passes

    with Bar() as bar:
        yield Passes(**how, on_progress=bar.advance)


def labelled(data: str, learn_from: str | None, limit: int | None) -> tuple[Source, Source | None]:
    """Return the labelled images of --data, and images to learn their classes from, or None.

    The demo's classes are its eight photographs, which no network has as outputs, so half of the crops define them.
    """
    from actstats.data import open_source
    from actstats.probing.forward import halves

    if learn_from is not None:
        return open_source(data, limit=limit), open_source(learn_from)
    source = open_source(data, limit=limit)
    if data != "demo":
        return source, None
    note(
        "the classes are the demo's eight photographs: an image is assigned to the photograph whose mean outputs, "
        "over every other crop, are nearest"
    )
    taught, tested = halves(source)
    return tested, taught


def stimuli(spec: str, learn_from: str | None, limit: int | None = None) -> tuple[Source, Source | None]:
    """Return the cue-conflict images of --stimuli, and those to learn their categories from, as `labelled`."""
    from actstats.data import open_source
    from actstats.probing.cue_conflict import open_stimuli

    if learn_from is None and spec == "demo":
        note(
            "the stimuli have the phases of one of the demo's photographs and the amplitudes of another: for trying "
            "the test out, not for results"
        )
        learn_from = "demo"
    return open_stimuli(spec, limit=limit), None if learn_from is None else open_source(learn_from)
