"""Compare two kinds of network, several training runs of each: the unit of replication is the network.

The units of a layer see the same images and are trained together, so they move together from one training run to the
next. An interval over units leaves that out (Hurlbert 1984, doi:10.2307/1942661, on pseudoreplication; Bouthillier
et al. 2021, arXiv 2103.03098).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product
from typing import Any, Final

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from actstats.analysis.comparing import cliffs_delta, require_same_units
from actstats.errors import ActstatsError
from actstats.store.dataset import plain
from actstats.support import require_package

LEAST_NETWORKS: Final = 3
"""Number of networks of each kind from which on their differences are decided."""
_ACCURACY: Final = 1e-5
"""Relative accuracy of stored numbers. Networks whose medians spread less are copies, or the measure is discrete."""


def compare_networks(
    standard: Sequence[xr.Dataset],
    robust: Sequence[xr.Dataset],
    variables: Sequence[str],
    *,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Return the differences by layer between two kinds of network, for the results of one analysis.

    With x the medians over a layer's units of the networks in `standard`, one number per network, and y those in
    `robust`, excluding NaN:

    - `difference` = mean of y - mean of x, with the interval and the p of Welch's t test (Welch 1947,
      doi:10.1093/biomet/34.1-2.28), which describe the variation over networks;
    - `delta` = Cliff's delta of the units of a network in `robust` against those of one in `standard`, mean over all
      such pairs of networks;
    - `null_delta` = the greatest |Cliff's delta| between two networks in `standard`: what training runs differ by.

    Args:
        standard: results of an analysis such as `smoothness`, one per network of one kind, S.
        robust: results for the networks of the other kind, R, with the same layers and numbers of units.
        variables: names of variables, [unit].
        confidence: confidence level of the interval.

    Returns:
        One row per variable and layer: `variable`, `layer`, `networks_s`, `networks_r` (with a value), `median_s`,
        `median_r` (means over the networks), `difference`, `difference_low`, `difference_high`, `p`, `delta`,
        `null_delta`, `medians_s`, `medians_r` (tuples with one number per network). Interval and p are NaN with fewer
        than two networks of a kind, or if the networks of neither kind differ among themselves.

    Raises:
        ActstatsError: no networks of a kind, the layers or their numbers of units differ, a variable is missing, or
            scipy is not installed.
    """
    require_package("scipy", "Welch's t test")
    if not standard or not robust:
        raise ActstatsError("networks of two kinds are compared: give one of each kind or more")
    if not 0 < confidence < 1:
        raise ActstatsError(f"`confidence=` must be between 0 and 1, not {confidence}")
    every = [plain(units) for units in (*standard, *robust)]
    for other in every[1:]:
        require_same_units(every[0], other, ordered=False)
    for units, name in product(every, variables):
        if name not in units or units[name].dims != ("unit",):
            raise ActstatsError(f"the results have no per-unit variable {name!r}")
    every = [units[list(variables)].compute() for units in every]
    layers = list(dict.fromkeys(every[0]["layer"].values.astype(object).tolist()))
    at = [{layer: units["layer"].values.astype(object) == layer for layer in layers} for units in every]
    rows = []
    for name, layer in product(dict.fromkeys(variables), layers):
        values = [
            units[name].values[which[layer]].astype(float) for units, which in zip(every, at, strict=True)
        ]
        values = [of[~np.isnan(of)] for of in values]
        row = _compared(values[: len(standard)], values[len(standard) :], confidence)
        rows.append({"variable": name, "layer": layer, **row})
    return pd.DataFrame(rows)


def _compared(
    standard: Sequence[NDArray[np.float64]], robust: Sequence[NDArray[np.float64]], confidence: float
) -> dict[str, Any]:
    """Compare the units of the networks of two kinds in one layer, [unit] each."""
    medians = [
        tuple(float(np.median(of)) if len(of) else np.nan for of in side) for side in (standard, robust)
    ]
    x, y = (np.array([median for median in side if not np.isnan(median)]) for side in medians)
    difference, low, high, p = _welch(x, y, confidence)
    between = [float(cliffs_delta(s, r)) for s, r in product(standard, robust) if len(s) and len(r)]
    within = [abs(float(cliffs_delta(a, b))) for a, b in combinations(standard, 2) if len(a) and len(b)]
    return {
        "networks_s": len(x),
        "networks_r": len(y),
        "median_s": float(x.mean()) if len(x) else np.nan,
        "median_r": float(y.mean()) if len(y) else np.nan,
        "difference": difference,
        "difference_low": low,
        "difference_high": high,
        "p": p,
        "delta": float(np.mean(between)) if between else np.nan,
        "null_delta": max(within, default=np.nan),
        "medians_s": medians[0],
        "medians_r": medians[1],
    }


def _welch(
    x: NDArray[np.float64], y: NDArray[np.float64], confidence: float
) -> tuple[float, float, float, float]:
    """Return mean of y - mean of x, the ends of its interval, and p."""
    from scipy.special import stdtr, stdtrit

    if not len(x) or not len(y):
        return np.nan, np.nan, np.nan, np.nan
    difference = float(y.mean() - x.mean())
    if min(len(x), len(y)) < 2 or all(np.ptp(of) <= _ACCURACY * np.abs(of).max() for of in (x, y)):
        return difference, np.nan, np.nan, np.nan
    parts = np.array([of.var(ddof=1) / len(of) for of in (x, y)])
    freedom = parts.sum() ** 2 / (parts**2 / [len(x) - 1, len(y) - 1]).sum()
    error = float(np.sqrt(parts.sum()))
    half = float(stdtrit(freedom, (1 + confidence) / 2)) * error
    return (
        difference,
        difference - half,
        difference + half,
        float(2 * stdtr(freedom, -abs(difference) / error)),
    )
