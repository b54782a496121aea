"""Receptive fields equal what the arithmetic of kernels, strides and paddings gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from actstats.layers import select_layers
from actstats.layers.receptive import receptive_fields

SIZE = (3, 22, 22)


def window() -> st.SearchStrategy[tuple[int, int, int, int]]:
    """Kernel, stride, padding and dilation of one operation."""
    return st.integers(1, 4).flatmap(
        lambda kernel: st.tuples(
            st.just(kernel), st.integers(1, 2), st.integers(0, kernel // 2), st.integers(1, 2)
        )
    )


def arithmetic(chain, length: int, positions: int) -> tuple[np.ndarray, np.ndarray]:
    """First and last pixel of each position's field along one axis, padding cut off."""
    first = np.arange(positions)
    last = first.copy()
    sizes = [length]
    for kernel, stride, padding, dilation in chain:
        sizes.append((sizes[-1] + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1)
    for (kernel, stride, padding, dilation), size in zip(reversed(chain), reversed(sizes[:-1]), strict=True):
        low = first * stride - padding
        high = last * stride - padding + dilation * (kernel - 1)
        if dilation == 1:
            first, last = low.clip(0), high.clip(max=size - 1)
        else:  # the outermost taps inside the input
            first = low + -(np.minimum(low, 0) // dilation) * dilation
            last = high - -((size - 1 - np.maximum(high, size - 1)) // dilation) * dilation
    return first, last


@settings(max_examples=12, deadline=None)
@given(st.lists(st.tuples(st.booleans(), window()), min_size=1, max_size=3))
def test_fields_of_chains_are_those_of_the_arithmetic(chain):
    modules, channels = [], 3
    windows = []
    for pooled, (kernel, stride, padding, dilation) in chain:
        dilation = (
            1 if len(chain) > 1 else dilation
        )  # holes between the taps of two are no arithmetic of intervals
        windows.append((kernel, stride, padding, dilation))
        if pooled:
            modules.append(nn.MaxPool2d(kernel, stride, padding, dilation))
        else:
            modules.append(nn.Conv2d(channels, 2, kernel, stride, padding, dilation))
            channels = 2
    network = nn.Sequential(*modules).eval()
    name = str(len(modules) - 1)
    try:
        layers = select_layers(network, torch.zeros(1, *SIZE), [name])
    except Exception:
        return  # nothing is left of the map
    field = receptive_fields(network, SIZE, layers)[name]
    for low, high, length in ((field.top, field.bottom, SIZE[1]), (field.left, field.right, SIZE[2])):
        first, last = arithmetic(windows, length, len(low))
        np.testing.assert_array_equal(low, first)
        np.testing.assert_array_equal(high, last)


class Mixed(nn.Module):
    """Operations between the modules: a residual, a functional pooling, and a gate that looks everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, 4, 5, padding=2)
        self.narrow = nn.Conv2d(3, 4, 1)
        self.sum = nn.Identity()
        self.gated = nn.Identity()
        self.classifier = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.sum(nn.functional.max_pool2d(self.wide(x).relu() + self.narrow(x), 2))
        gated = self.gated(x * x.mean((-2, -1), keepdim=True).sigmoid())
        return self.classifier(gated.mean((-2, -1)))


def test_what_happens_between_modules_counts():
    network = Mixed().eval()
    layers = select_layers(network, torch.zeros(1, 3, 16, 16), ["narrow", "sum", "gated", "classifier"])
    fields = receptive_fields(network, (3, 16, 16), layers)
    assert (fields["narrow"].top == fields["narrow"].bottom).all()
    np.testing.assert_array_equal(fields["sum"].top, (2 * np.arange(8) - 2).clip(0))
    np.testing.assert_array_equal(fields["sum"].right, (2 * np.arange(8) + 3).clip(max=15))
    for name in ("gated", "classifier"):
        assert not fields[name].top.any()
        assert (fields[name].bottom == 15).all()


@pytest.mark.parametrize("step", [2, 3, 5])
def test_edges_are_within_a_step_of_the_truth(step):
    network = nn.Sequential(nn.Conv2d(3, 4, 7, stride=2), nn.Conv2d(4, 4, 5)).eval()
    layers = select_layers(network, torch.zeros(1, 3, 40, 40), ["0", "1"])
    exact, coarse = (receptive_fields(network, (3, 40, 40), layers, s) for s in (1, step))
    for name in exact:
        for edge in ("top", "bottom", "left", "right"):
            assert abs(getattr(exact[name], edge) - getattr(coarse[name], edge)).max() < step
