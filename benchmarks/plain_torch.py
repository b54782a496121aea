"""The same statistics as a careful user would write them with torch operations, as a baseline for the kernels."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from actstats_kernels.bins import FREQUENCY_BINS, HISTOGRAM_BINS, radial_bins


@lru_cache(maxsize=64)
def _half_plane(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the radial bin and weight of each coefficient of `rfft2`; inner columns count twice."""
    bins = torch.tensor(radial_bins(height, width)[:, : width // 2 + 1].ravel(), device=device)
    weight = torch.full((width // 2 + 1,), 2.0, device=device)
    weight[0] = 1.0
    if width % 2 == 0:
        weight[-1] = 1.0
    return bins, weight.expand(height, -1).reshape(-1)


def plain_moments(x: Tensor) -> tuple[Tensor, ...]:
    """Return mean, variance, maximum, argmax, active fraction, total variation of maps [N, C, H, W], [N, C] each."""
    variance, mean = torch.var_mean(x, (-2, -1), correction=0)
    maximum, argmax = x.flatten(2).max(-1)
    active = (x > 0).float().mean((-2, -1))
    down = (x[..., 1:, :] - x[..., :-1, :]).abs().sum((-2, -1))
    right = (x[..., :, 1:] - x[..., :, :-1]).abs().sum((-2, -1))
    return mean, variance, maximum, argmax, active, down + right


def plain_histogram(x: Tensor) -> Tensor:
    """Return counts [C, 520] in log-linear bins, by the bits of f32 values."""
    bits = x.float().contiguous().view(torch.int32)
    size = bits & 0x7FFFFFFF
    steps = ((size >> 20) - 886).clamp(1, 258) * (size > 0)
    index = 259 + torch.where(bits < 0, -steps, steps)
    channels = x.shape[1]
    index += torch.arange(channels, dtype=torch.int32, device=x.device)[:, None, None] * HISTOGRAM_BINS
    return torch.bincount(index.flatten(), minlength=channels * HISTOGRAM_BINS).view(channels, -1)


def plain_power(x: Tensor) -> Tensor:
    """Return the radial power summed over the maps, [C, 18]."""
    height, width = x.shape[-2:]
    bins, weight = _half_plane(height, width, x.device)
    # On contiguous maps: on channels_last ones the transform is many times slower.
    spectrum = torch.fft.rfft2(x.float().contiguous()).abs().square().sum(0).flatten(1) * weight
    out = torch.zeros(x.shape[1], FREQUENCY_BINS, device=x.device)
    return out.index_add_(1, bins, spectrum / (height * width) ** 2)


def plain_statistics(x: Tensor, spectrum_and_bins: bool) -> None:
    """Compute all statistics."""
    plain_moments(x)
    if spectrum_and_bins:
        plain_histogram(x)
        plain_power(x)


def plain_pairs(clean: Tensor, changed: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean square of the change and the correlation over positions of two batches of maps, [N, C] each."""
    change = (changed - clean).square().mean((-2, -1))
    a = clean - clean.mean((-2, -1), keepdim=True)
    b = changed - changed.mean((-2, -1), keepdim=True)
    norms = a.square().sum((-2, -1)).sqrt() * b.square().sum((-2, -1)).sqrt()
    return change, (a * b).sum((-2, -1)) / norms
