"""Decode JPEGs with simplejpeg, if it is installed: the same pixels as Pillow's, as an array, in less time.

Both use libjpeg-turbo. simplejpeg returns an array, whereas Pillow creates an image first and converts it to an
array. Anything other than a common JPEG, or a file that causes a warning or error of any kind, is left to Pillow.
"""

from __future__ import annotations

import io
from functools import cache
from importlib import import_module
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from actstats.data.image import decode, memory_to_decode, refuse_large, refuse_many_scans

_BEGIN: Final = b"\xff\xd8\xff"
_COLOURS: Final = ("YCbCr", "Gray")
_SAMPLINGS: Final = ("444", "422", "420", "Gray")
"""Samplings of the colours that `_is_pillows` compares, as simplejpeg calls them."""


def decode_array(data: bytes) -> NDArray[np.uint8] | Image.Image:
    """Decode the bytes of an image file to RGB, as an array, uint8 [H, W, 3], or a PIL image.

    Raises `ImageError`, like `actstats.data.image.decode`.
    """
    pixels = _by_simplejpeg(data) if data.startswith(_BEGIN) and _is_pillows() else None
    return decode(data) if pixels is None else pixels


def size_of(image: NDArray[np.uint8] | Image.Image) -> tuple[int, int]:
    """Return the width and height of an image returned by `decode_array`."""
    return image.size if isinstance(image, Image.Image) else (image.shape[1], image.shape[0])


def _by_simplejpeg(data: bytes) -> NDArray[np.uint8] | None:
    codec: Any = import_module("simplejpeg")
    try:
        # Pillow's parser runs first, so that the same files are refused.
        header = Image.open(io.BytesIO(data), formats=("JPEG",))
    except Exception:  # The parser may raise anything; `decode` reports it.
        return None
    refuse_large(*header.size)
    refuse_many_scans(data, *header.size)
    try:
        height, width, colours, sampling = codec.decode_jpeg_header(data)
        common = header.mode in ("RGB", "L") and colours in _COLOURS and sampling in _SAMPLINGS
        if not common or (width, height) != header.size:
            return None
        with memory_to_decode(width, height):
            pixels: NDArray[np.uint8] = codec.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False)
    except Exception:  # KeyError for rare samplings; Pillow decides.
        return None
    return pixels


@cache
def _is_pillows() -> bool:
    """Return whether simplejpeg is installed and decodes noise to Pillow's pixels, in the common kinds of file."""
    try:
        import_module("simplejpeg")
    except ImportError:
        return False
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 51, 3), dtype=np.uint8))
    for subsampling in (0, 1, 2):
        for progressive in (False, True):
            file = io.BytesIO()
            noise.save(file, "JPEG", quality=80, subsampling=subsampling, progressive=progressive)
            pixels = _by_simplejpeg(file.getvalue())
            if pixels is None or (pixels != np.asarray(decode(file.getvalue()))).any():
                return False
    return True
