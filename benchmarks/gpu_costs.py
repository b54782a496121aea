"""Count what the GPU kernels must read and multiply, from the launch parameters: lower bounds, not measurements.

    python benchmarks/gpu_costs.py

writes the tables of docs/gpu-kernels.md to `docs/measured/`: resources (from tests/kernels/resources.json), counted
costs of the four networks, and the error of each precision of the spectrum, computed with emulated rounding on the
CPU. `gpu_report.py` compares measured times with those expected from the counts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

HERE = Path(__file__).parent
MEASURED = HERE.parent / "docs" / "measured"
RESOURCES = HERE.parent / "tests" / "kernels" / "resources.json"

# NVIDIA's H100 data sheet, SXM: 3.35 TB/s; 989 and 1979 TFLOP/s of TF32 and bf16 with sparsity, half without.
H100_BYTES = 3.35e12
H100_TF32 = 494.7e12
H100_BF16 = 989.4e12
BATCH = 256


@dataclass(frozen=True)
class Cost:
    """Costs of one layer for one image: values, reads of each from memory, and operations of the spectrum.

    `useful` counts the operations of the two products of a map. `executed` counts all bf16 operations: with padding,
    two or three products for one, repeated work for each block of coefficients, and the sums by ring, once for the
    images that a program takes from a batch of 256. `unfolded` counts the operations without mirrored pairs, as three
    products of TF32, as in an earlier version of the kernels.
    """

    values: int
    reads: int
    useful: float
    executed: float
    unfolded: float


def cost(channels: int, height: int, width: int, itemsize: int = 2) -> Cost:
    """Return the cost of one layer for one image, with bf16 maps, or f32 maps if `itemsize` is 4."""
    from actstats_kernels.bins import FREQUENCY_BINS
    from actstats_kernels.gpu import launch

    if height == 1:
        height, width = width, 1
    tiles = launch.choose(height, width, channels, itemsize)
    spectrum = tiles.spectrum
    size = height * width
    down = 2 if itemsize == 2 else 3
    useful = executed = unfolded = 0.0
    if spectrum.kind == "vector":
        useful = 2.0 * size * size
        executed = 2.0 * down * _padded(size, spectrum.depth_w) * spectrum.pitch_v
        block = min(launch.power_of_two(size), 128)
        unfolded = 3 * 2.0 * _padded(size, 32) * _padded(size, max(block, 16))
    elif spectrum.kind == "map":
        useful = 2.0 * size * (height + width)
        parities = 1 + spectrum.fold
        padded_h, padded_w = _padded(height, spectrum.depth_h), _padded(spectrum.points, spectrum.depth_w)
        across = spectrum.pitch_v // spectrum.v
        executed = (
            2.0 * spectrum.pitch_u * padded_w * parities * (down * padded_h * across + 3 * spectrum.pitch_v)
        )
        rows, columns = _padded(height, 16), _padded(width, 16)
        block = max(min(launch.power_of_two(width), 128), 16)
        unfolded = 3 * 2.0 * rows * columns * (rows * -(-width // block) + _padded(width, block))
    if useful:
        slots = _padded(FREQUENCY_BINS, 32)
        executed += (
            2
            * 2.0
            * spectrum.pitch_u
            * spectrum.pitch_v
            * slots
            / _additions(tiles, channels, size, itemsize)
        )
    # Reading a map again is a read from memory unless the maps of a program stay in the cache.
    cached = launch.cached_rounds(tiles, size, itemsize) > 0
    reads = 1 + tiles.apart + (not cached)
    return Cost(channels * size, reads, channels * useful, channels * executed, channels * unfolded)


# The efficiency expected before any run on a GPU: the latency of reads is not fully hidden; products of few rows wait
# for their operands; additions to the same slot are serialised.
SHARE_OF_COPY, SHARE_OF_PEAK, SHARE_OF_SLOTS = 0.7, 0.25, 0.5
# 132 multiprocessors, each with 32 words of shared memory per cycle, at 1.7 GHz.
H100_WORDS = 132 * 32 * 1.7e9


def expected(choice: str, channels: int, height: int, width: int, itemsize: int = 2) -> float:
    """Return the seconds that an H100 should take for one image's maps of a layer, for a `choice` from `CHOICES`.

    This is the time of the reads that `cost` counts; for the spectrum, of its operations; for the histogram, of an
    atomic addition to shared memory per value, and its share of clearing and reading the slots.
    """
    from gpu_bench import CHOICES

    from actstats_kernels.gpu import histogram, launch

    if height == 1:
        height, width = width, 1
    counted = cost(channels, height, width, itemsize)
    tiles = launch.choose(height, width, channels, itemsize)
    wanted = CHOICES[choice]
    reads = counted.reads if len(wanted) > 2 else 1 + (tiles.apart and "power" in wanted)
    seconds = reads * counted.values * itemsize / (SHARE_OF_COPY * H100_BYTES)
    if "power" in wanted:
        seconds += counted.executed / (SHARE_OF_PEAK * H100_BF16)
    if "histogram" in wanted and height * width > 1:
        words = 1 + 2 * int(histogram.SLOTS) / tiles.positions
        seconds += words * counted.values / (SHARE_OF_SLOTS * H100_WORDS)
    return seconds


def _additions(tiles: Any, channels: int, size: int, itemsize: int) -> int:
    """Return how often a program accumulates energies of a batch before it sums them by ring."""
    from actstats_kernels.gpu import launch

    spectrum = tiles.spectrum
    blocks = -(-channels // tiles.channels)
    if tiles.apart:
        return launch.rounds(blocks * spectrum.blocks, BATCH // spectrum.images, BATCH)
    groups = -(-BATCH // tiles.images)
    rounds = launch.rounds(blocks, groups, launch.cached_rounds(tiles, size, itemsize))
    return -(-rounds * tiles.images // spectrum.images)


def _padded(n: int, to: int) -> int:
    return -(-n // to) * to


def emulated_error(size: int, precision: str, dtype: torch.dtype = torch.float32, maps: int = 64) -> float:
    """Return the greatest error of a radial bin relative to the map's whole power, with emulated rounding.

    As in the kernels, products are of bf16 parts and sums are in f32.
    """
    from actstats_kernels import bins, reference
    from actstats_kernels.gpu.basis import real_fourier

    x = torch.randn(maps, 1, size, size, generator=torch.Generator().manual_seed(0)).relu().to(dtype)
    basis64, frequency = real_fourier(size)
    basis = torch.from_numpy(basis64)
    mean = x.float().mean((-2, -1), keepdim=True)
    if dtype == torch.bfloat16 and precision != "ieee":
        high, low = _parts(basis)
        half = low @ x.float() + high @ x.float()
        half[..., 0, :] -= mean[..., 0, :] * size**0.5
    else:
        half = _product(basis, x.float() - mean, precision)
    energy = _product(half, basis.T, precision).square().double().flatten(1) / size**2
    ring = torch.from_numpy(bins.radial_bins(size, size)[frequency[:, None], frequency[None, :]].flatten())
    found = torch.zeros(maps, bins.FREQUENCY_BINS, dtype=torch.float64).index_add_(1, ring, energy)
    found[:, 0] = mean.flatten().double().square()
    expected = reference.power(x)[:, 0]
    return float(((found - expected).abs() / expected.sum(1, keepdim=True)).max())


def _product(a: Tensor, b: Tensor, precision: str) -> Tensor:
    if precision == "ieee":
        return a.float() @ b.float()
    (high_a, low_a), (high_b, low_b) = _parts(a), _parts(b)
    return low_a @ high_b + high_a @ low_b + high_a @ high_b


def _parts(x: Tensor) -> tuple[Tensor, Tensor]:
    high = x.bfloat16().to(x.dtype)
    return high.float(), (x - high).bfloat16().float()


def resources_table() -> str:
    """Return the table of registers, shared memory and spills."""
    from tables import table

    kept = json.loads(RESOURCES.read_text())
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for k in kept["kernels"]:
        cells = rows.setdefault((k["kernel"], f"{k['height']} x {k['width']}"), {})
        spilled = f", spills {k['spilled']}" if k["spilled"] else ""
        # Of kernels that differ only in channels, keep the first, which has the widest block.
        cells.setdefault(
            f"{k['target']} {k['dtype']}", f"{k['registers']} / {k['shared'] / 1024:.0f}{spilled}"
        )
    columns = list(dict.fromkeys(f"{k['target']} {k['dtype']}" for k in kept["kernels"]))
    order = sorted(rows, key=lambda key: (key[0], int(key[1].split()[0])))
    text = table(
        ["kernel and maps", *columns],
        [[f"{kernel}, {maps}", *(rows[kernel, maps].get(c, "") for c in columns)] for kernel, maps in order],
    )
    return f"{text}\nRegisters per thread / KiB of shared memory per program; Triton {kept['triton']}.\n"


def costs_table() -> str:
    """Return the table of the cost of one image for each network, with lower bounds of the time on an H100."""
    from tables import table

    rows = []
    for network, layers in json.loads(RESOURCES.read_text())["networks"].items():
        each = [(number, cost(*shape)) for number, *shape in layers]
        values = sum(number * c.values for number, c in each)
        read = sum(number * c.values * c.reads for number, c in each)
        useful, executed, unfolded = (
            sum(number * getattr(c, name) for number, c in each)
            for name in ("useful", "executed", "unfolded")
        )
        wide = sum(number * cost(*shape, 4).executed for number, *shape in layers)  # type: ignore[call-arg]
        rows.append(
            [
                network,
                f"{values / 1e6:.2f}",
                f"{2 * values / 1e6:.1f}",
                *(f"{2 * n / H100_BYTES * 1e6:.1f}" for n in (values, read)),
                f"{useful / 1e9:.2f}",
                f"{unfolded / 1e9:.2f}",
                f"{unfolded / H100_TF32 * 1e6:.1f}",
                f"{executed / 1e9:.2f}",
                f"{executed / H100_BF16 * 1e6:.1f}",
                f"{wide / H100_BF16 * 1e6:.1f}",
            ]
        )
    return table(
        [
            "one image of",
            "values (M)",
            "bytes, bf16 (MB)",
            "one read (µs)",
            "reads of all kernels (µs)",
            "spectrum (GFLOP)",
            "before: tf32x3, unfolded (GFLOP)",
            "at peak (µs)",
            "now: bf16 maps (GFLOP)",
            "at peak (µs)",
            "f32 maps, at peak (µs)",
        ],
        rows,
    )


def precision_table() -> str:
    """Return the table of errors by precision and size of map."""
    from tables import table

    sizes = (7, 14, 28, 56, 112, 224)
    rows = [
        [f"{p}, {name} maps", *(f"{emulated_error(n, p, dtype):.0e}" for n in sizes)]
        for p, name, dtype in (
            ("ieee", "f32", torch.float32),
            ("bf16x3", "f32", torch.float32),
            ("bf16x3", "bf16", torch.bfloat16),
        )
    ]
    return table(["precision", *(f"{n} x {n}" for n in sizes)], rows)


def main() -> None:
    MEASURED.mkdir(exist_ok=True)
    for name, made in (
        ("resources", resources_table),
        ("costs", costs_table),
        ("precision", precision_table),
    ):
        (MEASURED / f"gpu_{name}.md").write_text(made())


if __name__ == "__main__":
    main()
