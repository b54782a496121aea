"""Distortions that leave an object's outline alone: contours, and silhouettes where there are masks."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image as Pictures

from actstats.data.image import MISSING, UNREADABLE, ImageError, is_image_name
from actstats.distort.pixels import grey
from actstats.distort.step import Image, Place
from actstats.errors import ActstatsError
from actstats.support import needs

# Those of Chen, Agarwal & Nguyen 2020, "The shape and simplicity biases of adversarially robust CNNs".
_SIGMA: Final = 0.4
_LOW, _HIGH = 0.35, 0.9


@dataclass(frozen=True)
class Contour:
    """Canny's edges of the grey image, black on white."""

    def __str__(self) -> str:
        return "contour"

    def __call__(self, image: Image, place: Place) -> Image:
        """Return the drawing, of 0 and 1."""
        with needs("skimage", "contour", "distort"):
            from skimage.feature import canny

        edges = canny(grey(image), sigma=_SIGMA, low_threshold=_LOW, high_threshold=_HIGH)
        return _black_on_white(edges)


@dataclass(frozen=True)
class Silhouette:
    """The object in black on white, as `masks` has it: a folder of images, not 0 where the object is.

    A mask has the path of its image, but for the ending, and the image's size; it is resized and cropped with it.
    """

    masks: Path

    def __post_init__(self) -> None:
        if not self.masks.is_dir():
            raise ActstatsError(f"silhouette:{self.masks} needs a folder of masks, and there is none")
        if not self._files:
            raise ActstatsError(f"silhouette:{self.masks}: there is no image in that folder")

    def __str__(self) -> str:
        return f"silhouette:{self.masks}"

    @cached_property
    def _files(self) -> dict[str, Path]:
        files = sorted(path for path in self.masks.rglob("*") if is_image_name(path.name))
        return {_key(path.relative_to(self.masks).as_posix()): path for path in files}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, over the masks' names and bytes."""
        digest = hashlib.sha256()
        for name, path in self._files.items():
            digest.update(f"{name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()

    def __call__(self, image: Image, place: Place) -> Image:
        """Return the silhouette, of 0 and 1."""
        path = self._files.get(_key(place.path))
        if path is None:
            raise ImageError(MISSING, f"has no mask in {self.masks}")
        try:
            mask = np.asarray(Pictures.open(path))
        except OSError as error:
            raise ImageError(UNREADABLE, f"its mask {path.name} cannot be read: {error}") from None
        if mask.ndim == 3:
            mask = mask.max(2)
        if mask.shape[::-1] != place.size:
            raise ImageError(
                UNREADABLE, f"its mask {path.name} is of {mask.shape[::-1]} pixels, not {place.size}"
            )
        marked = Pictures.fromarray(np.where(mask != 0, 255, 0).astype(np.uint8))
        return _black_on_white(place.preprocessing.pixels(marked)[..., 0] > 127)


def _key(path: str) -> str:
    folder, slash, name = path.rpartition("/")
    return folder + slash + name.rpartition(".")[0]


def _black_on_white(drawn: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> Image:
    return np.repeat(np.where(drawn, 0, 1).astype(np.float32)[..., None], 3, axis=2)
