# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
"""Device function that counts a block of maps into the log-linear bins of each channel.

Of the 520 bins, 512 are fine. `tl.histogram` counts these in 512 slots of shared memory per channel, which are added
to the result once, by integer atomics, so that their order does not matter. Zeros, half of what a rectifier returns,
are counted in registers. Values of the seven other bins (infinite, NaN, beyond the fine bins on either side) are
rare, and each costs an atomic.

Values are classified by arithmetic where possible, because each comparison occupies a predicate register, of which a
thread has seven.
"""

from __future__ import annotations

import triton
import triton.language as tl

from actstats_kernels import bins

_FIRST_CODE = tl.constexpr(bins.FIRST_CODE)
_FINE = tl.constexpr(bins.FINE_BINS)
_ZERO = tl.constexpr(bins.BIN_ZERO)
_NAN = tl.constexpr(bins.BIN_NAN)
_BINS = tl.constexpr(bins.HISTOGRAM_BINS)
_FIRST_POSITIVE = tl.constexpr(bins.BIN_POSITIVE_UNDERFLOW + 1)
_LAST_NEGATIVE = tl.constexpr(bins.BIN_NEGATIVE_UNDERFLOW - 1)
SLOTS = tl.constexpr(2 * bins.FINE_BINS)
_INFINITE = tl.constexpr(0x7F800000)


@triton.jit
def _slot_bin(slot):
    """Return the bin of a slot: the positive fine bins in increasing order, then the negative ones."""
    return tl.where(slot < _FINE, _FIRST_POSITIVE + slot, _LAST_NEGATIVE + 1 - SLOTS + slot)


@triton.jit
def _rare_bin(bits):
    """Return the bin, i32, of a value that is neither zero nor in a fine bin, given by its bits."""
    size = bits & 0x7FFFFFFF
    steps = tl.where(size >> 20 < _FIRST_CODE, 1, _FINE + 2) + tl.where(size == _INFINITE, 1, 0)
    found = tl.where(bits < 0, _ZERO - steps, _ZERO + steps)
    return tl.where(size > _INFINITE, _NAN, found)


@triton.jit
def count_maps(
    histogram,
    x,
    first_channel,
    channels,
    block,
    rounds,
    images,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    WIDTH: tl.constexpr,
    SIZE: tl.constexpr,
    IMAGES: tl.constexpr,
    CHANNELS: tl.constexpr,
    POSITIONS: tl.constexpr,
    EVEN_CHANNELS: tl.constexpr,
    ON_CHIP: tl.constexpr,
):
    """Add the counts of the `rounds * IMAGES` images of a `block` to `histogram` [C, 520].

    Counts the `CHANNELS` channels starting at `first_channel`, of `channels` in all, `POSITIONS` positions at a time.
    Unless `ON_CHIP`, each value in a fine bin also costs an atomic.
    """
    own = tl.arange(0, CHANNELS)
    channel = first_channel + own
    counted = channel < channels
    maps = x + channel.to(tl.int64) * stride_c
    of_channel = histogram + channel.to(tl.int64) * _BINS
    one = tl.full([POSITIONS, CHANNELS], 1, histogram.dtype.element_ty)
    nonzero = tl.zeros([POSITIONS, CHANNELS], tl.int32)
    coarse = tl.zeros([POSITIONS, CHANNELS], tl.int32)
    read = tl.zeros([POSITIONS], tl.int32)
    handled = tl.full([], 0, tl.int32)
    if ON_CHIP:
        counts = tl.zeros([CHANNELS * SLOTS], tl.int32)
    for start in range(0, rounds * (IMAGES * SIZE), POSITIONS):
        flat = start + tl.arange(0, POSITIONS)
        image = block * rounds * IMAGES + flat // SIZE
        position = flat % SIZE
        there = (flat < rounds * (IMAGES * SIZE)) & (image < images)
        inside = there[:, None]
        if not EVEN_CHANNELS:
            inside = inside & counted[None, :]
        offset = image.to(tl.int64) * stride_n
        offset += (position // WIDTH).to(tl.int64) * stride_h + (position % WIDTH).to(tl.int64) * stride_w
        # Masked values are read as zeros; `read` counts the values that are not masked.
        value = tl.load(maps[None, :] + offset[:, None], mask=inside, other=0.0).to(tl.float32)
        bits = value.to(tl.int32, bitcast=True)
        size = bits & 0x7FFFFFFF
        # The fine bin by magnitude, or 256; smaller magnitudes wrap around to a large unsigned number.
        code = tl.minimum(((size >> 20) - _FIRST_CODE).to(tl.uint32, bitcast=True), _FINE).to(
            tl.int32, bitcast=True
        )
        slot = code ^ ((bits >> 31) & (SLOTS - 1))
        if ON_CHIP:
            counts += tl.histogram(
                tl.ravel(slot + own[None, :] * SLOTS), CHANNELS * SLOTS, tl.ravel(code < _FINE)
            )
        else:
            tl.atomic_add(of_channel[None, :] + _slot_bin(slot), one, mask=code < _FINE, sem="relaxed")
        read += there.to(tl.int32)
        nonzero += tl.minimum(size, 1)
        coarse += code >> 8
        # Values outside the fine bins, other than zeros.
        rare = tl.sum(tl.sum(coarse + nonzero, 1), 0) - CHANNELS * (start + POSITIONS)
        if rare > handled:
            this = (code == _FINE) & (size > 0)
            tl.atomic_add(of_channel[None, :] + _rare_bin(bits), one, mask=this, sem="relaxed")
        handled = rare
    zeros = (tl.sum(read, 0) - tl.sum(nonzero, 0)).to(histogram.dtype.element_ty)
    tl.atomic_add(of_channel + _ZERO, zeros, mask=counted, sem="relaxed")
    if ON_CHIP:
        entry = tl.arange(0, CHANNELS * SLOTS)
        whose = first_channel + entry // SLOTS
        place = histogram + whose.to(tl.int64) * _BINS + _slot_bin(entry % SLOTS)
        held = (counts > 0) & (whose < channels)
        tl.atomic_add(place, counts.to(histogram.dtype.element_ty), mask=held, sem="relaxed")
