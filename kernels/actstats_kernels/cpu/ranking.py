"""Exact top-k of a partition, using torch's sort."""

from __future__ import annotations

import torch
from torch import Tensor


def top_k(maximum: Tensor, position: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rank the rows for each unit; see `actstats_kernels.ops.top_k`."""
    units = maximum.shape[1]
    order = torch.where(maximum.isnan(), -torch.inf, maximum).argsort(dim=0, descending=True, stable=True)[:k]
    taken = maximum.gather(0, order)
    held = ~taken.isnan()
    value = torch.full((units, k), torch.nan)
    row = torch.full((units, k), -1, dtype=torch.int64)
    where = torch.full((units, k), -1, dtype=torch.int32)
    value[:, : len(order)] = taken.T
    row[:, : len(order)] = torch.where(held, order, -1).T
    where[:, : len(order)] = torch.where(held, position.gather(0, order), -1).T
    return value, row, where
