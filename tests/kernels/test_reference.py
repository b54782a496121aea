"""The definitions themselves, against independent arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from actstats_kernels import bins, reference


def test_moments_of_a_small_map_by_hand():
    x = torch.tensor([[[[1.0, -2.0], [4.0, 4.0]]]])
    mean, variance, maximum, active, total_variation = reference.moments(x).flatten().tolist()
    assert (mean, maximum, active, total_variation) == (1.75, 4.0, 0.75, 3.0 + 0.0 + 3.0 + 6.0)
    assert variance == pytest.approx(np.var([1.0, -2.0, 4.0, 4.0]), rel=1e-15)
    assert reference.argmax(x).item() == 2


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_non_finite_value_spoils_its_own_map_only(bad):
    x = torch.randn(2, 3, 5, 4)
    x[1, 2, 3, 1] = bad
    found = reference.statistics(x)
    for name in reference.MOMENTS:
        assert found[name].isnan().tolist() == [[False] * 3, [False, False, True]]
    assert found["argmax"][1, 2] == -1
    assert found["histogram"].sum(1).tolist() == [40, 40, 40]
    torch.testing.assert_close(found["power_spectrum"][2], reference.power(x[:1])[0, 2])


def test_histogram_bins_hold_the_values_between_their_edges():
    left, right = bins.histogram_edges()
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(size=4000) * 10.0 ** rng.uniform(-8, 8, 4000), left[:-1], [np.nan]])
    values = values.astype(np.float32)
    for value in values:
        index = int(reference.histogram(torch.tensor(value).reshape(1, 1, 1, 1)).argmax())
        if np.isnan(value):
            assert index == bins.BIN_NAN
        elif value == 0 or np.isinf(value):
            assert left[index] == right[index] == value
        elif value > 0:
            assert left[index] <= value < right[index]
        else:
            assert left[index] < value <= right[index]


def test_histogram_edges_are_in_order_and_eight_an_octave():
    left, right = bins.histogram_edges()
    assert np.all(left[1:-1] >= left[:-2])
    assert np.all(right[1:-1] >= right[:-2])
    fine = slice(bins.BIN_POSITIVE_UNDERFLOW + 1, bins.BIN_POSITIVE_OVERFLOW)
    assert np.all(right[fine] / left[fine] <= 1.125)
    assert left[fine][0] == 2.0**-16
    assert right[fine][-1] == 2.0**16


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 2), (7, 7), (14, 10), (27, 27), (64, 64)])
def test_power_sums_to_the_mean_square(shape):
    x = torch.randn(2, 3, *shape, dtype=torch.float64)
    torch.testing.assert_close(reference.power(x).sum(-1), x.square().mean((-2, -1)))
    assert (reference.power(x)[..., ~torch.from_numpy(bins.resolved(*shape))] == 0).all()


@pytest.mark.parametrize(("fy", "fx"), [(0, 0), (4, 0), (0, 10), (3, 4), (16, 0), (20, 20), (32, 32)])
def test_a_grating_peaks_in_its_own_bin(fy, fx):
    size = 64
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    grating = torch.cos(2 * torch.pi * (fy * y + fx * x).double() / size)[None, None]
    radius = np.hypot(fy, fx) / size
    expected = 0 if radius == 0 else min(int(np.ceil(radius * 32)), 17)
    assert reference.power(grating)[0, 0].argmax() == expected


def test_radial_bins_match_the_frequencies_of_numpy():
    for height, width in [(1, 1), (5, 8), (28, 28), (55, 55), (112, 112)]:
        r = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
        expected = np.where(r > 0.5 + 1e-12, 17, np.ceil(np.round(r * 32, 9)))
        np.testing.assert_array_equal(bins.radial_bins(height, width), expected)


def test_top_k_orders_by_value_then_row_and_skips_nan():
    maximum = torch.tensor([[1.0, torch.nan], [3.0, torch.nan], [3.0, 2.0], [torch.nan, torch.nan]])
    position = torch.arange(8, dtype=torch.int32).reshape(4, 2)
    value, row, where = reference.top_k(maximum, position, 3)
    assert row.tolist() == [[1, 2, 0], [2, -1, -1]]
    assert where.tolist() == [[2, 4, 0], [5, -1, -1]]
    assert value[0].tolist() == [3.0, 3.0, 1.0]
    assert value[1, 1:].isnan().all()
