"""The CPU's kernels against the definitions."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from torch import Tensor

from actstats_kernels import bins, ops, reference
from actstats_kernels.cpu import dft, team
from tests.kernels.strategies import DTYPES, LAYOUTS, activations, draw_values, lay_out


def assert_equals_reference(x: Tensor, found: dict[str, Tensor]) -> None:
    """Integers exactly; floats to 1e-5 of the unit's scale."""
    expected = reference.statistics(x)
    for name in reference.MOMENTS:
        wanted, given_ = expected[name], found[name].double()
        assert torch.equal(given_.isnan(), wanted.isnan()), name
        scale = wanted.abs().nan_to_num().amax(0, keepdim=True)
        # Of values that cancel, the mean is known to the last digits of the values, and so is a variance of 0.
        size = x.double().abs().nan_to_num(0, 0, 0).amax((0, 2, 3))
        scale = scale + {"mean": 0.1 * size, "variance": 1e-9 * size.square()}.get(name, 0)
        assert ((given_ - wanted).abs().nan_to_num() <= 1e-5 * scale).all(), name
    assert torch.equal(found["argmax"], expected["argmax"])
    assert torch.equal(found["histogram"], expected["histogram"])
    # What a ring holds is known to 1e-5 of the power that is not in the mean.
    power = expected["power_spectrum"]
    error = (found["power_spectrum"] - power).abs()
    varying = power[:, 1:].sum(1, keepdim=True)
    assert (error[:, 1:] <= 1e-5 * varying + 1e-12 * power[:, :1]).all()
    assert (error[:, 0] <= 1e-5 * power[:, 0] + 1e-8 * varying[:, 0]).all()


def bytes_of(found: dict[str, Tensor]) -> dict[str, bytes]:
    return {name: values.numpy().tobytes() for name, values in found.items()}


@settings(max_examples=60, deadline=None)
@given(activations())
@example(torch.full((1, 1, 1, 1), torch.nan))
@example(torch.zeros(2, 17, 1, 1))
@example(torch.full((3, 2, 5, 7), -0.1))
def test_every_statistic_equals_its_definition(x):
    assert_equals_reference(x, ops.statistics(x))


@pytest.mark.parametrize(
    "shape",
    [
        (3, 16, 112, 112),
        (2, 4, 149, 149),  # a prime without a butterfly
        (1, 3, 224, 55),
        (2, 2, 1, 197),
        (2, 2, 391, 1),  # 17 x 23
        (1, 1, 512, 512),
        (70, 3, 7, 7),
        (5, 1000, 1, 1),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_maps_of_every_size(shape, dtype):
    x = lay_out(draw_values("normal", shape, 1).relu().to(dtype), "channels_last")
    assert_equals_reference(x, ops.statistics(x))


def test_every_half_is_read_exactly():
    halves = torch.arange(2**16, dtype=torch.int32).to(torch.uint16)
    for dtype in (torch.float16, torch.bfloat16):
        x = halves.view(dtype).reshape(4, 16, 32, 32)
        for layout in ("contiguous", "channels_last"):
            found = ops.statistics(lay_out(x, layout))
            assert torch.equal(found["histogram"], reference.histogram(x))
            singles = x.reshape(1, -1, 1, 1)
            moments = torch.empty(5, 1, singles.shape[1])
            ops.accumulate(lay_out(singles, layout), moments, None, None, None)
            finite = singles.isfinite().flatten()
            assert torch.equal(moments[2, 0][finite], singles.float().flatten()[finite])
            assert moments[2, 0][~finite].isnan().all()


@settings(max_examples=25, deadline=None)
@given(activations(), st.sampled_from(LAYOUTS))
def test_the_memory_format_changes_no_bit(x, layout):
    assert bytes_of(ops.statistics(lay_out(x, layout))) == bytes_of(ops.statistics(x.contiguous()))


def test_the_number_of_threads_changes_no_bit():
    x = draw_values("normal", (9, 40, 50, 41), 3)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(bytes_of(ops.statistics(x)))
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1] == found[2]


def test_without_torch_s_own_threads_the_result_is_the_same(monkeypatch):
    x = draw_values("normal", (9, 40, 50, 41), 3)
    expected = bytes_of(ops.statistics(x))
    monkeypatch.setattr(team, "_openmp", lambda: None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert bytes_of(ops.statistics(x)) == expected


@pytest.mark.parametrize("wide", [torch.int32, torch.int64])
def test_buffers_are_written_in_place_and_added_to(wide):
    x = draw_values("normal", (3, 20, 9, 9), 5)
    expected = reference.statistics(x)
    moments = torch.full((5, 8, 50), 7.0)  # a partition's: rows of other batches, columns of other layers
    argmax = torch.full((8, 50), 7, dtype=torch.int32)
    histogram = torch.ones(20, bins.HISTOGRAM_BINS, dtype=wide)
    power = torch.ones(20, bins.FREQUENCY_BINS, dtype=torch.float64)
    ops.accumulate(x, moments[:, 2:5, 11:31], argmax[2:5, 11:31], histogram, power)
    torch.testing.assert_close(moments[:, 2:5, 11:31].double(), reference.moments(x), rtol=1e-5, atol=1e-6)
    assert torch.equal(argmax[2:5, 11:31], expected["argmax"])
    assert torch.equal(histogram.long() - 1, expected["histogram"])
    torch.testing.assert_close(power - 1, expected["power_spectrum"], rtol=1e-5, atol=1e-6)
    outside = torch.ones(8, 50, dtype=torch.bool)
    outside[2:5, 11:31] = False
    assert (moments[:, outside] == 7).all()
    assert (argmax[outside] == 7).all()


def test_each_output_alone_is_what_it_is_with_the_others():
    x = draw_values("non_finite", (4, 18, 11, 6), 6)
    together = ops.statistics(x)
    moments = torch.empty(5, 4, 18)
    ops.accumulate(x, moments, None, None, None)
    torch.testing.assert_close(
        moments, torch.stack([together[n] for n in reference.MOMENTS]), rtol=0, atol=0, equal_nan=True
    )
    power = torch.zeros(18, bins.FREQUENCY_BINS, dtype=torch.float64)
    ops.accumulate(x, None, None, None, power)
    assert torch.equal(power, together["power_spectrum"])
    histogram = torch.zeros(18, bins.HISTOGRAM_BINS, dtype=torch.int64)
    ops.accumulate(x, None, None, histogram, None)
    assert torch.equal(histogram, together["histogram"])


def test_no_image_and_other_dtypes():
    assert ops.statistics(torch.empty(0, 3, 4, 4))["histogram"].sum() == 0
    x = draw_values("normal", (2, 3, 5, 5), 7)
    assert bytes_of(ops.statistics(x.double())) == bytes_of(ops.statistics(x))


@settings(max_examples=120, deadline=None)
@example(20, 1100, 3, 0, True)  # several blocks of units
@given(st.integers(1, 40), st.integers(0, 9), st.integers(1, 50), st.integers(0, 2**31), st.booleans())
def test_top_k_equals_its_definition(rows, units, k, seed, ties):
    rng = torch.Generator().manual_seed(seed)
    if ties:
        values = torch.tensor([-torch.inf, -2.5, -1.0, -0.0, 0.0, 1.0, 2.5, torch.inf])
        maximum = values[torch.randint(len(values), (rows, units), generator=rng)]
    else:
        maximum = torch.randn(rows, units, generator=rng)
    maximum[torch.rand(rows, units, generator=rng) < 0.2] = torch.nan
    position = torch.randint(0, 99, (rows, units), generator=rng, dtype=torch.int32)
    for found, expected in zip(
        ops.top_k(maximum, position, k), reference.top_k(maximum, position, k), strict=True
    ):
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("length", [*range(1, 66), 77, 112, 128, 147, 149, 169, 197, 224, 243, 256, 289, 512])
def test_the_transform_of_a_length_is_numpy_s(length):
    plan = dft.plan(length)
    x = np.random.default_rng(length).normal(size=(2, length, 16)).astype(np.float32)
    expected = np.fft.fft(x[0].astype(np.float64) + 1j * x[1], axis=0)[plan.order]
    room = np.zeros((2 * length, 16), dtype=np.float32)
    dft.transform(x.ctypes.data, x[0].nbytes, x[0, 0].nbytes, plan.stages.ctypes.data, room.ctypes.data)
    np.testing.assert_allclose(x[0] + 1j * x[1], expected, rtol=0, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_ops_pass_torch_s_own_check(dtype):
    x = draw_values("normal", (2, 5, 6, 7), 8).to(dtype)
    torch.library.opcheck(
        torch.ops.actstats.accumulate.default,
        (
            x,
            torch.zeros(5, 2, 5),
            torch.zeros(2, 5, dtype=torch.int32),
            torch.zeros(5, bins.HISTOGRAM_BINS, dtype=torch.int32),
            torch.zeros(5, bins.FREQUENCY_BINS, dtype=torch.float64),
        ),
    )
    torch.library.opcheck(
        torch.ops.actstats.top_k.default, (torch.randn(9, 4), torch.zeros(9, 4, dtype=torch.int32), 3)
    )
