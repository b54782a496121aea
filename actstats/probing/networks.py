"""Networks by one word each, for analyses that take several: an architecture with its weights, or a sweep's store.

>>> parse_network("resnet50+robust=l2:3")
('resnet50', 'default', 'l2:3')
>>> parse_network("googlenet=demo+robust"), parse_network("alexnet=alexnet.pth")
(('googlenet', 'demo', 'default'), ('alexnet', 'alexnet.pth', None))
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from actstats.errors import ActstatsError, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from actstats.layers import Layer
    from actstats.models import Loaded

_SPEC: Final = re.compile(r"(?P<arch>[^=+]+)(=(?P<weights>.+?))?(?P<robust>\+robust(=(?P<kind>.+))?)?")


def parse_network(spec: str) -> tuple[str, str, str | None]:
    """Return what ARCH, ARCH=WEIGHTS, ARCH+robust or ARCH=WEIGHTS+robust=KIND name: architecture, weights, training.

    They are the arguments `arch`, `weights` and `robust` of `load_model`.

    Raises:
        ActstatsError: another form.
    """
    found = _SPEC.fullmatch(spec)
    if found is None:
        raise ActstatsError(
            f"{spec!r} names no network; write ARCH, ARCH=WEIGHTS, ARCH+robust, ARCH+robust=l2:3, or a sweep's store"
        )
    robust = (found["kind"] or "default") if found["robust"] else None
    return found["arch"], found["weights"] or "default", robust


def open_network(spec: str, *, offline: bool = False) -> Loaded:
    """Return the network that a word names: as `parse_network` reads it, or the one that was swept into a store.

    Raises:
        ActstatsError: no such network, or weights that cannot be had.
    """
    from actstats.models import load_model
    from actstats.store import Store

    if Path(spec).is_dir():
        return from_attributes(Store.open(spec).manifest)
    arch, weights, robust = parse_network(spec)
    return load_model(arch, weights, robust=robust, offline=offline)


def from_attributes(attributes: Mapping[str, Any]) -> Loaded:
    """Return the network that a sweep's store records in its attributes, as it was swept.

    Raises:
        ActstatsError: the weights cannot be had any more, or are others.
    """
    from actstats.models import Loaded, load_from_manifest

    model, preprocessing = load_from_manifest(attributes)
    kept = {
        name: attributes[name] for name in ("arch", "num_classes", "weights", "classes") if name in attributes
    }
    return Loaded(model, preprocessing, kept)


def swept_layers(
    attributes: Mapping[str, Any], loaded: Loaded, selectors: Sequence[str] = ()
) -> tuple[list[Layer], list[slice]]:
    """Return the layers of a sweep, or those that `selectors` name, and where the units of each are in its store.

    Raises:
        ActstatsError: a selector names a layer that was not swept, or the network has not what the store says.
    """
    import torch

    from actstats.layers import select_layers

    places, end = {}, 0
    for record in attributes["layers"]:
        places[record["name"]] = slice(end, end + record["units"])
        end += record["units"]
    example = torch.zeros(2, *loaded.preprocessing.shape, device=next(loaded.model.parameters()).device)
    layers = select_layers(loaded.model, example, list(selectors or places))
    for layer in layers:
        if layer.name not in places:
            raise ActstatsError(
                f"layer {layer.name} was not swept into this store{nearest(layer.name, places)}"
            )
        place = places[layer.name]
        if place.stop - place.start != layer.units:
            raise ActstatsError(
                f"layer {layer.name} has {layer.units} units, but {place.stop - place.start} were swept"
            )
    return layers, [places[layer.name] for layer in layers]
