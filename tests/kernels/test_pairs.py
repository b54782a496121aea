"""The CPU's kernel for pairs of maps against its definition, and the definition against NumPy."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings

from actstats_kernels import ops, reference
from tests.kernels.strategies import DTYPES, LAYOUTS, assert_pairs_right, draw_values, lay_out, pairs


def compared(clean, changed):
    found = torch.full((2, *clean.shape[:2]), -7.0)
    ops.compare(clean, changed, found)
    return found


def test_the_definition_equals_numpy():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 3, 4, 5, 7))
    change, correlation = reference.compare(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    for n in range(3):
        for c in range(4):
            assert change[n, c] == pytest.approx(np.mean((b[n, c] - a[n, c]) ** 2), rel=1e-12)
            r = np.corrcoef(a[n, c].ravel(), b[n, c].ravel())[0, 1]
            assert correlation[n, c] == pytest.approx(r, rel=1e-12)


def test_a_constant_map_has_no_correlation_but_a_change():
    varied = torch.arange(12.0).reshape(1, 1, 3, 4)
    constant = torch.full((1, 1, 3, 4), 0.1)
    for clean, changed in ((varied, constant), (constant, varied), (constant, constant + 1)):
        for found in (reference.compare(clean, changed), compared(clean, changed)):
            assert found[0, 0, 0].item() == pytest.approx((changed - clean).square().mean().item(), rel=1e-6)
            assert found[1, 0, 0].isnan()


@settings(max_examples=80, deadline=None)
@given(pairs())
@example((torch.full((1, 1, 1, 1), torch.nan), torch.zeros(1, 1, 1, 1)))
@example((torch.zeros(2, 17, 1, 1), torch.ones(2, 17, 1, 1)))
def test_any_pair_equals_its_definition(pair):
    assert_pairs_right(compared(*pair), reference.compare(*pair))


@pytest.mark.parametrize(
    "shape",
    [(3, 16, 112, 112), (1, 3, 224, 55), (2, 2, 1, 197), (2, 2, 391, 1), (70, 3, 7, 7), (5, 1000, 1, 1)],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_maps_of_every_size(shape, dtype):
    clean = lay_out(draw_values("normal", shape, 1).relu().to(dtype), "channels_last")
    changed = draw_values("relu", shape, 2).to(dtype)
    assert_pairs_right(compared(clean, changed), reference.compare(clean, changed))


def test_an_outlier_at_the_first_position_costs_no_digits():
    clean = 100 + 1e-3 * draw_values("normal", (2, 20, 30, 30), 1)
    clean[..., 0, 0] = -1e4
    changed = clean + 1e-3 * draw_values("normal", (2, 20, 30, 30), 2)
    assert_pairs_right(compared(clean, changed), reference.compare(clean, changed))
    changed[..., 0, 0] = 100
    assert_pairs_right(compared(clean, changed), reference.compare(clean, changed))


@settings(max_examples=25, deadline=None)
@given(pairs(), st.sampled_from(LAYOUTS), st.sampled_from(LAYOUTS))
def test_the_memory_format_changes_no_bit(pair, first, second):
    clean, changed = pair
    again = compared(lay_out(clean, first), lay_out(changed, second))
    assert again.numpy().tobytes() == compared(*pair).numpy().tobytes()


def test_the_number_of_threads_changes_no_bit():
    clean, changed = (draw_values("normal", (9, 40, 50, 41), seed) for seed in (3, 4))
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(compared(clean, changed))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_only_the_slice_of_a_buffer_is_written():
    clean, changed = (draw_values("normal", (3, 20, 9, 9), seed) for seed in (5, 6))
    whole = torch.full((2, 8, 50), 7.0)
    ops.compare(clean, changed, whole[:, 2:5, 11:31])
    assert_pairs_right(whole[:, 2:5, 11:31], reference.compare(clean, changed))
    assert (whole == 7).sum() == 2 * (8 * 50 - 3 * 20)


def test_double_precision_maps_and_no_images():
    clean, changed = (draw_values("normal", (2, 3, 5, 5), seed).double() for seed in (5, 6))
    assert_pairs_right(compared(clean, changed), reference.compare(clean.float(), changed.float()))
    assert compared(clean[:0], changed[:0]).shape == (2, 0, 3)


@pytest.mark.parametrize(
    ("changed", "pairs", "message"),
    [
        (torch.zeros(2, 3, 4, 5), torch.zeros(2, 2, 3), "of one shape"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 2), "must be"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, 2, 3).double(), "of float32"),
        (torch.zeros(2, 3, 16), torch.zeros(2, 2, 3), "of one shape"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changed, pairs, message):
    with pytest.raises(ValueError, match=message):
        ops.compare(torch.zeros(2, 3, 4, 4), changed, pairs)
