"""The shape bias of observers: how often they go by shape where shape and texture disagree.

>>> import pandas as pd
>>> trials = pd.DataFrame(
...     {
...         "observer": "net",
...         "response": ["cat", "bear", "cat", "dog"],
...         "shape": "cat",
...         "texture": "bear",
...     }
... )
>>> shape_bias(trials).loc[0, ["shape", "texture", "other", "shape_bias"]].tolist()
[2.0, 1.0, 1.0, 0.6666666666666666]
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from actstats.analysis.proportions import proportion_interval
from actstats.errors import ActstatsError

ALL: Final = "all"
"""What stands in the column `category` of the rows for all shape categories together."""
HUMANS: Final = "humans"
"""The name under which the trials of all human observers are pooled."""
RESAMPLES: Final = 9999
_COUNTS: Final = ["shape", "texture", "other"]


def is_human(observer: str) -> bool:
    """Return whether an observer is a person: both projects call people `subject-01` and so on."""
    return observer.startswith("subject-")


def conflicting(decisions: pd.DataFrame) -> pd.DataFrame:
    """Return the trials whose shape and texture are different things: the others test nothing."""
    return decisions[decisions["shape"] != decisions["texture"]]


def shape_bias(decisions: pd.DataFrame, *, confidence: float = 0.95) -> pd.DataFrame:
    """Return how often each observer decided by shape and how often by texture, with the shape bias.

    shape bias = decisions for the shape / (decisions for the shape + decisions for the texture), over the trials
    whose shape and texture differ (Geirhos et al. 2019, arXiv 1811.12231). Human observers are pooled over their
    trials, not averaged, as published; their interval is a percentile bootstrap over observers (9,999 resamples,
    seeded), since an observer's trials are not independent. All other intervals are Wilson's over trials.

    Args:
        decisions: a row a trial, with the text columns `observer`, `response`, `shape` and `texture`.
        confidence: of the intervals `low` to `high`, in (0, 1).

    Returns:
        A row for each observer and for the `humans` together if there are several, and for each of those `all`
        categories, then each shape category: `observer`, `category`, `observers` (pooled), `trials`, `shape`,
        `texture`, `other` (decisions), `shape_bias`, `low`, `high` (NaN where nothing went by either), and
        `accuracy`, the share of trials decided by either cue.

    Raises:
        ActstatsError: no trial has a conflict, or `confidence` is none.
    """
    if not 0 < confidence < 1:
        raise ActstatsError(f"the confidence is {confidence}; it must be between 0 and 1, 0.95 say")
    trials = conflicting(decisions)
    if trials.empty:
        raise ActstatsError(
            f"none of the {len(decisions)} trials has a conflict: each image's shape and texture are the same thing"
        )
    counts = _counts(trials)
    people = [name for name in counts.index.unique("observer") if is_human(name)]
    rows = []
    if len(people) > 1:
        rows += list(_rows(HUMANS, counts.loc[people], confidence))
    for observer in counts.index.unique("observer"):
        rows += list(_rows(observer, counts.loc[[observer]], confidence))
    return pd.DataFrame(rows)


def _counts(trials: pd.DataFrame) -> pd.DataFrame:
    """Return the decisions for `shape`, `texture` and `other` by (observer, category), int [.., 3]."""
    by_shape, by_texture = (trials["response"] == trials[cue] for cue in ("shape", "texture"))
    kinds = pd.DataFrame(
        {
            "observer": trials["observer"],
            "category": trials["shape"],
            "shape": by_shape.astype(int),
            "texture": by_texture.astype(int),
            "other": (~(by_shape | by_texture)).astype(int),
        }
    )
    return kinds.groupby(["observer", "category"], sort=True)[_COUNTS].sum()


def _rows(name: str, counts: pd.DataFrame, confidence: float) -> Iterator[dict[str, Any]]:
    """Yield the rows of one observer, or of several that are pooled under `name`: `all`, then each category."""
    for category in (ALL, *counts.index.unique("category")):
        chosen = counts if category == ALL else counts.xs(category, level="category", drop_level=False)
        each = chosen.groupby("observer").sum()
        shape, texture, other = (int(each[kind].sum()) for kind in _COUNTS)
        trials = shape + texture + other
        low, high = bias_interval(each["shape"].to_numpy(), each["texture"].to_numpy(), confidence)
        yield {
            "observer": name,
            "category": category,
            "observers": len(each),
            "trials": trials,
            "shape": shape,
            "texture": texture,
            "other": other,
            "shape_bias": shape / (shape + texture) if shape + texture else np.nan,
            "low": low,
            "high": high,
            "accuracy": (shape + texture) / trials,
        }


def bias_interval(
    shape: NDArray[np.int64], texture: NDArray[np.int64], confidence: float = 0.95
) -> tuple[float, float]:
    """Return the interval of the pooled shape bias of observers with these decisions, i64 [observers] each.

    One observer: Wilson's. Several: a percentile bootstrap over observers. NaN, NaN without a decision for either.
    """
    total = int(shape.sum() + texture.sum())
    if total == 0:
        return np.nan, np.nan
    if len(shape) == 1:
        return proportion_interval(int(shape.sum()), total, confidence)
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(shape), (RESAMPLES, len(shape)))
    by_shape, by_either = shape[drawn].sum(1), (shape + texture)[drawn].sum(1)
    tail = 50 * (1 - confidence)
    ratios = by_shape[by_either > 0] / by_either[by_either > 0]
    low, high = np.percentile(ratios, [tail, 100 - tail])
    return float(low), float(high)
