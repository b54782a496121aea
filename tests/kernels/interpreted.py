"""The Triton kernels against the reference, in Triton's interpreter.

Not collected by itself: the interpreter is chosen when a kernel is defined, for the whole process, so
`test_triton_interpreter.py` runs this file in a process of its own, with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from actstats_kernels import gpu, reference
from actstats_kernels.bins import FREQUENCY_BINS, HISTOGRAM_BINS
from actstats_kernels.gpu import compat, launch
from tests.kernels.strategies import activations, assert_pairs_right, change, draw_values, lay_out, pairs

METHODS = {
    "one position": (3, 70, 1, 1),
    "a row of tokens": (3, 9, 1, 50),
    "a column": (2, 8, 33, 1),
    "a long row, by blocks of coefficients": (2, 3, 1, 300),
    "a small map as a vector": (9, 24, 7, 7),
    "a map": (3, 16, 14, 14),
    "a map, with odd sides": (2, 8, 27, 13),
    "a narrow map": (1, 4, 90, 10),
    "a map in mirrored pairs": (3, 16, 28, 28),
    "a map in mirrored pairs, by blocks of rows, of odd width": (1, 8, 48, 21),
    "a map as wide as a power of two": (1, 4, 20, 32),
    "a wide map, by blocks of rows and columns": (1, 2, 20, 140),
    "a map too large for a cache": (1, 2, 242, 17),
    "channels beyond the last block": (2, 13, 9, 9),
}
"""A shape for each way through the kernels."""


def run(x: Tensor, counts: torch.dtype = torch.int32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Moments and argmax as slices of greater buffers, as a sweep has them; histogram and power."""
    images, channels = x.shape[:2]
    moments = torch.full((5, images + 2, channels + 3), -7.0)
    argmax = torch.full((images + 2, channels + 3), -7, dtype=torch.int32)
    histogram = torch.zeros(channels, HISTOGRAM_BINS, dtype=counts)
    power = torch.zeros(channels, FREQUENCY_BINS, dtype=torch.float64)
    inner = (slice(1, images + 1), slice(1, channels + 1))
    gpu.accumulate(x, moments[:, *inner], argmax[inner], histogram, power)
    assert (moments == -7).sum() == 5 * ((images + 2) * (channels + 3) - images * channels)
    assert (argmax == -7).sum() == (images + 2) * (channels + 3) - images * channels
    return moments[:, *inner], argmax[inner], histogram, power


def assert_right(x: Tensor, found: tuple[Tensor, Tensor, Tensor, Tensor], spectrum: float = 1e-5) -> None:
    moments, argmax, histogram, power = found
    expected = reference.moments(x)
    # The mean and the variance of values that cancel are known as well as the values are.
    size = torch.nan_to_num(x.double(), 0, 0, 0).abs().amax((-2, -1))
    for row, scale in enumerate((size, size**2 * 1e-2, 0 * size, 0 * size, size)):
        wrong = (moments[row].double() - expected[row]).abs() > 1e-5 * expected[row].abs() + 1e-6 * scale
        assert not wrong.any(), reference.MOMENTS[row]
    torch.testing.assert_close(moments.isnan(), expected.isnan())
    torch.testing.assert_close(argmax, reference.argmax(x))
    torch.testing.assert_close(histogram.long(), reference.histogram(x))
    spectra = reference.power(x).nansum(0)
    assert ((power - spectra).abs() <= spectrum * spectra.sum(1, keepdim=True)).all()


@settings(max_examples=25, deadline=None, derandomize=True)
@given(activations(most=(4, 20, 18, 18)))
def test_any_maps(x):
    assert_right(x, run(x))


@pytest.mark.parametrize("method", METHODS)
def test_each_method_on_each_layout_to_the_same_bytes(method):
    values = draw_values("normal", METHODS[method], 0).to(torch.bfloat16)
    first = None
    for layout in ("contiguous", "channels_last", "strided_map"):
        x = lay_out(values, layout)
        found = run(x)
        if first is None:
            assert_right(x, found)
        first = first or found
        assert all(torch.equal(a, b) for a, b in zip(first, found, strict=True)), layout


@pytest.mark.parametrize("method", METHODS)
def test_programs_that_take_several_rounds(method, monkeypatch):
    monkeypatch.setattr(launch, "PROGRAMS", 1)
    # As in versions of Triton that cannot count on chip.
    monkeypatch.setattr(compat, "COUNTS_ON_CHIP", False)
    images, *rest = METHODS[method]
    x = draw_values("non_finite", (2 * images, *rest), 1)
    assert_right(x, run(x, torch.int64))


@pytest.mark.parametrize("method", ["a small map as a vector", "a map", "a map in mirrored pairs"])
def test_precise_products(method):
    before = gpu.set_precision("ieee")
    try:
        x = draw_values("offset", METHODS[method], 4)
        assert_right(x, run(x), 1e-6)
        x = draw_values("normal", METHODS[method], 4).bfloat16()
        assert_right(x, run(x), 1e-6)
    finally:
        gpu.set_precision(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_constant_has_no_frequency_but_0(dtype):
    x = torch.full((2, 16, 28, 28), 3.3, dtype=dtype)
    power = run(x)[3]
    assert (power[:, 1:].sum(1) < 1e-9 * power[:, 0]).all()


def test_only_what_is_asked_for():
    x = draw_values("relu", (2, 8, 36, 24), 2)
    moments, argmax, histogram, power = run(x)
    for name, alone in {"moments": moments, "argmax": argmax, "histogram": histogram, "power": power}.items():
        buffers = dict.fromkeys(("moments", "argmax", "histogram", "power"))
        buffers[name] = torch.zeros_like(alone, memory_format=torch.contiguous_format)
        gpu.accumulate(x, **buffers)
        torch.testing.assert_close(buffers[name], alone, rtol=0, atol=0)


def test_counts_and_power_are_added():
    x = draw_values("normal", (2, 8, 14, 14), 3)
    *_, histogram, power = run(x)
    both, twice = histogram.clone(), power.clone()
    gpu.accumulate(x, None, None, both, twice)
    torch.testing.assert_close(both, 2 * histogram)
    torch.testing.assert_close(twice, 2 * power)


def compared(clean: Tensor, changed: Tensor) -> Tensor:
    """What is compared, in a slice of a greater buffer, as a sweep has it."""
    images, channels = clean.shape[:2]
    whole = torch.full((2, images + 2, channels + 3), -7.0)
    inner = whole[:, 1 : images + 1, 1 : channels + 1]
    gpu.compare(clean, changed, inner)
    assert (whole == -7).sum() == 2 * ((images + 2) * (channels + 3) - images * channels)
    return inner


@settings(max_examples=25, deadline=None, derandomize=True)
@given(pairs(most=(4, 20, 18, 18)))
def test_any_pair_of_maps(pair):
    assert_pairs_right(compared(*pair), reference.compare(*pair))


@pytest.mark.parametrize("method", METHODS)
def test_pairs_on_each_layout_to_the_same_bytes(method):
    clean = draw_values("normal", METHODS[method], 0)
    changed = change(clean, "noise", 1).to(torch.bfloat16)
    first = compared(clean, changed)
    assert_pairs_right(first, reference.compare(clean, changed))
    for layout in ("channels_last", "strided_map"):
        again = compared(lay_out(clean, layout), lay_out(changed, layout))
        torch.testing.assert_close(again, first, rtol=0, atol=0, equal_nan=True)


def test_no_images():
    power = torch.zeros(8, FREQUENCY_BINS, dtype=torch.float64)
    gpu.accumulate(torch.empty(0, 8, 4, 4), None, None, None, power)
    assert not power.any()
