"""Compare a sweep with the bare forward pass, and with the same loop with plain torch operations in the hooks.

    pytest benchmarks/bench_sweep.py -o addopts= --benchmark-only

Each round times the bare forward pass and then one way of computing statistics on the same batch, so that a ratio
compares measurements taken right after each other. Ratios are of medians; `--benchmark-json` saves them under
`extra_info`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest
import torch
from plain_torch import plain_statistics
from torch import Tensor

from actstats.layers import Layer, select_layers, watch
from actstats.metrics import resolve_metrics
from actstats.models import Loaded, load_model
from actstats.store import Schema
from actstats.sweeping.buffers import Buffers, Partition, PartitionLayout

BATCH = 32
ROUNDS = 7
MOMENTS = ["mean", "variance", "maximum", "active_fraction", "total_variation"]
CHOICES = {
    "moments": MOMENTS,
    "moments, histogram, top-k": [*MOMENTS, "histogram", "top"],
    "everything": [*MOMENTS, "histogram", "top", "power_spectrum"],
}


@pytest.fixture(scope="module", params=["googlenet", "resnet50"])
def network(request: pytest.FixtureRequest) -> tuple[Loaded, list[Layer], Tensor]:
    loaded = load_model(request.param, "none")
    loaded.model.to(memory_format=torch.channels_last)
    images = torch.rand(BATCH, *loaded.preprocessing.shape).contiguous(memory_format=torch.channels_last)
    return loaded, select_layers(loaded.model, images[:2]), images


def measure(
    benchmark: Callable[..., None], loaded: Loaded, images: Tensor, variant: Callable[[], None], name: str
) -> None:
    """Time `variant` after a bare forward pass in each round, and record the ratio."""
    bare: list[float] = []

    def forward() -> None:
        begun = time.perf_counter()
        loaded.model(images)
        bare.append(time.perf_counter() - begun)

    with torch.inference_mode():
        forward()
        variant()
        bare.clear()
        benchmark.pedantic(variant, setup=forward, rounds=ROUNDS)  # type: ignore[attr-defined]
    ratio = benchmark.stats.stats.median / statistics.median(bare)  # type: ignore[attr-defined]
    benchmark.extra_info.update(  # type: ignore[attr-defined]
        what=name,
        network=loaded.identity["arch"],
        batch=BATCH,
        threads=torch.get_num_threads(),
        over_forward=round(ratio, 3),
    )
    print(f"\n{loaded.identity['arch']}, {name}: {ratio:.3f} x the bare forward pass")


@pytest.mark.parametrize("name", CHOICES)
def test_sweep(benchmark, network, name):
    """Time the engine's hooks and partition buffers, with the ranking of one batch."""
    loaded, layers, images = network
    chosen = resolve_metrics(CHOICES[name])
    schema = Schema.of(chosen, layers, BATCH, partition_size=BATCH, top_k=16)
    layout = PartitionLayout(schema, chosen, torch.device("cpu"))
    buffers = Buffers(layout)
    partition = Partition(layout, buffers, 0)
    rows = torch.arange(BATCH).numpy()

    def variant() -> None:
        nonlocal partition
        partition = Partition(layout, buffers, 0)
        partition.begin_batch(rows)
        with watch(loaded.model, layers, lambda layer, maps: partition.update(layer, maps)):
            loaded.model(images)
        partition.finish()

    measure(benchmark, loaded, images, variant, name)


@pytest.mark.parametrize("name", ["moments", "everything"])
def test_plain_torch_hooks(benchmark, network, name):
    """Time the same statistics as a careful user would write them with torch operations."""
    loaded, layers, images = network

    def variant() -> None:
        with watch(
            loaded.model,
            layers,
            lambda _, maps: plain_statistics(maps, spectrum_and_bins=name == "everything"),
        ):
            loaded.model(images)

    measure(benchmark, loaded, images, variant, f"plain torch hooks, {name}")
