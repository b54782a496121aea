"""Read one map of each of 16 channels row by row: pack it into vectors, compute its moments, count its values.

A row is first packed from memory, whatever its strides and dtype, into f32 vectors that stay in the first-level
cache. Everything else reads these vectors, so that results do not depend on the memory format.
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
"""Start of the counts of each lane in the counts of a block, [16, 520]."""


class MapBlock(NamedTuple):
    """Memory layout of a block of maps: strides in bytes, and `lanes`, the number of its 16 channels that exist."""

    dtype: int
    lanes: int
    stride_c: int
    stride_h: int
    stride_w: int


@njit(nogil=True, error_model="numpy")
def _from_float16(halves):  # type: ignore[no-untyped-def]
    """Convert f16 bits to an f32 vector, using operations that every machine has."""
    magnitude = (halves & splat(np.int32(0x7FFF))) << splat(np.int32(13))
    # The exponent's offset is 15 in f16 and 127 in f32; the product also converts subnormal numbers correctly.
    value = from_bits(magnitude) * splat(np.float32(2.0**112))
    special = magnitude > splat(np.int32(0x7BFF << 13))
    value = select(special, from_bits(magnitude | splat(np.int32(0x7F800000))), value)
    return from_bits(bits(value) | ((halves & splat(np.int32(0x8000))) << splat(np.int32(16))))


@njit(nogil=True, error_model="numpy")
def pack_row(source, start, width, row):  # type: ignore[no-untyped-def]
    """Write the row of `width` positions at `start` to `row` as vectors; missing lanes are left unchanged."""
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
    """Count the values in a row of vectors in `counts` i32 [16, 520]; `found` has room for a row."""
    starts = load_integers(lane_starts)
    for j in range(width):
        code = bits(load(row + j * LINE))
        size = code & splat(_MAGNITUDE)
        # Steps from zero: 1 below the fine bins, 2 to 257 in them, 258 above, 259 infinite, 260 NaN.
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
    """Pack 16 maps into `plane`, with rows `pitch` bytes apart, and process each row while it is in the cache.

    `plane` keeps the last `depth` rows. If `measure`, return mean, variance, maximum, argmax, fraction of positive
    values, total variation, and a vector that is 0 where the map is finite and NaN elsewhere. If `counts` is 0, no
    histogram is computed.
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
        # Deviations from the mean of the row above are accurate without a second pass over the row.
        changes = rest = square = zero
        left = load(row)
        below = start + (i + 1) * source.stride_h
        for j in range(width):
            value = load(row + j * LINE)
            # The rows of 16 channels can be too far apart in memory for the hardware prefetcher.
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
