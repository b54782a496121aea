"""Intervals and tests of proportions.

>>> [round(end, 3) for end in proportion_interval(8, 10)]
[0.49, 0.943]
>>> mcnemar(6, 0)
0.03125
"""

from __future__ import annotations

import numpy as np
from scipy import stats


def proportion_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion; NaN, NaN of no trial."""
    if trials == 0:
        return np.nan, np.nan
    interval = stats.binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar(lost: int, gained: int) -> float:
    """Return the p of McNemar's exact test that as many are lost as gained; 1 where nothing changed."""
    return float(stats.binomtest(lost, lost + gained, 0.5).pvalue) if lost + gained else 1.0
