"""One map of each of 16 channels, read row by row: packed into vectors, measured, counted.

A row is first packed from its memory, whatever the strides and the dtype, into f32 vectors that stay in the first
cache; everything else reads those, so that a number never depends on the memory format.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numba import njit

from actstats_kernels import bins
from actstats_kernels.cpu.simd import (
    LANES,
    LINE,
    bits,
    counted,
    double,
    fma,
    from_bits,
    increment,
    load,
    load_halves,
    load_integers,
    move,
    move_half,
    prefetch,
    select,
    single,
    splat,
    store,
)

FLOAT32: Final = 0
FLOAT16: Final = 1
BFLOAT16: Final = 2

_FIRST: Final = np.int32(bins.FIRST_CODE - 2)
_MOST: Final = np.int32(bins.FINE_BINS + 2)
_GREATEST_FINITE: Final = np.int32(0x7F7FFFFF)
_MAGNITUDE: Final = np.int32(0x7FFFFFFF)
_ZERO: Final = np.int32(bins.BIN_ZERO)
_NAN: Final = np.int32(bins.BIN_NAN)
SLOTS: Final = bins.HISTOGRAM_BINS
LANE_STARTS: Final = (np.arange(LANES) * SLOTS).astype(np.int32)
"""Where the counts of each lane begin in a block's counts [16, 520]."""


class MapBlock(NamedTuple):
    """Where a block's maps lie: strides in bytes, `lanes` of its 16 channels exist."""

    dtype: int
    lanes: int
    stride_c: int
    stride_h: int
    stride_w: int


@njit(nogil=True, error_model="numpy")
def _from_float16(halves):  # type: ignore[no-untyped-def]
    """Return the f32 vector of f16 bits, in integer steps that every machine has."""
    magnitude = (halves & splat(np.int32(0x7FFF))) << splat(np.int32(13))
    # The exponent's offset is 15 in f16 and 127 in f32; the product also puts subnormal numbers right.
    value = from_bits(magnitude) * splat(np.float32(2.0**112))
    special = magnitude > splat(np.int32(0x7BFF << 13))
    value = select(special, from_bits(magnitude | splat(np.int32(0x7F800000))), value)
    return from_bits(bits(value) | ((halves & splat(np.int32(0x8000))) << splat(np.int32(16))))


@njit(nogil=True, error_model="numpy")
def pack_row(source, start, width, row):  # type: ignore[no-untyped-def]
    """Write the row of `width` positions at `start` to `row` as vectors; lanes that do not exist stay as they are."""
    size = 4 if source.dtype == FLOAT32 else 2
    if source.lanes == LANES and source.stride_c == size:
        for j in range(width):
            place = start + j * source.stride_w
            if source.dtype == FLOAT32:
                store(load(place), row + j * LINE)
            else:
                store(load_halves(place), row + j * LINE)
    elif source.dtype == FLOAT32:
        for c in range(source.lanes):
            for j in range(width):
                move(start + c * source.stride_c + j * source.stride_w, row + j * LINE + 4 * c)
    else:
        for c in range(source.lanes):
            for j in range(width):
                move_half(start + c * source.stride_c + j * source.stride_w, row + j * LINE + 4 * c)
    if source.dtype == BFLOAT16:
        for j in range(width):
            place = row + j * LINE
            store(load_integers(place) << splat(np.int32(16)), place)
    elif source.dtype == FLOAT16:
        for j in range(width):
            place = row + j * LINE
            store(_from_float16(load_integers(place)), place)


@njit(nogil=True, error_model="numpy")
def count_row(row, width, counts, found, lane_starts):  # type: ignore[no-untyped-def]
    """Add the values of a row of vectors to `counts` i32 [16, 520]; `found` is room for a row."""
    starts = load_integers(lane_starts)
    for j in range(width):
        code = bits(load(row + j * LINE))
        size = code & splat(_MAGNITUDE)
        # Steps from zero: 1 nearer than the fine bins, 2 to 257 for those, 258 beyond, 259 infinite, 260 NaN.
        steps = min(max((size >> splat(np.int32(20))) - splat(_FIRST), splat(np.int32(1))), splat(_MOST))
        steps = steps + min(max(size - splat(_GREATEST_FINITE), splat(np.int32(0))), splat(np.int32(2)))
        steps = steps * min(size, splat(np.int32(1)))
        negative = code >> splat(np.int32(31))
        index = splat(_ZERO) + ((steps ^ negative) - negative)
        index = select(splat(np.int32(0)) > index, splat(_NAN), index)
        store((index + starts) << splat(np.int32(2)), found + j * LINE)
    for k in range(0, width * LINE, 16):
        increment(counts + counted(found + k))
        increment(counts + counted(found + k + 4))
        increment(counts + counted(found + k + 8))
        increment(counts + counted(found + k + 12))


@njit(nogil=True, error_model="numpy")
def read_map(  # type: ignore[no-untyped-def]
    source, start, height, width, plane, pitch, depth, measure, counts, found, lane_starts
):
    """Pack 16 maps into `plane`, rows `pitch` bytes apart, and read each row while it is near.

    `plane` keeps the last `depth` rows. Returns, if `measure`, mean, variance, maximum, argmax, share of positions
    > 0, total variation, and a vector that is 0 where the map is finite and NaN elsewhere. `counts` 0: no histogram.
    """
    zero, one = splat(np.float32(0.0)), splat(np.float32(1.0))
    nothing = splat(np.float64(0.0))
    top, place = splat(np.float32(-np.inf)), splat(np.int32(0))
    active = flaw = pivot = mean = zero
    sums = squares = variation = nothing
    across = splat(np.float32(width))
    for i in range(height):
        row = plane + (i % depth) * pitch
        pack_row(source, start + i * source.stride_h, width, row)
        if counts != 0:
            count_row(row, width, counts, found, lane_starts)
        if not measure:
            continue
        above = row if i == 0 else plane + ((i - 1) % depth) * pitch
        if i == 0:
            total = zero
            for j in range(width):
                total += load(row + j * LINE)
            pivot = mean = total / across
        # Deviations from the mean of the row above lose no digits, and need no second look at the row.
        changes = rest = square = zero
        left = load(row)
        below = start + (i + 1) * source.stride_h
        for j in range(width):
            value = load(row + j * LINE)
            # 16 channels of many lie apart in memory, too far for the machine to look ahead by itself.
            prefetch(below + j * source.stride_w)
            deviation = value - mean
            rest += deviation
            square = fma(deviation, deviation, square)
            changes += abs(value - load(above + j * LINE)) + abs(value - left)
            active += select(value > zero, one, zero)
            flaw = fma(value, zero, flaw)
            greater = value > top
            top = select(greater, value, top)
            place = select(greater, splat(np.int32(i * width + j)), place)
            left = value
        shift = double(mean) - double(pivot)
        n = splat(np.float64(width))
        sums += double(rest) + n * shift
        squares += double(square) + shift * (double(rest) + double(rest) + n * shift)
        variation += double(changes)
        mean += rest / across
    size = splat(np.float64(height * width))
    offset = sums / size
    spread = squares / size - offset * offset
    spread = select(spread > nothing, spread, nothing)
    return (
        single(double(pivot) + offset),
        single(spread),
        top,
        place,
        active / splat(np.float32(height * width)),
        single(variation),
        flaw,
    )
