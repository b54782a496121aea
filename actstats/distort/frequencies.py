"""Distortions that take spatial frequencies away: low-pass and high-pass.

The filter is Gaussian. It has no negative lobes, so it draws no false contours beside edges, and what passes
the low one stays in [0, 1]. The frequency given is the one that passes at half its amplitude.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from actstats.distort.step import Image, Place
from actstats.errors import ActstatsError
from actstats.support import needs

_HALF: Final = math.sqrt(math.log(2) / 2) / math.pi
"""sigma * f where exp(-2 pi^2 sigma^2 f^2), the transfer function of a Gaussian, is 1/2."""


def smooth(image: Image, cycles: float) -> Image:
    """Return the low frequencies of an image, f32 [H, W, 3], mirrored at its edges.

    A frequency of `cycles` cycles a side keeps half its amplitude, twice that a sixteenth.
    """
    with needs("scipy", "lowpass and highpass", "distort"):
        from scipy.ndimage import gaussian_filter

    sigma = _HALF * image.shape[0] / cycles
    low: Image = gaussian_filter(image, (sigma, sigma, 0), mode="reflect")
    return low


@dataclass(frozen=True)
class LowPass:
    """What remains below `cycles` cycles an image."""

    cycles: float

    def __post_init__(self) -> None:
        _check(str(self), self.cycles)

    def __str__(self) -> str:
        return f"lowpass:{self.cycles:g}"

    def __call__(self, image: Image, place: Place) -> Image:
        """Return the blurred image."""
        return np.clip(smooth(image, self.cycles), 0, 1)


@dataclass(frozen=True)
class HighPass:
    """What remains above `cycles` cycles an image, around the image's mean colour, cut to [0, 1]."""

    cycles: float

    def __post_init__(self) -> None:
        _check(str(self), self.cycles)

    def __str__(self) -> str:
        return f"highpass:{self.cycles:g}"

    def __call__(self, image: Image, place: Place) -> Image:
        """Return the image less its low frequencies, but with its mean."""
        high: Image = image - smooth(image, self.cycles) + image.mean((0, 1))
        return np.clip(high, 0, 1)


def _check(spec: str, cycles: float) -> None:
    if not (math.isfinite(cycles) and cycles > 0):
        raise ActstatsError(f"{spec} must have a positive frequency in cycles an image, as {spec[:-1]}8 has")
