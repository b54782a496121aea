# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
"""Device function that reads a block of maps once and returns the moments of each.

A program processes `UNITS` maps, row by row. Its tile is `[ROWS * COLUMNS, UNITS]`: lane (r, j) processes column j of
band r of the rows and keeps its own running mean, sum of squares, maximum and total variation, so that lanes exchange
nothing until the whole map has been read. The value above is still in a register; the value to the right is loaded
again, from a cache line that was just fetched.
"""

from __future__ import annotations

import triton
import triton.language as tl

_NOWHERE = tl.constexpr(2**31 - 1)


@triton.jit
def read_moments(
    maps,
    present,
    stride_h,
    stride_w,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    UNITS: tl.constexpr,
    UNROLL: tl.constexpr = 2,
):
    """Return mean, variance, maximum, share > 0, total variation, argmax and finiteness of each map, [UNITS] each.

    `maps` [UNITS] points at the first value of each map; maps that are not `present` are not read.
    """
    BAND: tl.constexpr = (HEIGHT + ROWS - 1) // ROWS
    RAGGED: tl.constexpr = BAND * ROWS != HEIGHT
    LANES: tl.constexpr = ROWS * COLUMNS
    lane = tl.arange(0, LANES)
    column = lane % COLUMNS
    first_row = lane // COLUMNS * BAND
    here = (column < WIDTH)[:, None] & present[None, :]

    across = column.to(tl.int64) * stride_w
    start = maps[None, :] + (first_row.to(tl.int64) * stride_h + across)[:, None]
    # Above a band is the last row of the band before; above the map, its own first row, for a difference of 0.
    above_row = tl.minimum(tl.maximum(first_row - 1, 0), HEIGHT - 1).to(tl.int64) * stride_h
    above = tl.load(maps[None, :] + (above_row + across)[:, None], mask=here, other=0.0).to(tl.float32)
    # Beside the last column, the column itself, again for a difference of 0.
    beside = tl.minimum(column + 1, WIDTH - 1).to(tl.int64) * stride_w
    beside_start = maps[None, :] + (first_row.to(tl.int64) * stride_h + beside)[:, None]

    shift = tl.load(maps, mask=present, other=0.0).to(tl.float32)
    mean = tl.zeros([LANES, UNITS], tl.float32)
    squares = tl.zeros([LANES, UNITS], tl.float32)
    top = tl.full([LANES, UNITS], float("-inf"), tl.float32)
    top_row = tl.zeros([LANES, UNITS], tl.int32)
    active = tl.zeros([LANES, UNITS], tl.float32)
    variation = tl.zeros([LANES, UNITS], tl.float32)
    down = tl.full([], 0, tl.int64)
    count = tl.full([], 0.0, tl.float32)
    for i in tl.range(0, BAND, loop_unroll_factor=UNROLL):
        inside = here
        if RAGGED:
            inside = here & (first_row + i < HEIGHT)[:, None]
        value = tl.load(start + down, mask=inside, other=0.0).to(tl.float32)
        # Welford's update of values relative to the map's first: no cancellation, and exactly 0 for constant maps.
        count += 1.0
        shifted = value - shift[None, :]
        delta = shifted - mean
        if RAGGED:
            delta = tl.where(inside, delta, 0.0)
        mean += delta * (1.0 / count)
        squares += delta * (shifted - mean)
        greater = value > top
        if RAGGED:
            greater = greater & inside
        top = tl.where(greater, value, top)
        top_row = tl.where(greater, i, top_row)
        # The product makes the count NaN if a value is not finite.
        active += tl.where(value > 0, 1.0, 0.0) + value * 0.0
        change = tl.abs(value - above)
        if WIDTH > 1:
            right = tl.load(beside_start + down, mask=inside, other=0.0).to(tl.float32)
            change += tl.abs(right - value)
        if RAGGED:
            change = tl.where(inside, change, 0.0)
        variation += change
        above = value
        down += stride_h

    # Lanes beyond the map's edge have processed zeros and are excluded from here on.
    rows = tl.where(column < WIDTH, tl.minimum(tl.maximum(HEIGHT - first_row, 0), BAND), 0)
    held = (rows > 0)[:, None] & present[None, :]
    weight = rows.to(tl.float32)[:, None]
    SIZE: tl.constexpr = HEIGHT * WIDTH
    centre = tl.sum(tl.where(held, mean * weight, 0.0), 0) / SIZE
    spread = mean - centre[None, :]
    variance = tl.sum(tl.where(held, squares + weight * spread * spread, 0.0), 0) / SIZE
    maximum = tl.max(tl.where(held, top, float("-inf")), 0)
    place = (first_row[:, None] + top_row) * WIDTH + column[:, None]
    argmax = tl.min(tl.where(held & (top == maximum[None, :]), place, _NOWHERE), 0)
    share = tl.sum(tl.where(held, active, 0.0), 0) / SIZE
    total = tl.sum(tl.where(held, variation, 0.0), 0)
    return shift + centre, variance, maximum, share, total, argmax, share == share
