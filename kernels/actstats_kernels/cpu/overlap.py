"""CPU kernel of `actstats_kernels.overlap`: upsample, compare and count in one pass, without storing the grid."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor


def add_overlap(
    maps: Tensor, threshold: Tensor, labels: Tensor, both: Tensor, tables: tuple[NDArray[Any], ...]
) -> Tensor:
    """See `actstats_kernels.overlap.add_overlap`; `tables` are the `taps` of the rows, then of the columns.

    Each thread processes its own range of units.
    """
    units = len(maps)
    active = torch.zeros(units, dtype=torch.int64)
    x = maps.detach().float().contiguous().numpy()
    grid = labels.contiguous().numpy()
    arguments = (x, threshold.double().contiguous().numpy(), grid, *tables, active.numpy(), both.numpy())
    threads = min(torch.get_num_threads(), units)
    bounds = np.linspace(0, units, threads + 1).astype(np.int64).tolist()
    parts = [_pool(threads).submit(_count, a, b, *arguments) for a, b in pairwise(bounds[1:])]
    _count(bounds[0], bounds[1], *arguments)
    for part in parts:
        part.result()
    return active


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="actstats-overlap")


@njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _count(
    first: int,
    last: int,
    x: Any,
    threshold: Any,
    labels: Any,
    above: Any,
    below: Any,
    down: Any,
    left: Any,
    right: Any,
    along: Any,
    active: Any,
    both: Any,
) -> None:
    """Count for units `first` to `last` (exclusive), skipping rows and maps that cannot exceed the threshold.

    No interpolated value is greater than the greatest of the values that it lies between. This holds after rounding
    too: the differences of float32 values are far coarser than float64 rounding, and between two adjacent float64
    values a + (b - a) w rounds to one of them.
    """
    height, width = x.shape[1], x.shape[2]
    depth = labels.shape[0]
    greatest = np.empty(height, dtype=np.float32)
    row = np.empty(width, dtype=np.float64)
    for c in range(first, last):
        limit = threshold[c]
        finite = True
        top = np.float32(-np.inf)
        for i in range(height):
            largest = np.float32(-np.inf)
            for j in range(width):
                v = x[c, i, j]
                finite &= np.isfinite(v)
                largest = max(largest, v)
            greatest[i] = largest
            top = max(top, largest)
        if not finite or not top > limit:
            continue
        count = 0
        for i in range(labels.shape[1]):
            a, b, w = above[i], below[i], down[i]
            if not max(greatest[a], greatest[b]) > limit:
                continue
            for j in range(width):
                v = np.float64(x[c, a, j])
                row[j] = v + (np.float64(x[c, b, j]) - v) * w
            for j in range(labels.shape[2]):
                v = row[left[j]]
                if v + (row[right[j]] - v) * along[j] > limit:
                    count += 1
                    for d in range(depth):
                        label = labels[d, i, j]
                        if label > 0:
                            both[c, label] += 1
        active[c] = count
