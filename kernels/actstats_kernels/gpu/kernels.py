# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
"""The Triton kernels: one computes all statistics, the other the spectra of maps that are too large for the first.

Strides are in units of `ALIGN` elements, so that the compiler knows a divisor of them without knowing their value.
The stride that is 1 (of axis `UNIT`: "c" for channels_last, "w" for contiguous maps) is a constant. No argument is
specialised on its value, so the shorter last batch of a sweep does not recompile.
"""

from __future__ import annotations

import triton
import triton.language as tl

from actstats_kernels import bins
from actstats_kernels.gpu.histogram import count_maps
from actstats_kernels.gpu.moments import read_moments
from actstats_kernels.gpu.spectrum import store_power

_FREQUENCIES = tl.constexpr(bins.FREQUENCY_BINS)


@triton.jit
def element_strides(stride_n, stride_c, stride_h, stride_w, ALIGN: tl.constexpr, UNIT: tl.constexpr):
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
"""Slices of a partition's buffers, whose alignment varies and must not trigger compilation of a second kernel."""


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
    BLOCKS: tl.constexpr,
    KIND: tl.constexpr,
    SPECTRUM_IMAGES: tl.constexpr,
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
    """Read `rounds` groups of `IMAGES` x `CHANNELS` maps per program and write every statistic that has a buffer.

    The grid is (blocks of channels, blocks of `rounds * IMAGES` images). Spectrum and histogram read the same maps
    again in separate loops, since their state does not fit in the registers together. `scratch`, f32 [image blocks,
    BLOCKS, C, 18], receives the power of the program's images, which requires `moments`.
    """
    UNITS: tl.constexpr = IMAGES * CHANNELS
    stride_n, stride_c, stride_h, stride_w = element_strides(
        stride_n, stride_c, stride_h, stride_w, ALIGN, UNIT
    )
    block = tl.program_id(1)
    first_channel = tl.program_id(0) * CHANNELS
    unit = tl.arange(0, UNITS)
    channel = first_channel + unit % CHANNELS
    origin = x + channel.to(tl.int64) * stride_c
    if (moments is not None) or (argmax is not None):
        for r in range(rounds):
            image = (block * rounds + r) * IMAGES + unit // CHANNELS
            present = image < images
            readable = None
            if not EVEN_CHANNELS:
                readable = channel < channels
                present = present & readable
            # Beyond the last image, read it again, which needs no masks.
            maps = origin + tl.minimum(image, images - 1).to(tl.int64) * stride_n
            mean, variance, maximum, share, total, place, finite = read_moments(
                maps, readable, stride_h, stride_w, HEIGHT, WIDTH, ROWS, COLUMNS, UNITS
            )
            if moments is not None:
                row = moments + image.to(tl.int64) * moments_n + channel.to(tl.int64) * moments_c
                step = moments_row.to(tl.int64)
                tl.store(row, tl.where(finite, mean, float("nan")), mask=present)
                tl.store(row + step, tl.where(finite, variance, float("nan")), mask=present)
                tl.store(row + 2 * step, tl.where(finite, maximum, float("nan")), mask=present)
                tl.store(row + 3 * step, tl.where(finite, share, float("nan")), mask=present)
                tl.store(row + 4 * step, tl.where(finite, total, float("nan")), mask=present)
            if argmax is not None:
                cell = argmax + image.to(tl.int64) * argmax_n + channel.to(tl.int64) * argmax_c
                tl.store(cell, tl.where(finite, place, -1), mask=present)
    if scratch is not None:
        # Wait for the means, which other threads have written.
        tl.debug_barrier()
        first_image = block * rounds * IMAGES
        last_image = tl.minimum(first_image + rounds * IMAGES, images)
        for b in range(BLOCKS):
            page = scratch + (block * BLOCKS + b).to(tl.int64) * channels * _FREQUENCIES
            store_power(
                page, x, moments, moments_n, moments_c, first_image, last_image, first_channel, channels,
                stride_n, stride_c, stride_h, stride_w, basis_h, basis_w, rings, b,
                HEIGHT, WIDTH, KIND, SPECTRUM_IMAGES, CHANNELS, EVEN_CHANNELS, FOLD, POINTS, PITCH_U, PITCH_V, U, V,
                DEPTH_H, DEPTH_W, PRECISION,
            )  # fmt: skip
    if histogram is not None:
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
    CHANNELS: tl.constexpr,
    EVEN_CHANNELS: tl.constexpr,
    KIND: tl.constexpr,
    SPECTRUM_IMAGES: tl.constexpr,
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
    """Write the power of `rounds * SPECTRUM_IMAGES` images x `CHANNELS` maps, one block of coefficients per program.

    Used for maps that are too large to stay in a cache between reads; adjacent blocks share what they read. `means`,
    f32 [N, C], come from `accumulate_kernel`. The grid is (blocks of channels, blocks of coefficients, blocks of
    images). `scratch` is f32 [image blocks, coefficient blocks, C, 18].
    """
    stride_n, stride_c, stride_h, stride_w = element_strides(
        stride_n, stride_c, stride_h, stride_w, ALIGN, UNIT
    )
    block = tl.program_id(2)
    first_image = block * rounds * SPECTRUM_IMAGES
    last_image = tl.minimum(first_image + rounds * SPECTRUM_IMAGES, images)
    page = scratch + (block * tl.num_programs(1) + tl.program_id(1)).to(tl.int64) * channels * _FREQUENCIES
    store_power(
        page, x, means, moments_n, moments_c, first_image, last_image, tl.program_id(0) * CHANNELS, channels,
        stride_n, stride_c, stride_h, stride_w, basis_h, basis_w, rings, tl.program_id(1),
        HEIGHT, WIDTH, KIND, SPECTRUM_IMAGES, CHANNELS, EVEN_CHANNELS, FOLD, POINTS, PITCH_U, PITCH_V, U, V,
        DEPTH_H, DEPTH_W, PRECISION,
    )  # fmt: skip
