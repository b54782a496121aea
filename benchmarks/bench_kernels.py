"""Compare the fused kernel with plain torch operations and with the float64 reference, by shape of the maps.

    pytest benchmarks/bench_kernels.py -o addopts= --benchmark-only

All implementations compute the same statistics of the same maps, in channels_last format as networks return them.
Compare the rows within a group. `--benchmark-json` saves them, and `tables.py` turns them into the documentation's
tables.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from plain_torch import plain_histogram, plain_moments, plain_pairs, plain_power
from torch import Tensor

from actstats_kernels import ops, reference
from actstats_kernels.bins import FREQUENCY_BINS, HISTOGRAM_BINS

BATCH = 32
SHAPES = [(64, 112), (192, 56), (128, 28), (208, 14), (384, 7), (1000, 1), (32, 149)]
STATISTICS = ["moments", "histogram", "spectrum", "everything"]


def fused(x: Tensor, what: str) -> Callable[[], None]:
    images, channels = x.shape[:2]
    wanted = {what} if what != "everything" else set(STATISTICS)
    buffers = (
        torch.empty(5, images, channels) if "moments" in wanted else None,
        torch.empty(images, channels, dtype=torch.int32) if "moments" in wanted else None,
        torch.zeros(channels, HISTOGRAM_BINS, dtype=torch.int32) if "histogram" in wanted else None,
        torch.zeros(channels, FREQUENCY_BINS, dtype=torch.float64) if "spectrum" in wanted else None,
    )
    return lambda: ops.accumulate(x, *buffers)


def plain(x: Tensor, what: str) -> Callable[[], None]:
    parts = {"moments": plain_moments, "histogram": plain_histogram, "spectrum": plain_power}
    chosen = [part for name, part in parts.items() if what in (name, "everything")]

    def run() -> None:
        for part in chosen:
            part(x)

    return run


def float64(x: Tensor, what: str) -> Callable[[], None]:
    parts = {"moments": reference.moments, "histogram": reference.histogram, "spectrum": reference.power}
    return lambda: [part(x) for name, part in parts.items() if what in (name, "everything")] and None


WAYS = {"fused": fused, "plain torch": plain, "float64 reference": float64}


PAIRED_WAYS = {
    "fused": lambda a, b, out: ops.compare(a, b, out),
    "plain torch": lambda a, b, out: plain_pairs(a, b),
    "float64 reference": lambda a, b, out: reference.compare(a, b),
}


def rectified(channels: int, size: int, rng: torch.Generator) -> Tensor:
    x = torch.randn(BATCH, channels, size, size, generator=rng).relu_()
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("what", STATISTICS)
@pytest.mark.parametrize(("channels", "size"), SHAPES, ids=[f"{c}x{s}x{s}" for c, s in SHAPES])
def test_kernel(benchmark, channels, size, what, way):
    """Time one call on a batch of rectified normal maps."""
    benchmark.group = f"{what}, {channels} x {size} x {size}"
    rng = torch.Generator().manual_seed(0)
    x = rectified(channels, size, rng)
    with torch.inference_mode():
        rounds = 1 if way == "float64 reference" else 9
        benchmark.pedantic(WAYS[way](x, what), rounds=rounds, warmup_rounds=rounds // 9)
    benchmark.extra_info.update(shape=f"{channels} x {size} x {size}", what=what, way=way)


@pytest.mark.parametrize("way", PAIRED_WAYS)
@pytest.mark.parametrize(("channels", "size"), SHAPES, ids=[f"{c}x{s}x{s}" for c, s in SHAPES])
def test_pairs(benchmark, channels, size, way):
    """Time the comparison of two batches of rectified normal maps."""
    benchmark.group = f"pairs, {channels} x {size} x {size}"
    rng = torch.Generator().manual_seed(0)
    clean, changed = rectified(channels, size, rng), rectified(channels, size, rng)
    out = torch.empty(2, BATCH, channels)
    with torch.inference_mode():
        rounds = 1 if way == "float64 reference" else 9
        benchmark.pedantic(PAIRED_WAYS[way], (clean, changed, out), rounds=rounds, warmup_rounds=rounds // 9)
    benchmark.extra_info.update(shape=f"{channels} x {size} x {size}", what="pairs", way=way)
