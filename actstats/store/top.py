"""Read the images that most strongly activate a unit from a store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actstats.errors import ActstatsError, nearest
from actstats.store import Store
from actstats.store.dataset import as_stored
from actstats.store.merging import merge


@dataclass(frozen=True)
class Unit:
    """A channel of a layer, and its index on the axis `unit`."""

    layer: str
    channel: int
    index: int
    height: int
    """Height of its maps."""
    width: int
    """Width of its maps."""

    def __str__(self) -> str:
        return f"{self.layer}/{self.channel}"


@dataclass(frozen=True)
class Hit:
    """One of the top images of a unit, and the position of its maximum in the map."""

    rank: int
    """Rank of the image, from 1."""
    value: float
    image: int
    """Index of the image on the axis `image`."""
    path: str
    label: int
    row: int
    column: int


def find_unit(manifest: Mapping[str, Any], name: str) -> Unit:
    """Return the unit called `name`, LAYER/CHANNEL, given the manifest (attributes) of a store.

    >>> manifest = {"layers": [{"name": "conv1", "units": 8, "height": 5, "width": 6}]}
    >>> find_unit(manifest, "conv1/3").index
    3

    Raises:
        ActstatsError: the name is malformed, or the sweep has no such layer or channel.
    """
    layer, slash, channel = name.rpartition("/")
    if not slash or not channel.isdecimal():
        example = f"{manifest['layers'][0]['name']}/0"
        raise ActstatsError(f"unit {name!r} is not of the form LAYER/CHANNEL, such as {example}")
    first = 0
    for entry in manifest["layers"]:
        if entry["name"] == layer:
            if int(channel) >= entry["units"]:
                raise ActstatsError(
                    f"layer {layer} has no channel {channel}; its channels are 0 to {entry['units'] - 1}"
                )
            return Unit(layer, int(channel), first + int(channel), entry["height"], entry["width"])
        first += entry["units"]
    names = [entry["name"] for entry in manifest["layers"]]
    hint = nearest(layer, names) or "; list them with: actstats info STORE --json"
    raise ActstatsError(f"no layer {layer!r} was swept{hint}")


def top_images(store: str | Path, unit: str | Unit) -> list[Hit]:
    """Return the images with the highest activations of `unit` in all complete partitions, in descending order.

    Raises:
        ActstatsError: the store does not exist, does not contain the unit, or was swept without the metric `top`.
    """
    opened = Store.open(store)
    if isinstance(unit, str):
        unit = find_unit(opened.manifest, unit)
    if "top_image" not in opened.group:
        raise ActstatsError(f"{store} has no top images; sweep again with the metric top")
    if not opened.completed.any():
        raise ActstatsError(f"no partition of {store} is complete yet; rerun its sweep to resume")
    opened.require_objects()
    # Without dask, so that only the chunk with this unit is read from each partition.
    dataset = as_stored(opened)
    opened.require_coordinates(
        {name: dataset[name].values for name in ("layer", "channel", "height", "width")}
    )
    named = dataset[["top_value", "top_image", "top_position"]].reset_coords(drop=True)
    lists = named.isel(unit=[unit.index]).load()
    merged = merge(lists.assign_coords(completed=("partition", opened.completed))).isel(unit=0)
    paths, labels = (dataset[name].values for name in ("path", "label"))
    images = merged["top_image"].values
    if images.max() >= opened.images:
        raise ActstatsError(
            f"{store} is damaged, or was not written by actstats: image {images.max()} of "
            f"{unit.layer}/{unit.channel} does not exist; remove the store and sweep again"
        )
    found = []
    for rank, image in enumerate(images.tolist()):
        if image < 0:  # fewer images than ranks
            break
        row, column = divmod(int(merged["top_position"].values[rank]), unit.width)
        value = float(merged["top_value"].values[rank])
        found.append(Hit(rank + 1, value, image, str(paths[image]), int(labels[image]), row, column))
    return found
