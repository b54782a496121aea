"""Radial power spectra of two maps of each of 16 channels, from one complex transform.

If one real map is the real part and another the imaginary part, the cross terms of abs(Z(f))^2 and abs(Z(-f))^2
cancel: their sum is the power of both maps at f and -f. A ring that contains f also contains -f, so the two
transforms need not be separated.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from actstats_kernels.bins import FREQUENCY_BINS, radial_bins
from actstats_kernels.cpu.dft import plan, transform
from actstats_kernels.cpu.simd import (
    LINE,
    counted,
    double,
    fma,
    load,
    load_doubles,
    select,
    splat,
    store,
)


class Rings(NamedTuple):
    """The coefficients in each ring, in the order of the transform's result.

    `rows` i32 [width, height]: byte offsets of the rows of each column's coefficients, sorted by ring. `ends` i32
    [width, 18]: number of them that lie in a ring or one before it.
    """

    rows: NDArray[np.int32]
    ends: NDArray[np.int32]


@lru_cache(maxsize=64)
def rings(height: int, width: int) -> Rings:
    """Return the rings for maps of one size, whose rows are `row_pitch(width)` bytes apart."""
    found = radial_bins(height, width)[np.ix_(plan(height).order, plan(width).order)]
    order = np.argsort(found, axis=0, kind="stable")
    ends = np.stack([(found <= ring).sum(0) for ring in range(FREQUENCY_BINS)], -1)
    rows = np.ascontiguousarray((order * row_pitch(width)).T, dtype=np.int32)
    return Rings(rows, ends.astype(np.int32))


def row_pitch(width: int) -> int:
    """Return the bytes between rows: an odd number of vectors, so that a column is spread over many cache sets."""
    return LINE * (width | 1)


@njit(nogil=True, error_model="numpy")
def centre(plane, height, width, pitch, mean, finite):  # type: ignore[no-untyped-def]
    """Subtract `mean` from a plane of vectors, and write 0 where `finite` is false."""
    zero = splat(np.float32(0.0))
    for i in range(height):
        for j in range(width):
            place = plane + i * pitch + j * LINE
            store(select(finite, load(place) - mean, zero), place)


@njit(nogil=True, error_model="numpy")
def add_power(plane, gap, height, width, pitch, plan_h, plan_w, rows, ends, work, power):  # type: ignore[no-untyped-def]
    """Transform the centred maps in `plane` and `plane + gap` and add their power to `power` f64 [18, 16].

    Ring 0 is not changed, since the mean of the maps was subtracted.
    """
    for i in range(height):
        transform(plane + i * pitch, gap, LINE, plan_w, work)
    scale = splat(np.float64(1.0 / (np.float64(height * width) * np.float64(height * width))))
    for j in range(width):
        column = plane + j * LINE
        transform(column, gap, pitch, plan_h, work)
        first = counted(ends + 4 * FREQUENCY_BINS * j)
        for ring in range(1, FREQUENCY_BINS):
            last = counted(ends + 4 * (FREQUENCY_BINS * j + ring))
            if last == first:
                continue
            energy = splat(np.float32(0.0))
            for k in range(first, last):
                place = column + counted(rows + 4 * (height * j + k))
                re, im = load(place), load(place + gap)
                energy = fma(re, re, fma(im, im, energy))
            out = power + 2 * LINE * ring
            store(fma(double(energy), scale, load_doubles(out)), out)
            first = last


def tables(height: int, width: int) -> tuple[NDArray[Any], ...]:
    """Return the tables that `add_power` reads and that must outlive it: both plans, `rows` and `ends`."""
    return plan(height).stages, plan(width).stages, *rings(height, width)
