"""The Triton kernels behind `actstats_kernels.ops`, and the host side that launches them.

Nothing here waits for the device: scratch memory comes from torch's caching allocator, tables are made at the first
batch of a shape, and launch parameters follow from shapes and strides alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from actstats_kernels.bins import FREQUENCY_BINS, MOMENTS
from actstats_kernels.gpu import compat, launch
from actstats_kernels.gpu.basis import constants
from actstats_kernels.gpu.kernels import accumulate_kernel, spectrum_kernel
from actstats_kernels.gpu.layout import Layout, layout_of
from actstats_kernels.gpu.pairs import compare

__all__ = ["accumulate", "compare", "set_precision"]

_precision: str = compat.PRECISIONS[0]


def set_precision(precision: str | None = None) -> str:
    """Set the precision of the spectrum's matrix products and return the previous one. None sets the default.

    "bf16x3" uses the matrix units, with three products of rounded parts (two for bf16 maps); "ieee" uses f32 without
    the matrix units. docs/gpu-kernels.md lists the errors of both.

    Raises:
        ValueError: `precision` is unknown.
    """
    global _precision
    known = compat.PRECISIONS
    if precision is not None and precision not in known:
        raise ValueError(f"`precision=` is {precision!r}; there are {', '.join(known)}")
    before, _precision = _precision, precision or known[0]
    return before


def accumulate(
    x: Tensor, moments: Tensor | None, argmax: Tensor | None, histogram: Tensor | None, power: Tensor | None
) -> None:
    """Read maps `x` [N, C, H, W] and write the statistics that have a buffer: see `ops.accumulate`."""
    if x.numel() == 0:
        return
    layout = layout_of(x)
    tiles = launch.choose(layout.height, layout.width, layout.channels, x.element_size())
    if power is not None and moments is None:
        # The spectrum needs the means.
        moments = x.new_empty((len(MOMENTS), *x.shape[:2]), dtype=torch.float32)
    with compat.on(x.device):
        scratch = _launch_accumulate(
            x, layout, tiles, moments, argmax, histogram, with_power=power is not None and not tiles.apart
        )
        if power is not None:
            if tiles.apart:
                assert moments is not None
                scratch = _launch_spectrum(x, layout, tiles, moments[0])
            assert scratch is not None
            # Each program has written its own part, so the order of summation does not depend on scheduling.
            power.add_(scratch.sum((0, 1), dtype=torch.float64))


def _launch_accumulate(
    x: Tensor,
    layout: Layout,
    tiles: launch.Tiles,
    moments: Tensor | None,
    argmax: Tensor | None,
    histogram: Tensor | None,
    *,
    with_power: bool,
) -> Tensor | None:
    images, channels = x.shape[:2]
    blocks = -(-channels // tiles.channels)
    groups = -(-images // tiles.images)
    most = launch.cached_rounds(tiles, layout.height * layout.width, x.element_size())
    rounds = launch.rounds(blocks, groups, most)
    grid = (blocks, -(-groups // rounds))
    scratch: Tensor | None = None
    tables: tuple[Tensor | None, ...] = (None, None, None)
    if with_power:
        scratch = _scratch(x, grid[1], tiles.spectrum)
        tables = constants(tiles.spectrum, layout.height, layout.width, _precision, x.device)
    accumulate_kernel[grid](
        x,
        *layout.strides,
        images,
        channels,
        rounds,
        moments,
        *(moments.stride() if moments is not None else (0, 0, 0)),
        argmax,
        *(argmax.stride() if argmax is not None else (0, 0)),
        histogram,
        scratch,
        *tables,
        **accumulate_constants(layout, tiles, products(x.dtype)),
        **accumulate_options(tiles, with_power=with_power),
    )
    return scratch


def _launch_spectrum(x: Tensor, layout: Layout, tiles: launch.Tiles, means: Tensor) -> Tensor:
    images, channels = x.shape[:2]
    spectrum = tiles.spectrum
    blocks = -(-channels // spectrum.channels)
    groups = -(-images // spectrum.images)
    rounds = launch.rounds(blocks * spectrum.blocks, groups, groups)
    pages = -(-groups // rounds)
    scratch = _scratch(x, pages, spectrum)
    spectrum_kernel[(blocks, spectrum.blocks, pages)](
        x,
        *layout.strides,
        images,
        channels,
        rounds,
        means,
        *means.stride(),
        scratch,
        *constants(spectrum, layout.height, layout.width, _precision, x.device),
        **spectrum_constants(layout, tiles, products(x.dtype)),
        **spectrum_options(tiles),
    )
    return scratch


def _scratch(x: Tensor, pages: int, spectrum: launch.Spectrum) -> Tensor:
    shape = (pages, spectrum.blocks, x.shape[1], FREQUENCY_BINS)
    return x.new_empty(shape, dtype=torch.float32)


def products(dtype: torch.dtype) -> str:
    """Return the precision for maps of a `dtype`: "bf16x2" if they are bf16 and need no second part."""
    return "bf16x2" if _precision == "bf16x3" and dtype == torch.bfloat16 else _precision


def accumulate_options(tiles: launch.Tiles, *, with_power: bool) -> dict[str, Any]:
    """Return the options with which `accumulate_kernel` is compiled."""
    options = {**compat.LAUNCH, "num_warps": tiles.warps}
    # Only NVIDIA's compiler knows the limit.
    limited = not with_power and torch.version.hip is None
    return {**options, "maxnreg": launch.MOST_REGISTERS} if limited else options


def spectrum_options(tiles: launch.Tiles) -> dict[str, Any]:
    """Return the options with which `spectrum_kernel` is compiled."""
    # Prefetching takes registers and instructions; other programs on the multiprocessor hide the latency as well.
    return {**compat.LAUNCH, "num_warps": tiles.spectrum.warps, "num_stages": 1}


def accumulate_constants(layout: Layout, tiles: launch.Tiles, precision: str) -> dict[str, Any]:
    """Return the compile-time arguments of `accumulate_kernel`."""
    return {
        **spectrum_constants(layout, tiles, precision),
        "CHANNELS": tiles.channels,
        "EVEN_CHANNELS": layout.channels % tiles.channels == 0,
        "IMAGES": tiles.images,
        "ROWS": tiles.rows,
        "COLUMNS": tiles.columns,
        "POSITIONS": tiles.positions,
        "ON_CHIP": compat.COUNTS_ON_CHIP and tiles.spectrum.kind != "mean",
        "BLOCKS": tiles.spectrum.blocks,
    }


def spectrum_constants(layout: Layout, tiles: launch.Tiles, precision: str) -> dict[str, Any]:
    """Return the compile-time arguments of `spectrum_kernel`."""
    spectrum = tiles.spectrum
    return {
        "HEIGHT": layout.height,
        "WIDTH": layout.width,
        "ALIGN": layout.align,
        "UNIT": layout.unit,
        "CHANNELS": spectrum.channels,
        "EVEN_CHANNELS": layout.channels % spectrum.channels == 0,
        "KIND": spectrum.kind,
        "SPECTRUM_IMAGES": spectrum.images,
        "FOLD": spectrum.fold,
        "POINTS": spectrum.points,
        "PITCH_U": spectrum.pitch_u,
        "PITCH_V": spectrum.pitch_v,
        "U": spectrum.u,
        "V": spectrum.v,
        "DEPTH_H": spectrum.depth_h,
        "DEPTH_W": spectrum.depth_w,
        "PRECISION": precision,
    }
