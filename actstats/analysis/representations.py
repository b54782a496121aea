"""How alike the layers of networks represent images: linear CKA, and representational similarity analysis (RSA)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from actstats.analysis.aligned import Aligned, Floats, align, cover, spread, within
from actstats.errors import ActstatsError
from actstats.support import require_package

SAMPLE: Final = 1000
"""Images in the dissimilarity matrices of RSA, unless asked for otherwise."""
_MOST_RANKS: Final = 2**31
"""Bytes that the ranks of RSA may take."""
_NAMES: Final = {
    "cka": "linear CKA",
    "cka_unbiased": "linear CKA, unbiased",
    "rsa": "RSA: Spearman's correlation of dissimilarities",
}


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

    Memory is bounded: blocks of images, the products of 2,048 units at a time with those of one store, one number for
    each image and layer, and the ranks of RSA, sample^2 / 2 numbers a layer. Each store is read twice, and once more
    for every 2,048 units of itself and of each other store.

    Args:
        stores: datasets by the names of their networks, all of the same images in the same order.
        variable: the per-image statistic, `mean` or `maximum`.
        sample: images in the dissimilarity matrices, drawn by `seed`.
        seed: random seed of the sample.

    Returns:
        `cka`, `cka_unbiased`, `rsa`, f64 [row, column], with `network` and `layer` of each row and `other_network`
        and `other_layer` of each column. NaN for a layer whose values are constant; `rsa` is NaN, too, where a layer
        has one unit, or one of the sampled images the same value in all units.

    Raises:
        ActstatsError: no stores are given, their images differ, fewer than 4 images have values, a store lacks
            `variable`, or the ranks of the sample would exceed 2 GiB.
    """
    if not stores:
        raise ActstatsError("similarity needs a store")
    if sample < 3:
        raise ActstatsError(f"`sample=` is 3 images or more, not {sample}")
    require_package("scipy", "RSA")
    aligned = align(list(stores.values()), "similarity", variable, 4)
    keys = [(name, layer) for name, of in zip(stores, aligned.layers, strict=True) for layer in of]
    sample = min(sample, len(aligned.rows))
    if (needed := sample**2 // 2 * len(keys) * 8) > _MOST_RANKS:
        most = int((2 * _MOST_RANKS / 8 / len(keys)) ** 0.5)
        raise ActstatsError(
            f"`sample=` of {sample:,} images for {len(keys)} layers needs {needed / 2**30:.1f} GiB: "
            f"take {most:,} images or fewer"
        )
    cka, unbiased = _cka(aligned)
    drawn = np.sort(np.random.default_rng(seed).permutation(aligned.rows)[:sample])
    coordinates = {
        name: (dim, np.array([key[at] for key in keys], dtype=object))
        for name, dim, at in (
            ("network", "row", 0), ("layer", "row", 1), ("other_network", "column", 0), ("other_layer", "column", 1)
        )
    }  # fmt: skip
    found = {"cka": cka, "cka_unbiased": unbiased, "rsa": _rsa(aligned, drawn)}
    return xr.Dataset(
        {name: (("row", "column"), matrix, {"long_name": _NAMES[name]}) for name, matrix in found.items()},
        coords=coordinates,
        attrs={**aligned.attrs, "sample": len(drawn), "seed": seed},
    )


def _cka(aligned: Aligned) -> tuple[Floats, Floats]:
    """Return linear CKA and its unbiased estimator between all layers.

    With the columns centred, every row of a layer's kernel K = XX' sums to 0. Without its diagonal k, then, row i
    sums to -k_i, and all terms of the unbiased HSIC follow from ||X'Y||^2 and the products of the diagonals.
    """
    stores, n = range(len(aligned.arrays)), len(aligned.rows)
    starts = np.cumsum([0, *(len(of) for of in aligned.layers)])
    hsic, squares = np.zeros((starts[-1], starts[-1])), np.zeros((n, starts[-1]))
    jobs = [(a, b, names) for a in stores for names in aligned.strips(a) for b in stores[a:]]
    found = spread(lambda job: _products(aligned, *job), jobs)
    for (a, b, names), (block, own) in zip(jobs, found, strict=True):
        row = starts[a] + list(aligned.layers[a]).index(names[0])
        rows = slice(row, row + len(names))
        columns = slice(starts[b + 1] - block.shape[1], starts[b + 1])
        hsic[rows, columns] = block
        hsic[columns, rows] = block.T
        if a == b:
            squares[:, rows] = own
    diagonals, total = squares.T @ squares, squares.sum(0)
    free = hsic - diagonals + np.outer(total, total) / ((n - 1) * (n - 2)) - 2 / (n - 2) * diagonals
    return _normalised(hsic), _normalised(free)


def _products(aligned: Aligned, a: int, b: int, names: list[str]) -> tuple[Floats, Floats]:
    """Return ||X'Y||^2 of some layers of one store with layers of another, and the norms of the images in the former.

    Within one store it is with the layers from the first of `names` on only: the matrix is symmetric.
    """
    here, there = aligned.layers[a], dict(aligned.layers[b])
    if a == b:
        there = {name: there[name] for name in list(there)[list(there).index(names[0]) :]}
    columns = [cover([here[name] for name in names]), cover(list(there.values()))]
    gram = np.zeros((columns[0].stop - columns[0].start, columns[1].stop - columns[1].start))
    own = []
    for _, (x, y) in aligned.blocks([a, b], columns):
        gram += x.T @ y
        own.append(np.stack([(x[:, within(here[name], columns[0])] ** 2).sum(1) for name in names], axis=1))
    block = [
        [
            float(np.square(gram[within(here[x], columns[0]), within(there[y], columns[1])]).sum())
            for y in there
        ]
        for x in names
    ]
    return np.array(block), np.concatenate(own)


def _normalised(hsic: Floats) -> Floats:
    own = np.sqrt(np.where(np.diag(hsic) > 0, np.diag(hsic), np.nan))
    found: Floats = hsic / np.outer(own, own)
    return found


def _rsa(aligned: Aligned, drawn: NDArray[np.int64]) -> Floats:
    """Return Spearman's correlation between the dissimilarity matrices of all layers."""
    from scipy.stats import rankdata

    upper = np.triu_indices(len(drawn), 1)
    ranks = np.full((sum(map(len, aligned.layers)), len(upper[0])), np.nan)
    at = 0
    for store, layers in enumerate(aligned.layers):
        for names in aligned.strips(store):
            columns = cover([layers[name] for name in names])
            # Correlations between images are of the values themselves: those of centred units would be others.
            values = np.concatenate([block for _, (block,) in aligned.blocks([store], [columns], drawn)])
            values += aligned.centres[store][columns]
            for name in names:
                ranks[at] = _ranks(values[:, within(layers[name], columns)], upper, rankdata)
                at += 1
    found: Floats = ranks @ ranks.T
    return found


def _ranks(values: Floats, upper: tuple[NDArray[Any], ...], rankdata: Any) -> Floats:
    """Return the ranks of the dissimilarities between images, centred and of length 1, f64 [pair of images]."""
    part = values - values.mean(1, keepdims=True)
    norm = np.linalg.norm(part, axis=1, keepdims=True)
    if not (norm > 0).all():
        return np.full(len(upper[0]), np.nan)
    part /= norm
    # Rounded, so that dissimilarities that are equal but for rounding stay ties.
    ranked = np.asarray(rankdata(np.round(1 - (part @ part.T)[upper], 12)), dtype=np.float64)
    ranked -= ranked.mean()
    length = np.linalg.norm(ranked)
    return ranked / length if length > 0 else np.full(len(ranked), np.nan)
