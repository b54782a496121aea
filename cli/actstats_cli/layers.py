"""`actstats layers`: which layers of a network can be hooked, and how large a store of some of them would be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import click

from actstats_cli import options
from actstats_cli.printing import count, print_json, say, size, table

if TYPE_CHECKING:
    from actstats.sweeping.listing import LayerListing

IMAGES: Final = (50_000, 1_281_167)
"""Number of images in ImageNet's validation and training sets."""
SHOWN: Final = 10
"""Number of modules that cannot be hooked to list."""


@click.command()
@options.arch
@click.option(
    "--weights",
    show_default="none",
    metavar="NAME or FILE",
    help="Weights, as for sweep. Layers rarely depend on them, so nothing is downloaded by default.",
)
@options.robust
@options.seed
@options.preprocessing
@options.offline
@options.layers_or_all
@options.stored
@options.as_json
def layers(arch: str, weights: str | None, as_json: bool, **settings: Any) -> None:
    """List the layers of a network: name, kind, shape of the output, units.

    With --layers, list only the selected ones, and the size of the store that a sweep of them would create.

    \b
        actstats layers --arch resnet50
        actstats layers --arch googlenet --layers conv
        actstats layers --arch alexnet --layers 'features.*' --metrics mean,total_variation
    """
    from actstats.sweeping.listing import list_layers

    listing = list_layers(arch, weights or ("default" if settings["robust"] else "none"), **settings)
    sizes = bool(settings["layers"])
    if as_json:
        print_json(_as_dict(arch, listing, sizes))
    else:
        for line in _lines(listing, sizes):
            say(line)


def _lines(listing: LayerListing, sizes: bool) -> Iterator[str]:
    rows = [("layer", "kind", "output", "units", "map", "presets")]
    rows += [
        (
            layer.name,
            layer.kind,
            f"[N, {', '.join(map(str, layer.shape))}]",
            f"{layer.units:,}",
            f"{layer.height} x {layer.width}",
            " ".join(listing.presets[layer.name]),
        )
        for layer in listing.layers
    ]
    yield from table(rows, "<<<>><")
    yield ""
    yield f"{count(len(listing.layers), 'layer')}, {count(listing.schema.units, 'unit')}"
    if sizes:
        schema = listing.schema
        yield (
            f"size of a store before compression: {size(listing.bytes_per_image)} per image and "
            f"{size(listing.bytes_per_partition)} per partition of {count(schema.partition_size, 'image')}"
        )
        yield from (f"  {images:,} images: {size(schema.bytes(images=images))}" for images in IMAGES)
        return
    others = {**listing.refused, **listing.never_ran}
    if others:
        yield f"{count(len(others), 'module')} cannot be hooked:"
        yield from (f"  {name}: {reason}" for name, reason in list(others.items())[:SHOWN])
        if len(others) > SHOWN:
            yield f"  and {len(others) - SHOWN:,} more: --json lists all"


def _as_dict(arch: str, listing: LayerListing, sizes: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        "arch": arch,
        "units": listing.schema.units,
        "layers": [
            {
                "name": layer.name,
                "module": layer.module,
                "call": layer.call,
                "kind": layer.kind,
                "shape": list(layer.shape),
                "units": layer.units,
                "height": layer.height,
                "width": layer.width,
                "presets": list(listing.presets[layer.name]),
            }
            for layer in listing.layers
        ],
        "not_hookable": {**listing.refused, **listing.never_ran},
    }
    if sizes:
        found["bytes"] = {
            "image": listing.bytes_per_image,
            "partition": listing.bytes_per_partition,
            "partition_size": listing.schema.partition_size,
            **{str(images): listing.schema.bytes(images=images) for images in IMAGES},
        }
    return found
