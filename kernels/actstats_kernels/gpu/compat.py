"""Differences between versions of Triton and kinds of GPU, collected in one place."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import torch
import triton

VERSION: Final = tuple(int(part) for part in triton.__version__.split("+")[0].split(".")[:2])

COUNTS_ON_CHIP: Final = VERSION >= (3, 7)
"""Whether `tl.histogram` counts with one atomic per value in shared memory.

Older versions take a ballot for each bit of a bin's number and a population count for every 32 bins. For the
thousands of slots of a block of channels, this costs far more than a relaxed atomic per value in global memory.
"""

BATCHED_PRODUCTS: Final = VERSION >= (3, 3)
"""Whether `tl.dot` can be used with three axes; the compiler of Triton 3.2 fails on some."""

INTERPRETED: Final = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")
"""Whether kernels run in Triton's interpreter, which has no bf16 arithmetic."""

PRECISIONS: Final = ("bf16x3", "ieee")
"""Precisions of the matrix products, the default first."""

LAUNCH: Final = {"enable_fp_fusion": True, **({"num_stages": 1} if VERSION < (3, 3) else {})}
"""Options of every launch. Fused multiply-add is enabled explicitly, since the kernels are tested with it and the
default changes in Triton 3.10. The compiler of Triton 3.2 aborts if it pipelines loads of some f32 maps on sm_80."""


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context that makes the device of the maps the current one."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
