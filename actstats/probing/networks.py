"""Networks by one word each, for analyses that take several: an architecture with its weights, or a sweep's store.

>>> parse_network("resnet50+robust=l2:3")
('resnet50', 'default', 'l2:3')
>>> parse_network("googlenet=demo+robust"), parse_network("alexnet=alexnet.pth")
(('googlenet', 'demo', 'default'), ('alexnet', 'alexnet.pth', None))
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from actstats.errors import ActstatsError
from actstats.support import URL, located

if TYPE_CHECKING:
    from actstats.models import Loaded

_SPEC: Final = re.compile(r"(?P<arch>[^=+]+)(=(?P<weights>.+?))?(?P<robust>\+robust(=(?P<kind>.+))?)?")


def parse_network(spec: str) -> tuple[str, str, str | None]:
    """Return what ARCH, ARCH=WEIGHTS, ARCH+robust or ARCH=WEIGHTS+robust=KIND name: architecture, weights, training.

    They are the arguments `arch`, `weights` and `robust` of `load_model`.

    Raises:
        ActstatsError: `spec` is malformed.
    """
    found = _SPEC.fullmatch(spec)
    if found is None:
        raise ActstatsError(
            f"{spec!r} names no network; write ARCH, ARCH=WEIGHTS, ARCH+robust, ARCH+robust=l2:3, or a sweep's store"
        )
    robust = (found["kind"] or "default") if found["robust"] else None
    return found["arch"], found["weights"] or "default", robust


def open_network(spec: str, *, offline: bool = False, trust: bool = False) -> Loaded:
    """Return the network that a word names: as `parse_network` reads it, or the one that was swept into a store.

    With `trust`, the factory, weights file or address that a store names is used.

    Raises:
        ActstatsError: the network is unknown or its weights are unavailable.
    """
    from actstats.models import load_model
    from actstats.store.sweep import open_sweep

    if Path(spec).is_dir() or (isinstance(located(spec), URL) and "=" not in spec):
        return open_sweep(spec, trust=trust).network(offline=offline)
    arch, weights, robust = parse_network(spec)
    return load_model(arch, weights, robust=robust, offline=offline)
