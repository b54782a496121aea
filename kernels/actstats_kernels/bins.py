"""The fixed bins of the histogram and the radial power spectrum, as NumPy tables.

The bins are the same for every layer of every network, so that units can be compared, summed and merged.

**Histogram.** 520 bins in increasing order of value, computed from the bits of a float32: the sign, the exponent and
the three leading bits of the mantissa. This gives 8 bins per octave from 2^-16 to 2^16, with separate bins for -inf,
finite values beyond the range on either side, values nearer to zero than the range, zero, +inf and NaN.

**Radial bins.** 18 bins of spatial frequency r = sqrt(fy^2 + fx^2) in cycles per pixel: DC alone, 16 bins of
equal width (0, 1/32], (1/32, 2/32] ... (15/32, 1/2], and the corners beyond 1/2.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

MOMENTS: Final = ("mean", "variance", "maximum", "active_fraction", "total_variation")
"""The rows of the fused kernel's `moments` output, in order."""

PAIRED: Final = ("map_change", "map_correlation")
"""The rows of the output of the kernel for pairs of maps, in order."""

SUBDIVISIONS: Final = 8
"""Histogram bins per octave."""
LOWEST_EXPONENT: Final = -16
HIGHEST_EXPONENT: Final = 16
FINE_BINS: Final = SUBDIVISIONS * (HIGHEST_EXPONENT - LOWEST_EXPONENT)
"""Number of log-linear bins for each sign: 256."""

BIN_NEGATIVE_INFINITY: Final = 0
BIN_NEGATIVE_OVERFLOW: Final = 1
BIN_NEGATIVE_UNDERFLOW: Final = BIN_NEGATIVE_OVERFLOW + FINE_BINS + 1
BIN_ZERO: Final = BIN_NEGATIVE_UNDERFLOW + 1
BIN_POSITIVE_UNDERFLOW: Final = BIN_ZERO + 1
BIN_POSITIVE_OVERFLOW: Final = BIN_POSITIVE_UNDERFLOW + FINE_BINS + 1
BIN_POSITIVE_INFINITY: Final = BIN_POSITIVE_OVERFLOW + 1
BIN_NAN: Final = BIN_POSITIVE_INFINITY + 1
HISTOGRAM_BINS: Final = BIN_NAN + 1

FIRST_CODE: Final = (127 + LOWEST_EXPONENT) * SUBDIVISIONS
"""`bits(abs(x)) >> 20` of the first fine bin's smallest value, 2^-16. Fine bin b of sign + is code - FIRST_CODE."""

RINGS: Final = 16
"""Radial bins of equal width between DC and 0.5 cycles per pixel."""
FREQUENCY_BINS: Final = RINGS + 2


def histogram_edges() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return `(left, right)`, the edges of each histogram bin, f64 [520] each.

    A positive bin contains left <= x < right, a negative one left < x <= right (its mirror image). Zero and the
    infinities have left == right; NaN has NaN for both. The overflow bins extend to the infinities, but only contain
    finite values.
    """
    octave = np.arange(SUBDIVISIONS) / SUBDIVISIONS + 1.0
    exponents = np.arange(LOWEST_EXPONENT, HIGHEST_EXPONENT, dtype=np.float64)
    rising = np.append((np.exp2(exponents)[:, None] * octave).ravel(), 2.0**HIGHEST_EXPONENT)
    inf, nan = np.inf, np.nan
    left = np.concatenate([[-inf, -inf], -rising[:0:-1], [-rising[0], 0.0, 0.0], rising, [inf, nan]])
    right = np.concatenate([[-inf, -rising[-1]], -rising[-2::-1], [0.0, 0.0], rising, [inf, inf, nan]])
    return left, right


def frequencies() -> NDArray[np.float64]:
    """Return the centre of each radial bin in cycles per pixel, f64 [18].

    DC is 0; ring b is (b - 1/2) / 32; the corners, 0.5 < r <= sqrt(1/2), have the middle of that span.
    """
    rings = (np.arange(1, RINGS + 1) - 0.5) / (2 * RINGS)
    return np.concatenate([[0.0], rings, [(0.5 + np.sqrt(0.5)) / 2]])


@lru_cache(maxsize=256)
def radial_bins(height: int, width: int) -> NDArray[np.int64]:
    """Return the radial bin of each coefficient of a `height` x `width` map's full DFT, i64 [height, width].

    Indices [u, v] are those of `numpy.fft.fft2`: frequency (u', v') with u' = u or u - height, whichever is closer to
    0. The bin of r = sqrt((u'/height)^2 + (v'/width)^2) is the smallest b with r <= b / 32. It is computed in
    integers, so that a frequency on an edge falls on the same side for every size and on every machine. The array is
    cached and read-only.
    """
    u = np.minimum(np.arange(height), height - np.arange(height)).astype(np.int64)
    v = np.minimum(np.arange(width), width - np.arange(width)).astype(np.int64)
    # 32^2 r^2 H^2 W^2 against b^2 H^2 W^2.
    squared = (2 * RINGS) ** 2 * ((u * width)[:, None] ** 2 + (v * height)[None, :] ** 2)
    limits = np.arange(RINGS + 1, dtype=np.int64) ** 2 * (height * width) ** 2
    bins = np.searchsorted(limits, squared, side="left")
    bins.setflags(write=False)
    return bins


def resolved(height: int, width: int) -> NDArray[np.bool_]:
    """Return which radial bins contain at least one coefficient of a `height` x `width` map, bool [18]."""
    return np.bincount(radial_bins(height, width).ravel(), minlength=FREQUENCY_BINS) > 0
