"""Sources of images, and their decoding into batches.

>>> source = open_source("demo", limit=8)
>>> len(source), source.classes[source.labels[4]]
(8, 'coffee')
>>> source.image(4).size
(256, 256)
"""

from actstats.data.image import MISSING, OK, PENDING, REFUSED, UNREADABLE, ImageError
from actstats.data.loader import Batch, batches
from actstats.data.opening import open_source
from actstats.data.source import NO_LABEL, Source

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
