"""Report on the GPU kernels on this machine: their correctness, speed, and cost for a sweep.

    python benchmarks/gpu_report.py                  on a GPU: writes benchmarks/results/gpu.json and gpu.md
    python benchmarks/gpu_report.py --dry-run        on any machine: every stage, tiny, in Triton's interpreter
    python benchmarks/gpu_report.py --wheels FOLDER  missing packages are taken from wheels; installs nothing
    python benchmarks/gpu_report.py --stages check kernels      only some of the stages
    python benchmarks/gpu_report.py --read gpu.json  the tables of an earlier report, and its unexpected results

Needs torch and triton; torchvision for the networks; and zarr and the other dependencies of a sweep for the sweeps. A
stage that cannot run records why, and the others run. The most important stages come first, and each row is written
to the file as soon as it is measured, so that a run that is ended early keeps its results.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpu_bench import CHOICES, KERNEL_CHOICES, Bench, buffers, maps
from gpu_compile import CHECKED, CHECKED_DRY, compiling
from gpu_sweeps import compiled, forwards, jpegs, other_forwards, sweeps
from gpu_trace import trace

HERE = Path(__file__).parent
MOST_ERROR = 1e-5


def machine(b: Bench) -> Iterator[dict[str, Any]]:
    import triton

    # Of absolute paths only the names, since the report is published.
    options = [Path(given).name if Path(given).is_absolute() else given for given in sys.argv[1:]]
    found = {
        "command": " ".join(["python", "benchmarks/gpu_report.py", *options]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": "none: dry run in Triton's interpreter",
        "torch": b.torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }
    if b.device.type == "cuda":
        properties = b.torch.cuda.get_device_properties(b.device)
        found |= {"device": properties.name, "memory": properties.total_memory, "cuda": b.torch.version.cuda}
        found |= {"multiprocessors": properties.multi_processor_count, "driver": _driver()}
    source = b.torch.empty(2**16 if b.dry else 2**30, dtype=b.torch.uint8, device=b.device)
    target = b.torch.empty_like(source)
    seconds = b.device_seconds(lambda: target.copy_(source))
    yield {**found, "copy GB/s": 2 * source.numel() / seconds / 1e9}


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return ran.stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"


def check(b: Bench) -> Iterator[dict[str, Any]]:
    """Check every statistic against the float64 reference; integers, and the bytes of a second run, must be equal."""
    from actstats_kernels import gpu, reference

    for shape in CHECKED_DRY if b.dry else CHECKED:
        for name, dtype in {**b.dtypes, "f16": b.torch.float16}.items():
            for contiguous in (False, True):
                x = maps(b, shape, dtype)
                x = x.contiguous() if contiguous else x
                x[0, 0, 0, 0] = b.torch.nan
                found, again = (buffers(b, *x.shape[:2], CHOICES["everything"]) for _ in range(2))  # type: ignore[call-arg]
                gpu.accumulate(x, *found)
                gpu.accumulate(x, *again)
                moments, argmax, histogram, power = found
                expected, spectra = reference.moments(x), reference.power(x).nansum(0)
                size = expected.abs().nan_to_num().amax((1, 2), keepdim=True).clamp_min(1e-30)
                wrong = ((moments.double() - expected).abs() / size).nan_to_num()
                total = spectra.sum(1, keepdim=True).clamp_min(1e-30)
                row = {"maps": list(x.shape), "dtype": name, "contiguous": contiguous}
                row |= {
                    "moments": wrong.max().item(),
                    "spectrum": ((power - spectra).abs() / total).max().item(),
                }
                exact = {
                    "same NaN": b.torch.equal(moments.isnan(), expected.isnan()),
                    "argmax equal": b.torch.equal(argmax, reference.argmax(x)),
                    "histogram equal": b.torch.equal(histogram.long(), reference.histogram(x)),
                    "same bytes again": all(
                        b.torch.equal(_bytes(b, one), _bytes(b, two))
                        for one, two in zip(found, again, strict=True)
                    ),
                }
                right = all(exact.values()) and max(row["moments"], row["spectrum"]) <= MOST_ERROR
                yield {**row, **exact, "right": right}
    yield _ranking(b)


def _bytes(b: Bench, x: Any) -> Any:
    return x.contiguous().view(b.torch.uint8)


def _ranking(b: Bench) -> dict[str, Any]:
    from actstats_kernels import ranking, reference

    rows, units = (20, 7) if b.dry else (1024, 64)
    maximum = b.torch.randn(rows, units).round(decimals=2)
    position = b.torch.zeros(rows, units, dtype=b.torch.int32)
    found = ranking.top_k(maximum.to(b.device), position.to(b.device), 16)
    expected = reference.top_k(maximum, position, 16)
    right = all(b.torch.equal(a.cpu(), e) for a, e in zip(found, expected, strict=True))
    return {"maps": f"top-k of {rows} x {units}", "right": right}


def kernels(b: Bench) -> Iterator[dict[str, Any]]:
    """Time each choice of statistics on each shape, with the time expected of an H100."""
    from gpu_costs import cost, expected

    from actstats_kernels import gpu

    bandwidth = b.report["machine"][0]["copy GB/s"]
    for name, dtype in b.dtypes.items():
        for channels, height, width in b.shapes:
            x = maps(b, (b.batch, channels, height, width), dtype)
            size = channels, height, width, x.element_size()
            for choice, wanted in KERNEL_CHOICES.items():
                into = buffers(b, b.batch, channels, wanted)
                seconds = b.device_seconds(lambda x=x, into=into: gpu.accumulate(x, *into))
                rate = x.numel() * x.element_size() / seconds / 1e9
                row = {"maps": list(x.shape), "dtype": name, "what": choice, "ms": 1e3 * seconds}
                row |= {"GB/s of one read": rate, "share of copy": rate / bandwidth}
                if choice in CHOICES:
                    row["over expected"] = seconds / (b.batch * expected(choice, *size))
                if "power" in wanted:
                    row["TFLOP/s executed"] = b.batch * cost(*size).executed / seconds / 1e12
                yield row


def plain(b: Bench) -> Iterator[dict[str, Any]]:
    """Time the statistics in plain torch operations on each shape, and the ranking."""
    from plain_torch import plain_histogram, plain_moments, plain_power

    from actstats_kernels import ranking

    ways = {
        "moments": plain_moments,
        "spectrum": plain_power,
        "everything": lambda x: (plain_moments(x), plain_histogram(x), plain_power(x)),
    }
    for channels, height, width in b.shapes:
        x = maps(b, (b.batch, channels, height, width), b.torch.bfloat16)
        for choice, way in ways.items():
            row = {"maps": list(x.shape), "dtype": "bf16", "what": f"plain torch, {choice}"}
            try:
                row["ms"] = 1e3 * b.device_seconds(lambda x=x, way=way: way(x), repeats=3)
            except b.torch.OutOfMemoryError:
                row["ms"] = "out of memory"
            yield row
    rows, units = (20, 7) if b.dry else (1024, 7280)
    maximum = b.torch.randn(rows, units, device=b.device)
    position = b.torch.zeros(rows, units, dtype=b.torch.int32, device=b.device)
    yield {"what": "top-k", "ms": 1e3 * b.device_seconds(lambda: ranking.top_k(maximum, position, 16))}


def everything_else(b: Bench) -> Iterator[dict[str, Any]]:
    """Run the measurements that explain the earlier stages."""
    yield from other_forwards(b)
    yield from plain(b)


# Each stage with the most seconds that it may take.
STAGES = {
    "machine": (machine, 30),
    "compile": (compiling, 120),
    "check": (check, 60),
    "forward": (forwards, 60),
    "kernels": (kernels, 30),
    "trace": (trace, 30),
    "compiled": (compiled, 90),
    "sweeps": (sweeps, 60),
    "JPEGs": (jpegs, 60),
    "everything else": (everything_else, 120),
}


def surprises(report: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Return what is unexpected: wrong results, failures, and times off by a factor of more than two.

    >>> surprises({"kernels": [{"what": "spectrum", "dtype": "f32", "maps": [1], "over expected": 3.5}]})
    ['kernels: spectrum f32 [1]: 3.5 of the expected time']
    """
    found = []
    for stage, rows in report.items():
        for row in rows:
            name = " ".join(str(row[key]) for key in ("network", "what", "dtype", "maps") if key in row)
            if "failed" in row:
                found.append(f"{stage}: {row['failed']}")
            if row.get("right") is False:
                found.append(f"{stage}: {name}: wrong")
            if not 0.5 <= row.get("over expected", 1) <= 2:
                found.append(f"{stage}: {name}: {row['over expected']:.3g} of the expected time")
    return found


def markdown(report: dict[str, list[dict[str, Any]]]) -> str:
    """Return the report as tables, after a list of unexpected results."""
    parts = [f"# {report['machine'][0]['device']}\n"]
    parts += [f"- {line}" for line in surprises(report)]
    for name, rows in report.items():
        parts.append(f"\n## {name}\n")
        columns = list(dict.fromkeys(key for row in rows for key in row))
        parts += [" | ".join(["", *columns, ""]).strip(), "|" + " --- |" * len(columns)]
        parts += [" | ".join(["", *(_cell(row.get(c, "")) for c in columns), ""]).strip() for row in rows]
    return "\n".join(parts) + "\n"


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_cell(each)}" for key, each in value.items())
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def unpack(wheels: Path, into: Path) -> None:
    """Make the wheels of a folder importable, with lower priority than installed packages."""
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(into)
    sys.path.append(str(into))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="run tiny sizes on the CPU, in Triton's interpreter, without limits of time",
    )
    parser.add_argument(
        "--seconds", type=float, default=400, help="stop after this many seconds (default 400)"
    )
    parser.add_argument(
        "--stages", nargs="+", choices=list(STAGES), default=list(STAGES), metavar="NAME",
        help=f"run only some of the stages: {', '.join(STAGES)}; the first one always runs",
    )  # fmt: skip
    parser.add_argument("--wheels", type=Path, help="a folder of wheels")
    parser.add_argument("--read", type=Path, help="print the tables of a report's JSON and run nothing")
    parser.add_argument(
        "--out",
        type=Path,
        default=HERE / "results" / "gpu.json",
        help="JSON file of the results; tables go to .md beside it",
    )
    options = parser.parse_args()
    if options.read:
        print(markdown(json.loads(options.read.read_text())))
        return
    with tempfile.TemporaryDirectory() as folder:
        if options.wheels:
            unpack(options.wheels, Path(folder))
        report = run(options.dry_run, options.seconds, options.out, options.stages)
    print(markdown(report))
    if wrong := [row for row in report.get("check", []) if not row.get("right")]:
        raise SystemExit(f"{len(wrong)} checks failed or did not run, first: {wrong[0]}")


def run(dry: bool, seconds: float, out: Path, stages: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Run some of the stages, and return the content of `out` and of the tables beside it."""
    if dry:
        # Triton reads the variable when a kernel is defined.
        os.environ["TRITON_INTERPRET"] = "1"
    import torch

    if not dry and not torch.cuda.is_available():
        raise SystemExit("torch sees no CUDA device here; --dry-run shows that the script runs")
    b = Bench(dry, math.inf if dry else seconds, out)
    for name, (work, limit) in STAGES.items():
        if name == "machine" or name in stages:
            b.stage(name, work, math.inf if dry else limit)
            out.with_suffix(".md").write_text(markdown(b.report))
    return b.report


if __name__ == "__main__":
    main()
