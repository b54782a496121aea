"""What each Triton kernel takes of a GPU, found by compiling without one: registers, shared memory, spills.

    python -m tests.kernels.resources            compile every kernel for every target, hold it against resources.json
    python -m tests.kernels.resources --write    the same, and keep what was found in resources.json
    python -m tests.kernels.resources --layers   also look anew at the layers of the networks, before

The kernels are those of a sweep with every statistic over the four networks' default layers, in channels_last memory.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from actstats_kernels import gpu
from actstats_kernels.gpu import kernels, launch, pairs
from actstats_kernels.gpu.layout import layout_of

TABLE = Path(__file__).with_name("resources.json")
TARGETS = {
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_80": GPUTarget("cuda", 80, 32),
}
DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}
NETWORKS = ("googlenet", "resnet50", "alexnet", "vgg16")

_FEW = 16
"""Bytes of stack: four registers."""
_POINTERS = {
    "moments": "*fp32",
    "pairs": "*fp32",
    "means": "*fp32",
    "argmax": "*i32",
    "histogram": "*i32",
    "scratch": "*fp32",
    "basis_h": "*bf16",
    "basis_w": "*bf16",
    "rings": "*i8",
}
_MAPS = {"bf16": "*bf16", "f32": "*fp32"}
_INPUTS = ("x", "clean", "changed")
_ALIGNED = (*_INPUTS, "basis_h", "basis_w", "rings")


@dataclass(frozen=True)
class Build:
    """One kernel, as it is compiled for maps of one size."""

    target: str
    dtype: str
    kernel: str
    height: int
    width: int
    channels: int


@dataclass(frozen=True)
class Usage:
    """Registers a thread, bytes of shared memory a program, bytes of stack spilled."""

    registers: int
    shared: int
    spilled: int


def layers() -> dict[str, list[list[int]]]:
    """The default layers of each network: [number of layers, channels, height, width]."""
    from actstats.layers import select_layers
    from actstats.models import load_model

    found = {}
    for name in NETWORKS:
        network = load_model(name, "none").model.to(memory_format=torch.channels_last)
        chosen = select_layers(network, torch.zeros(2, 3, 224, 224))
        shapes = Counter((layer.units, layer.height, layer.width) for layer in chosen)
        found[name] = [[number, *shape] for shape, number in sorted(shapes.items(), key=lambda s: s[0][::-1])]
    return found


def builds(networks: dict[str, list[list[int]]], target: str, dtype: str) -> Iterator[Build]:
    """Every distinct kernel that the networks' layers need."""
    seen = set()
    for shapes in networks.values():
        for _, channels, height, width in shapes:
            tiles = launch.choose(height, width, channels, DTYPES[dtype].itemsize)
            key = (height, width, tiles, channels % tiles.channels)
            if key not in seen:
                seen.add(key)
                yield Build(target, dtype, "accumulate", height, width, channels)
                if tiles.apart:
                    yield Build(target, dtype, "spectrum", height, width, channels)


def compiled(build: Build) -> Usage:
    """Compile one kernel as a launch would, and read back what it takes."""
    shape = (2, build.channels, build.height, build.width)
    x = torch.empty(shape, dtype=DTYPES[build.dtype], device="meta").to(memory_format=torch.channels_last)
    layout = layout_of(x)
    tiles = launch.choose(layout.height, layout.width, layout.channels, x.element_size())
    if build.kernel == "compare":
        return _usage(
            _compile(pairs.compare_kernel, pairs.constants(layout, layout), pairs.OPTIONS, build, set())
        )
    precision = gpu.products(x.dtype)
    if build.kernel == "accumulate":
        return _usage(
            _compile(
                kernels.accumulate_kernel,
                gpu.accumulate_constants(layout, tiles, precision),
                gpu.accumulate_options(tiles, with_power=not tiles.apart),
                build,
                {"scratch", "basis_h", "basis_w", "rings"} if tiles.apart else set(),
            )
        )
    constants = gpu.spectrum_constants(layout, tiles, precision)
    return _usage(_compile(kernels.spectrum_kernel, constants, gpu.spectrum_options(tiles), build, set()))


def _compile(
    kernel: Any, constants: dict[str, Any], options: dict[str, Any], build: Build, absent: set[str]
) -> Any:
    signature = {}
    for name in kernel.arg_names:
        if name in constants or name in absent:
            signature[name] = "constexpr"
        else:
            signature[name] = _MAPS[build.dtype] if name in _INPUTS else _POINTERS.get(name, "i32")
    source = ASTSource(
        kernel,
        signature,
        {name: constants.get(name) for name, kind in signature.items() if kind == "constexpr"},
        {
            (kernel.arg_names.index(name),): [["tt.divisibility", 16]]
            for name in _ALIGNED
            if name in kernel.arg_names and name not in absent
        },
    )
    return triton.compile(source, target=TARGETS[build.target], options=options)


def _usage(kernel: Any) -> Usage:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    number = {name: int(re.search(rf"\b{name}:(\d+)", text)[1]) for name in ("REG", "STACK", "LOCAL")}
    return Usage(number["REG"], kernel.metadata.shared, number["STACK"] + number["LOCAL"])


def kept() -> tuple[dict[str, Any], dict[Build, Usage]]:
    """What resources.json holds: all of it, and its kernels."""
    table = json.loads(TABLE.read_text())
    found = {}
    for row in table["kernels"]:
        usage = Usage(**{name: row.pop(name) for name in ("registers", "shared", "spilled")})
        found[Build(**row)] = usage
    return table, found


def worse(build: Build, found: Usage, before: Usage, version: str) -> str | None:
    """Return what a kernel takes more of than before, or None.

    Other versions of Triton allocate registers differently: with them, only a first spill of more than a few counts.
    """
    allowed = before.spilled if version == triton.__version__ else max(before.spilled, _FEW)
    if found.spilled > allowed and (version == triton.__version__ or not before.spilled):
        return f"{build} spills {found.spilled}, not {before.spilled}"
    if version == triton.__version__ and found.shared > before.shared:
        return f"{build} takes {found.shared} bytes of shared memory, not {before.shared}"
    if version == triton.__version__ and found.registers > before.registers:
        return f"{build} takes {found.registers} registers, not {before.registers}"
    return None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--layers", action="store_true")
    options = parser.parse_args()
    table, before = kept() if TABLE.exists() else ({}, {})
    networks = layers() if options.layers or not table else table["networks"]
    rows, failures = [], []
    for target in TARGETS:
        for dtype in DTYPES:
            for build in builds(networks, target, dtype):
                usage = compiled(build)
                print(*asdict(build).values(), *asdict(usage).values(), flush=True)
                rows.append({**asdict(build), **asdict(usage)})
                failures.append(worse(build, usage, before.get(build, usage), table.get("triton", "")))
    if options.write:
        lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
        head = {"triton": triton.__version__, "networks": networks}
        text = ",\n".join(f' "{key}": {json.dumps(value)}' for key, value in head.items())
        TABLE.write_text(f'{{\n{text},\n "kernels": [\n{lines}\n]}}\n')
    elif any(failures):
        raise SystemExit("\n".join(filter(None, failures)))


if __name__ == "__main__":
    main()
