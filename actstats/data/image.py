"""Decode an image file to RGB, or report in one line why it cannot be decoded.

The pixels are those of torchvision's loader (`Image.open(...).convert("RGB")`): the first frame, no EXIF rotation, no
scaled decoding, transparency dropped. There are three exceptions, where that loader would corrupt the image or hang:
16-bit grey is scaled to 8 bits instead of clipped, grey of 32 bits or signed is refused, as its range is unknown, and
so are images that are too large to be photographs, without decoding them.
"""

from __future__ import annotations

import io
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import numpy as np
from PIL import Image, UnidentifiedImageError

from actstats.errors import one_line

OK: Final = 0
"""The image was read."""
MISSING: Final = 1
"""The file was listed, but no longer exists, or the machine failed to read it; a later run tries it again."""
UNREADABLE: Final = 2
"""The file is damaged, or not an image of a known format."""
REFUSED: Final = 3
"""The image is too large to decode."""
PENDING: Final = -1
"""The image has not been read yet."""

MAX_PIXELS: Final = 1024**3 // 4 // 3
"""Largest number of pixels of an image, 89 million. Above it, PIL warns of decompression bombs."""
MAX_BYTES: Final = 1 << 29
"""Largest size of an image's file, 512 MiB: 89 million pixels of 16-bit RGB, uncompressed."""
MAX_SCANS: Final = 100
"""Largest number of scans of a JPEG; encoders write about ten. Each scan takes as long as decoding an image."""
_SCANNED: Final = 16 * MAX_PIXELS
"""Largest number of pixels in all scans of a JPEG, which takes seconds to decode."""
_PIXEL_BYTES: Final = 16
"""Memory for decoding a pixel, in the formats that need most: WebP, JPEG 2000 and progressive JPEG."""

# A fixed list, because some plugins of PIL start programs (EPS). Every build of Pillow has these.
_FORMATS: Final = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "JPEG2000": (".jp2", ".j2k"),
}
EXTENSIONS: Final = frozenset(ending for endings in _FORMATS.values() for ending in endings)
"""Lower-case extensions of the files that are treated as images."""

Image.init()  # Here, while there is only one thread, rather than in each thread.

# Such images are refused with our own message. Appended, so that a user's filters take precedence.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning, append=True)
# The conversion is meant to be torchvision's, and damaged metadata does not affect the pixels.
warnings.filterwarnings("ignore", "Palette images with Transparency", UserWarning, append=True)
warnings.filterwarnings("ignore", "Corrupt EXIF data", UserWarning, append=True)


class ImageError(Exception):
    """An image cannot be used. `status` is MISSING, UNREADABLE or REFUSED, `message` is one short line."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)  # both, so that it can be pickled
        self.status = status
        self.message = message

    def __str__(self) -> str:
        return self.message


def is_hidden(path: str) -> bool:
    """Return whether a file, or a folder above it, is hidden: its name begins with a dot.

    This is the rule for folders, tars, buckets and the hub. `path` is relative to what the user named.

    >>> [is_hidden(path) for path in ("a/b.png", "./a/../b.png", "._val-0.tar", ".ipynb_checkpoints/a.png")]
    [False, False, True, True]
    """
    if not path.startswith(".") and "/." not in path:  # nearly all paths of a million
        return False
    return any(part.startswith(".") and part not in (".", "..") for part in path.split("/"))


def is_image_name(path: str) -> bool:
    """Return whether a relative path is that of an image: not hidden, with a known extension.

    >>> is_image_name("cat/n01440764_10026.JPEG"), is_image_name("notes.txt"), is_image_name("._a.jpg")
    (True, False, False)
    """
    stem, dot, ending = path.rpartition("/")[2].rpartition(".")
    return bool(stem) and f"{dot}{ending.lower()}" in EXTENSIONS and not is_hidden(path)


def refuse_large_file(size: int) -> None:
    """Raise `ImageError` if a file of `size` bytes is larger than MAX_BYTES."""
    if size > MAX_BYTES:
        raise ImageError(REFUSED, f"file of {size:,} bytes, more than {MAX_BYTES >> 20} MiB")


def refuse_large(width: int, height: int, what: str = "image") -> None:
    """Raise `ImageError` if `width` x `height` is more than MAX_PIXELS."""
    if width * height > MAX_PIXELS:
        message = f"{what} of {width} x {height} pixels, more than {MAX_PIXELS // 10**6} million"
        raise ImageError(REFUSED, message)


def refuse_large_resized(width: int, height: int) -> None:
    """Raise `ImageError` if an image resized to `width` x `height` would have more than MAX_PIXELS."""
    refuse_large(width, height, what="long, thin image, once resized,")


def refuse_many_scans(data: bytes, width: int, height: int) -> None:
    """Raise `ImageError` if a JPEG of `width` x `height` pixels would take long to decode, because of its scans."""
    most = min(MAX_SCANS, _SCANNED // max(1, width * height))
    if data.count(_SCAN) > most and _scans(data, most) > most:
        raise ImageError(REFUSED, f"JPEG of {width} x {height} pixels and more than {most} scans")


_SCAN: Final = b"\xff\xda"
_MARKER: Final = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")
"""The next marker in compressed data, where a stuffed FF is followed by 00 and restarts are D0 to D7."""
_END: Final = 0xD9
_WITHOUT_LENGTH: Final = (0x01, 0xD8)


def _scans(data: bytes, most: int) -> int:
    """Return the number of scans of a JPEG, up to `most` + 1; those of an embedded thumbnail do not count."""
    found, place = 0, 0
    while found <= most and (marker := _MARKER.search(data, place)) is not None:
        kind, place = marker[1][0], marker.end()
        if kind == _END:
            break
        found += kind == _SCAN[1]
        if kind not in _WITHOUT_LENGTH:
            place += max(2, int.from_bytes(data[place : place + 2], "big"))
    return found


class MemoryBudget:
    """Memory in bytes that several threads share. Requests are served in turn; a larger one than all of it, alone."""

    def __init__(self, total: int) -> None:
        self._total, self._used = total, 0
        self._next = threading.Lock()
        self._freed = threading.Condition()

    @contextmanager
    def take(self, size: int) -> Iterator[None]:
        """Wait until `size` bytes are free, and use them within the block. Not reentrant."""
        with self._next, self._freed:
            self._freed.wait_for(lambda: not self._used or self._used + size <= self._total)
            self._used += size
        try:
            yield
        finally:
            with self._freed:
                self._used -= size
                self._freed.notify_all()


_MEMORY: Final = MemoryBudget(2 << 30)


@contextmanager
def memory_to_decode(width: int, height: int) -> Iterator[None]:
    """Wait until there is memory to decode an image of `width` x `height` pixels, beside those of other threads.

    The decoders of a process share 2 GiB, so that eight threads may decode photographs of 16 million pixels at once.
    """
    with _MEMORY.take(width * height * _PIXEL_BYTES):
        yield


def decode(data: bytes) -> Image.Image:
    """Decode the bytes of an image file and return the loaded image in mode RGB.

    Raises `ImageError` if the image cannot be decoded. Any other exception is an error of the program or the machine.
    """
    if not data:
        raise ImageError(UNREADABLE, "the file is empty")
    try:
        image = Image.open(io.BytesIO(data), formats=tuple(_FORMATS))
        refuse_large(*image.size)
        if image.format in _JPEGS:
            refuse_many_scans(data, *image.size)
        with memory_to_decode(*image.size):
            image.load()
            return rgb(image)
    except (ImageError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(REFUSED, f"image of more than {MAX_PIXELS // 10**6} million pixels") from None
    except UnidentifiedImageError:
        raise ImageError(UNREADABLE, "not an image of a known format") from None
    except Exception as error:  # PIL's parsers may raise any exception on a damaged file.
        raise ImageError(UNREADABLE, f"damaged image: {one_line(error, 160)}") from None


def rgb(image: Image.Image) -> Image.Image:
    """Convert an image to mode RGB; raises `ImageError` if its values have no defined range."""
    if image.mode == "RGB":
        image.load()
        return image
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in _GREY_OF_16_BITS):
        bits = _bits(image)
        values = np.asarray(image)
        if values.min() < 0 or values.max() >= 1 << bits:
            raise ImageError(UNREADABLE, f"grey values outside of {bits} bits")
        image = Image.fromarray((values >> (bits - 8)).astype(np.uint8))
    elif image.mode == "I":
        raise ImageError(UNREADABLE, "grey values of 32 bits, or signed, have no defined range")
    elif image.mode == "F":
        raise ImageError(UNREADABLE, "grey values as floats have no defined range")
    return image.convert("RGB")


_JPEGS: Final = ("JPEG", "MPO")
_GREY_OF_16_BITS: Final = ("PPM", "PNG")
"""Formats of which Pillow opens unsigned grey of 16 bits in the mode I, scaled to 0..65535."""
_BITS_PER_SAMPLE: Final = 258


def _bits(image: Image.Image) -> int:
    """Return the number of bits of 16-bit grey that are in use: those of a TIFF may have 12 only."""
    tags = getattr(image, "tag_v2", None) if image.format == "TIFF" else None
    bits = tags.get(_BITS_PER_SAMPLE) if tags is not None else None
    return bits[0] if isinstance(bits, tuple) and len(bits) == 1 and 8 < bits[0] < 16 else 16
