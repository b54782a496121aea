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

from actstats.errors import ActstatsError

if TYPE_CHECKING:
    from collections.abc import Mapping

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
