"""CPU kernels: numba on vectors of 16 channels, on torch's own threads.

`accumulate` makes one pass over a batch of maps, `compare` one over two batches, `top_k` ranks a partition;
`actstats_kernels.ops` documents all three.
"""

from actstats_kernels.cpu.fused import accumulate
from actstats_kernels.cpu.pairs import compare
from actstats_kernels.cpu.ranking import top_k

__all__ = ["accumulate", "compare", "top_k"]
