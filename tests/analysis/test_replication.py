"""Groups of networks that differ by their training run, against Welch's test and Cliff's delta by hand."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import xarray as xr
from scipy.stats import ttest_ind

from actstats import ActstatsError
from actstats.analysis import compare_networks, compare_units
from actstats.report.verdicts import compare_groups, count_layers


def units(*layers: np.ndarray) -> xr.Dataset:
    """The measure `x` of the units of some layers."""
    names = np.repeat([f"layer{at}" for at in range(len(layers))], [len(of) for of in layers]).astype(object)
    channels = np.concatenate([np.arange(len(of)) for of in layers])
    coordinates = {"layer": ("unit", names), "channel": ("unit", channels)}
    return xr.Dataset({"x": ("unit", np.concatenate(layers))}, coords=coordinates)


def welch(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float, float]:
    """Difference of the means, its 95 % interval and p, as SciPy has them."""
    test = ttest_ind(y, x, equal_var=False)
    return float(y.mean() - x.mean()), *test.confidence_interval(0.95), test.pvalue


def delta(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.sign(y[:, None] - x[None, :]).mean())


def test_groups_are_compared_by_welchs_test_on_the_medians_of_networks():
    rng = np.random.default_rng(0)
    standard = [rng.normal(at, 1, (2, 31)) for at in (0.0, 0.3, -0.2, 0.1)]
    robust = [rng.normal(at, 2, (2, 31)) for at in (0.9, 1.6, 0.7)]
    standard[0][0, :5] = np.nan
    table = compare_networks([units(*of) for of in standard], [units(*of) for of in robust], ["x"])
    assert table["layer"].tolist() == ["layer0", "layer1"]
    for layer, row in enumerate(table.itertuples()):
        s, r = ([of[layer][~np.isnan(of[layer])] for of in side] for side in (standard, robust))
        x, y = (np.array([np.median(of) for of in side]) for side in (s, r))
        found = row.difference, row.difference_low, row.difference_high, row.p
        np.testing.assert_allclose(found, welch(x, y), rtol=1e-9)
        assert (row.networks_s, row.networks_r) == (4, 3)
        assert (row.median_s, row.median_r) == pytest.approx((x.mean(), y.mean()))
        assert row.medians_s == pytest.approx(tuple(x))
        assert row.delta == pytest.approx(np.mean([delta(one, two) for one in s for two in r]))
        within = [abs(delta(s[a], s[b])) for a in range(4) for b in range(a)]
        assert row.null_delta == pytest.approx(max(within))


def test_networks_that_differ_by_their_seed_alone_are_rarely_told_apart():
    # Each layer is a trial: the units of a network share what its seed gave them.
    rng = np.random.default_rng(1)
    trials, size = 300, 15
    networks = [
        units(*(rng.normal(0, 1) + rng.normal(0, 1, (trials, size)) * 0.7 + rng.normal(0, 0.6, (trials, 1))))
        for _ in range(6)
    ]
    table = compare_networks(networks[:3], networks[3:], ["x"])
    lower, neither, higher = compare_groups(table).layers
    assert lower + neither + higher == trials
    assert (lower + higher) / trials < 0.09  # 0.05 and three standard errors
    # The interval over units calls most of them different, whose seeds alone differ.
    lower, neither, higher = count_layers(compare_units(networks[0], networks[3], ["x"], resamples=60))
    assert (lower + higher) / trials > 0.3


def test_a_difference_between_kinds_of_network_is_found():
    rng = np.random.default_rng(2)
    standard, robust = (
        [units(*rng.normal(shift + rng.normal(0, 0.1), 1, (5, 40))) for _ in range(3)] for shift in (0, -1.5)
    )
    said = compare_groups(compare_networks(standard, robust, ["x"]))
    assert (said.verdict, said.words, said.scope) == (
        "agrees",
        "as in the paper",
        "over 3 and 3 training runs",
    )
    assert said.layers == (5, 0, 0)
    for layer in said.by_layer:
        assert layer.decision == "lower"
        assert layer.p < 0.05
        assert layer.difference_high < 0
        assert len(layer.medians_s) == len(layer.medians_r) == 3
    other = compare_groups(compare_networks(robust, standard, ["x"]))
    assert (other.verdict, other.words) == ("differs", "opposite")


@pytest.mark.parametrize(("s", "r"), [(2, 3), (3, 2), (2, 2)])
def test_fewer_than_three_networks_a_side_decide_nothing(s, r):
    rng = np.random.default_rng(3)
    standard = [units(rng.normal(0, 1, 30)) for _ in range(s)]
    robust = [units(rng.normal(-9, 1, 30)) for _ in range(r)]
    said = compare_groups(compare_networks(standard, robust, ["x"]))
    assert (said.verdict, said.words) == ("open", "undecided")
    assert said.scope == "other training runs are not in it: a verdict takes 3 networks a side"
    assert said.delta == -1


def test_networks_without_any_spread_decide_nothing():
    # Copies of one network, up to rounding, and a measure that counts.
    one, other = np.linspace(1, 2, 20), np.linspace(3, 4, 20)
    copies = [units(one * (1 + 1e-7 * at)) for at in range(3)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = compare_networks(copies, [units(other)] * 3, ["x"])
    assert table[["p", "difference_low"]].isna().all(axis=None)
    assert table["difference"].item() == pytest.approx(2)
    assert compare_groups(table).layers == (0, 1, 0)
    assert compare_groups(table).difference.endswith("; lower in 0 of 1 layer, higher in 0")
    none = compare_networks([units(np.full(20, np.nan))] * 3, copies, ["x"])
    assert none["networks_s"].item() == 0
    assert compare_groups(none).verdict == "open"


def test_what_cannot_be_compared_is_refused():
    one = units(np.arange(4.0))
    with pytest.raises(ActstatsError, match="give one of each kind or more"):
        compare_networks([one], [], ["x"])
    with pytest.raises(ActstatsError, match="no per-unit variable 'y'"):
        compare_networks([one], [one], ["y"])
    with pytest.raises(ActstatsError, match="4 units in the first store and 5"):
        compare_networks([one], [units(np.arange(5.0))], ["x"])
    with pytest.raises(ActstatsError, match="`confidence=` must be between"):
        compare_networks([one], [one], ["x"], confidence=95)
