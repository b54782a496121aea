"""CPU kernels: numba on vectors of 16 channels, on torch's own threads.

`accumulate` makes one pass over a batch of maps, `compare` one over two batches; see `actstats_kernels.ops`.
"""

from actstats_kernels.cpu.fused import accumulate
from actstats_kernels.cpu.pairs import compare

__all__ = ["accumulate", "compare"]
