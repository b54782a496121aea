"""Permutation tests and false discovery rates against SciPy's own, and the levels that they keep."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from actstats.analysis.inference import PERMUTATIONS, benjamini_hochberg, permutation_test


def sparse(rng: np.random.Generator, rows: int, columns: int, active: int) -> np.ndarray:
    """Values that are zero but on `active` rows of each column."""
    values = np.zeros((rows, columns))
    for column in values.T:
        column[rng.choice(rows, active, replace=False)] = 1 + rng.random(active)
    return values


def test_p_is_the_share_of_all_permutations_that_correlate_as_much():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(6, 6)), sparse(rng, 6, 6, 2)], 1)
    y = np.concatenate([x[:, :6] + rng.normal(size=(6, 6)), sparse(rng, 6, 6, 2)], 1)
    x, y = np.float32(x), np.float32(y)
    expected = [
        stats.permutation_test(
            (a,), lambda shuffled, b=b: np.corrcoef(shuffled, b)[0, 1], permutation_type="pairings",
            alternative="greater", n_resamples=np.inf,
        ).pvalue
        for a, b in zip(x.T.astype(float), y.T.astype(float), strict=True)
    ]  # fmt: skip
    p = permutation_test(x, y, 1.0, seed=1)
    error = np.sqrt(np.multiply(expected, np.subtract(1, expected)) / PERMUTATIONS) + 1 / PERMUTATIONS
    assert (abs(p - expected) < 4 * error).all()


def test_few_pairs_among_many_get_the_permutations_that_decide_them():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(2, 60, 2000))
    y[:, 0] += 2 * x[:, 0]
    p = permutation_test(x, y, 0.05, seed=0)
    # With 999 permutations p is at least 0.001, and the least q of one pair in 2,000 is 2.
    assert 2000 * p[0] <= 0.05
    assert (benjamini_hochberg(p)[1:] > 0.05).all()
    # The p-values of the others are uniform, and the greater ones are of 999 permutations.
    assert stats.kstest(p[1:], "uniform").pvalue > 0.01
    great = 1000 * p[p > 0.03]
    np.testing.assert_allclose(great, np.rint(great), atol=1e-9)
    np.testing.assert_array_equal(p, permutation_test(x, y, 0.05, seed=0))


@pytest.mark.parametrize("kind", ["sparse", "heavy", "rectified"])
def test_pairs_without_a_relation_are_significant_no_more_often_than_the_level(kind):
    rng = np.random.default_rng(3)
    rows, pairs = 80, 4000
    x, y = {
        "sparse": lambda: [sparse(rng, rows, pairs, 4) for _ in range(2)],
        "heavy": lambda: rng.standard_cauchy((2, rows, pairs)),
        "rectified": lambda: np.maximum(rng.normal(size=(2, rows, pairs)) - 1, 0),
    }[kind]()
    p = permutation_test(x, y, 1.0, seed=0)
    for level in (0.005, 0.02, 0.1):
        assert (p <= level).mean() < level + 4 * np.sqrt(level / pairs)


def test_a_constant_column_agrees_with_nothing():
    x, y = np.random.default_rng(4).normal(size=(2, 30, 3))
    x[:, 0], y[:, 1] = 0.1, -3
    np.testing.assert_array_equal(permutation_test(x, y, 0.05, seed=0)[:2], 1)
    assert permutation_test(x[:, :0], y[:, :0], 0.05, seed=0).shape == (0,)


def test_q_is_scipys_and_leaves_out_tests_without_a_p():
    p = np.random.default_rng(5).random(50) ** 2
    np.testing.assert_allclose(benjamini_hochberg(p), stats.false_discovery_control(p))
    holes = np.insert(p, [0, 20], np.nan)
    np.testing.assert_array_equal(np.isnan(benjamini_hochberg(holes)), np.isnan(holes))
    np.testing.assert_allclose(benjamini_hochberg(holes)[~np.isnan(holes)], stats.false_discovery_control(p))
    assert np.isnan(benjamini_hochberg(np.full(3, np.nan))).all()
