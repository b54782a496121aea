"""Compare two networks: check that their stores are comparable, and test how their units differ by layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from actstats.errors import ActstatsError, nearest
from actstats.store.dataset import plain, require_manifest
from actstats.support import require_package


def require_same_units(first: xr.Dataset, second: xr.Dataset, *, ordered: bool = True) -> None:
    """Raise an `ActstatsError` that names the layers in which two stores, or two results by unit, differ."""
    one, two = units_by_layer(first), units_by_layer(second)
    if list(one.items()) == list(two.items()):
        return
    if only := _differing(list(one), list(two)):
        raise ActstatsError(f"the stores have different layers: {only}")
    for name in one:
        if one[name] != two[name]:
            raise ActstatsError(
                f"layer {name} has {one[name]} units in the first store and {two[name]} in the second"
            )
    if ordered:
        raise ActstatsError("the stores have the same layers in a different order")


def pair_units(first: xr.Dataset, second: xr.Dataset) -> xr.Dataset:
    """Return `second` with its units in the order of those of `first`, paired by layer and channel.

    Raises:
        ActstatsError: the units differ, or `second` has one twice.
    """
    require_same_units(first, second, ordered=False)
    one, two = (unit_index(dataset) for dataset in (first, second))
    if one.equals(two):
        return second
    if not two.is_unique or not one.isin(two).all():
        layer, channel = two[two.duplicated()][0] if not two.is_unique else one[~one.isin(two)][0]
        raise ActstatsError(
            f"the stores have different units: {layer}/{channel} occurs twice, or in one of them only"
        )
    return second.isel(unit=two.get_indexer(one))


def unit_index(dataset: xr.Dataset) -> pd.MultiIndex:
    """Return the layer and channel of each unit.

    Raises:
        ActstatsError: the dataset lacks the coordinate `layer` or `channel`.
    """
    for name in ("layer", "channel"):
        if name not in dataset.variables:
            raise ActstatsError(f"units are paired by layer and channel, and this dataset lacks {name}")
    return pd.MultiIndex.from_arrays([dataset["layer"].values.astype(object), dataset["channel"].values])


def pair_images(datasets: Sequence[xr.Dataset], analysis: str) -> list[xr.Dataset]:
    """Return datasets of the same images, after `plain`, with the images that all of them have in the first's order.

    Images are the same if those of the sweeps have the same fingerprint, and their paths are equal.

    Raises:
        ActstatsError: the sweeps were of different images, no image is in all datasets, or one occurs twice.
    """
    datasets = [plain(dataset) for dataset in datasets]
    for dataset in datasets:
        if "path" not in dataset.variables or dataset["path"].dims != ("image",):
            raise ActstatsError(f"{analysis} needs the coordinate path along image, which this dataset lacks")
    paths = [pd.Index(dataset["path"].values.astype(object)) for dataset in datasets]
    swept = [require_manifest(dataset, analysis).data.fingerprint for dataset in datasets]
    for other, names in zip(swept[1:], paths[1:], strict=True):
        if swept[0] != other:
            _refuse_images(paths[0], names)
            raise ActstatsError(
                "the stores contain different images with the same names: sweep both over the same images"
            )
    if all(names.equals(paths[0]) for names in paths[1:]):
        return datasets
    common = paths[0]
    for names in paths:
        if not names.is_unique:
            raise ActstatsError(
                f"{analysis} needs each image once: {names[names.duplicated()][0]} occurs twice"
            )
        common = common[common.isin(names)]
    if common.empty:
        _refuse_images(*paths[:2])
    return [
        dataset if names.equals(common) else dataset.isel(image=names.get_indexer(common))
        for dataset, names in zip(datasets, paths, strict=True)
    ]


def _refuse_images(one: pd.Index, two: pd.Index) -> None:
    """Raise an `ActstatsError` that names the first image in which two stores differ, if their paths do."""
    if len(one) != len(two):
        raise ActstatsError(
            f"the stores have different images: {len(one):,} in the first and {len(two):,} in the second"
        )
    if one.equals(two):
        return
    if one.sort_values().equals(two.sort_values()):
        raise ActstatsError(
            "the stores contain the same images in a different order: sweep both over the same images"
        )
    at = int(np.flatnonzero(one != two)[0])
    raise ActstatsError(
        f"the stores have different images: number {at:,} is {one[at]} in the first and {two[at]} in the second"
    )


def require_same_network(first: xr.Dataset, second: xr.Dataset, analysis: str) -> None:
    """Raise an `ActstatsError` if two stores were not swept with the same network and weights."""
    one, two = (require_manifest(dataset, analysis) for dataset in (first, second))
    for name, *values in (
        ("arch", one.arch, two.arch),
        ("weights.sha256", one.weights.sha256, two.weights.sha256),
    ):
        if values[0] != values[1]:
            raise ActstatsError(
                f"the stores are of different networks: {name} is {values[0]} in the first and {values[1]} "
                "in the second"
            )


def units_by_layer(dataset: xr.Dataset) -> dict[str, int]:
    """Return the number of units of each layer, layers in the order of their first units."""
    if "layer" not in dataset.variables:
        raise ActstatsError("units are compared by layer, and this dataset lacks the coordinate layer")
    return dict(Counter(map(str, dataset["layer"].values.tolist())))


def _differing(one: Sequence[str], two: Sequence[str]) -> str:
    sides = [
        f"only the {side} has {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
        for side, names in (
            ("first", [name for name in one if name not in two]),
            ("second", [name for name in two if name not in one]),
        )
        if names
    ]
    return ", ".join(sides)


_AT_ONCE = 1 << 21
"""Number of values resampled at once."""
_ACCURACY = 1e-5
"""Relative accuracy of stored numbers: f32 sums over a map."""


def compare_units(
    standard: xr.Dataset,
    robust: xr.Dataset,
    variables: Sequence[str] | None = None,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Return the differences by layer between the units of two networks, for the results of one analysis.

    With x the values of a layer's units in `standard` and y those in `robust`, excluding NaN:

    - `difference` = mean of y - mean of x;
    - `cliffs_delta` = (number of pairs with y > x - number with y < x) / number of pairs (Cliff 1993,
      doi:10.1037/0033-2909.114.3.494): an effect size independent of scale and outliers, from -1 (all of
      `robust` are smaller) to 1.

    `_low` and `_high` are the ends of percentile bootstrap intervals (Efron 1979, doi:10.1214/aos/1176344552;
    `scipy.stats.bootstrap`). The units of both networks are resampled independently, so the intervals describe the
    variation over units.

    Args:
        standard: result of an analysis such as `smoothness` for the standard network, S.
        robust: result for the robust network, R, with the same layers and numbers of units.
        variables: names of variables. Default: all variables with one float or bool per unit.
        resamples: number of bootstrap resamples.
        confidence: confidence level of the intervals.
        seed: seed of the resampling.

    Returns:
        One row per variable and layer, layers in order of execution: `variable`, `layer`, `units_s`, `units_r` (with
        a value), `mean_s`, `mean_r`, `difference`, `difference_low`, `difference_high`, `cliffs_delta`, `delta_low`,
        `delta_high`. Intervals are NaN if a layer of either network has fewer than two values.

    Raises:
        ActstatsError: the layers or their numbers of units differ, a variable does not exist, or scipy is not
            installed.
    """
    require_package("scipy", "a bootstrap interval")
    _check_interval(resamples, confidence)
    standard, robust = plain(standard), plain(robust)
    require_same_units(standard, robust, ordered=False)
    known = [str(n) for n, v in standard.data_vars.items() if v.dims == ("unit",) and v.dtype.kind in "fb"]
    chosen = known if variables is None else list(dict.fromkeys(variables))
    for name in chosen:
        if name not in known or name not in robust or robust[name].dims != ("unit",):
            hint = nearest(name, known) or f"; available: {', '.join(known)}"
            raise ActstatsError(f"the results have no per-unit variable {name!r}{hint}")
    if not chosen:
        raise ActstatsError("the results have no per-unit variable to compare: `variables=` is empty")
    long = pd.concat(
        [
            pd.DataFrame({"variable": name, "layer": layers, "network": network, "value": values})
            for network, found in (("s", standard), ("r", robust))
            for layers in [found["layer"].values.astype(object)]
            for name, values in found[chosen].compute().data_vars.items()
        ]
    )
    rng = np.random.default_rng(seed)
    found = long.groupby(["variable", "layer"], sort=False)[["network", "value"]].apply(
        lambda units: _compared(units, resamples, confidence, rng)
    )
    return found.astype({"units_s": int, "units_r": int}).reset_index()


def compare_matched(
    standard: xr.Dataset,
    robust: xr.Dataset,
    counterpart: xr.DataArray | NDArray[np.integer[Any]],
    variables: Sequence[str],
    *,
    within_layers: bool = True,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Return how numbers of units change from one network to another, unit by unit with its counterpart.

    With d the values of counterparts minus those of their units, without NaN, and 0 where they differ by less than
    1e-5 of the greater one, the accuracy of stored numbers:

    - `difference` = median of d;
    - `delta` = (number of pairs with d > 0 - number with d < 0) / number of pairs: Cliff's delta of paired values,
      from -1, all counterparts lie below, to 1.

    `_low` and `_high` are the ends of their percentile bootstrap intervals, pairs resampled. Several units may have
    the same counterpart.

    Args:
        standard: result of an analysis for the reference network.
        robust: result of the same analysis for the other network.
        counterpart: the index in `robust` of the counterpart of each unit, or -1, as from `match`: the variable
            itself, whose units are found in `standard` by layer and channel, or one for each unit of `standard`.
        variables: names of the variables to compare.
        within_layers: whether to return a row for each layer of `standard`, or one for all units.
        resamples: number of bootstrap samples.
        confidence: confidence level of the intervals.
        seed: seed of the bootstrap.

    Returns:
        A row for each variable (and layer): `variable`, (`layer`,) `units`, `pairs`, `median_s`, `median_r`,
        `difference`, `difference_low`, `difference_high`, `delta`, `delta_low`, `delta_high`. NaN without pairs,
        intervals with fewer than two.

    Raises:
        ActstatsError: the counterparts are of other units, a variable is missing, or `resamples` or `confidence` is
            out of range.
    """
    _check_interval(resamples, confidence)
    standard, robust = plain(standard), plain(robust)
    counterpart = _counterparts(standard, robust, counterpart)
    rng = np.random.default_rng(seed)
    edges = [(1 - confidence) / 2, (1 + confidence) / 2]
    layers = (
        standard["layer"].values.astype(object) if within_layers else np.full(standard.sizes["unit"], "all")
    )
    rows = []
    for variable in dict.fromkeys(variables):
        for found in (standard, robust):
            if variable not in found or found[variable].dims != ("unit",):
                raise ActstatsError(f"the results have no per-unit variable {variable!r}")
        x, y = (found[variable].values.astype(np.float64) for found in (standard, robust))
        y = np.where(counterpart >= 0, y[counterpart], np.nan)
        for layer in dict.fromkeys(layers.tolist()):
            here = np.asarray(layers == layer)
            paired = here & np.isfinite(x) & np.isfinite(y)
            row = {"variable": variable, "layer": layer, "units": int(here.sum()), "pairs": int(paired.sum())}
            row |= {"median_s": _median(x[paired]), "median_r": _median(y[paired])}
            d = _apart(x[paired], y[paired])
            for name, of in (("difference", np.median), ("delta", _signs)):
                low = high = np.nan
                if len(d) > 1:
                    at_once = max(1, _AT_ONCE // len(d))
                    drawn = [
                        of(d[rng.integers(0, len(d), (min(at_once, resamples - done), len(d)))], axis=1)
                        for done in range(0, resamples, at_once)
                    ]
                    low, high = np.quantile(np.concatenate(drawn), edges)
                middle = float(of(d, axis=0)) if len(d) else np.nan
                row |= {name: middle, f"{name}_low": float(low), f"{name}_high": float(high)}
            rows.append(row)
    table = pd.DataFrame(rows)
    return table if within_layers else table.drop(columns="layer")


def _check_interval(resamples: int, confidence: float) -> None:
    if resamples < 1:
        raise ActstatsError(f"`resamples=` must be 1 or more, not {resamples}")
    if not 0 < confidence < 1:
        raise ActstatsError(f"`confidence=` must be between 0 and 1, not {confidence}")


def _counterparts(
    standard: xr.Dataset, robust: xr.Dataset, counterpart: xr.DataArray | NDArray[np.integer[Any]]
) -> NDArray[np.integer[Any]]:
    """Return the position in `robust` of the counterpart of each unit of `standard`, -1 for none."""
    if isinstance(counterpart, xr.DataArray):
        of, units = unit_index(plain(counterpart.to_dataset(name="counterpart"))), unit_index(standard)
        if not of.is_unique or not of.isin(units).all():
            raise ActstatsError(
                "the counterparts are of other units than `standard`: match the same datasets"
            )
        at = of.get_indexer(units)
        found = np.where(at >= 0, counterpart.values[at], -1)
    else:
        found = np.asarray(counterpart)
    size = standard.sizes["unit"]
    if found.shape != (size,):
        raise ActstatsError(
            f"`counterpart=` has {found.size:,} units and `standard` {size:,}: pass match(...)['counterpart'], "
            "which names its units"
        )
    if not ((found >= -1) & (found < robust.sizes["unit"])).all():
        raise ActstatsError("`counterpart=` has indices of units that `robust` does not have")
    return found


def _apart(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return y - x, 0 where the difference is within the accuracy of stored numbers, whose sign means nothing."""
    return np.where(np.abs(y - x) <= _ACCURACY * np.maximum(np.abs(x), np.abs(y)), 0.0, y - x)


def _signs(d: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    return np.asarray(np.sign(d).mean(axis))


def _median(x: NDArray[np.float64]) -> float:
    return float(np.median(x)) if len(x) else float("nan")


def cliffs_delta(x: NDArray[Any], y: NDArray[Any], axis: int = -1) -> NDArray[np.float64]:
    """Return Cliff's delta of y against x along an axis, computed from the rank sum: 2 U / (n m) - 1.

    >>> cliffs_delta(np.array([1, 2, 3]), np.array([2, 4])).item()
    0.5
    """
    from scipy.stats import rankdata

    x, y = np.moveaxis(x, axis, -1), np.moveaxis(y, axis, -1)
    n, m = x.shape[-1], y.shape[-1]
    ranks = rankdata(np.concatenate([x, y], -1), axis=-1)[..., n:].sum(-1)
    return np.asarray(2 * (ranks - m * (m + 1) / 2) / (n * m) - 1)


def _compared(units: pd.DataFrame, resamples: int, confidence: float, rng: np.random.Generator) -> pd.Series:
    from scipy.stats import bootstrap

    values = units["value"].to_numpy(dtype=np.float64)
    x, y = (values[(units["network"] == network) & ~np.isnan(values)] for network in "sr")
    names = ("difference", "cliffs_delta")
    low = high = middle = np.full(2, np.nan)
    if len(x) and len(y):
        middle = _effects(x, y)
    if len(x) > 1 and len(y) > 1:
        interval = bootstrap(
            (x, y),
            _effects,
            n_resamples=resamples,
            batch=max(1, _AT_ONCE // (len(x) + len(y))),
            vectorized=True,
            confidence_level=confidence,
            method="percentile",
            rng=rng,
        ).confidence_interval
        low, high = interval.low, interval.high
    found = {"units_s": len(x), "units_r": len(y), "mean_s": _mean(x), "mean_r": _mean(y)}
    for at, (name, short) in enumerate(zip(names, ("difference", "delta"), strict=True)):
        found |= {name: middle[at], f"{short}_low": low[at], f"{short}_high": high[at]}
    return pd.Series(found)


def _effects(x: NDArray[Any], y: NDArray[Any], axis: int = -1) -> NDArray[np.float64]:
    """Return the difference of means and Cliff's delta along an axis, stacked along a new first axis."""
    return np.stack([y.mean(axis) - x.mean(axis), cliffs_delta(x, y, axis)])


def _mean(x: NDArray[np.float64]) -> float:
    return float(x.mean()) if len(x) else float("nan")
