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


RELATIONS = ["independent", "noise", "tiny change", "equal", "opposite", "constant", "non_finite"]
"""How the changed maps of `pairs` relate to the clean ones."""


def change(clean: Tensor, relation: str, seed: int) -> Tensor:
    """Maps of the shape of `clean`, f32, that relate to it in one way; seeded."""
    rng = torch.Generator().manual_seed(seed)
    noise = torch.randn(clean.shape, generator=rng)
    x = clean.float()
    match relation:
        case "noise":
            return x + 0.1 * x.nan_to_num(0, 0, 0).abs().amax() * noise
        case "tiny change":
            return x * (1 + 1e-4 * noise)
        case "equal":
            return x.clone()
        case "opposite":
            return 1 - x
        case "constant":
            return torch.full_like(x, 0.3)
        case "non_finite":
            return draw_values("non_finite", tuple(clean.shape), seed)
    return noise


@st.composite
def pairs(draw: st.DrawFn, most: tuple[int, int, int, int] = (4, 40, 24, 24)) -> tuple[Tensor, Tensor]:
    """Maps of the same images, clean and changed [N, C, H, W], each of its own dtype and layout."""
    clean = draw(activations(most))
    changed = change(clean, draw(st.sampled_from(RELATIONS)), draw(st.integers(0, 2**31)))
    return clean, lay_out(changed.to(draw(st.sampled_from(DTYPES))), draw(st.sampled_from(LAYOUTS)))


def assert_pairs_right(found: Tensor, expected: Tensor) -> None:
    """Assert that f32 `found` [2, N, C] equals the reference to 1e-5, and is NaN in the same places."""
    # A change beyond f32 is infinite, and one below its range is 0.
    expected = expected.float()
    assert torch.equal(found.isnan(), expected.isnan())
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-44, equal_nan=True)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=1e-5, equal_nan=True)
