"""Decode an image file to RGB, or report in one line why it cannot be decoded.

The pixels are those of torchvision's loader (`Image.open(...).convert("RGB")`): the first frame, no EXIF rotation, no
scaled decoding, transparency dropped. There are two exceptions, where that loader would corrupt the image or hang:
16-bit grey is scaled to 8 bits instead of clipped, and images too large to be photographs are refused without
decoding.
"""

from __future__ import annotations

import io
import warnings
from typing import Final

import numpy as np
from PIL import Image, UnidentifiedImageError

from actstats.errors import one_line

OK: Final = 0
"""The image was read."""
MISSING: Final = 1
"""The file was listed but no longer exists."""
UNREADABLE: Final = 2
"""The file is damaged, or not an image of a known format."""
REFUSED: Final = 3
"""The image is too large to decode."""
PENDING: Final = -1
"""The image has not been read yet."""

MAX_PIXELS: Final = 1024**3 // 4 // 3
"""Largest number of pixels of an image, 89 million. Above it, PIL warns of decompression bombs."""

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
        super().__init__(message)
        self.status = status
        self.message = message


def is_image_name(name: str) -> bool:
    """Return whether a file name (without folder) is that of an image: not hidden, with a known extension.

    >>> is_image_name("n01440764_10026.JPEG"), is_image_name("notes.txt"), is_image_name("._a.jpg")
    (True, False, False)
    """
    stem, dot, ending = name.rpartition(".")
    return bool(stem) and not name.startswith(".") and f"{dot}{ending.lower()}" in EXTENSIONS


def refuse_large(width: int, height: int, what: str = "image") -> None:
    """Raise `ImageError` if `width` x `height` is more than MAX_PIXELS."""
    if width * height > MAX_PIXELS:
        message = f"{what} of {width} x {height} pixels, more than {MAX_PIXELS // 10**6} million"
        raise ImageError(REFUSED, message)


def refuse_large_resized(width: int, height: int) -> None:
    """Raise `ImageError` if an image resized to `width` x `height` would have more than MAX_PIXELS."""
    refuse_large(width, height, what="long, thin image, once resized,")


def decode(data: bytes) -> Image.Image:
    """Decode the bytes of an image file and return the loaded image in mode RGB.

    Raises `ImageError` if the image cannot be decoded. Any other exception is an error of the program or the machine.
    """
    if not data:
        raise ImageError(UNREADABLE, "the file is empty")
    try:
        image = Image.open(io.BytesIO(data), formats=tuple(_FORMATS))
        refuse_large(*image.size)
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
    """Convert a loaded image to mode RGB; raises `ImageError` if its values have no defined range."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16") or image.mode == "I":
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise ImageError(UNREADABLE, "grey values of 32 bits have no defined range")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise ImageError(UNREADABLE, "grey values as floats have no defined range")
    return image.convert("RGB")
