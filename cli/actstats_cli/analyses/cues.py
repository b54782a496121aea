"""`actstats analyze cues`: how accurate networks are on images stripped of shape or of texture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from actstats.errors import ActstatsError
from actstats_cli import options
from actstats_cli.analyses import output, passing


@click.command()
@click.argument("networks", metavar="NETWORK...", nargs=-1, required=True)
@click.option(
    "--data",
    default="demo",
    show_default=True,
    metavar="IMAGES",
    help="Images in class folders: a folder or a .tar; or demo (included).",
)
@click.option(
    "--distort",
    multiple=True,
    metavar="SPECS",
    help="Distorted version of the images, as for sweep, repeatable: scramble:4, contour, noise:0.1, "
    "silhouette:FOLDER, lowpass:8+greyscale.",
)
@click.option(
    "--images",
    "others",
    multiple=True,
    metavar="NAME=IMAGES",
    help="Existing version of the images with the same class folders, repeatable: stylised=stylised/.",
)
@click.option("--correct-only", is_flag=True, help="Only images that all the networks get right when clean.")
@passing.names
@passing.classes
@passing.learn_from
@options.limit
@passing.how
@options.offline
@options.trust
@output.out
@options.as_json
def cues(
    networks: tuple[str, ...],
    names: tuple[str, ...],
    data: str,
    distort: tuple[str, ...],
    others: tuple[str, ...],
    correct_only: bool,
    classes: tuple[str, ...],
    learn_from: str | None,
    limit: int | None,
    offline: bool,
    trust: bool,
    out: Path | None,
    as_json: bool,
    **how: Any,
) -> None:
    """Measure the accuracy of networks on images without shape or without texture.

    One row per version of the images, clean first, and network. change is relative to the clean images; difference
    and p (McNemar's exact test) to the first network. A network is ARCH or ARCH=WEIGHTS, ARCH+robust or
    ARCH+robust=l2:3, as for sweep's --arch, --weights and --robust, or a sweep's store. A class is a folder's name: a
    synset (n02123045) or one of the 16 entry-level categories for ImageNet's classifiers, or a network's own class.

    \b
        actstats analyze cues googlenet=demo googlenet=demo+robust --distort scramble:4 --distort lowpass:8
        actstats analyze cues resnet50 resnet50+robust --data val/ --distort scramble:4 --distort contour
        actstats analyze cues s.zarr r.zarr --data val/ --images stylised=stylised-val/ --correct-only
    """
    from actstats.data import open_source
    from actstats.distort import parse
    from actstats.probing.cues import Version, cue_accuracy
    from actstats.probing.networks import open_network

    called = passing.named(networks, names)
    versions = [Version(spec, chain=parse([spec])) for spec in distort]
    for other in others:
        name, equals, images = other.partition("=")
        if not (name and equals and images):
            raise ActstatsError(f"--images must be NAME=IMAGES, such as stylised=folder/, not {other!r}")
        versions.append(Version(name, source=open_source(images, limit=limit)))
    source, taught = passing.labelled(data, learn_from, limit)
    loaded = {called[network]: open_network(network, offline=offline, trust=trust) for network in networks}
    with passing.passes(how) as passes:
        found = cue_accuracy(
            loaded,
            source,
            versions,
            classes=classes or None,
            correct_only=correct_only,
            learn_from=taught,
            passes=passes,
        )
    output.put(found, found, found.attrs["notes"], out=out, as_json=as_json)
