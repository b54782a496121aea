"""Decode one image file to RGB, or say in one line why it cannot be.

The pixels are those that torchvision's own loader gives (`Image.open(...).convert("RGB")`): the first
frame, no EXIF rotation, no scaled decoding, transparency dropped. Where that loader would spoil or hang,
this one differs: 16-bit grey is scaled to 8 bits instead of clipped, and images too large to be photographs
are refused unread.
"""

from __future__ import annotations

import io
import warnings
from typing import Final

import numpy as np
from PIL import Image, UnidentifiedImageError

OK: Final = 0
"""The image was read."""
MISSING: Final = 1
"""The file was listed but is not there any more."""
UNREADABLE: Final = 2
"""The file is no image of a known format, or a damaged one."""
REFUSED: Final = 3
"""The image is too large to decode."""
PENDING: Final = -1
"""The image was not looked at yet."""

MAX_PIXELS: Final = 1024**3 // 4 // 3
"""Images of more pixels are refused: 89 million, where PIL begins to warn of decompression bombs."""

# A closed list: other plugins of PIL start programs (EPS, say). These are in every build of Pillow.
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
"""Lower-case endings of the file names that are taken for images."""

Image.init()  # Here, where there is one thread yet, and not in the first image of each.

# Such images are refused, with a message of their own; appended, so that a user's own filters come first.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning, append=True)
# The same conversion as torchvision's is wanted, and damaged metadata does not matter to the pixels.
warnings.filterwarnings("ignore", "Palette images with Transparency", UserWarning, append=True)
warnings.filterwarnings("ignore", "Corrupt EXIF data", UserWarning, append=True)


class ImageError(Exception):
    """One image cannot be used; `status` is MISSING, UNREADABLE or REFUSED, `message` one short line."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def is_image_name(name: str) -> bool:
    """Return whether a file of this name (no folder) is taken for an image: by its ending, and not hidden.

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
    """Raise `ImageError` if an image would be more than MAX_PIXELS once it is resized to `width` x `height`."""
    refuse_large(width, height, what="long, thin image, once resized,")


def decode(data: bytes) -> Image.Image:
    """Return the image in an encoded file's bytes, in mode RGB and loaded.

    Raises `ImageError`. Any other exception is a fault of this program or of the machine, not of the image.
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
    except Exception as error:  # PIL's parsers raise whatever a damaged file makes them meet.
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise ImageError(UNREADABLE, f"damaged image: {reason}") from None


def rgb(image: Image.Image) -> Image.Image:
    """Return a loaded image in mode RGB; raises `ImageError` where its values have no defined range."""
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
