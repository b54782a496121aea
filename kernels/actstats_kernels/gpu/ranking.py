"""The top-k of a partition by torch's own selection, with a defined order of equal values."""

from __future__ import annotations

import torch
from torch import Tensor

_LOW = 2**32


def top_k(maximum: Tensor, position: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rank the rows of `maximum` f32 [P, U] for each unit: see `ops.top_k`.

    A value and its row are packed into one integer, which orders by value and then by the lower row. No two are
    equal, so the result of `torch.topk` is unique.
    """
    rows = maximum.shape[0]
    # Adding 0.0 turns -0.0 into 0.0, so that the two have the same bits.
    bits = (maximum + 0.0).contiguous().view(torch.int32)
    ordered = torch.where(bits >= 0, bits, bits ^ 0x7FFFFFFF).long()
    number = torch.arange(rows, device=maximum.device)[:, None]
    key = torch.where(maximum.isnan(), torch.iinfo(torch.int64).min, ordered * _LOW + (_LOW - 1 - number))
    taken = min(k, rows)
    best, row = key.T.topk(taken, dim=1)
    empty = best == torch.iinfo(torch.int64).min
    value = maximum.float().T.gather(1, row)
    where = position.int().T.gather(1, row)
    found = (value.masked_fill(empty, torch.nan), row.masked_fill(empty, -1), where.masked_fill(empty, -1))
    if taken == k:
        return found
    return (
        _extended(found[0], k, torch.nan),
        _extended(found[1], k, -1),
        _extended(found[2], k, -1),
    )


def _extended(values: Tensor, k: int, fill: float) -> Tensor:
    return torch.nn.functional.pad(values, (0, k - values.shape[1]), value=fill)
