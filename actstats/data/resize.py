"""Resize only the part of an image that a centre crop keeps, with the same pixels as Pillow, in less time.

Pillow resizes 8-bit images in integer arithmetic with 22-bit weights, and rounds to 8 bits between its two passes.
This module does the same for the rows and columns of the crop only, between NumPy arrays. Pillow resizes horizontally
first, except for some shapes: tall images are left to it. Each process checks once that its Pillow returns the same
pixels.
"""

from __future__ import annotations

import math
from functools import cache, lru_cache
from typing import Any, Final

import numpy as np
from numba import njit
from numpy.typing import NDArray
from PIL import Image

_BITS: Final = 22
_HALF: Final = 1 << (_BITS - 1)
_SUPPORT: Final = {"bilinear": 1.0, "bicubic": 2.0}
_FILTERS: Final = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_NARROWEST, _WIDEST = 0.6, 3.0
"""Range of width / height of the images resized here. Below about 0.5, Pillow 13 resizes vertically first."""


@njit(nogil=True, cache=True)
def _weight(x, support):  # type: ignore[no-untyped-def]
    """Return the filter at `x`: a triangle, or Keys' cubic with a = -0.5 if the support is 2."""
    x = abs(x)
    if support == 1.0:
        return 1.0 - x if x < 1.0 else 0.0
    if x < 1.0:
        return ((-0.5 + 2.0) * x - (-0.5 + 3.0)) * x * x + 1
    if x < 2.0:
        return (((x - 5) * x + 8) * x - 4) * -0.5
    return 0.0


@njit(nogil=True, cache=True)
def _weights(before, after, support, first, count):  # type: ignore[no-untyped-def]
    """Return the first input, the number of inputs and their weights for `count` outputs, starting at `first`."""
    scale = before / after
    stretch = max(scale, 1.0)
    reach = support * stretch
    weights = np.zeros((count, math.ceil(reach) * 2 + 1), np.int32)
    bounds = np.empty((count, 2), np.int64)
    values = np.empty(weights.shape[1])
    for place in range(count):
        centre = (first + place + 0.5) * scale
        low = max(int(centre - reach + 0.5), 0)
        high = min(int(centre + reach + 0.5), before)
        total = 0.0
        for x in range(high - low):
            values[x] = _weight((x + low - centre + 0.5) * (1.0 / stretch), support)
            total += values[x]
        for x in range(high - low):
            value = values[x] / total if total != 0.0 else values[x]
            weights[place, x] = int((-0.5 if value < 0 else 0.5) + value * (1 << _BITS))
        bounds[place, 0], bounds[place, 1] = low, high - low
    return bounds, weights


@njit(nogil=True, cache=True, boundscheck=False)
def _resample(pixels, columns, across, rows, down, out):  # type: ignore[no-untyped-def]
    """Write the crop, uint8 [h, w, 3], to `out`; bounds and weights are those of `_weights`."""
    height, width = rows.shape[0], columns.shape[0]
    top = rows[0, 0]
    bottom = rows[height - 1, 0] + rows[height - 1, 1]
    between = np.empty((bottom - top, 3 * width), np.uint8)
    for y in range(bottom - top):
        source = pixels[top + y].reshape(-1)
        for x in range(width):
            start = 3 * columns[x, 0]
            red = green = blue = np.int32(_HALF)
            for tap in range(columns[x, 1]):
                weight = across[x, tap]
                red = np.int32(red + source[start] * weight)
                green = np.int32(green + source[start + 1] * weight)
                blue = np.int32(blue + source[start + 2] * weight)
                start += 3
            between[y, 3 * x] = min(max(red >> _BITS, 0), 255)
            between[y, 3 * x + 1] = min(max(green >> _BITS, 0), 255)
            between[y, 3 * x + 2] = min(max(blue >> _BITS, 0), 255)
    sums = np.empty(3 * width, np.int32)
    for y in range(height):
        target = out[y].reshape(-1)
        sums[:] = _HALF
        for tap in range(rows[y, 1]):
            weight = down[y, tap]
            source = between[rows[y, 0] - top + tap]
            for x in range(3 * width):
                sums[x] += np.int32(source[x] * weight)
        for x in range(3 * width):
            target[x] = min(max(sums[x] >> _BITS, 0), 255)


@lru_cache(maxsize=256)
def _plan(before: int, after: int, interpolation: str, first: int, count: int) -> tuple[Any, Any]:
    bounds, weights = _weights(before, after, _SUPPORT[interpolation], first, count)
    return bounds, weights


def can_resize(
    size: tuple[int, int], resized: tuple[int, int], corner: tuple[int, int], crop: tuple[int, int]
) -> bool:
    """Return whether `resized_crop` returns Pillow's pixels for such an image; all arguments are (width, height)."""
    inside = all(
        at >= 0 and at + kept <= whole for at, kept, whole in zip(corner, crop, resized, strict=True)
    )
    return inside and _NARROWEST <= size[0] / size[1] <= _WIDEST and _is_pillows()


def resized_crop(
    pixels: NDArray[np.uint8],
    resized: tuple[int, int],
    interpolation: str,
    corner: tuple[int, int],
    crop: tuple[int, int],
) -> NDArray[np.uint8]:
    """Return the `crop` (width, height) at `corner` (left, top) of `pixels`, uint8 [H, W, 3], resized to `resized`.

    `can_resize` must be True for them.
    """
    columns, across = _plan(pixels.shape[1], resized[0], interpolation, corner[0], crop[0])
    rows, down = _plan(pixels.shape[0], resized[1], interpolation, corner[1], crop[1])
    out = np.empty((crop[1], crop[0], 3), np.uint8)
    _resample(np.ascontiguousarray(pixels), columns, across, rows, down, out)
    return out


@cache
def _is_pillows() -> bool:
    """Return whether this Pillow resizes noise to the same pixels, at both ends of the range of shapes."""
    noise = np.random.default_rng(0).integers(0, 256, (160, 288, 3), dtype=np.uint8)
    for width, height in ((96, 160), (288, 96), (128, 96)):
        image = noise[:height, :width]
        for interpolation, kind in _FILTERS.items():
            for resized in ((width // 3, height // 3), (width + 5, height + 7)):
                expected = np.asarray(Image.fromarray(image).resize(resized, kind))
                if (resized_crop(image, resized, interpolation, (0, 0), resized) != expected).any():
                    return False
    return True
