"""Distortions that move, mix or add to pixels: greyscale, scrambled patches, Gaussian noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from actstats.distort.step import Image, Place
from actstats.errors import ActstatsError

LUMA: Final = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""Weights of red, green and blue in a grey value: ITU-R BT.601, as in PIL and torchvision."""


def grey(image: Image) -> Image:
    """Return the grey values of an image, f32 [H, W]."""
    values: Image = image @ LUMA
    return values


@dataclass(frozen=True)
class Greyscale:
    """No colour: each pixel's three values become its grey value."""

    def __str__(self) -> str:
        return "greyscale"

    def __call__(self, image: Image, place: Place) -> Image:
        """Return the grey image, in three equal colours."""
        return np.repeat(grey(image)[..., None], 3, axis=2)


@dataclass(frozen=True)
class Noise:
    """Gaussian noise of standard deviation `sigma`, independent for each pixel and colour, cut to [0, 1]."""

    sigma: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.sigma) and self.sigma > 0):
            raise ActstatsError(
                f"noise:{self.sigma:g} must have a positive standard deviation, as noise:0.1 has, "
                "where images are in [0, 1]"
            )

    def __str__(self) -> str:
        return f"noise:{self.sigma:g}"

    def __call__(self, image: Image, place: Place) -> Image:
        """Return the image with noise."""
        noise = place.random("noise").standard_normal(image.shape, dtype=np.float32)
        noise *= np.float32(self.sigma)
        noise += image
        return np.clip(noise, 0, 1, out=noise)


@dataclass(frozen=True)
class Scramble:
    """The image cut in `grid` x `grid` equal patches, which change places at random.

    What a side has more than a multiple of `grid` stays where it is, half of it at each edge.
    """

    grid: int

    def __post_init__(self) -> None:
        if self.grid < 2:
            raise ActstatsError(f"scramble:{self.grid} moves nothing; give 2 or more patches a side")

    def __str__(self) -> str:
        return f"scramble:{self.grid}"

    def __call__(self, image: Image, place: Place) -> Image:
        """Return the scrambled image; at least two patches have another place than before."""
        grid = self.grid
        patch = image.shape[0] // grid
        first = (image.shape[0] - grid * patch) // 2
        inner = slice(first, first + grid * patch)
        random = place.random("scramble")
        order = random.permutation(grid**2)
        while (order == np.arange(grid**2)).all():
            order = random.permutation(grid**2)
        patches = image[inner, inner].reshape(grid, patch, grid, patch, 3).swapaxes(1, 2)
        moved = patches.reshape(grid**2, patch, patch, 3)[order].reshape(grid, grid, patch, patch, 3)
        scrambled = image.copy()
        scrambled[inner, inner] = moved.swapaxes(1, 2).reshape(grid * patch, grid * patch, 3)
        return scrambled
