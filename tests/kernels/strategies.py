"""Hypothesis strategies for activation maps: odd shapes, strides, dtypes, and values of every kind."""

from __future__ import annotations

import hypothesis.strategies as st
import torch
from torch import Tensor

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LAYOUTS = ["contiguous", "channels_last", "channel_slice", "strided_map", "transposed"]
VALUES = [
    "normal",
    "relu",
    "constant",
    "zero",
    "negative",
    "tiny",
    "huge",
    "offset",
    "integers",
    "non_finite",
]


def draw_values(kind: str, shape: tuple[int, int, int, int], seed: int) -> Tensor:
    """f32 values of one kind; seeded."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=rng)
    match kind:
        case "relu":
            x = x.relu()
        case "constant":
            x = torch.full(shape, float(x.flatten()[0]))
        case "zero":
            x = torch.zeros(shape)
        case "negative":
            x = -x.abs() - 0.1
        case "tiny":
            x = x * 1e-6
        case "huge":
            x = x * 3e4
        case "offset":
            x = x * 0.01 + 100.0
        case "integers":
            x = (x * 3).round()
        case "non_finite":
            flat = x.flatten()
            picks = torch.randint(0, flat.numel(), (max(1, flat.numel() // 20),), generator=rng)
            bad = torch.tensor([torch.nan, torch.inf, -torch.inf])
            flat[picks] = bad[torch.randint(0, 3, picks.shape, generator=rng)]
    return x


def lay_out(x: Tensor, layout: str) -> Tensor:
    """The same values [N, C, H, W] under other strides."""
    n, c, h, w = x.shape
    match layout:
        case "channels_last":
            return x.contiguous(memory_format=torch.channels_last)
        case "channel_slice":  # one branch of a concatenated channels_last activation
            whole = torch.full((n, c + 5, h, w), 7.0, dtype=x.dtype).contiguous(
                memory_format=torch.channels_last
            )
            whole[:, 2 : c + 2] = x
            return whole[:, 2 : c + 2]
        case "strided_map":  # every second row and column of a greater map
            whole = torch.full((n, c, 2 * h, 2 * w), 7.0, dtype=x.dtype)
            whole[:, :, ::2, ::2] = x
            return whole[:, :, ::2, ::2]
        case "transposed":
            return x.transpose(2, 3).contiguous().transpose(2, 3)
    return x.contiguous()


@st.composite
def activations(draw: st.DrawFn, most: tuple[int, int, int, int] = (4, 40, 24, 24)) -> Tensor:
    """Maps [N, C, H, W] of any dtype, layout and kind of value that the kernels take."""
    n, c, h, w = (draw(st.integers(1, limit)) for limit in most)
    kind, layout = draw(st.sampled_from(VALUES)), draw(st.sampled_from(LAYOUTS))
    x = draw_values(kind, (n, c, h, w), draw(st.integers(0, 2**31)))
    return lay_out(x.to(draw(st.sampled_from(DTYPES))), layout)
