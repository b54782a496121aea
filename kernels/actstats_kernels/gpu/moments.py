# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
"""Device function that reads a block of maps once and returns the moments of each.

A program processes `UNITS` maps. Its tile is `[ROWS * COLUMNS, UNITS]`: lane (r, j) walks down band r of the rows of
up to eight adjacent columns, with one running sum, sum of squares, maximum, count and total variation for all of
them, so that lanes exchange nothing until the whole map has been read. The value to the left and the value above are
still in registers; only the column beside the lane's last is read twice.

Sums are those of the differences to a pivot, the average of a few values of the map: no cancellation, and exactly 0
for constant maps. A sum is finite only if all values are. So a map with values so large that the sum of a lane's
differences is beyond the range of f32 also counts as not finite.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _load(place, present):
    """Return the values at `place` [lanes, units], those that are not `present` as zeros."""
    return tl.load(place) if present is None else tl.load(place, mask=present[None, :], other=0.0)


@triton.jit
def _at(
    line,
    first_column,
    k: tl.constexpr,
    stride_w,
    present,
    ACROSS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Return the values of a row, f32, `k` columns beside the first of each lane; beyond the last column, its own."""
    if k < ACROSS and ACROSS * COLUMNS == WIDTH:
        place = line + k * stride_w
    else:
        beside = tl.minimum(k, WIDTH - 1 - first_column)
        place = line + (beside.to(tl.int64) * stride_w)[:, None]
    return _load(place, present).to(tl.float32)


@triton.jit
def _add(
    value,
    right,
    above,
    pivot,
    total,
    squares,
    active,
    variation,
    below,
    first_column,
    k: tl.constexpr,
    WIDTH: tl.constexpr,
    GUARDED: tl.constexpr,
):
    """Return the sums with one more value of each lane. With `GUARDED`, values beyond the map's edge are left out."""
    delta = value - pivot
    # Negative if the value is greater than zero, of either sign.
    below_zero = 0.0 - value
    change = tl.abs(value - above) + tl.abs(right - value)
    if GUARDED:
        inside = (below & (first_column + k < WIDTH))[:, None]
        delta = tl.where(inside, delta, 0.0)
        below_zero = tl.where(inside, below_zero, 0.0)
        change = tl.where(inside, change, 0.0)
    active += (below_zero.to(tl.uint32, bitcast=True) >> 31).to(tl.int32)
    return total + delta, squares + delta * delta, active, variation + change


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

    `maps` [UNITS] points at the first value of each map; maps that are not `present` are not read, and all are read
    if `present` is None.
    """
    BAND: tl.constexpr = (HEIGHT + ROWS - 1) // ROWS
    ACROSS: tl.constexpr = (WIDTH + COLUMNS - 1) // COLUMNS
    GUARDED: tl.constexpr = BAND * ROWS != HEIGHT or ACROSS * COLUMNS != WIDTH
    LANES: tl.constexpr = ROWS * COLUMNS
    lane = tl.arange(0, LANES)
    first_column = lane % COLUMNS * ACROSS
    first_row = lane // COLUMNS * BAND
    start = maps[None, :] + (tl.minimum(first_column, WIDTH - 1).to(tl.int64) * stride_w)[:, None]
    # Above a band is the last row of the band before; above the map, its own first row, for a difference of 0.
    row = tl.minimum(tl.maximum(first_row - 1, 0), HEIGHT - 1)
    line = start + (row.to(tl.int64) * stride_h)[:, None]
    above0 = _at(line, first_column, 0, stride_w, present, ACROSS, COLUMNS, WIDTH)
    if ACROSS > 1:
        above1 = _at(line, first_column, 1, stride_w, present, ACROSS, COLUMNS, WIDTH)
    if ACROSS > 2:
        above2 = _at(line, first_column, 2, stride_w, present, ACROSS, COLUMNS, WIDTH)
    if ACROSS > 3:
        above3 = _at(line, first_column, 3, stride_w, present, ACROSS, COLUMNS, WIDTH)
    if ACROSS > 4:
        above4 = _at(line, first_column, 4, stride_w, present, ACROSS, COLUMNS, WIDTH)
    if ACROSS > 5:
        above5 = _at(line, first_column, 5, stride_w, present, ACROSS, COLUMNS, WIDTH)
    if ACROSS > 6:
        above6 = _at(line, first_column, 6, stride_w, present, ACROSS, COLUMNS, WIDTH)
    if ACROSS > 7:
        above7 = _at(line, first_column, 7, stride_w, present, ACROSS, COLUMNS, WIDTH)
    pivot = above0
    if ACROSS > 3:
        pivot = ((above0 + above1) + (above2 + above3)) * 0.25

    total = tl.zeros([LANES, UNITS], tl.float32)
    squares = tl.zeros([LANES, UNITS], tl.float32)
    active = tl.zeros([LANES, UNITS], tl.int32)
    variation = tl.zeros([LANES, UNITS], tl.float32)
    top = tl.full([LANES, UNITS], float("-inf"), tl.float32)
    top_row = tl.zeros([LANES, UNITS], tl.int32)
    for i in tl.range(0, BAND, loop_unroll_factor=UNROLL):
        # Below the map is its last row again.
        below = first_row + i < HEIGHT
        row = tl.minimum(first_row + i, HEIGHT - 1)
        line = start + (row.to(tl.int64) * stride_h)[:, None]
        value = _at(line, first_column, 0, stride_w, present, ACROSS, COLUMNS, WIDTH)
        right = _at(line, first_column, 1, stride_w, present, ACROSS, COLUMNS, WIDTH)
        total, squares, active, variation = _add(
            value, right, above0, pivot, total, squares, active, variation, below, first_column, 0, WIDTH, GUARDED
        )  # fmt: skip
        best = value
        above0 = value
        value = right
        if ACROSS > 1:
            right = _at(line, first_column, 2, stride_w, present, ACROSS, COLUMNS, WIDTH)
            total, squares, active, variation = _add(
                value, right, above1, pivot, total, squares, active, variation, below, first_column, 1, WIDTH, GUARDED
            )  # fmt: skip
            best = tl.maximum(best, value)
            above1 = value
            value = right
        if ACROSS > 2:
            right = _at(line, first_column, 3, stride_w, present, ACROSS, COLUMNS, WIDTH)
            total, squares, active, variation = _add(
                value, right, above2, pivot, total, squares, active, variation, below, first_column, 2, WIDTH, GUARDED
            )  # fmt: skip
            best = tl.maximum(best, value)
            above2 = value
            value = right
        if ACROSS > 3:
            right = _at(line, first_column, 4, stride_w, present, ACROSS, COLUMNS, WIDTH)
            total, squares, active, variation = _add(
                value, right, above3, pivot, total, squares, active, variation, below, first_column, 3, WIDTH, GUARDED
            )  # fmt: skip
            best = tl.maximum(best, value)
            above3 = value
            value = right
        if ACROSS > 4:
            right = _at(line, first_column, 5, stride_w, present, ACROSS, COLUMNS, WIDTH)
            total, squares, active, variation = _add(
                value, right, above4, pivot, total, squares, active, variation, below, first_column, 4, WIDTH, GUARDED
            )  # fmt: skip
            best = tl.maximum(best, value)
            above4 = value
            value = right
        if ACROSS > 5:
            right = _at(line, first_column, 6, stride_w, present, ACROSS, COLUMNS, WIDTH)
            total, squares, active, variation = _add(
                value, right, above5, pivot, total, squares, active, variation, below, first_column, 5, WIDTH, GUARDED
            )  # fmt: skip
            best = tl.maximum(best, value)
            above5 = value
            value = right
        if ACROSS > 6:
            right = _at(line, first_column, 7, stride_w, present, ACROSS, COLUMNS, WIDTH)
            total, squares, active, variation = _add(
                value, right, above6, pivot, total, squares, active, variation, below, first_column, 6, WIDTH, GUARDED
            )  # fmt: skip
            best = tl.maximum(best, value)
            above6 = value
            value = right
        if ACROSS > 7:
            right = _at(line, first_column, 8, stride_w, present, ACROSS, COLUMNS, WIDTH)
            total, squares, active, variation = _add(
                value, right, above7, pivot, total, squares, active, variation, below, first_column, 7, WIDTH, GUARDED
            )  # fmt: skip
            best = tl.maximum(best, value)
            above7 = value
            value = right
        greater = best > top
        top = tl.where(greater, best, top)
        top_row = tl.where(greater, i, top_row)

    SIZE: tl.constexpr = HEIGHT * WIDTH
    shift = tl.load(maps) if present is None else tl.load(maps, mask=present, other=0.0)
    shift = shift.to(tl.float32)
    height = tl.minimum(tl.maximum(HEIGHT - first_row, 0), BAND)
    width = tl.minimum(tl.maximum(WIDTH - first_column, 0), ACROSS)
    weight = (height * width).to(tl.float32)[:, None]
    average = total * (1.0 / tl.maximum(weight, 1.0))
    mean = (pivot - shift[None, :]) + average
    # Infinite and not NaN if squares are beyond the range of f32.
    own = tl.maximum(squares - tl.where(squares < float("inf"), total * average, 0.0), 0.0)
    centre = tl.sum(tl.where(weight > 0, mean * weight, 0.0), 0) / SIZE
    spread = mean - centre[None, :]
    variance = tl.sum(tl.where(weight > 0, own + weight * spread * spread, 0.0), 0) / SIZE
    maximum = tl.max(top, 0)
    share = tl.sum(active, 0).to(tl.float32) / SIZE
    change = tl.sum(variation, 0)

    # The first row with the maximum is read once more for the column. Beyond the last column is the last again.
    first = tl.where(top == maximum[None, :], first_row[:, None] + top_row, HEIGHT - 1)
    found_row = tl.minimum(tl.min(first, 0), HEIGHT - 1)
    line = (maps + found_row.to(tl.int64) * stride_h)[None, :]
    nearest = tl.full([LANES, UNITS], WIDTH - 1, tl.int32)
    for column in range(0, WIDTH, LANES):
        beside = tl.minimum(column + lane, WIDTH - 1)
        place = line + (beside.to(tl.int64) * stride_w)[:, None]
        value = _load(place, present).to(tl.float32)
        nearest = tl.minimum(nearest, tl.where(value == maximum[None, :], beside[:, None], WIDTH - 1))
    found_column = tl.min(nearest, 0)
    argmax = found_row * WIDTH + found_column
    return shift + centre, variance, maximum, share, change, argmax, centre - centre == 0
