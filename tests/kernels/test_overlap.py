"""The overlap of active and labelled positions: the kernel against its definition, and that against torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from actstats_kernels.overlap import add_overlap, overlap, upsampled
from tests.kernels.strategies import activations


def distinct_labels(shape: tuple[int, int, int], most: int, seed: int) -> Tensor:
    """Labels i32 [D, R, S] in [0, most], none twice at a position."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, most + 1, shape)
    for later in range(1, shape[0]):
        for earlier in range(later):
            labels[later][labels[later] == labels[earlier]] = 0
    return torch.from_numpy(labels.astype(np.int32))


@settings(deadline=None, max_examples=50)
@given(x=activations(), data=st.data())
def test_the_kernel_counts_what_the_definition_counts(x, data):
    shape = tuple(data.draw(st.integers(low, high)) for low, high in ((0, 3), (1, 40), (1, 40)))
    labels = distinct_labels(shape, 9, data.draw(st.integers(0, 2**31)))
    for maps in x:
        # Thresholds that values of the maps reach exactly, too.
        flat = maps.double().flatten(1)
        threshold = flat.nan_to_num(0, 0, 0).quantile(data.draw(st.sampled_from([0.0, 0.5, 0.9, 1.0])), dim=1)
        threshold[::5] = torch.nan
        both = torch.full((len(maps), 10), 3, dtype=torch.int64)
        active = add_overlap(maps, threshold, labels, both)
        expected, ids, counts = overlap(maps, threshold, labels)
        assert torch.equal(active, expected)
        whole = torch.full_like(both, 3)
        whole[:, ids] += counts
        assert torch.equal(both, whole)


@pytest.mark.parametrize("size", [(1, 1), (7, 7), (14, 14), (13, 5), (56, 112)])
def test_upsampling_is_torchs_bilinear(size):
    maps = torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(maps.double()[None], size, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(upsampled(maps, *size), expected, rtol=0, atol=1e-14)


def test_the_number_of_threads_does_not_matter():
    rng = torch.Generator().manual_seed(1)
    maps, labels = torch.randn(37, 9, 9, generator=rng), distinct_labels((2, 20, 20), 5, 0)
    threshold = torch.full((37,), 1.0, dtype=torch.float64)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            both = torch.zeros(37, 6, dtype=torch.int64)
            results.append((add_overlap(maps, threshold, labels, both), both))
    finally:
        torch.set_num_threads(before)
    for active, both in results[1:]:
        assert torch.equal(active, results[0][0])
        assert torch.equal(both, results[0][1])


def test_a_block_in_a_corner_by_hand():
    maps = torch.zeros(1, 2, 2)
    maps[0, 0, 0] = 1.0
    labels = torch.zeros(1, 4, 4, dtype=torch.int32)
    labels[0, :2] = 2
    both = torch.zeros(1, 3, dtype=torch.int64)
    # On a grid of 4: 1, 3/4, 1/4, 0 along each axis, so that products above 1/2 are 1, 3/4, 3/4 and 9/16.
    active = add_overlap(maps, torch.tensor([0.5], dtype=torch.float64), labels, both)
    assert (active.tolist(), both.tolist()) == ([4], [[0, 0, 4]])
    both.zero_()
    active = add_overlap(maps, torch.tensor([0.2], dtype=torch.float64), labels, both)
    # And 1/4 in the first row and column.
    assert (active.tolist(), both.tolist()) == ([6], [[0, 0, 5]])


@pytest.mark.gpu
@settings(deadline=None, max_examples=30)
@given(x=activations(), seed=st.integers(0, 2**31))
def test_a_gpu_counts_the_same(x, seed):
    labels = distinct_labels((2, 30, 20), 9, seed)
    threshold = torch.full((x.shape[1],), 0.3, dtype=torch.float64)
    both = [torch.zeros(x.shape[1], 10, dtype=torch.int64, device=device) for device in ("cpu", "cuda")]
    active = [add_overlap(x[0].to(counts.device), threshold, labels, counts).cpu() for counts in both]
    assert torch.equal(active[0], active[1])
    assert torch.equal(both[0], both[1].cpu())
