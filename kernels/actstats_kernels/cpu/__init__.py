"""The CPU's kernels: vectors of 16 channels in numba, on torch's own threads.

`accumulate` is one pass over a batch of maps, `top_k` the ranking of a partition; `actstats_kernels.ops` has their
contracts.
"""

from actstats_kernels.cpu.fused import accumulate
from actstats_kernels.cpu.ranking import top_k

__all__ = ["accumulate", "top_k"]
