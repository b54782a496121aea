"""The memory layout of maps, as far as kernels are compiled for it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from torch import Tensor

MOST_ALIGN: Final = 16
"""Largest alignment in elements; at least 16 bytes, the widest load."""


@dataclass(frozen=True)
class Layout:
    """Maps as the kernels see them.

    `strides` (n, c, h, w) are in units of `align` elements, except that of the axis `unit` ("c", "w", or "" if none
    is adjacent in memory), which is 1. A map of one row, 1 x W, is treated as a column, W x 1: neighbours, positions
    and frequencies are the same, and the kernels walk down columns.
    """

    height: int
    width: int
    channels: int
    strides: tuple[int, int, int, int]
    align: int
    unit: str


def layout_of(x: Tensor) -> Layout:
    """Return the layout of maps `x` [N, C, H, W].

    >>> import torch
    >>> x = torch.zeros(2, 8, 5, 6)
    >>> layout_of(x)
    Layout(height=5, width=6, channels=8, strides=(120, 15, 3, 1), align=2, unit='w')
    >>> layout_of(x.to(memory_format=torch.channels_last)).strides
    (30, 1, 6, 1)
    """
    return _layout(tuple(x.shape), x.stride())


@lru_cache(maxsize=4096)
def _layout(shape: tuple[int, ...], strides: tuple[int, ...]) -> Layout:
    _, channels, height, width = shape
    # The stride of an axis of length 1 is arbitrary and never used.
    n, c, h, w = (s if length > 1 else 0 for s, length in zip(strides, shape, strict=True))
    if height == 1:
        height, width, h, w = width, 1, w, 0
    unit = "c" if c == 1 else "w" if w == 1 else ""
    others = [s for axis, s in zip("nchw", (n, c, h, w), strict=True) if axis != unit]
    align = MOST_ALIGN
    while any(s % align for s in others):
        align //= 2
    units = tuple(1 if axis == unit else s // align for axis, s in zip("nchw", (n, c, h, w), strict=True))
    return Layout(height, width, channels, units, align, unit)  # type: ignore[arg-type]
