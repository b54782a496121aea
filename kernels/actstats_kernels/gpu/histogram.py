# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
"""Device function that counts a block of maps into the log-linear bins of each channel.

Of the 520 bins, 512 are fine. `tl.histogram` counts these in 512 slots of shared memory per channel, which are added
to the result once, by integer atomics, so that their order does not matter. Every value is counted in a slot, without
a mask: zeros, half of what a rectifier returns, in the last slot of their sign, whose fine bin (of the greatest
magnitudes) is rarely needed, and so are all rare values. These are those of this fine bin and of the seven other bins
(infinite, NaN, beyond the fine bins on either side). Each costs two atomics: one into its own bin, and one that takes
it out of the zeros again.
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
_LAST = tl.constexpr(bins.FINE_BINS - 1)
SLOTS = tl.constexpr(2 * bins.FINE_BINS)
_INFINITE = tl.constexpr(0x7F800000)


@triton.jit
def _slot_bin(slot):
    """Return the bin of a slot: the positive fine bins by increasing magnitude, then the negative ones.

    The last of either sign is for zeros.
    """
    fine = tl.where(slot < _FINE, _FIRST_POSITIVE + slot, _LAST_NEGATIVE + _FINE - slot)
    return tl.where((slot & _LAST) == _LAST, _ZERO, fine)


@triton.jit
def _rare_bin(bits):
    """Return the bin, i32, of a value in the last fine bin, or in none and not zero, given by its bits."""
    size = bits & 0x7FFFFFFF
    steps = tl.where(size >> 20 < _FIRST_CODE, 1, tl.minimum((size >> 20) - _FIRST_CODE, _FINE) + 2)
    steps += tl.where(size == _INFINITE, 1, 0)
    found = tl.where(bits < 0, _ZERO - steps, _ZERO + steps)
    return tl.where(size > _INFINITE, _NAN, found)


@triton.jit
def _read(
    maps,
    start,
    last,
    counted,
    stride_n,
    stride_h,
    stride_w,
    WIDTH: tl.constexpr,
    SIZE: tl.constexpr,
    POSITIONS: tl.constexpr,
    EVEN_CHANNELS: tl.constexpr,
):
    """Return the bits of the values at positions `start`, ..., and of zeros from position `last` on."""
    # Positions are not negative, and as unsigned numbers take fewer instructions to divide.
    flat = (start + tl.arange(0, POSITIONS)).to(tl.uint32)
    image = flat // SIZE
    position = flat - image * SIZE
    row = position // WIDTH
    column = position - row * WIDTH
    inside = (flat < last.to(tl.uint32))[:, None]
    if not EVEN_CHANNELS:
        inside = inside & counted[None, :]
    offset = image.to(tl.int64) * stride_n + row.to(tl.int64) * stride_h + column.to(tl.int64) * stride_w
    value = tl.load(maps[None, :] + offset[:, None], mask=inside, other=0.0).to(tl.float32)
    return value.to(tl.int32, bitcast=True)


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
    PART: tl.constexpr = POSITIONS // 8 if POSITIONS > 8 else POSITIONS
    one = tl.full([PART, CHANNELS], 1, histogram.dtype.element_ty)
    first_image = block * rounds * IMAGES
    maps += first_image.to(tl.int64) * stride_n
    last = tl.maximum(tl.minimum(rounds * IMAGES, images - first_image), 0) * SIZE
    if ON_CHIP:
        counts = tl.zeros([CHANNELS * SLOTS], tl.int32)
    else:
        zeros = tl.zeros([POSITIONS, CHANNELS], tl.int32)
    for start in range(0, last, POSITIONS):
        bits = _read(
            maps, start, last, counted, stride_n, stride_h, stride_w, WIDTH, SIZE, POSITIONS, EVEN_CHANNELS
        )
        size = bits & 0x7FFFFFFF
        # The fine bin by magnitude, or the last; smaller magnitudes wrap around to a large unsigned number.
        code = tl.minimum(((size >> 20) - _FIRST_CODE).to(tl.uint32, bitcast=True), _LAST).to(
            tl.int32, bitcast=True
        )
        slot = code | ((bits.to(tl.uint32, bitcast=True) >> 23) & _FINE).to(tl.int32)
        if ON_CHIP:
            counts += tl.histogram(tl.ravel(slot | own[None, :] * SLOTS), CHANNELS * SLOTS)
        else:
            each = tl.full([POSITIONS, CHANNELS], 1, histogram.dtype.element_ty)
            tl.atomic_add(of_channel[None, :] + _slot_bin(slot), each, mask=code < _LAST, sem="relaxed")
            zeros += (code + 1) >> 8
        if tl.max(tl.max(code + tl.minimum(size, 1), 1), 0) > _LAST:
            # A few at a time, and read again, so that this takes no registers of the usual case.
            for part in range(start, tl.minimum(start + POSITIONS, last), PART):
                rare = _read(
                    maps, part, last, counted, stride_n, stride_h, stride_w, WIDTH, SIZE, PART, EVEN_CHANNELS
                )
                octave = (rare & 0x7FFFFFFF) >> 20
                this = ((rare & 0x7FFFFFFF) > 0) & ((octave < _FIRST_CODE) | (octave >= _FIRST_CODE + _LAST))
                tl.atomic_add(of_channel[None, :] + _rare_bin(rare), one, mask=this, sem="relaxed")
                tl.atomic_add(of_channel[None, :] + (rare * 0 + _ZERO), -one, mask=this, sem="relaxed")
    beyond = (last - tl.cdiv(last, POSITIONS) * POSITIONS).to(histogram.dtype.element_ty)
    if ON_CHIP:
        entry = tl.arange(0, CHANNELS * SLOTS)
        whose = first_channel + entry // SLOTS
        place = histogram + whose.to(tl.int64) * _BINS + _slot_bin(entry % SLOTS)
        held = (counts > 0) & (whose < channels)
        tl.atomic_add(place, counts.to(histogram.dtype.element_ty), mask=held, sem="relaxed")
        tl.atomic_add(
            of_channel + _ZERO, beyond + tl.zeros_like(own).to(beyond.dtype), mask=counted, sem="relaxed"
        )
    else:
        read = tl.sum(zeros, 0).to(histogram.dtype.element_ty) + beyond
        tl.atomic_add(of_channel + _ZERO, read, mask=counted, sem="relaxed")
