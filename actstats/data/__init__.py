"""Sources of images, and decoding of images into batches.

>>> from actstats.data import open_source
>>> source = open_source("demo", limit=8)
>>> len(source), source.classes[source.labels[4]]
(8, 'coffee')
>>> source.image(4).size
(256, 256)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from actstats.data.image import MISSING, OK, PENDING, REFUSED, UNREADABLE, ImageError
from actstats.data.source import NO_LABEL, Source
from actstats.support import lazy_exports

if TYPE_CHECKING:
    from actstats.data.loader import Batch, batches
    from actstats.data.opening import open_source

__all__ = [
    "MISSING",
    "NO_LABEL",
    "OK",
    "PENDING",
    "REFUSED",
    "UNREADABLE",
    "Batch",
    "ImageError",
    "Source",
    "batches",
    "open_source",
]

# The loader imports torch, which is not needed to list images.
__getattr__, __dir__ = lazy_exports(__name__, __all__, {"loader": "Batch batches", "opening": "open_source"})
