# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
"""The kernel for pairs of maps: reads the maps of the same images, clean and changed, once, and compares them.

Sums are in f64, of the deviations from each map's first value, as on a CPU. A program compares `CHANNELS` maps of one
image, `POSITIONS` positions at a time. Shapes are not compiled in, so that a network needs few kernels.
"""

from __future__ import annotations

from typing import Any, Final

import triton
import triton.language as tl
from torch import Tensor

from actstats_kernels.gpu import compat, launch
from actstats_kernels.gpu.kernels import element_strides
from actstats_kernels.gpu.layout import Layout, layout_of

_TILE: Final = 1024
"""Pairs of values that a program reads at a time: 4 per thread, whose sums take 48 registers."""
_POSITIONS: Final = 64
OPTIONS: Final = {**compat.LAUNCH, "num_warps": launch.WARPS}
"""The options with which `compare_kernel` is compiled."""


@triton.jit
def _spread(squares, total, size):
    return squares - total * total / size


@triton.jit(
    do_not_specialize=[
        *("clean_n", "clean_c", "clean_h", "clean_w", "changed_n", "changed_c", "changed_h", "changed_w"),
        *("channels", "size", "width", "pairs_row", "pairs_n", "pairs_c"),
    ],
    do_not_specialize_on_alignment=["pairs"],
)
def compare_kernel(
    clean,
    clean_n,
    clean_c,
    clean_h,
    clean_w,
    changed,
    changed_n,
    changed_c,
    changed_h,
    changed_w,
    channels,
    size,
    width,
    pairs,
    pairs_row,
    pairs_n,
    pairs_c,
    CLEAN_ALIGN: tl.constexpr,
    CLEAN_UNIT: tl.constexpr,
    CHANGED_ALIGN: tl.constexpr,
    CHANGED_UNIT: tl.constexpr,
    CHANNELS: tl.constexpr,
    POSITIONS: tl.constexpr,
):
    """Write the statistics of `bins.PAIRED` to `pairs`. The grid is (blocks of channels, images)."""
    clean_n, clean_c, clean_h, clean_w = element_strides(
        clean_n, clean_c, clean_h, clean_w, CLEAN_ALIGN, CLEAN_UNIT
    )
    changed_n, changed_c, changed_h, changed_w = element_strides(
        changed_n, changed_c, changed_h, changed_w, CHANGED_ALIGN, CHANGED_UNIT
    )
    image = tl.program_id(1).to(tl.int64)
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    present = channel < channels
    own = clean + image * clean_n + channel.to(tl.int64) * clean_c
    other = changed + image * changed_n + channel.to(tl.int64) * changed_c
    pivot = tl.load(own, mask=present, other=0.0).to(tl.float64)[None, :]
    other_pivot = tl.load(other, mask=present, other=0.0).to(tl.float64)[None, :]
    total = tl.zeros([POSITIONS, CHANNELS], tl.float64)
    other_total = tl.zeros([POSITIONS, CHANNELS], tl.float64)
    squares = tl.zeros([POSITIONS, CHANNELS], tl.float64)
    other_squares = tl.zeros([POSITIONS, CHANNELS], tl.float64)
    products = tl.zeros([POSITIONS, CHANNELS], tl.float64)
    energy = tl.zeros([POSITIONS, CHANNELS], tl.float64)
    for start in range(0, size, POSITIONS):
        position = start + tl.arange(0, POSITIONS)
        inside = (position < size)[:, None] & present[None, :]
        row = (position // width).to(tl.int64)
        column = (position % width).to(tl.int64)
        place = own[None, :] + (row * clean_h + column * clean_w)[:, None]
        beside = other[None, :] + (row * changed_h + column * changed_w)[:, None]
        a = tl.load(place, mask=inside, other=0.0).to(tl.float64)
        b = tl.load(beside, mask=inside, other=0.0).to(tl.float64)
        x = tl.where(inside, a - pivot, 0.0)
        y = tl.where(inside, b - other_pivot, 0.0)
        total += x
        other_total += y
        squares += x * x
        other_squares += y * y
        products += x * y
        energy += (b - a) * (b - a)
    count = size.to(tl.float64)
    x = tl.sum(total, 0)
    y = tl.sum(other_total, 0)
    spread = _spread(tl.sum(squares, 0), x, count)
    other_spread = _spread(tl.sum(other_squares, 0), y, count)
    shared = tl.sum(products, 0) - x * y / count
    change = tl.sum(energy, 0) / count
    # A sum of squares is finite if and only if all values are.
    finite = change - change == 0
    varying = finite & (spread > 0) & (other_spread > 0)
    scale = tl.sqrt(tl.where(varying, spread, 1.0)) * tl.sqrt(tl.where(varying, other_spread, 1.0))
    correlation = tl.minimum(tl.maximum(tl.where(varying, shared, 0.0) / scale, -1.0), 1.0)
    cell = pairs + image * pairs_n.to(tl.int64) + channel.to(tl.int64) * pairs_c.to(tl.int64)
    tl.store(cell, tl.where(finite, change, float("nan")).to(tl.float32), mask=present)
    row_of_correlations = cell + pairs_row.to(tl.int64)
    tl.store(row_of_correlations, tl.where(varying, correlation, float("nan")).to(tl.float32), mask=present)


def compare(clean: Tensor, changed: Tensor, pairs: Tensor) -> None:
    """Read two batches of maps [N, C, H, W] and overwrite `pairs`: see `ops.compare`."""
    if clean.numel() == 0:
        return
    first, second = layout_of(clean), layout_of(changed)
    fixed = constants(first, second)
    with compat.on(clean.device):
        compare_kernel[(-(-first.channels // fixed["CHANNELS"]), len(clean))](
            clean,
            *first.strides,
            changed,
            *second.strides,
            first.channels,
            first.height * first.width,
            first.width,
            pairs,
            *pairs.stride(),
            **fixed,
            **OPTIONS,
        )


def constants(clean: Layout, changed: Layout) -> dict[str, Any]:
    """Return the compile-time arguments of `compare_kernel`."""
    positions = min(launch.power_of_two(clean.height * clean.width), _POSITIONS)
    return {
        "CLEAN_ALIGN": clean.align,
        "CLEAN_UNIT": clean.unit,
        "CHANGED_ALIGN": changed.align,
        "CHANGED_UNIT": changed.unit,
        "CHANNELS": launch.channel_block(clean.channels, _TILE // positions),
        "POSITIONS": positions,
    }
