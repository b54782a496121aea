"""What the GPU kernels must read and multiply, counted from the launch parameters: floors, not measurements.

    python benchmarks/gpu_costs.py

writes the tables of docs/gpu.md to `docs/measured/`: resources (from tests/kernels/resources.json), counted costs of
the four networks, and the error of each precision of the spectrum, found with emulated rounding on the CPU.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

HERE = Path(__file__).parent
MEASURED = HERE.parent / "docs" / "measured"
RESOURCES = HERE.parent / "tests" / "kernels" / "resources.json"

# NVIDIA's H100 data sheet, SXM: 3.35 TB/s, and 989 TFLOP/s of TF32 with sparsity, half of it without.
H100_BYTES = 3.35e12
H100_TF32 = 494.7e12


@dataclass(frozen=True)
class Cost:
    """Of one image's maps of one layer: values, least and most reads of each from memory, spectrum operations.

    `useful` is what the two products of a map take, `executed` what one such pair takes with padding and with what is
    computed again for each block of coefficients.
    """

    values: int
    least_reads: int
    most_reads: int
    useful: float
    executed: float


def cost(channels: int, height: int, width: int) -> Cost:
    """Count the cost of one layer for an image."""
    from actstats_kernels.gpu import launch

    if height == 1:
        height, width = width, 1
    tiles, apart = launch.choose(height, width, channels)
    size = height * width
    kind = (apart or tiles).spectrum
    useful = executed = 0.0
    padded_h, padded_w = (
        _padded(n, d) for n, d in ((height, (apart or tiles).depth_h), (width, (apart or tiles).depth_w))
    )
    u, v = (apart or tiles).u, (apart or tiles).v
    blocks = apart.blocks if apart else 1
    if kind == "vector":
        useful = 2.0 * size * size
        executed = 2.0 * _padded(size, (apart or tiles).depth_w) * v * blocks
    elif kind == "map":
        useful = 2.0 * size * (height + width)
        executed = 2.0 * u * padded_w * (padded_h + v) * blocks
    # Histogram and fused spectrum look at a map again, from a cache if the maps of all running programs fit there.
    return Cost(
        channels * size,
        1 + (apart is not None),
        2 + (apart is not None),
        channels * useful,
        channels * executed,
    )


def _padded(n: int, to: int) -> int:
    return -(-n // to) * to


def emulated_error(size: int, precision: str, maps: int = 64) -> float:
    """Return the greatest error of a radial bin relative to the map's whole power, with emulated rounding.

    TF32 keeps 10 bits of the mantissa; the others are cut off, as the matrix units may do. Sums are in f32.
    """
    from actstats_kernels import bins, reference
    from actstats_kernels.gpu.basis import real_fourier

    x = torch.randn(maps, 1, size, size, generator=torch.Generator().manual_seed(0)).relu()
    basis64, frequency = real_fourier(size)
    basis = torch.from_numpy(basis64).float()
    mean = x.mean((-2, -1), keepdim=True)
    half = _product(basis, x - mean, precision)
    energy = _product(half, basis.T, precision).square().double().flatten(1) / size**2
    ring = torch.from_numpy(bins.radial_bins(size, size)[frequency[:, None], frequency[None, :]].flatten())
    found = torch.zeros(maps, bins.FREQUENCY_BINS, dtype=torch.float64).index_add_(1, ring, energy)
    found[:, 0] = mean.flatten().double().square()
    expected = reference.power(x)[:, 0]
    return float(((found - expected).abs() / expected.sum(1, keepdim=True)).max())


def _product(a: Tensor, b: Tensor, precision: str) -> Tensor:
    if precision == "ieee":
        return a @ b
    great_a, great_b = _cut(a), _cut(b)
    if precision == "tf32":
        return great_a @ great_b
    return _cut(a - great_a) @ great_b + great_a @ _cut(b - great_b) + great_a @ great_b


def _cut(x: Tensor) -> Tensor:
    return (x.contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32)


def resources_table() -> str:
    """Return the table of registers, shared memory and spills."""
    from tables import table

    kept = json.loads(RESOURCES.read_text())
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for k in kept["kernels"]:
        cells = rows.setdefault((k["kernel"], f"{k['height']} x {k['width']}"), {})
        spilled = f", spills {k['spilled']}" if k["spilled"] else ""
        cells[f"{k['target']} {k['dtype']}"] = f"{k['registers']} / {k['shared'] / 1024:.0f}{spilled}"
    columns = list(dict.fromkeys(f"{k['target']} {k['dtype']}" for k in kept["kernels"]))
    order = sorted(rows, key=lambda key: (key[0], int(key[1].split()[0])))
    text = table(
        ["kernel and maps", *columns],
        [[f"{kernel}, {maps}", *(rows[kernel, maps].get(c, "") for c in columns)] for kernel, maps in order],
    )
    return f"{text}\nRegisters a thread / KiB of shared memory a program; Triton {kept['triton']}.\n"


def costs_table() -> str:
    """Return the table of what one image of each network costs, and the floors on an H100."""
    from tables import table

    rows = []
    for network, layers in json.loads(RESOURCES.read_text())["networks"].items():
        each = [(number, cost(*shape)) for number, *shape in layers]
        values, least, most = (
            sum(number * c.values * reads for number, c in each for reads in [getattr(c, name, 1)])
            for name in ("", "least_reads", "most_reads")
        )
        useful, executed = (
            sum(number * getattr(c, name) for number, c in each) for name in ("useful", "executed")
        )
        micro = [2 * n / H100_BYTES * 1e6 for n in (values, least, most)]
        rows.append(
            [
                network,
                f"{values / 1e6:.2f}",
                f"{2 * values / 1e6:.1f}",
                *(f"{t:.1f}" for t in micro),
                f"{useful / 1e9:.2f}",
                f"{3 * executed / 1e9:.2f}",
                f"{3 * executed / H100_TF32 * 1e6:.1f}",
            ]
        )
    return table(
        [
            "an image of",
            "values (M)",
            "bytes, bf16 (MB)",
            "one read (µs)",
            "least reads of all kernels (µs)",
            "most reads (µs)",
            "spectrum (GFLOP)",
            "executed, tf32x3 (GFLOP)",
            "at dense peak (µs)",
        ],
        rows,
    )


def precision_table() -> str:
    """Return the table of errors by precision and size of map."""
    from tables import table

    sizes = (7, 14, 28, 56, 112, 224)
    rows = [[p, *(f"{emulated_error(n, p):.0e}" for n in sizes)] for p in ("ieee", "tf32x3", "tf32")]
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
