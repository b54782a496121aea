"""Statistical inference: intervals of proportions over crossed stimuli, permutation tests, false discoveries."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

PERMUTATIONS: Final = 999
"""Number of permutations with which every test begins."""
FEWEST_CLUSTERS: Final = 10
"""Fewest clusters with which an interval is taken to keep its level."""
_EXCEEDANCES: Final = 10
"""Permutations at least as extreme from which on a p-value is precise enough; with fewer, more can be drawn."""
_PAIRS: Final = 16
"""Fewest pairs of columns that are permuted at once."""
_VALUES: Final = 2**16
"""Values that are permuted at once: few, so that they stay in a processor's cache."""


def proportion_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion; (NaN, NaN) if there are no trials."""
    if trials == 0:
        return np.nan, np.nan
    from scipy import stats

    interval = stats.binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar(lost: int, gained: int) -> float:
    """Return the p-value of McNemar's exact test that `lost` and `gained` are equally likely; 1 if both are 0."""
    from scipy import stats

    return float(stats.binomtest(lost, lost + gained, 0.5).pvalue) if lost + gained else 1.0


@dataclass(frozen=True)
class Interval:
    """An interval from `low` to `high`.

    Attributes:
        low: lower end; NaN if there are no trials.
        high: upper end.
        clusters: the number of clusters of the factor that has fewest; 0 if trials count as independent.
    """

    low: float
    high: float
    clusters: int


def crossed_interval(
    successes: NDArray[np.bool_], factors: Sequence[NDArray[Any]], confidence: float = 0.95
) -> Interval:
    """Return the interval of a proportion of trials that share the levels of crossed factors.

    Trials on the same shape image, on the same texture or by the same observer are not independent. The variance is
    clustered by all factors: the sum over their non-empty subsets, alternating in sign, of the variance clustered by
    the combination of a subset (Cameron, Gelbach and Miller 2011, doi:10.1198/jbes.2010.07136), for two factors
    V(shape) + V(texture) - V(both), each times G / (G - 1) for its G clusters. It is at least that of each factor
    alone, and at least binomial. The interval is symmetric on the logit, with Student's t of as many degrees of
    freedom as the factor of fewest clusters has, less one. Where all trials succeed or none does, it is Wilson's with
    that number of clusters as trials.

    A factor of fewer than two clusters is left out. Without any other, the interval is Wilson's over trials.

    Args:
        successes: bool [trials].
        factors: for each factor the level of every trial, [trials], of any type that sorts.
        confidence: confidence level, in (0, 1).
    """
    from scipy import stats

    trials, total = len(successes), int(successes.sum())
    levels = _levels(factors)
    if not levels:
        return Interval(*proportion_interval(total, trials, confidence), 0)
    clusters = min(int(codes.max()) + 1 for codes in levels)
    if total in (0, trials):
        return Interval(*proportion_interval(clusters * (total > 0), clusters, confidence), clusters)
    share = total / trials
    variance = max(_variance((successes - share) / trials, levels), share * (1 - share) / trials)
    half = stats.t.ppf((1 + confidence) / 2, clusters - 1) * np.sqrt(variance) / (share * (1 - share))
    middle = np.log(share / (1 - share))
    low, high = (float(1 / (1 + np.exp(-end))) for end in (middle - half, middle + half))
    return Interval(low, high, clusters)


def crossed_difference(
    first: NDArray[np.bool_],
    second: NDArray[np.bool_],
    factors: Sequence[tuple[NDArray[Any], NDArray[Any]]],
    confidence: float = 0.95,
) -> Interval:
    """Return the interval of the difference of two proportions whose trials share the levels of crossed factors.

    The variance is that of `crossed_interval`, of the difference: each trial counts with its deviation from its own
    proportion, so that what both have in common cancels. The interval is symmetric, with Student's t. If all trials
    of one of them succeed or none does, both their intervals are combined as by Newcombe 1998 (his method 10,
    doi:10.1002/(SICI)1097-0258(19980430)17:8<873::AID-SIM779>3.0.CO;2-I).

    Args:
        first: bool [trials], the proportion from which the other is subtracted.
        second: bool [trials], as many or not.
        factors: for each factor the levels of the trials of the first and of the second.
        confidence: confidence level, in (0, 1).
    """
    if not len(first) or not len(second):
        return Interval(np.nan, np.nan, 0)
    from scipy import stats

    one, two = float(first.mean()), float(second.mean())
    levels = _levels([np.concatenate(sides) for sides in factors])
    if not levels or {one, two} & {0, 1}:
        a, b = (
            crossed_interval(successes, [sides[at] for sides in factors], confidence)
            for at, successes in enumerate((first, second))
        )
        low = one - two - np.hypot(one - a.low, b.high - two)
        high = one - two + np.hypot(a.high - one, two - b.low)
        return Interval(float(low), float(high), min(a.clusters, b.clusters))
    # Each factor has as many clusters as on the side that has more: an observer beside people is none of them.
    split = [(codes[: len(first)], codes[len(first) :]) for codes in levels]
    clusters = min(max(len(np.unique(side)) for side in sides) for sides in split)
    scores = np.concatenate([(first - one) / len(first), (two - second) / len(second)])
    half = stats.t.ppf((1 + confidence) / 2, clusters - 1) * np.sqrt(_variance(scores, levels))
    return Interval(float(max(one - two - half, -1)), float(min(one - two + half, 1)), clusters)


def paired_p(before: NDArray[np.bool_], after: NDArray[np.bool_], factors: Sequence[NDArray[Any]]) -> float:
    """Return the p-value of the hypothesis that as many trials are lost as gained.

    Without factors this is McNemar's exact test. Trials that share the levels of crossed factors are not independent:
    the test is Student's, of the mean change with the variance of `crossed_interval`, and never below McNemar's. If
    all trials change alike, it is McNemar's of as many trials as the factor of fewest clusters has.

    Args:
        before: successes, bool [trials].
        after: successes of the same trials, bool [trials].
        factors: for each factor the level of every trial.
    """
    from scipy import stats

    exact = mcnemar(int((before & ~after).sum()), int((after & ~before).sum()))
    levels = _levels(factors)
    change = after.astype(np.float64) - before
    if not levels or not change.any():
        return exact
    clusters = min(int(codes.max()) + 1 for codes in levels)
    if not np.ptp(change):
        return mcnemar(clusters, 0)
    variance = _variance((change - change.mean()) / len(change), levels)
    return max(exact, float(2 * stats.t.sf(abs(change.mean()) / np.sqrt(variance), clusters - 1)))


def _levels(factors: Sequence[NDArray[Any]]) -> list[NDArray[np.int64]]:
    """Return the levels of each factor of two clusters or more, as numbers from 0 on."""
    codes = [np.unique(factor, return_inverse=True)[1].astype(np.int64) for factor in factors]
    return [each for each in codes if len(each) and each.max() > 0]


def _variance(scores: Floats, factors: Sequence[NDArray[np.int64]]) -> float:
    """Return the variance of a sum of scores clustered by all factors, at least that of each alone and of all."""
    total, floor = 0.0, 0.0
    for size in range(1, len(factors) + 1):
        for subset in combinations(factors, size):
            codes = subset[0]
            for other in subset[1:]:
                codes = codes * (other.max() + 1) + other
            sums = np.bincount(np.unique(codes, return_inverse=True)[1], scores)
            part = float(sums @ sums) * len(sums) / max(len(sums) - 1, 1)
            total += part if size % 2 else -part
            if size in (1, len(factors)):
                floor = max(floor, part)
    return max(total, floor)


def benjamini_hochberg(p: Floats) -> Floats:
    """Return q-values, f64 [tests]: the least false discovery rate at which each hypothesis is rejected.

    Benjamini and Hochberg 1995, doi:10.1111/j.2517-6161.1995.tb02031.x. Tests without a p-value (NaN) are left out.
    """
    q = np.full(len(p), np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    scaled = p[order] * len(order) / np.arange(1, len(order) + 1)
    q[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1)
    return q


def permutation_test(x: NDArray[Any], y: NDArray[Any], level: float, seed: int) -> Floats:
    """Return the p-value of each pair of columns: how often they correlate as much once the rows of one are shuffled.

    p = (b + 1) / (B + 1), where b of B permutations give a correlation of the same size or more (one-sided; Phipson
    and Smyth 2010, doi:10.2202/1544-6115.1585). All pairs get the same 999 permutations. That is too few where few of
    many pairs are real: one pair of 512 cannot have q <= 0.05 with p = 0.001. So those with b < 10 and a q above
    `level` get more, about ten times as many each time, until none is left. A pair that stops with b >= 10 keeps its
    p (Besag and Clifford 1991, doi:10.1093/biomet/78.2.301). No tail is fitted: of pairs of normal values with a
    p of 1e-4, a generalised Pareto tail of 999 permutations gives half p = 0, and of sparse units p = 2e-3.

    Args:
        x: values [rows, pairs].
        y: values [rows, pairs]; a pair with a constant column has p = 1.
        level: false discovery rate at which the pairs are to be decided.
        seed: seed of the permutations.

    Returns:
        f64 [pairs].
    """
    rng = np.random.default_rng(seed)
    rows = np.arange(len(x))
    orders = rng.permuted(np.tile(rows, (PERMUTATIONS, 1)), axis=1)
    exceeding = _exceeding(x, y, orders, rows[None])
    drawn = np.full(len(exceeding), PERMUTATIONS)
    while True:
        p = (exceeding + 1) / (drawn + 1)
        undecided = np.flatnonzero((exceeding < _EXCEEDANCES) & (benjamini_hochberg(p) > level))
        if not len(undecided):
            return np.asarray(p)
        # Composed with another permutation, the same ones are new.
        rounds = min(10 * int(drawn[undecided].max()) // PERMUTATIONS, 1000)
        turns = rng.permuted(np.tile(rows, (rounds, 1)), axis=1)
        exceeding[undecided] += _exceeding(x[:, undecided], y[:, undecided], orders, turns)
        drawn[undecided] += rounds * PERMUTATIONS


def _exceeding(
    x: NDArray[Any], y: NDArray[Any], orders: NDArray[np.int64], turns: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Count for each pair of columns in how many orders they correlate at least as much as they do.

    The rows of `x` are in every one of `orders` [orders, rows], those of `y` in every one of `turns` [turns, rows].
    """
    pairs = max(_PAIRS, _VALUES // len(x))

    def of_block(start: int) -> NDArray[np.int64]:
        block = slice(start, start + pairs)
        a, b = _standardised(x[:, block]), _standardised(y[:, block])
        # Ties are common among sparse units, and the order of summation must not break them.
        least = np.einsum("ij,ij->j", a, b) - 1e-12
        together = max(1, _VALUES // a.size)
        shuffled, count = np.empty((together, *a.shape)), np.zeros(a.shape[1], dtype=np.int64)
        for turn in turns:
            turned = b[turn]
            for first in range(0, len(orders), together):
                some = orders[first : first + together]
                drawn = np.take(a, some, axis=0, out=shuffled[: len(some)], mode="clip")
                count += (np.einsum("bij,ij->bj", drawn, turned) >= least).sum(0)
        return count

    with ThreadPoolExecutor() as threads:
        counts = list(threads.map(of_block, range(0, x.shape[1], pairs)))
    return np.concatenate(counts) if counts else np.zeros(0, dtype=np.int64)


def _standardised(values: NDArray[Any]) -> Floats:
    """Return values less their mean and over their norm, by column; zeros for a constant column."""
    constant = np.ptp(values, axis=0) == 0
    centred = values - values.mean(0, dtype=np.float64)
    norms = np.sqrt(np.einsum("ij,ij->j", centred, centred))
    return np.ascontiguousarray(np.where(constant, 0, centred / np.where(constant, 1, norms)))
