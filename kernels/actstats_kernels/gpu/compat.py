"""What differs between the versions of Triton and the kinds of GPU that the kernels run on: the one place for it."""

from __future__ import annotations

from typing import Final

import triton

VERSION: Final = tuple(int(part) for part in triton.__version__.split("+")[0].split(".")[:2])

COUNTS_ON_CHIP: Final = VERSION >= (3, 7)
"""Whether `tl.histogram` counts by atomics in shared memory, one for each value.

Before, it took a ballot for each bit of a bin's number and a population count for each 32 bins: for the thousands of
slots of a block of channels that is far dearer than one relaxed atomic a value in global memory.
"""

_THREEFOLD: Final = ("tf32x3",) if VERSION >= (3, 3) else ()
"""The compiler of 3.2 fails on a threefold product whose operand is another product, transposed."""

PRECISIONS: Final[dict[str, tuple[str, ...]]] = {
    "cuda": (*_THREEFOLD, "ieee", "tf32"),
    "hip": ("ieee", "tf32"),
}
"""The precisions of `tl.dot` on f32 that each backend has, the default first: the fastest that is as good as f32."""

LAUNCH: Final = {"enable_fp_fusion": True}
"""Options of every launch. Products and sums are fused on purpose: the kernels are held to their definitions with
it, and the default changes in Triton 3.10."""
