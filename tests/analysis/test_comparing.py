"""Two networks' units side by side: differences and effect sizes with intervals."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from actstats.analysis import cliffs_delta, compare_units
from actstats.errors import ActstatsError


def result(**layers: np.ndarray) -> xr.Dataset:
    """A result by unit with one number, `x`."""
    names = np.repeat(np.array(list(layers), dtype=object), [len(values) for values in layers.values()])
    return xr.Dataset(
        {
            "x": ("unit", np.concatenate(list(layers.values()))),
            "preferred": ("unit", np.zeros(len(names), int)),
        },
        coords={"layer": ("unit", names), "channel": ("unit", np.arange(len(names)))},
    )


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(-3, 3), min_size=1, max_size=9), st.lists(st.integers(-3, 3), min_size=1, max_size=9)
)
def test_cliffs_delta_counts_pairs(x, y):
    pairs = np.sign(np.array(y)[:, None] - np.array(x))
    assert cliffs_delta(np.array(x), np.array(y)) == pytest.approx(pairs.mean())


def test_layers_that_differ_do_and_those_that_do_not_do_not():
    rng = np.random.default_rng(0)
    standard = result(same=rng.normal(size=200), apart=rng.normal(size=150), tiny=np.array([1.0]))
    robust = result(same=rng.normal(size=200), apart=rng.normal(size=150) - 1, tiny=np.array([2.0]))
    table = compare_units(standard, robust)
    assert table["layer"].tolist() == ["same", "apart", "tiny"]
    assert table["variable"].unique().tolist() == ["x"], "an integer, as a label, is not compared"
    same, apart, tiny = (row for _, row in table.iterrows())
    assert same["difference_low"] < 0 < same["difference_high"]
    assert same["delta_low"] < 0 < same["delta_high"]
    values = [found["x"].values[200:350] for found in (standard, robust)]
    difference = values[1].mean() - values[0].mean()
    assert apart["difference"] == pytest.approx(difference)
    assert apart["mean_r"] - apart["mean_s"] == pytest.approx(difference)
    # The interval is about as wide as the normal approximation says.
    width = 2 * 1.96 * np.sqrt(sum(v.var(ddof=1) / len(v) for v in values))
    assert apart["difference_high"] - apart["difference_low"] == pytest.approx(width, rel=0.15)
    assert -1 < apart["delta_low"] < apart["cliffs_delta"] < apart["delta_high"] < 0
    # Two normal distributions a standard deviation apart: 2 Phi(1 / sqrt 2) - 1 = 0.52.
    assert apart["cliffs_delta"] == pytest.approx(-0.52, abs=0.1)
    assert (tiny["units_s"], tiny["cliffs_delta"]) == (1, 1)
    assert np.isnan(tiny["delta_low"])
    assert compare_units(standard, robust).equals(table), "the same seed gives the same intervals"


def test_units_without_a_value_are_left_out_and_counted():
    table = compare_units(
        result(a=np.array([1.0, np.nan, 3.0]), b=np.array([np.nan])),
        result(a=np.array([1.0, 2.0, 3.0]), b=np.array([1.0])),
        resamples=20,
    )
    assert table["units_s"].tolist() == [2, 0]
    assert table["units_r"].tolist() == [3, 1]
    assert table["difference"][0] == 0
    assert np.isnan(table["difference"][1])


def test_other_layers_and_unknown_variables_are_refused():
    values = np.zeros(3)
    with pytest.raises(ActstatsError, match="only the first has a, only the second has b"):
        compare_units(result(a=values), result(b=values))
    with pytest.raises(ActstatsError, match="no per-unit variable 'y'; available: x"):
        compare_units(result(a=values), result(a=values), ["y"])
