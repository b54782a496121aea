"""Merging partitions equals having had one partition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

from actstats.errors import ActstatsError
from actstats.store.merging import merge
from actstats_kernels import reference


def ranked(maximum, position, partition_size, k):
    lists = []
    for start in range(0, len(maximum), partition_size):
        rows = slice(start, start + partition_size)
        value, row, where = reference.top_k(maximum[rows], position[rows], k)
        lists.append((value, torch.where(row < 0, row, row + start), where))
    names = ("top_value", "top_image", "top_position")
    return xr.Dataset(
        {
            name: (("partition", "unit", "rank"), torch.stack(found).numpy(), {"merge": "rank"})
            for name, found in zip(names, zip(*lists, strict=True), strict=True)
        }
    )


@pytest.mark.parametrize("partition_size", [1, 3, 4, 50])
def test_top_k_of_partitions_is_the_top_k_of_all_with_ties_to_the_lowest_image(partition_size):
    rng = torch.Generator().manual_seed(0)
    maximum = torch.randint(0, 4, (17, 6), generator=rng).float()
    maximum[torch.rand(maximum.shape, generator=rng) < 0.3] = torch.nan
    maximum[:, 5] = torch.nan
    position = torch.randint(0, 49, maximum.shape, generator=rng, dtype=torch.int32)
    merged = merge(ranked(maximum, position, partition_size, 5).chunk({"partition": 1, "unit": 2}))
    for name, expected in zip(merged, reference.top_k(maximum, position, 5), strict=True):
        assert merged[name].dims == ("unit", "rank")
        np.testing.assert_array_equal(merged[name], expected.numpy())


def test_sums_minima_and_maxima_go_over_partitions_and_stay_lazy():
    values = np.arange(12.0).reshape(3, 4)
    data = {rule: (("partition", "unit"), values, {"merge": rule}) for rule in ("sum", "min", "max")}
    data["mean"] = (("image", "unit"), np.ones((2, 4)))
    dataset = xr.Dataset(
        data, coords={"channel": ("unit", np.arange(4)), "completed": ("partition", [1, 1, 0])}
    )
    merged = merge(dataset.chunk({"partition": 1}))
    assert merged["sum"].chunks is not None
    for rule in ("sum", "min", "max"):
        np.testing.assert_array_equal(merged[rule], getattr(values[:2], rule)(0))
    assert "partition" not in merged.dims
    assert set(merged.coords) == {"channel"}
    assert merged["mean"].identical(dataset["mean"].chunk())


def test_a_store_without_a_complete_partition_has_nothing_to_merge():
    data = {"histogram": (("partition", "unit"), np.zeros((2, 4)), {"merge": "sum"})}
    with pytest.raises(ActstatsError, match="no partition of this store is complete"):
        merge(xr.Dataset(data, coords={"completed": ("partition", [False, False])}))


def test_an_unresolved_frequency_stays_nan():
    power = np.array([[[1.0, np.nan]], [[2.0, np.nan]]])
    dataset = xr.Dataset({"power_spectrum": (("partition", "unit", "frequency"), power, {"merge": "sum"})})
    np.testing.assert_array_equal(merge(dataset)["power_spectrum"], [[3.0, np.nan]])


def test_a_variable_without_a_rule_is_refused():
    with pytest.raises(ActstatsError, match="'x' has no rule"):
        merge(xr.Dataset({"x": (("partition", "unit"), np.zeros((2, 2)))}))
