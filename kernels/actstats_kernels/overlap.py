"""Count the positions where a unit is active, and how many of them have each label, for network dissection.

A unit is active at a position of a grid if its map, upsampled to that grid, is greater than its threshold.

**Upsampling** is bilinear between the centres of the map's positions (`align_corners=False` in torch), and clamped
outside of them. For a map x with H rows and a grid with S rows, row i of the grid lies at
y = min(max((i + 1/2) H / S - 1/2, 0), H - 1), between rows floor(y) and floor(y) + 1. Rows are interpolated first,
then columns, each as a + (b - a) w in float64, so that the counts are the same on every device.

**Non-finite values.** A map that contains a non-finite value is not active anywhere, nor is a unit whose threshold is
NaN.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def add_overlap(maps: Tensor, threshold: Tensor, labels: Tensor, both: Tensor) -> Tensor:
    """Count the active positions of each unit in one image, and add to `both` how many of them have each label.

    Args:
        maps: [C, H, W] of one image (f32, f16 or bf16; any strides).
        threshold: f64 [C].
        labels: i32 [D, R, S], for the R rows and S columns of the grid: up to D different labels at each position, in
            [1, L), and 0 for none. No label may occur twice at one position.
        both: i64 [C, L], contiguous, on the device of `maps`. The counts are added to it.

    Returns:
        The number of active positions of each unit, i64 [C].

    Raises:
        ValueError: the tensors do not fit each other. Nothing has been written.
    """
    units, known = len(maps), both.shape[-1]
    if maps.ndim != 3 or labels.ndim != 3 or threshold.shape != (units,) or both.shape != (units, known):
        raise ValueError(
            f"`maps` {list(maps.shape)}, `threshold` {list(threshold.shape)}, `labels` {list(labels.shape)} and "
            f"`both` {list(both.shape)} must be [C, H, W], [C], [D, R, S] and [C, L]"
        )
    if both.dtype != torch.int64 or not both.is_contiguous() or both.device != maps.device:
        raise ValueError(
            f"`both` must be int64 and contiguous on {maps.device}, got {both.dtype} on {both.device}"
        )
    if (
        labels.device.type == "cpu"
        and labels.numel()
        and not 0 <= int(labels.min()) <= int(labels.max()) < known
    ):
        raise ValueError(
            f"`labels` are {int(labels.min())} to {int(labels.max())}; they must be 0 to {known - 1}"
        )
    if maps.device.type == "cpu":
        from actstats_kernels.cpu.overlap import add_overlap as add

        tables = (*taps(maps.shape[1], labels.shape[1]), *taps(maps.shape[2], labels.shape[2]))
        return add(maps, threshold, labels, both, tables)
    active, ids, found = overlap(maps, threshold, labels)
    both[:, ids] += found
    return active


def overlap(maps: Tensor, threshold: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the counts of `add_overlap`, defined in plain torch by comparing whole grids.

    Returns the number of active positions of each unit, i64 [C]; the labels that occur, i64 [l]; and the number of
    active positions of each unit with each of these labels, i64 [C, l].
    """
    labels = labels.to(maps.device)
    v = upsampled(maps, labels.shape[1], labels.shape[2])
    finite = torch.isfinite(maps).flatten(1).all(1)
    active = ((v > threshold.to(maps.device)[:, None, None]) & finite[:, None, None]).flatten(1)
    ids = torch.unique(labels[labels > 0]).long()
    there = (labels[None] == ids[:, None, None, None]).any(1).flatten(1)
    # Sums of 0 and 1 up to 2^53 are exact in float64.
    return active.sum(1), ids, (active.double() @ there.double().T).long()


def upsampled(maps: Tensor, rows: int, columns: int) -> Tensor:
    """Return maps [C, H, W] on a grid of `rows` x `columns`, f64, by the formula in the docstring of this module."""
    v = maps.double()
    for dim, size in ((1, rows), (2, columns)):
        low, high, weight = (torch.from_numpy(t).to(v.device) for t in taps(v.shape[dim], size))
        a, b = v.index_select(dim, low), v.index_select(dim, high)
        v = a + (b - a) * (weight[:, None] if dim == 1 else weight)
    return v


@lru_cache(maxsize=256)
def taps(length: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return the two of `length` positions that each of `size` grid positions lies between, and its weight.

    i64, i64 and f64 [size]. The arrays are cached and must not be modified.
    """
    place = np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, length - 1)
    low = np.floor(place).astype(np.int64)
    return low, np.minimum(low + 1, length - 1), place - low
