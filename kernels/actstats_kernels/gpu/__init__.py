"""The Triton kernels behind `actstats_kernels.ops`, and the host side that launches them.

Nothing here waits for the device: scratch comes from torch's caching allocator, tables are made at the first batch of
a shape, and what decides a launch is known from shapes and strides alone.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import torch
from torch import Tensor

from actstats_kernels.bins import FREQUENCY_BINS, MOMENTS
from actstats_kernels.gpu import compat, launch
from actstats_kernels.gpu.basis import constants
from actstats_kernels.gpu.kernels import accumulate_kernel, spectrum_kernel
from actstats_kernels.gpu.layout import Layout, layout_of
from actstats_kernels.gpu.ranking import top_k

__all__ = ["accumulate", "set_precision", "top_k"]

_BACKEND: Final = "hip" if torch.version.hip else "cuda"
_precision: str = compat.PRECISIONS[_BACKEND][0]


def set_precision(precision: str | None = None) -> str:
    """Set how the spectrum's products are computed from now on; return what was set. None: the default.

    "tf32x3" (three products of rounded halves: as good as f32), "tf32" (one product of values rounded to 10 bits:
    a third of the arithmetic), or "ieee" (f32, without the matrix units). Errors are on docs/gpu.md.

    Raises:
        ValueError: the GPU's compiler has no such precision.
    """
    global _precision
    known = compat.PRECISIONS[_BACKEND]
    if precision is not None and precision not in known:
        raise ValueError(f"precision is {precision!r}; this GPU has {', '.join(known)}")
    before, _precision = _precision, precision or known[0]
    return before


def accumulate(
    x: Tensor, moments: Tensor | None, argmax: Tensor | None, histogram: Tensor | None, power: Tensor | None
) -> None:
    """Read maps `x` [N, C, H, W] and write what has a buffer: see `ops.accumulate`."""
    if x.numel() == 0:
        return
    layout = layout_of(x)
    tiles, apart = launch.choose(layout.height, layout.width, layout.channels)
    if power is not None and apart is not None and moments is None:
        # `spectrum_kernel` needs the means.
        moments = x.new_empty((len(MOMENTS), *x.shape[:2]), dtype=torch.float32)
    with _on(x.device):
        scratch = _launch_accumulate(
            x, layout, tiles, moments, argmax, histogram, with_power=power is not None and apart is None
        )
        if power is not None and apart is not None:
            assert moments is not None
            scratch = _launch_spectrum(x, layout, apart, moments[0])
        if power is not None and scratch is not None:
            # Each program has written its own part: one order of summation, whatever ran first.
            power.add_(scratch.sum(0, dtype=torch.float64))


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
    rounds = launch.rounds(blocks, groups)
    grid = (blocks, -(-groups // rounds))
    scratch: Tensor | None = None
    tables: tuple[Tensor | None, ...] = (None, None, None)
    if with_power:
        scratch = x.new_empty((grid[1], channels, FREQUENCY_BINS), dtype=torch.float32)
        tables = constants(tiles, layout.height, layout.width, x.device)
        if tiles.spectrum == "mean":
            scratch.zero_()
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
        **accumulate_constants(layout, tiles, _precision),
        num_warps=tiles.warps,
        **compat.LAUNCH,
    )
    return scratch


def _launch_spectrum(x: Tensor, layout: Layout, tiles: launch.SpectrumTiles, means: Tensor) -> Tensor:
    images, channels = x.shape[:2]
    blocks = -(-channels // tiles.channels)
    rounds = launch.rounds(blocks * tiles.blocks, images)
    pages = -(-images // rounds)
    scratch = x.new_empty((pages * tiles.blocks, channels, FREQUENCY_BINS), dtype=torch.float32)
    spectrum_kernel[(blocks, tiles.blocks, pages)](
        x,
        *layout.strides,
        images,
        channels,
        rounds,
        means,
        *means.stride(),
        scratch,
        *constants(tiles, layout.height, layout.width, x.device),
        **spectrum_constants(layout, tiles, _precision),
        num_warps=tiles.warps,
        **compat.LAUNCH,
    )
    return scratch


def accumulate_constants(layout: Layout, tiles: launch.Tiles, precision: str) -> dict[str, Any]:
    """Return the compile-time arguments of `accumulate_kernel`."""
    return {
        **_layout_constants(layout),
        "EVEN_CHANNELS": layout.channels % tiles.channels == 0,
        "IMAGES": tiles.images,
        "CHANNELS": tiles.channels,
        "ROWS": tiles.rows,
        "COLUMNS": tiles.columns,
        "POSITIONS": tiles.positions,
        "ON_CHIP": compat.COUNTS_ON_CHIP and tiles.spectrum != "mean",
        "SPECTRUM": tiles.spectrum,
        "U": tiles.u,
        "V": tiles.v,
        "DEPTH_H": tiles.depth_h,
        "DEPTH_W": tiles.depth_w,
        "PRECISION": precision,
    }


def spectrum_constants(layout: Layout, tiles: launch.SpectrumTiles, precision: str) -> dict[str, Any]:
    """Return the compile-time arguments of `spectrum_kernel`."""
    return {
        **_layout_constants(layout),
        "EVEN_CHANNELS": layout.channels % tiles.channels == 0,
        "CHANNELS": tiles.channels,
        "SPECTRUM": tiles.spectrum,
        "PITCH_U": tiles.pitch_u,
        "PITCH_V": tiles.pitch_v,
        "U": tiles.u,
        "V": tiles.v,
        "DEPTH_H": tiles.depth_h,
        "DEPTH_W": tiles.depth_w,
        "PRECISION": precision,
    }


def _layout_constants(layout: Layout) -> dict[str, Any]:
    return {"HEIGHT": layout.height, "WIDTH": layout.width, "ALIGN": layout.align, "UNIT": layout.unit}


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Launch on the device of the maps, whichever is current."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
