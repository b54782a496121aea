"""What a distortion of one image is: a step from image to image, and where it finds itself."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from actstats.data.preprocessing import Preprocessing

Image = NDArray[np.float32]
"""An image in [0, 1], f32 [H, W, 3], resized and cropped but not normalised."""


@dataclass(frozen=True)
class Place:
    """Which image a step is applied to: its number and path in the source, and what cropped it.

    `size` is its (width, height) before that, where it is still known: not after an attack. `occurrence`
    counts the steps of the same kind before this one in the chain.
    """

    index: int
    path: str
    preprocessing: Preprocessing
    size: tuple[int, int] | None = None
    occurrence: int = 0

    def random(self, kind: str) -> np.random.Generator:
        """Return the random numbers of a step of this kind for this image.

        They depend on the image's index and on nothing else that may differ between two runs: neither on the
        batch, the thread or the order, nor on what other kinds of step there are.
        """
        return np.random.default_rng([self.index, zlib.crc32(kind.encode()), self.occurrence])


class Step(Protocol):
    """One distortion of one image. `str(step)` is the spec that it is parsed from."""

    def __call__(self, image: Image, place: Place) -> Image:
        """Return the distorted image, in [0, 1]; may raise `ImageError`; called from several threads."""
        ...
