"""Which unit of one network corresponds to which of another: the units whose values over the images agree best."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from actstats.analysis.coverage import result, usable
from actstats.errors import ActstatsError

Floats = NDArray[np.float64]

LEAST: Final = 0.5
"""The correlation on held-out images from which on two units count as counterparts."""
_ROWS: Final = 4096
_DESCRIBED: Final = {
    "counterpart": "unit of the other network that correlates best, as its index there; -1: none",
    "counterpart_channel": "channel of the counterpart; -1: none",
    "correlation": "greatest correlation with a unit of the other network's layer",
    "margin": "by how much the greatest correlation exceeds the second greatest",
    "held_out": "correlation on one half of the images with the unit chosen on the other half",
    "chance": "greatest correlation where the other network's images are shuffled",
    "same_channel": "correlation with the unit of the same channel",
    "partner_channel": "channel of the partner in the one-to-one assignment; -1: none",
    "partner_correlation": "correlation with the partner in the one-to-one assignment",
}


def match(
    first: xr.Dataset, second: xr.Dataset, variable: str = "mean", *, least: float = LEAST, seed: int = 0
) -> xr.Dataset:
    """Find the best counterpart of each unit of one network among the units of the same layer of another.

    Units are compared by the Pearson correlation, over images, of a per-image statistic. A unit has a counterpart if
    the unit that correlates best with it on one random half of the images still correlates by `least` or more on the
    other half, and by more than any unit of the layer does by chance. The one-to-one assignment maximises the sum
    of a layer's correlations (Hungarian method) and is not thresholded.

    Memory is that of one layer's values in both stores, float32 [image, unit], and of its correlations.

    Args:
        first: the store whose units are matched, as `open_dataset` gives it.
        second: the store in which counterparts are sought, of the same images in the same order.
        variable: the per-image statistic, `mean` or `maximum`.
        least: the least held-out correlation of a counterpart, in [0, 1].
        seed: of the halves and of the shuffled images.

    Returns:
        By unit of `first`, for the layers that both stores have: `counterpart` i64 (index along `second`'s `unit`;
        -1: none), `counterpart_channel` i64, `correlation`, `margin`, `held_out`, `chance`, `same_channel` f64, and
        `partner_channel` i64, `partner_correlation` f64. Constant units have NaN correlations and no counterpart.
        Images that either store could not read, or with a value that is not finite, are left out, and counted in the
        attributes.

    Raises:
        ActstatsError: the stores hold other images, have no layer in common, lack `variable`, or share fewer than 8
            images with values.
    """
    if not 0 <= least <= 1:
        raise ActstatsError(f"`least=` is a correlation from 0 to 1, not {least}")
    a, b = (usable(found, "match", variable) for found in (first, second))
    rows_a, rows_b = common_images(first, second, a, b)
    layers_a, layers_b = a["layer"].values, b["layer"].values
    layers = [layer for layer in dict.fromkeys(layers_a.tolist()) if (layers_b == layer).any()]
    if not layers:
        raise ActstatsError("the stores have no layer in common: match compares layers of the same name")
    rng = np.random.default_rng(seed)
    halves, shuffled = rng.permutation(len(rows_a)), rng.permutation(len(rows_a))
    parts: list[dict[str, NDArray[Any]]] = []
    units, dropped = [], 0
    for layer in layers:
        here, there = np.flatnonzero(layers_a == layer), np.flatnonzero(layers_b == layer)
        x, y = values(a[variable], rows_a, here), values(b[variable], rows_b, there)
        finite: NDArray[np.bool_] = np.asarray(np.isfinite(x).all(1) & np.isfinite(y).all(1))
        order, other = halves[finite[halves]], shuffled[finite[shuffled]]
        if len(order) < 8:
            raise ActstatsError(
                f"match needs 8 images or more with values in layer {layer}, not {len(order)}"
            )
        dropped = max(dropped, len(rows_a) - len(order))
        middle = len(order) // 2
        parts.append(_matched(x, y, order[:middle], order[middle:], np.sort(order), other, least, there))
        units.append(here)
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    kept = a.isel(unit=np.concatenate(units))
    channels = b["channel"].values
    for name in ("counterpart", "partner"):
        at = found[name]
        found[f"{name}_channel"] = np.where(at >= 0, channels[at], -1)
    made = {
        name: xr.DataArray(found[name], dims="unit", attrs={"units": "", "long_name": text})
        for name, text in _DESCRIBED.items()
    }
    dataset = result(made, kept)
    return dataset.assign_attrs(
        images_read=len(rows_a) - dropped,
        images_not_finite=dropped,
        variable=variable,
        least=least,
        seed=seed,
    )


def common_images(
    first: xr.Dataset, second: xr.Dataset, a: xr.Dataset, b: xr.Dataset
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows of `a` and of `b` that hold the images which both stores read.

    Raises:
        ActstatsError: the stores were swept over other images, or in another order.
    """
    if (
        first.attrs["data"]["fingerprint"] != second.attrs["data"]["fingerprint"]
        or first.sizes["image"] != second.sizes["image"]
        or ("path" in first and "path" in second and (first["path"].values != second["path"].values).any())
    ):
        raise ActstatsError(
            "the stores hold other images, or the same in another order: sweep both over the same"
        )
    if a.sizes["image"] != b.sizes["image"]:
        raise ActstatsError(
            "one of the stores lacks partitions that the other has: complete both sweeps first"
        )
    good = np.flatnonzero((a["status"].values[: a.sizes["image"]] == 0) & (b["status"].values == 0))
    return good, good


def values(variable: xr.DataArray, rows: NDArray[np.int64], units: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return a variable's values of some images and of neighbouring units, in memory, f32 [image, unit]."""
    block = variable.transpose("image", "unit").isel(unit=slice(int(units[0]), int(units[-1]) + 1)).values
    found: NDArray[np.float32] = block if len(rows) == len(block) else block[rows]
    return found


def correlations(
    x: NDArray[np.float32], y: NDArray[np.float32], rows: NDArray[np.int64], others: NDArray[np.int64]
) -> Floats:
    """Return the correlation of each column of `x` with each of `y`, f64; NaN where a column is constant.

    Row `rows[i]` of `x` is set beside row `others[i]` of `y`. Summed in float64, `_ROWS` images at a time.
    """
    # From the first row, not from zero: a constant column then has a variance of exactly 0.
    start_x, start_y = x[rows[0]].astype(np.float64), y[others[0]].astype(np.float64)
    both = np.zeros((x.shape[1], y.shape[1]))
    sums = [np.zeros(x.shape[1]), np.zeros(x.shape[1]), np.zeros(y.shape[1]), np.zeros(y.shape[1])]
    for at in range(0, len(rows), _ROWS):
        u, v = x[rows[at : at + _ROWS]] - start_x, y[others[at : at + _ROWS]] - start_y
        both += u.T @ v
        for total, part in zip(sums, (u.sum(0), (u * u).sum(0), v.sum(0), (v * v).sum(0)), strict=True):
            total += part
    n = len(rows)
    covariance = both - np.outer(sums[0], sums[2]) / n
    spread_x, spread_y = sums[1] - sums[0] ** 2 / n, sums[3] - sums[2] ** 2 / n
    scale = np.sqrt(np.outer(np.maximum(spread_x, 0), np.maximum(spread_y, 0)))
    found: NDArray[np.float64] = np.divide(
        covariance, scale, out=np.full_like(scale, np.nan), where=scale > 0
    )
    return np.clip(found, -1, 1)


def _matched(
    x: NDArray[np.float32],
    y: NDArray[np.float32],
    one: NDArray[np.int64],
    two: NDArray[np.int64],
    every: NDArray[np.int64],
    shuffled: NDArray[np.int64],
    least: float,
    there: NDArray[np.int64],
) -> dict[str, NDArray[Any]]:
    from scipy.optimize import linear_sum_assignment

    whole = _floored(correlations(x, y, every, every))
    chance = _floored(correlations(x, y, one, shuffled[: len(one)])).max(1)
    chosen, held = _floored(correlations(x, y, one, one)), correlations(x, y, two, two)
    units = np.arange(len(whole))
    ranked = np.sort(whole, 1)
    best = whole.argmax(1)
    second = ranked[:, -2] if whole.shape[1] > 1 else np.full(len(whole), np.nan)
    held_out = held[units, chosen.argmax(1)]
    known = ranked[:, -1] > -2
    limit = max(least, float(chance.max(initial=-1)))
    has = known & (np.nan_to_num(held_out, nan=-1) >= limit) & (chosen.argmax(1) == best)
    same = np.full(len(whole), np.nan)
    shared = min(whole.shape)
    same[:shared] = whole[units[:shared], units[:shared]]
    partner, agreed = np.full(len(whole), -1), np.full(len(whole), np.nan)
    row, column = linear_sum_assignment(np.maximum(whole, -1), maximize=True)
    real = whole[row, column] > -2
    partner[row[real]], agreed[row[real]] = there[column[real]], whole[row[real], column[real]]
    return {
        "counterpart": np.where(has, there[best], -1),
        "correlation": _unfloored(ranked[:, -1]),
        "margin": np.where(second > -2, ranked[:, -1] - second, np.nan),
        "held_out": np.where(known, held_out, np.nan),
        "chance": _unfloored(chance),
        "same_channel": _unfloored(same),
        "partner": partner,
        "partner_correlation": agreed,
    }


def _floored(found: Floats) -> Floats:
    """Return correlations with -2, below all of them, where a unit is constant, so that no argmax meets NaN."""
    return np.where(np.isnan(found), -2.0, found)


def _unfloored(found: Floats) -> Floats:
    return np.where(found > -2, found, np.nan)
