"""How alike the layers of networks represent images: linear CKA, and representational similarity analysis (RSA)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from actstats.analysis.counterparts import common_images
from actstats.analysis.coverage import usable
from actstats.errors import ActstatsError

Floats = NDArray[np.float64]

SAMPLE: Final = 1000
"""Images in the dissimilarity matrices of RSA, unless asked for otherwise."""
_ROWS: Final = 1024


def similarity(
    stores: Mapping[str, xr.Dataset], variable: str = "mean", *, sample: int = SAMPLE, seed: int = 0
) -> xr.Dataset:
    """Compare every layer with every other, within and across networks, from a per-image statistic of their units.

    - `cka`: linear centred kernel alignment, ||Y'X||^2 / (||X'X|| ||Y'Y||) of centred values, Frobenius norms
      (Kornblith et al. 2019, arXiv 1905.00414). It is biased upwards where there are few images for many units.
    - `cka_unbiased`: the same ratio of the unbiased estimator of HSIC (Song et al. 2012, JMLR 13; Nguyen et al. 2021,
      arXiv 2010.15327). It can be below 0.
    - `rsa`: Spearman's correlation of the upper triangles of the layers' dissimilarity matrices, 1 - Pearson
      correlation between two images over the layer's units (Kriegeskorte et al. 2008), of `sample` images.

    CKA takes two passes over each store in blocks of images. Memory is one float64 matrix [unit, unit] over the units
    of all stores together, whatever the number of images, and the ranks of RSA, sample^2 / 2 numbers a layer.

    Args:
        stores: datasets by the names of their networks, all of the same images in the same order.
        variable: the per-image statistic, `mean` or `maximum`.
        sample: images in the dissimilarity matrices, drawn by `seed`.
        seed: of that draw.

    Returns:
        `cka`, `cka_unbiased`, `rsa`, f64 [row, column], with `network` and `layer` of each row and `other_network`
        and `other_layer` of each column. NaN for a layer whose values are constant; `rsa` is NaN, too, where a layer
        has one unit, or one of the sampled images the same value in all units.

    Raises:
        ActstatsError: no store, other images, fewer than 4 images with values, or a store without `variable`.
    """
    if not stores:
        raise ActstatsError("similarity needs a store")
    if sample < 3:
        raise ActstatsError(f"`sample=` is 3 images or more, not {sample}")
    used = {name: usable(dataset, "similarity", variable) for name, dataset in stores.items()}
    first = next(iter(stores))
    rows = common_images(stores[first], stores[first], used[first], used[first])[0]
    for name in stores:
        rows = np.intersect1d(rows, common_images(stores[first], stores[name], used[first], used[name])[0])
    arrays = [used[name][variable].transpose("image", "unit") for name in stores]
    sums, finite = _sums(arrays, rows)
    rows = rows[finite]
    n = len(rows)
    if n < 4:
        raise ActstatsError(f"similarity needs 4 images or more with values in every store, not {n}")
    networks = [name for name in stores for _ in range(used[name].sizes["unit"])]
    layers = np.concatenate([used[name]["layer"].values for name in stores])
    keys = list(dict.fromkeys(zip(networks, layers.tolist(), strict=True)))
    ends = np.cumsum([sum(1 for key in zip(networks, layers, strict=True) if key == k) for k in keys])
    slices = [slice(int(s), int(e)) for s, e in zip([0, *ends[:-1]], ends, strict=True)]
    cka, unbiased = _cka(arrays, rows, sums / n, slices)
    drawn = np.sort(np.random.default_rng(seed).permutation(rows)[:sample])
    coordinates = {
        name: (dim, np.array([key[at] for key in keys], dtype=object))
        for name, dim, at in (
            ("network", "row", 0), ("layer", "row", 1), ("other_network", "column", 0), ("other_layer", "column", 1)
        )
    }  # fmt: skip
    found = {"cka": cka, "cka_unbiased": unbiased, "rsa": _rsa(_block(arrays, drawn), slices)}
    return xr.Dataset(
        {name: (("row", "column"), matrix) for name, matrix in found.items()},
        coords=coordinates,
        attrs={
            "analysis": "similarity", "images": len(used[first]["status"]), "images_read": n,
            "images_not_finite": int((~finite).sum()), "variable": variable, "sample": len(drawn), "seed": seed,
        },
    )  # fmt: skip


def _block(arrays: list[xr.DataArray], rows: NDArray[np.int64]) -> Floats:
    """Return the values of some images in all units of all stores, f64 [image, unit]."""
    low, high = int(rows[0]), int(rows[-1]) + 1
    if high - low <= 4 * len(rows):  # one contiguous read, then the rows
        parts = [array.isel(image=slice(low, high)).values[rows - low] for array in arrays]
    else:
        parts = [array.isel(image=rows).values for array in arrays]
    return np.concatenate(parts, axis=1).astype(np.float64)


def _sums(arrays: list[xr.DataArray], rows: NDArray[np.int64]) -> tuple[Floats, NDArray[np.bool_]]:
    """Return each unit's sum over the images whose values are finite in every store, and which those are."""
    total = np.zeros(sum(array.sizes["unit"] for array in arrays))
    finite = np.zeros(len(rows), dtype=bool)
    for at in range(0, len(rows), _ROWS):
        block = _block(arrays, rows[at : at + _ROWS])
        good = np.isfinite(block).all(1)
        finite[at : at + _ROWS] = good
        total += block[good].sum(0)
    return total, finite


def _cka(
    arrays: list[xr.DataArray], rows: NDArray[np.int64], mean: Floats, slices: list[slice]
) -> tuple[Floats, Floats]:
    """Return linear CKA and its unbiased estimator between all layers.

    With the columns centred, every row of a layer's kernel K = XX' sums to 0. Without its diagonal k, then, row i
    sums to -k_i, and all terms of the unbiased HSIC follow from ||X'Y||^2 and the products of the diagonals.
    """
    units, n = len(mean), len(rows)
    gram = np.zeros((units, units))
    diagonals, total = np.zeros((len(slices), len(slices))), np.zeros(len(slices))
    for at in range(0, n, _ROWS):
        block = _block(arrays, rows[at : at + _ROWS]) - mean
        # A layer's rows from the diagonal on: half the work, and no second matrix of the whole size.
        for place in slices:
            gram[place, place.start :] += block[:, place].T @ block[:, place.start :]
        squares = np.stack([(block[:, place] ** 2).sum(1) for place in slices])
        diagonals += squares @ squares.T
        total += squares.sum(1)
    hsic = np.zeros_like(diagonals)
    for i, one in enumerate(slices):
        for j in range(i, len(slices)):
            hsic[i, j] = hsic[j, i] = float((gram[one, slices[j]] ** 2).sum())
    free = hsic - diagonals + np.outer(total, total) / ((n - 1) * (n - 2)) - 2 / (n - 2) * diagonals
    return _normalised(hsic), _normalised(free)


def _normalised(hsic: Floats) -> Floats:
    own = np.sqrt(np.where(np.diag(hsic) > 0, np.diag(hsic), np.nan))
    found: Floats = hsic / np.outer(own, own)
    return found


def _rsa(values: Floats, slices: list[slice]) -> Floats:
    """Return Spearman's correlation between the dissimilarity matrices of all layers."""
    from scipy.stats import rankdata

    upper = np.triu_indices(len(values), 1)
    ranks = []
    for place in slices:
        part = values[:, place] - values[:, place].mean(1, keepdims=True)
        norm = np.linalg.norm(part, axis=1, keepdims=True)
        if not (norm > 0).all():
            ranks.append(np.full(len(upper[0]), np.nan, dtype=np.float64))
            continue
        unit = part / norm
        # Rounded, so that dissimilarities that are equal but for rounding stay ties.
        ranked = rankdata(np.round(1 - (unit @ unit.T)[upper], 12))
        ranked -= ranked.mean()
        length = np.linalg.norm(ranked)
        ranks.append(ranked / length if length > 0 else np.full(len(ranked), np.nan))
    stacked = np.stack(ranks)
    found: Floats = stacked @ stacked.T
    return found
