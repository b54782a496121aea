# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
"""Device functions that turn maps into the energy of their real Fourier coefficients by matrix products.

With B the orthonormal real Fourier basis (rows: constant, then cos and sin of each frequency), the coefficients of
a map are Z = B_h X B_w^T, and the power of a frequency is the sum of the squares of its coefficients, so that no
complex numbers are needed. The coefficients of the maps of a block are squared and summed over images in registers;
radial bins are formed once for all of them.

Unless `PRECISION` is "ieee", products are of bf16 numbers, summed in f32. Each factor is split into a sum of two bf16
numbers, and the product of the two smaller parts is left out, which leaves three products. With "bf16x2", maps are
already bf16 and need no split, which leaves two.
"""

from __future__ import annotations

import triton
import triton.language as tl

from actstats_kernels import bins
from actstats_kernels.gpu import compat

_FREQUENCIES = tl.constexpr(bins.FREQUENCY_BINS)
_SLOTS = tl.constexpr(32)
_INTERPRETED = tl.constexpr(compat.INTERPRETED)
_BATCHED = tl.constexpr(compat.BATCHED_PRODUCTS)


@triton.jit
def _narrow(x):
    """Return `x` rounded to bf16."""
    if _INTERPRETED:
        # The interpreter would truncate, and multiplies the bits of bf16 as if they were integers.
        bits = (x.to(tl.int32, bitcast=True) + 0x8000) & -0x10000
        return bits.to(tl.float32, bitcast=True)
    return x.to(tl.bfloat16)


@triton.jit
def _parts(x):
    """Return f32 `x` as the sum of two numbers that are rounded to bf16."""
    bits = (x.to(tl.int32, bitcast=True) + 0x8000) & -0x10000
    high = bits.to(tl.float32, bitcast=True)
    rest = _narrow(x - high)
    if _INTERPRETED:
        return high, rest
    # Converting to bf16 and back would take more instructions, some of them slow.
    return (bits >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True), rest


@triton.jit
def _waves(basis, row, column, PITCH: tl.constexpr):
    waves = tl.load(basis + row[:, None] * PITCH + column[None, :])
    if _INTERPRETED:
        return waves.to(tl.float32)
    return waves


@triton.jit
def _product(value, waves, rest, out, PRECISION: tl.constexpr):
    """Return `out` + `value` [..., M, K] x (`waves` + `rest`) [..., K, N]; "ieee" does not use `rest`."""
    if PRECISION == "ieee":
        out = tl.dot(value, waves, out, input_precision="ieee")
    else:
        high = value
        if value.dtype == tl.float32:
            high, low = _parts(value)
            out = tl.dot(low, waves, out, input_precision="ieee")
        elif _INTERPRETED:
            high = value.to(tl.float32)
        out = tl.dot(high, rest, out, input_precision="ieee")
        out = tl.dot(high, waves, out, input_precision="ieee")
    return out


@triton.jit
def _centred(value, mean, PRECISION: tl.constexpr):
    """Return the values minus their mean, f32; with "bf16x2" return them unchanged, as exact bf16 factors."""
    if PRECISION != "bf16x2":
        value = value.to(tl.float32) - mean
    return value


@triton.jit
def _vector_coefficients(
    maps,
    mean,
    stride_h,
    stride_w,
    basis,
    first_v,
    WIDTH: tl.constexpr,
    SIZE: tl.constexpr,
    PITCH: tl.constexpr,
    UNITS: tl.constexpr,
    V: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return coefficients [UNITS, V] of maps treated as vectors of `SIZE` values: 1 x T maps and small ones."""
    PART: tl.constexpr = (SIZE + DEPTH - 1) // DEPTH * DEPTH * PITCH
    out = tl.zeros([UNITS, V], tl.float32)
    column = first_v + tl.arange(0, V)
    for start in range(0, SIZE, DEPTH):
        position = start + tl.arange(0, DEPTH)
        read = tl.minimum(position, SIZE - 1)
        offset = (read // WIDTH).to(tl.int64) * stride_h + (read % WIDTH).to(tl.int64) * stride_w
        value = _centred(tl.load(maps[None, :] + offset[:, None]), mean[None, :], PRECISION)
        waves = _waves(basis, position, column, PITCH)
        rest = _waves(basis + PART, position, column, PITCH)
        out = _product(tl.trans(value), waves, rest, out, PRECISION)
    return out


@triton.jit
def _matrix(table, row, column, PITCH: tl.constexpr, UNITS: tl.constexpr):
    """Return a block of `table`, repeated for each of `UNITS` maps, as a factor of a product of many matrices."""
    block = _waves(table, row, column, PITCH)
    return tl.broadcast_to(block[None, :, :], [UNITS, block.shape[0], block.shape[1]])


@triton.jit
def _down(
    maps,
    mean,
    stride_h,
    stride_w,
    basis,
    first_u,
    w,
    HEIGHT: tl.constexpr,
    UNITS: tl.constexpr,
    U: tl.constexpr,
    PITCH_U: tl.constexpr,
    DEPTH_H: tl.constexpr,
    DEPTH_W: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return coefficients [UNITS, U, DEPTH_W] down the columns `w` of maps."""
    PITCH: tl.constexpr = (HEIGHT + DEPTH_H - 1) // DEPTH_H * DEPTH_H
    u = first_u + tl.arange(0, U)
    across = (w.to(tl.int64) * stride_w)[None, :]
    half = tl.zeros([UNITS, U, DEPTH_W], tl.float32)
    if PRECISION == "bf16x2":
        # Subtract the mean, which only affects the constant wave.
        half -= mean[:, None, None] * tl.where(u == 0, HEIGHT**0.5, 0.0)[None, :, None]
    for upper in range(0, HEIGHT, DEPTH_H):
        h = upper + tl.arange(0, DEPTH_H)
        place = (tl.minimum(h, HEIGHT - 1).to(tl.int64) * stride_h)[:, None] + across
        value = _centred(tl.load(maps[:, None, None] + place[None, :, :]), mean[:, None, None], PRECISION)
        waves = _matrix(basis, u, h, PITCH, UNITS)
        if PRECISION == "ieee":
            half = tl.dot(waves, value, half, input_precision="ieee")
        else:
            rest = _matrix(basis + PITCH_U * PITCH, u, h, PITCH, UNITS)
            high = value
            if value.dtype == tl.float32:
                high, low = _parts(value)
                half = tl.dot(waves, low, half, input_precision="ieee")
            elif _INTERPRETED:
                high = value.to(tl.float32)
            half = tl.dot(rest, high, half, input_precision="ieee")
            half = tl.dot(waves, high, half, input_precision="ieee")
    return half


@triton.jit
def _along(
    half,
    basis,
    w,
    v,
    out,
    PITCH: tl.constexpr,
    PART: tl.constexpr,
    UNITS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return `out` [UNITS, U, V] + `half` [UNITS, U, W] x `basis`."""
    waves = _matrix(basis, w, v, PITCH, UNITS)
    rest = _matrix(basis + PART, w, v, PITCH, UNITS)
    return _product(half, waves, rest, out, PRECISION)


@triton.jit
def _map_energy(
    maps,
    mean,
    stride_h,
    stride_w,
    basis_h,
    basis_w,
    first_u,
    first_v,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    POINTS: tl.constexpr,
    FOLD: tl.constexpr,
    PITCH_U: tl.constexpr,
    PITCH_V: tl.constexpr,
    UNITS: tl.constexpr,
    U: tl.constexpr,
    V: tl.constexpr,
    DEPTH_H: tl.constexpr,
    DEPTH_W: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return the energy of coefficients [UNITS, U, V], from row `first_u` and column `first_v` on.

    With `FOLD`, the columns w and WIDTH - w are added for the cosines and subtracted for the sines, and the energy is
    the sum of both.
    """
    PART: tl.constexpr = (POINTS + DEPTH_W - 1) // DEPTH_W * DEPTH_W * PITCH_V
    even = tl.zeros([UNITS, U, V], tl.float32)
    odd = tl.zeros([UNITS, U, V], tl.float32)
    v = first_v + tl.arange(0, V)
    for left in range(0, POINTS, DEPTH_W):
        # Beyond the last row or column, waves are zero, and any value can be read.
        w = left + tl.arange(0, DEPTH_W)
        near = tl.minimum(w, POINTS - 1)
        half = _down(
            maps, mean, stride_h, stride_w, basis_h, first_u, near,
            HEIGHT, UNITS, U, PITCH_U, DEPTH_H, DEPTH_W, PRECISION,
        )  # fmt: skip
        if FOLD:
            # A column that is its own mirror counts twice, and its cosines are half as large.
            mirror = _down(
                maps, mean, stride_h, stride_w, basis_h, first_u, (WIDTH - near) % WIDTH,
                HEIGHT, UNITS, U, PITCH_U, DEPTH_H, DEPTH_W, PRECISION,
            )  # fmt: skip
            odd = _along(half - mirror, basis_w + 2 * PART, w, v, odd, PITCH_V, PART, UNITS, PRECISION)
            half += mirror
        even = _along(half, basis_w, w, v, even, PITCH_V, PART, UNITS, PRECISION)
    energy = even * even
    if FOLD:
        energy += odd * odd
    return energy


@triton.jit
def _by_ring(energy, ring, UNITS: tl.constexpr, U: tl.constexpr, V: tl.constexpr, PRECISION: tl.constexpr):
    """Return the sums [UNITS, 32] of `energy` [UNITS, U, V] over the coefficients of each number in `ring` [U, V].

    This takes one product with a matrix of zeros and ones for each row of coefficients. Sums of masked values would
    take as many operations per ring as there are coefficients.
    """
    number = tl.arange(0, _SLOTS).to(ring.dtype)
    if _BATCHED:
        energy = tl.permute(energy, (1, 0, 2))
        chosen = tl.where(ring[:, :, None] == number[None, None, :], 1.0, 0.0)
        if PRECISION == "ieee":
            held = tl.dot(energy, chosen, input_precision="ieee")
        else:
            high, low = _parts(energy)
            held = tl.dot(low, _narrow(chosen), input_precision="ieee")
            held = tl.dot(high, _narrow(chosen), held, input_precision="ieee")
        held = tl.sum(held, 0)
    else:
        held = tl.zeros([UNITS, _SLOTS], tl.float32)
        for k in range(1, _FREQUENCIES):
            one = tl.sum(tl.sum(tl.where((ring == k)[None, :, :], energy, 0.0), 2), 1)
            held = tl.where((number == k)[None, :], one[:, None], held)
    return held


@triton.jit
def store_power(
    page,
    x,
    means,
    means_n,
    means_c,
    first_image,
    last_image,
    first_channel,
    channels,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    basis_h,
    basis_w,
    rings,
    coefficients,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    KIND: tl.constexpr,
    IMAGES: tl.constexpr,
    CHANNELS: tl.constexpr,
    EVEN_CHANNELS: tl.constexpr,
    FOLD: tl.constexpr,
    POINTS: tl.constexpr,
    PITCH_U: tl.constexpr,
    PITCH_V: tl.constexpr,
    U: tl.constexpr,
    V: tl.constexpr,
    DEPTH_H: tl.constexpr,
    DEPTH_W: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write the power of maps to `page` f32 [C, 18], for the block `coefficients`; the first block includes DC.

    The maps are those of the images from `first_image` up to `last_image` and of the `CHANNELS` channels from
    `first_channel` on; `means`, f32 [N, C], are NaN for maps to exclude.
    """
    UNITS: tl.constexpr = IMAGES * CHANNELS
    unit = tl.arange(0, UNITS)
    channel = first_channel + unit % CHANNELS
    first_u = coefficients // (PITCH_V // V) * U
    first_v = coefficients % (PITCH_V // V) * V
    energy = tl.zeros([UNITS, U, V], tl.float32)
    mean_square = tl.zeros([UNITS], tl.float32)
    for start in range(first_image, last_image, IMAGES):
        image = start + unit // CHANNELS
        present = (image < last_image) & (channel < channels)
        cell = means + image.to(tl.int64) * means_n + channel.to(tl.int64) * means_c
        mean = tl.load(cell, mask=present, other=float("nan"))
        read = mean == mean
        mean = tl.where(read, mean, 0.0)
        mean_square += mean * mean
        # All maps are read and some excluded later: with a mask for each, values could not be read several at a time.
        if IMAGES > 1:
            image = tl.minimum(image, last_image - 1)
        source = channel
        if not EVEN_CHANNELS:
            source = tl.minimum(channel, channels - 1)
        maps = x + source.to(tl.int64) * stride_c + image.to(tl.int64) * stride_n
        if KIND == "vector":
            z = _vector_coefficients(
                maps, mean, stride_h, stride_w, basis_w, first_v,
                WIDTH, HEIGHT * WIDTH, PITCH_V, UNITS, V, DEPTH_W, PRECISION,
            )  # fmt: skip
            energy += tl.where(read[:, None], z * z, 0.0)[:, None, :]
        if KIND == "map":
            found = _map_energy(
                maps, mean, stride_h, stride_w, basis_h, basis_w, first_u, first_v,
                HEIGHT, WIDTH, POINTS, FOLD, PITCH_U, PITCH_V, UNITS, U, V, DEPTH_H, DEPTH_W, PRECISION,
            )  # fmt: skip
            energy += tl.where(read[:, None, None], found, 0.0)
    held = tl.zeros([UNITS, _SLOTS], tl.float32)
    if KIND != "mean":
        # DC comes from the mean, so its ring, which also marks padding, is overwritten below.
        place = (first_u + tl.arange(0, U))[:, None] * PITCH_V + (first_v + tl.arange(0, V))[None, :]
        held = _by_ring(energy, tl.load(rings + place), UNITS, U, V, PRECISION) / (HEIGHT * WIDTH)
    held = tl.sum(tl.reshape(held, [IMAGES, CHANNELS, _SLOTS]), 0)
    square = tl.sum(tl.reshape(mean_square, [IMAGES, CHANNELS]), 0)
    square = tl.where(coefficients == 0, square, 0.0)
    number = tl.arange(0, _SLOTS)
    own = first_channel + tl.arange(0, CHANNELS)
    counted = (own < channels)[:, None] & (number < _FREQUENCIES)[None, :]
    held = tl.where(number[None, :] == 0, square[:, None], held)
    tl.store(page + own[:, None] * _FREQUENCIES + number[None, :], held, mask=counted)
