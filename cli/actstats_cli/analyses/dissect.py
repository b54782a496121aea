"""`actstats analyze dissect`: which concepts the units of a swept network detect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from actstats.support import located
from actstats_cli import options
from actstats_cli.analyses import output, passing


@click.command()
@click.argument("store", type=located)
@click.option(
    "--data",
    metavar="FOLDER",
    help="Broden, or images/ with masks/. Default: the folder of the swept images.",
)
@options.layers_or_all
@click.option(
    "--categories",
    multiple=True,
    callback=options.split,
    metavar="NAMES",
    help="Only these categories of concepts.",
)
@click.option(
    "--top",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="SHARE",
    default=0.005,
    show_default=True,
    help="The share of a unit's activations that is above its threshold.",
)
@click.option(
    "--iou",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="IOU",
    default=0.04,
    show_default=True,
    help="Smallest overlap for a unit to count as a detector.",
)
@click.option(
    "--resolution",
    type=click.IntRange(min=1),
    metavar="N",
    help="Rows and columns of the grid on which overlaps are counted. Default: 112, or the input's if smaller.",
)
@options.limit
@options.factory
@options.trust
@passing.how
@output.by
@output.out
@options.as_json
def dissect(
    store: Path,
    data: str | None,
    layers: tuple[str, ...],
    categories: tuple[str, ...],
    top: float,
    iou: float,
    resolution: int | None,
    limit: int | None,
    arch: str | None,
    trust: bool,
    by: str,
    out: Path | None,
    as_json: bool,
    **how: Any,
) -> None:
    """Find which concepts the units detect: colours, textures, materials, parts, objects, scenes.

    Network dissection (Bau et al. 2017). STORE is a sweep with the metric histogram, preferably over the same
    images: it gives the network and the thresholds. A second pass over the images counts where each unit exceeds
    its threshold and what is labelled there. Prints the number of detectors per layer and category, or the concept
    of each unit with its IoU (--by unit).

    \b
        actstats sweep --arch alexnet --data broden/ --metrics histogram --no-per-image --out alexnet.zarr
        actstats analyze dissect alexnet.zarr --data broden/
        actstats analyze dissect alexnet.zarr --data broden/ --layers features.11 --by unit --out units.csv
    """
    from actstats.analysis import notes, unit_table
    from actstats.probing.concepts import open_segmented
    from actstats.probing.dissect import detectors, dissection, overlaps, thresholds
    from actstats.store.sweep import open_sweep
    from actstats.support import on_this_machine

    sweep = open_sweep(store, trust=trust)
    images = sweep.manifest.data
    segmented = open_segmented(data or on_this_machine(images.spec), categories, limit)
    limits = thresholds(sweep.dataset, top)
    loaded = sweep.network(arch=arch)
    chosen, places = sweep.layers(layers)
    said = []
    if limit is None and segmented.source.fingerprint != images.fingerprint:
        said.append(f"the thresholds come from other images: {images.spec}")
    with passing.passes(how) as passes:
        counts = overlaps(
            loaded,
            segmented,
            chosen,
            limits[[unit for place in places for unit in range(place.start, place.stop)]],
            resolution=resolution,
            passes=passes,
        )
    found = dissection(counts, iou)
    table = unit_table(found) if by == "unit" else detectors(found)
    printed = (
        table[["layer", "channel", "concept_name", "concept_category", "iou"]] if by == "unit" else table
    )
    output.put(table, printed, [*said, *notes(found)], out=out, as_json=as_json)
