"""Quantiles lie within their bounds, whatever the values; sparsity and the rest are counted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from actstats.analysis import by_layer, quantiles
from actstats.errors import ActstatsError
from tests.analysis.made import make_store

NUMBERS = st.floats(width=32, allow_nan=False) | st.sampled_from(
    [0.0, -0.0, 65536.0, -65536.0, 2.0**-16, 1.0]
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    maps=arrays.arrays(np.float32, (2, 3, 4, 4), elements=NUMBERS),
    q=st.lists(st.floats(0, 1), min_size=1, max_size=4),
)
def test_the_true_quantile_is_within_the_bound(tmp_path_factory, maps, q):
    dataset = make_store(tmp_path_factory.mktemp("q") / "s.zarr", {"layer": maps}, metrics=["histogram"])
    found = quantiles(dataset, q).compute()
    values = maps.astype(np.float64).transpose(1, 0, 2, 3).reshape(3, -1)
    true = np.sort(values, 1)[:, np.maximum(np.ceil(np.array(q) * 32), 1).astype(int) - 1]
    value, error = found["value"].values, found["error"].values
    finite = np.isfinite(true) & np.isfinite(error)
    assert (np.abs(value - true)[finite] <= error[finite] * (1 + 1e-12)).all()
    np.testing.assert_array_equal(value[~np.isfinite(true)], true[~np.isfinite(true)])
    assert (error[true == 0] == 0).all()
    fine = (np.abs(true) >= 2**-16) & (np.abs(true) < 65536)
    assert (error[fine] <= np.abs(value[fine]) / 8).all()
    # Beyond the range, the edge that is known, on the value's side.
    far = np.isfinite(true) & ~np.isfinite(error)
    np.testing.assert_array_equal(value[far], np.copysign(65536, true[far]))


def test_many_values_have_quantiles_near_numpys(tmp_path):
    maps = np.random.default_rng(0).normal(size=(40, 2, 30, 30)).astype(np.float32)
    q = [0.001, 0.25, 0.5, 0.995]
    found = quantiles(make_store(tmp_path / "s.zarr", {"layer": maps}, metrics=["histogram"]), q).compute()
    true = np.quantile(maps.astype(np.float64), q, axis=(0, 2, 3), method="inverted_cdf").T
    assert found["quantile"].values.tolist() == q
    np.testing.assert_allclose(found["value"], true, rtol=0.02, atol=1e-3)
    assert (np.abs(found["value"] - true) <= found["error"]).all()
    assert list(by_layer(found))[2] == "dead", "flags first"
    assert "value[0.995]" in by_layer(found)


def test_sparse_dead_and_saturated_units(tmp_path):
    maps = np.ones((2, 6, 2, 2), dtype=np.float32)
    maps[0, 0] = 0  # half zeros
    maps[:, 1] = 0  # dead
    maps[:, 2] = -1  # never above zero, so dead, and not sparse
    maps[1, 3, 0, 0] = 70000
    maps[1, 4, 0] = [np.inf, np.nan]
    maps[:, 5] = np.nan
    found = quantiles(make_store(tmp_path / "s.zarr", {"layer": maps}), 0.5).compute()
    assert found["sparsity"].values.tolist() == [0.5, 1, 0, 0, 0, 0]
    assert found["positive_share"].values.tolist() == [0.5, 0, 0, 1, 7 / 8, 0]
    assert found["nan_share"].values.tolist() == [0, 0, 0, 0, 1 / 8, 1]
    assert found["beyond_share"].values.tolist() == [0, 0, 0, 1 / 8, 1 / 8, 0]
    assert found["saturated"].values.tolist() == [False, False, False, True, True, False]
    assert found["dead"].values.tolist() == [False, True, True, False, False, True]
    assert found["value"].values[1:3, 0] == pytest.approx([0, -1], rel=1 / 8)
    assert np.isnan(found["value"].values[5, 0])
    table = by_layer(found)
    assert table["dead"].tolist() == [3]
    assert table["sparsity"].tolist() == [0.25]


def test_a_quantile_outside_its_range_is_refused(tmp_path):
    dataset = make_store(tmp_path / "s.zarr", {"layer": np.ones((1, 1, 2, 2), dtype=np.float32)})
    with pytest.raises(ActstatsError, match=r"must be in \[0, 1\], not 1\.5"):
        quantiles(dataset, [0.5, 1.5])
