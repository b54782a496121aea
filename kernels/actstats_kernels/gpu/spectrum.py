# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
"""Device functions that turn maps into the energy of their real Fourier coefficients by matrix products.

With B the orthonormal real Fourier basis (rows: constant, then cos and sin of each frequency), the coefficients of
a map are Z = B_h X B_w^T, and the power of a frequency is the sum of the squares of its coefficients: no complex
numbers. The coefficients of the maps of a block are squared and summed over images in registers; radial bins are
formed once for all of them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from actstats_kernels import bins

_FREQUENCIES = tl.constexpr(bins.FREQUENCY_BINS)


@triton.jit
def vector_coefficients(
    maps,
    present,
    mean,
    stride_h,
    stride_w,
    basis,
    first_coefficient,
    WIDTH: tl.constexpr,
    SIZE: tl.constexpr,
    PITCH: tl.constexpr,
    UNITS: tl.constexpr,
    COEFFICIENTS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return coefficients [UNITS, COEFFICIENTS] of maps taken as vectors of `SIZE` values: 1 x T maps and tiny ones.

    `basis` is f32 [padded positions, PITCH], zero beyond the map.
    """
    out = tl.zeros([UNITS, COEFFICIENTS], tl.float32)
    column = first_coefficient + tl.arange(0, COEFFICIENTS)
    for start in range(0, SIZE, DEPTH):
        position = start + tl.arange(0, DEPTH)
        offset = (position // WIDTH).to(tl.int64) * stride_h + (position % WIDTH).to(tl.int64) * stride_w
        inside = (position < SIZE)[:, None] & present[None, :]
        value = tl.load(maps[None, :] + offset[:, None], mask=inside, other=0.0).to(tl.float32)
        value = tl.where(inside, value - mean[None, :], 0.0)
        waves = tl.load(basis + position[:, None] * PITCH + column[None, :])
        out = tl.dot(tl.trans(value), waves, out, input_precision=PRECISION)
    return out


@triton.jit
def map_coefficients(
    maps,
    present,
    mean,
    stride_h,
    stride_w,
    basis_h,
    basis_w,
    first_u,
    first_v,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    PITCH_H: tl.constexpr,
    PITCH_W: tl.constexpr,
    UNITS: tl.constexpr,
    U: tl.constexpr,
    V: tl.constexpr,
    DEPTH_H: tl.constexpr,
    DEPTH_W: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return coefficients [U * UNITS, V] of maps: those of rows `first_u` on and columns `first_v` on.

    `basis_h` is f32 [padded rows, PITCH_H] and `basis_w` f32 [padded columns, PITCH_W], zero beyond the map.
    """
    out = tl.zeros([U * UNITS, V], tl.float32)
    u = first_u + tl.arange(0, U)
    v = first_v + tl.arange(0, V)
    for left in range(0, WIDTH, DEPTH_W):
        w = left + tl.arange(0, DEPTH_W)
        # Units are the fastest: in channels_last memory a row of the tile is then read as it lies.
        half = tl.zeros([U, DEPTH_W * UNITS], tl.float32)
        for upper in range(0, HEIGHT, DEPTH_H):
            h = upper + tl.arange(0, DEPTH_H)
            place = (h.to(tl.int64) * stride_h)[:, None] + (w.to(tl.int64) * stride_w)[None, :]
            inside = ((h < HEIGHT)[:, None] & (w < WIDTH)[None, :])[:, :, None] & present[None, None, :]
            value = tl.load(maps[None, None, :] + place[:, :, None], mask=inside, other=0.0).to(tl.float32)
            value = tl.where(inside, value - mean[None, None, :], 0.0)
            waves = tl.load(basis_h + u[:, None] + h[None, :] * PITCH_H)
            half = tl.dot(
                waves, tl.reshape(value, [DEPTH_H, DEPTH_W * UNITS]), half, input_precision=PRECISION
            )
        half = tl.reshape(tl.permute(tl.reshape(half, [U, DEPTH_W, UNITS]), (0, 2, 1)), [U * UNITS, DEPTH_W])
        waves = tl.load(basis_w + w[:, None] * PITCH_W + v[None, :])
        out = tl.dot(half, waves, out, input_precision=PRECISION)
    return out


@triton.jit
def store_rings(
    scratch,
    energy,
    rings,
    channels,
    counted,
    first_u,
    first_v,
    PITCH: tl.constexpr,
    SIZE: tl.constexpr,
    U: tl.constexpr,
    V: tl.constexpr,
    IMAGES: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Write the power in each ring, `energy` [U * IMAGES * CHANNELS, V] summed over it, to `scratch` [C, 18].

    `rings` is i8 [padded u, PITCH]: the radial bin of each coefficient, 0 where none is to be counted (and for DC,
    which comes from the mean).
    """
    row = first_u + tl.arange(0, U * IMAGES * CHANNELS) // (IMAGES * CHANNELS)
    place = rings + row[:, None] * PITCH + (first_v + tl.arange(0, V))[None, :]
    for ring in range(1, _FREQUENCIES):
        held = tl.sum(tl.where(tl.load(place) == ring, energy, 0.0), 1)
        held = tl.sum(tl.reshape(held, [U * IMAGES, CHANNELS]), 0) / SIZE
        tl.store(scratch + channels * _FREQUENCIES + ring, held, mask=counted)
