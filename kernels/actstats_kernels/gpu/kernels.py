# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
"""The Triton kernels: one that reads maps for every statistic, one for the spectra of maps that are too large for it.

Strides come in units of `ALIGN` elements, which tells the compiler what divides them whatever their value, and the
one that is 1 (`UNIT`: "c" for channels_last, "w" for contiguous maps) is a constant. No argument is specialised on
its value, so a sweep's last, shorter batch compiles nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl

from actstats_kernels import bins
from actstats_kernels.gpu.histogram import count_maps
from actstats_kernels.gpu.moments import read_moments
from actstats_kernels.gpu.spectrum import map_coefficients, store_rings, vector_coefficients

_FREQUENCIES = tl.constexpr(bins.FREQUENCY_BINS)


@triton.jit
def _strides(stride_n, stride_c, stride_h, stride_w, ALIGN: tl.constexpr, UNIT: tl.constexpr):
    """Return the four strides in elements, i64."""
    n = stride_n.to(tl.int64) * ALIGN
    c = stride_c.to(tl.int64) * ALIGN
    h = stride_h.to(tl.int64) * ALIGN
    w = stride_w.to(tl.int64) * ALIGN
    if UNIT == "c":
        c = tl.full([], 1, tl.int64)
    if UNIT == "w":
        w = tl.full([], 1, tl.int64)
    return n, c, h, w


_RUNTIME = ["stride_n", "stride_c", "stride_h", "stride_w", "images", "channels", "rounds"]
_CELLS = ["moments_row", "moments_n", "moments_c", "argmax_n", "argmax_c"]
_UNALIGNED = ["moments", "argmax", "histogram", "scratch"]
"""Slices of a partition's buffers: whether one happens to be aligned must not make a second kernel."""


@triton.jit(do_not_specialize=_RUNTIME + _CELLS, do_not_specialize_on_alignment=_UNALIGNED)
def accumulate_kernel(
    x,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    images,
    channels,
    rounds,
    moments,
    moments_row,
    moments_n,
    moments_c,
    argmax,
    argmax_n,
    argmax_c,
    histogram,
    scratch,
    basis_h,
    basis_w,
    rings,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    ALIGN: tl.constexpr,
    UNIT: tl.constexpr,
    EVEN_CHANNELS: tl.constexpr,
    IMAGES: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    POSITIONS: tl.constexpr,
    ON_CHIP: tl.constexpr,
    SPECTRUM: tl.constexpr,
    U: tl.constexpr,
    V: tl.constexpr,
    DEPTH_H: tl.constexpr,
    DEPTH_W: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Read `rounds` groups of `IMAGES` x `CHANNELS` maps a program and write every statistic that has a buffer.

    Programs: (blocks of channels, blocks of `rounds * IMAGES` images). `scratch` f32 [image blocks, C, 18] receives
    the power summed over the program's images, by the method that `SPECTRUM` names: "map", "vector", or "mean" for
    maps of one position.
    """
    UNITS: tl.constexpr = IMAGES * CHANNELS
    stride_n, stride_c, stride_h, stride_w = _strides(stride_n, stride_c, stride_h, stride_w, ALIGN, UNIT)
    block = tl.program_id(1)
    first_channel = tl.program_id(0) * CHANNELS
    unit = tl.arange(0, UNITS)
    channel = first_channel + unit % CHANNELS
    origin = x + channel.to(tl.int64) * stride_c
    if scratch is not None:
        mean_square = tl.zeros([UNITS], tl.float32)
        if SPECTRUM != "mean":
            energy = tl.zeros([U * UNITS, V], tl.float32)
    # In pairs: not every version takes a chain of `or`.
    if ((moments is not None) or (argmax is not None)) or (scratch is not None):
        for r in range(rounds):
            image = (block * rounds + r) * IMAGES + unit // CHANNELS
            present = image < images
            if not EVEN_CHANNELS:
                present = present & (channel < channels)
            maps = origin + image.to(tl.int64) * stride_n
            mean, variance, maximum, share, total, place, finite = read_moments(
                maps, present, stride_h, stride_w, HEIGHT, WIDTH, ROWS, COLUMNS, UNITS
            )
            if moments is not None:
                row = moments + image.to(tl.int64) * moments_n + channel.to(tl.int64) * moments_c
                step = moments_row.to(tl.int64)
                tl.store(row, tl.where(finite, mean, float("nan")), mask=present)
                tl.store(row + step, tl.where(finite, variance, float("nan")), mask=present)
                tl.store(row + 2 * step, tl.where(finite, maximum, float("nan")), mask=present)
                tl.store(row + 3 * step, share, mask=present)
                tl.store(row + 4 * step, tl.where(finite, total, float("nan")), mask=present)
            if argmax is not None:
                cell = argmax + image.to(tl.int64) * argmax_n + channel.to(tl.int64) * argmax_c
                tl.store(cell, tl.where(finite, place, -1), mask=present)
            if scratch is not None:
                read = present & finite
                mean = tl.where(read, mean, 0.0)
                mean_square += mean * mean
                if SPECTRUM == "vector":
                    z = vector_coefficients(
                        maps, read, mean, stride_h, stride_w, basis_w, 0,
                        WIDTH, HEIGHT * WIDTH, V, UNITS, V, DEPTH_W, PRECISION,
                    )  # fmt: skip
                    energy += z * z
                if SPECTRUM == "map":
                    z = map_coefficients(
                        maps, read, mean, stride_h, stride_w, basis_h, basis_w, 0, 0,
                        HEIGHT, WIDTH, U, V, UNITS, U, V, DEPTH_H, DEPTH_W, PRECISION,
                    )  # fmt: skip
                    energy += z * z
    if scratch is not None:
        own = first_channel + tl.arange(0, CHANNELS)
        page = scratch + block.to(tl.int64) * channels * _FREQUENCIES
        square = tl.sum(tl.reshape(mean_square, [IMAGES, CHANNELS]), 0)
        tl.store(page + own * _FREQUENCIES, square, mask=own < channels)
        if SPECTRUM != "mean":
            store_rings(
                page, energy, rings, own, own < channels, 0, 0, V, HEIGHT * WIDTH, U, V, IMAGES, CHANNELS
            )
    if histogram is not None:
        # In a loop of its own: its counts and the spectrum's energy do not fit in the registers together.
        count_maps(
            histogram, x, first_channel, channels, block, rounds, images, stride_n, stride_c, stride_h, stride_w,
            WIDTH, HEIGHT * WIDTH, IMAGES, CHANNELS, POSITIONS, EVEN_CHANNELS, ON_CHIP,
        )  # fmt: skip


@triton.jit(
    do_not_specialize=[*_RUNTIME, "moments_n", "moments_c"],
    do_not_specialize_on_alignment=["means", "scratch"],
)
def spectrum_kernel(
    x,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    images,
    channels,
    rounds,
    means,
    moments_n,
    moments_c,
    scratch,
    basis_h,
    basis_w,
    rings,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    ALIGN: tl.constexpr,
    UNIT: tl.constexpr,
    EVEN_CHANNELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    SPECTRUM: tl.constexpr,
    PITCH_U: tl.constexpr,
    PITCH_V: tl.constexpr,
    U: tl.constexpr,
    V: tl.constexpr,
    DEPTH_H: tl.constexpr,
    DEPTH_W: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write the power of `rounds` images x `CHANNELS` maps, one block of `U` x `V` coefficients a program.

    For maps whose spectrum does not fit beside their moments. `means` f32 [N, C] are those of `accumulate_kernel`,
    NaN where a map takes no part. Programs: (blocks of channels, blocks of coefficients, blocks of images).
    `scratch` is f32 [image blocks, coefficient blocks, C, 18].
    """
    stride_n, stride_c, stride_h, stride_w = _strides(stride_n, stride_c, stride_h, stride_w, ALIGN, UNIT)
    first_channel = tl.program_id(0) * CHANNELS
    first_u = tl.program_id(1) // (PITCH_V // V) * U
    first_v = tl.program_id(1) % (PITCH_V // V) * V
    block = tl.program_id(2)
    own = first_channel + tl.arange(0, CHANNELS)
    energy = tl.zeros([U * CHANNELS, V], tl.float32)
    mean_square = tl.zeros([CHANNELS], tl.float32)
    for r in range(rounds):
        image = block * rounds + r
        # A vector on both sides: the interpreter of Triton 3.9 makes int32 of a scalar condition and a vector one.
        present = (own < channels) & (image + tl.zeros_like(own) < images)
        cell = means + image.to(tl.int64) * moments_n + own.to(tl.int64) * moments_c
        mean = tl.load(cell, mask=present, other=float("nan"))
        read = mean == mean
        mean = tl.where(read, mean, 0.0)
        mean_square += mean * mean
        maps = x + own.to(tl.int64) * stride_c + image.to(tl.int64) * stride_n
        if SPECTRUM == "vector":
            z = vector_coefficients(
                maps, read, mean, stride_h, stride_w, basis_w, first_v,
                WIDTH, HEIGHT * WIDTH, PITCH_V, CHANNELS, V, DEPTH_W, PRECISION,
            )  # fmt: skip
        else:
            z = map_coefficients(
                maps, read, mean, stride_h, stride_w, basis_h, basis_w, first_u, first_v,
                HEIGHT, WIDTH, PITCH_U, PITCH_V, CHANNELS, U, V, DEPTH_H, DEPTH_W, PRECISION,
            )  # fmt: skip
        energy += z * z
    page = scratch + (block * tl.num_programs(1) + tl.program_id(1)).to(tl.int64) * channels * _FREQUENCIES
    first_block = tl.program_id(1) == 0
    tl.store(page + own * _FREQUENCIES, tl.where(first_block, mean_square, 0.0), mask=own < channels)
    store_rings(
        page, energy, rings, own, own < channels, first_u, first_v, PITCH_V, HEIGHT * WIDTH, U, V, 1, CHANNELS
    )
