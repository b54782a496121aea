"""The top-k of a partition by torch's own selection, with a defined order of equal values."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

_AT_ONCE: Final = 512
"""Units that a CPU ranks at once, so that their keys stay in its cache."""
_EMPTY: Final = torch.iinfo(torch.int64).min


def top_k(maximum: Tensor, position: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rank the rows of `maximum` f32 [P, U] for each unit: see `ops.top_k`."""
    rows, units = maximum.shape
    taken = min(k, rows)
    at_once = _AT_ONCE if maximum.device.type == "cpu" else max(units, 1)
    ranked = [_keys(values).topk(taken, dim=1) for values in torch.split(maximum, at_once, dim=1)]
    best, row = (torch.cat(parts) for parts in zip(*ranked, strict=True))
    empty = best == _EMPTY
    value = maximum.T.gather(1, row).masked_fill(empty, torch.nan)
    where = position.T.gather(1, row).masked_fill(empty, -1)
    row = row.masked_fill(empty, -1)
    if taken == k:
        return value, row, where
    return _extended(value, k, torch.nan), _extended(row, k, -1), _extended(where, k, -1)


def _keys(values: Tensor) -> Tensor:
    """Return for `values` f32 [P, U] integers, i64 [U, P], that order by value and then by the lower row.

    No two are equal, so the result of `torch.topk` is unique; but NaN is always the least integer.
    """
    # A new tensor; and -0.0 becomes 0.0, so that the two have the same bits.
    ordered = values.T.contiguous().add(0.0)
    excluded = ordered.isnan()
    bits = ordered.view(torch.int32)
    # The bits of negative numbers order the other way round.
    keys = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()
    last = len(values) - 1
    keys.bitwise_left_shift_(32).add_(last - torch.arange(last + 1, device=values.device))
    return keys.masked_fill_(excluded, _EMPTY)


def _extended(values: Tensor, k: int, fill: float) -> Tensor:
    return torch.nn.functional.pad(values, (0, k - values.shape[1]), value=fill)
