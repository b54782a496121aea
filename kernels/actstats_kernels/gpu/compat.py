"""What differs between the versions of Triton and the kinds of GPU that the kernels run on: the one place for it."""

from __future__ import annotations

import os
from typing import Final

import triton

VERSION: Final = tuple(int(part) for part in triton.__version__.split("+")[0].split(".")[:2])

COUNTS_ON_CHIP: Final = VERSION >= (3, 7)
"""Whether `tl.histogram` counts by atomics in shared memory, one for each value.

Before, it took a ballot for each bit of a bin's number and a population count for each 32 bins: for the thousands of
slots of a block of channels that is far dearer than one relaxed atomic a value in global memory.
"""

BATCHED_PRODUCTS: Final = VERSION >= (3, 3)
"""Whether `tl.dot` takes three axes; the compiler of 3.2 fails on some."""

INTERPRETED: Final = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")
"""Whether kernels run in Triton's interpreter, which has no arithmetic of bf16."""

PRECISIONS: Final = ("bf16x3", "ieee")
"""How products may be computed, the default first."""

LAUNCH: Final = {"enable_fp_fusion": True, **({"num_stages": 1} if VERSION < (3, 3) else {})}
"""Options of every launch. Products and sums are fused on purpose: the kernels are held to their definitions with
it, and the default changes in Triton 3.10. The compiler of 3.2 aborts where it pipelines loads of some f32 maps, on
sm_80."""
