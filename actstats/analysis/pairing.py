"""Whether two stores can be set side by side: the same units, the same images, the same network; or in what not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from actstats.errors import ActstatsError


def require_same_units(first: xr.Dataset, second: xr.Dataset) -> None:
    """Raise an `ActstatsError` that names the layers in which two stores, or two results by unit, differ."""
    one, two = _units(first), _units(second)
    if list(one.items()) == list(two.items()):
        return
    if only := _differing(list(one), list(two)):
        raise ActstatsError(f"the stores have other layers: {only}")
    for name in one:
        if one[name] != two[name]:
            raise ActstatsError(
                f"layer {name} has {one[name]} units in the first store and {two[name]} in the second"
            )
    raise ActstatsError("the stores have the same layers in another order")


def require_same_images(first: xr.Dataset, second: xr.Dataset) -> None:
    """Raise an `ActstatsError` that names the first image in which two stores differ; order counts."""
    one, two = (dataset["path"].values for dataset in (first, second))
    if len(one) != len(two):
        raise ActstatsError(
            f"the stores have other images: {len(one):,} in the first and {len(two):,} in the second"
        )
    if not np.array_equal(one, two):
        at = int(np.flatnonzero(one != two)[0])
        raise ActstatsError(
            f"the stores have other images: number {at:,} is {one[at]} in the first and {two[at]} in the second"
        )


def require_same_network(first: xr.Dataset, second: xr.Dataset) -> None:
    """Raise an `ActstatsError` where two stores were not swept with one network and one set of weights."""
    for path in (("arch",), ("weights", "sha256")):
        one, two = (_entry(dataset.attrs, path) for dataset in (first, second))
        if one != two:
            raise ActstatsError(
                f"the stores are of two networks: {'.'.join(path)} is {one} in the first and {two} in the second"
            )


def _units(dataset: xr.Dataset) -> dict[str, int]:
    names, at, counts = np.unique(
        dataset["layer"].values.astype(object), return_index=True, return_counts=True
    )
    order = np.argsort(at)
    return dict(zip(names[order], counts[order].tolist(), strict=True))


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


def _entry(attributes: Any, path: Sequence[str]) -> Any:
    for key in path:
        attributes = attributes.get(key, {})
    return attributes
