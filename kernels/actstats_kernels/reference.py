"""Definition of every statistic in plain float64 torch: short but slow, and the reference for the fused kernels.

Each function takes activation maps `x` [N, C, H, W] of any real dtype, on any device, with any strides.

**Non-finite values.** A map that contains NaN or infinity has no moments: its mean, variance, maximum, active
fraction and total variation are NaN and its argmax is -1. It is excluded from the power spectrum and the top-k, like
an unreadable image but only for that unit. The histogram counts every value, finite or not.

>>> import torch
>>> ramp = torch.arange(6.0).reshape(1, 1, 2, 3)
>>> statistics(ramp)["total_variation"].item()
13.0
"""

from __future__ import annotations

import torch
from torch import Tensor

from actstats_kernels.bins import (
    BIN_NAN,
    BIN_ZERO,
    FREQUENCY_BINS,
    HISTOGRAM_BINS,
    MOMENTS,
    histogram_edges,
    radial_bins,
)


def finite_maps(x: Tensor) -> Tensor:
    """Return which maps contain only finite values, bool [N, C]."""
    return torch.isfinite(x).all(-1).all(-1)


def moments(x: Tensor) -> Tensor:
    """Return the five moments of each map, f64 [5, N, C], in the order of `MOMENTS`.

    mean; population variance; maximum; fraction of positions with value > 0; total variation, the sum over the
    map of abs(x[i+1, j] - x[i, j]) and abs(x[i, j+1] - x[i, j]) (anisotropic; Rudin, Osher, Fatemi 1992).
    """
    v = x.double()
    down = (v[..., 1:, :] - v[..., :-1, :]).abs().sum((-2, -1))
    right = (v[..., :, 1:] - v[..., :, :-1]).abs().sum((-2, -1))
    mean = v.mean((-2, -1))
    variance = (v - mean[..., None, None]).square().mean((-2, -1))
    active = (v > 0).double().mean((-2, -1))
    rows = torch.stack([mean, variance, v.amax((-2, -1)), active, down + right])
    return rows.masked_fill(~finite_maps(x), torch.nan)


def argmax(x: Tensor) -> Tensor:
    """Return the flat position i * W + j of each map's maximum, i32 [N, C]: the lowest on ties."""
    flat = x.double().flatten(2)
    at_maximum = flat == flat.amax(-1, keepdim=True)
    # torch.argmax may return any of several equal values.
    places = torch.arange(flat.shape[-1], device=x.device)
    position = torch.where(at_maximum, places, flat.shape[-1]).amin(-1).int()
    return position.masked_fill(~finite_maps(x), -1)


def histogram(x: Tensor) -> Tensor:
    """Return the number of values of each unit in each bin of `bins.histogram_edges`, i64 [C, 520]."""
    left, right = (torch.from_numpy(edge).to(x.device) for edge in histogram_edges())
    v = x.double().movedim(1, 0).flatten(1).contiguous()
    # Negative bins are closed on the right, positive bins on the left.
    negative = torch.searchsorted(right[:BIN_NAN], v, right=False)
    positive = torch.searchsorted(left[:BIN_NAN], v, right=True) - 1
    index = (
        torch.where(v < 0, negative, positive).masked_fill(v == 0, BIN_ZERO).masked_fill(v.isnan(), BIN_NAN)
    )
    counts = torch.zeros(v.shape[0], HISTOGRAM_BINS, dtype=torch.int64, device=x.device)
    return counts.scatter_add_(1, index, torch.ones_like(index))


def power(x: Tensor) -> Tensor:
    """Return the power of each map in each radial bin, f64 [N, C, 18]; NaN for maps with non-finite values.

    abs(DFT(x))^2 / (H W)^2 summed over the coefficients of the bin (`bins.radial_bins`), so the sum over bins is
    the mean of x^2 (Parseval). Bins without coefficients are 0.
    """
    height, width = x.shape[-2:]
    finite = finite_maps(x)
    v = torch.where(finite[..., None, None], x.double(), 0.0)
    spectrum = torch.fft.fft2(v).abs().square() / (height * width) ** 2
    bins = torch.tensor(radial_bins(height, width).ravel(), device=x.device)
    out = torch.zeros(*x.shape[:2], FREQUENCY_BINS, dtype=torch.float64, device=x.device)
    out.index_add_(-1, bins, spectrum.flatten(2))
    return out.masked_fill(~finite[..., None], torch.nan)


def compare(clean: Tensor, changed: Tensor) -> Tensor:
    """Return what changed between two batches of maps [N, C, H, W], f64 [2, N, C], in the order of `PAIRED`.

    map_change, the mean over positions of (changed - clean)^2; map_correlation, the Pearson correlation of the two
    maps over positions, NaN if either is constant. Both are NaN if either map contains a non-finite value.
    """
    a, b = clean.double().flatten(2), changed.double().flatten(2)
    change = (b - a).square().mean(-1)
    varying = (a.amax(-1) > a.amin(-1)) & (b.amax(-1) > b.amin(-1))
    a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    correlation = (a * b).sum(-1) / (a.square().sum(-1).sqrt() * b.square().sum(-1).sqrt())
    rows = torch.stack([change, correlation.clamp(-1, 1).masked_fill(~varying, torch.nan)])
    return rows.masked_fill(~(finite_maps(clean) & finite_maps(changed)), torch.nan)


def statistics(x: Tensor) -> dict[str, Tensor]:
    """Return all statistics of maps `x` [N, C, H, W].

    The statistics in `MOMENTS` are f64 [N, C], `argmax` is i32 [N, C], `histogram` is i64 [C, 520]. `power_spectrum`,
    f64 [C, 18], is the sum of `power` over the finite maps.
    """
    return {
        **dict(zip(MOMENTS, moments(x), strict=True)),
        "argmax": argmax(x),
        "histogram": histogram(x),
        "power_spectrum": power(x).nansum(0),
    }


def top_k(maximum: Tensor, position: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the k rows with the greatest `maximum` of each unit: value, row and position.

    `maximum` is [P, U], with NaN where a row is excluded; `position` is i32 [P, U]. Returns value f32 [U, k], row i64
    [U, k] and position i32 [U, k], sorted by decreasing value and, for equal values, increasing row; NaN, -1, -1 if
    fewer than k rows are included.
    """
    units = maximum.shape[1]
    value = torch.full((units, k), torch.nan)
    row = torch.full((units, k), -1, dtype=torch.int64)
    where = torch.full((units, k), -1, dtype=torch.int32)
    order = torch.where(maximum.isnan(), -torch.inf, maximum.double())
    order = order.argsort(dim=0, descending=True, stable=True)
    for u in range(units):
        taken = [r for r in order[:, u].tolist() if not maximum[r, u].isnan()][:k]
        value[u, : len(taken)] = maximum[taken, u].float()
        row[u, : len(taken)] = torch.tensor(taken, dtype=torch.int64)
        where[u, : len(taken)] = position[taken, u].int()
    return value, row, where
