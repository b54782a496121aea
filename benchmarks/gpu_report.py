"""Check and time everything that runs on a GPU, in under eight minutes; write JSON and a Markdown table.

    python benchmarks/gpu_report.py                  on a GPU: writes benchmarks/results/gpu.json and gpu.md
    python benchmarks/gpu_report.py --dry-run        on any machine: each line runs, tiny, in Triton's interpreter

Needs torch and triton; torchvision for the networks; zarr and what else a sweep needs only for the last section.
A section that cannot run says why in the report, and the others run.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

from gpu_bench import CHOICES, Bench, buffers, maps
from gpu_sweeps import end_to_end, sweeps

HERE = Path(__file__).parent
CHECKED = [
    (8, 2, 24, 33, 17),
    (3, 2, 70, 1, 1),
    (2, 9, 1, 197, 64),
    (4, 64, 112, 112),
    (4, 64, 56, 56),
    (2, 4, 224, 224),
]


def machine(b: Bench) -> dict[str, Any]:
    import triton

    found = {
        "command": " ".join(["python", "benchmarks/gpu_report.py", *sys.argv[1:]]),
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
    return found


def copy_bandwidth(b: Bench) -> dict[str, float]:
    source = b.torch.empty(2**16 if b.dry else 2**30, dtype=b.torch.uint8, device=b.device)
    target = b.torch.empty_like(source)
    seconds = b.kernel_seconds(lambda: target.copy_(source))
    return {"GB/s": 2 * source.numel() / seconds / 1e9}


def check(b: Bench) -> list[dict[str, Any]]:
    """Every statistic against the float64 reference; integers have to be equal."""
    from actstats_kernels import gpu, reference

    rows = []
    for *images, channels, height, width in [(2, 9, 7, 7), (1, 3, 20, 17)] if b.dry else CHECKED:
        for name, dtype in {**b.dtypes, "f16": b.torch.float16}.items():
            for contiguous in (False, True):
                x = maps(b, (images[-1] if len(images) == 1 else images[0], channels, height, width), dtype)
                x = x.contiguous() if contiguous else x
                x[0, 0, 0, 0] = b.torch.nan
                moments, argmax, histogram, power = buffers(b, *x.shape[:2], CHOICES["everything"])
                gpu.accumulate(x, moments, argmax, histogram, power)
                expected, spectra = reference.moments(x), reference.power(x).nansum(0)
                size = expected.abs().nan_to_num().amax((1, 2), keepdim=True).clamp_min(1e-30)
                wrong = ((moments.double() - expected).abs() / size).nan_to_num()
                total = spectra.sum(1, keepdim=True).clamp_min(1e-30)
                rows.append(
                    {
                        "maps": list(x.shape),
                        "dtype": name,
                        "contiguous": contiguous,
                        "moments": wrong.max().item(),
                        "spectrum": ((power - spectra).abs() / total).max().item(),
                        "same NaN": b.torch.equal(moments.isnan(), expected.isnan()),
                        "argmax equal": b.torch.equal(argmax, reference.argmax(x)),
                        "histogram equal": b.torch.equal(histogram.long(), reference.histogram(x)),
                    }
                )
    return rows


def failures(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of `check` that are not right."""
    exact = ("same NaN", "argmax equal", "histogram equal")
    return [r for r in rows if not all(r[name] for name in exact) or max(r["moments"], r["spectrum"]) > 1e-5]


def ranking(b: Bench) -> dict[str, Any]:
    from actstats_kernels import gpu, reference

    rows, units = (20, 7) if b.dry else (1024, 7280)
    maximum = b.torch.randn(rows, units, device=b.device).round(decimals=2)
    position = b.torch.zeros(rows, units, dtype=b.torch.int32, device=b.device)
    few = maximum[:, :64].cpu(), position[:, :64].cpu()
    found, expected = gpu.top_k(*(t.to(b.device) for t in few), 16), reference.top_k(*few, 16)
    equal = all(b.torch.equal(a.cpu(), e) for a, e in zip(found, expected, strict=True))
    return {"equal": equal, "ms": 1e3 * b.kernel_seconds(lambda: gpu.top_k(maximum, position, 16))}


def kernels(b: Bench) -> list[dict[str, Any]]:
    """Each choice of statistics on each shape, and the same by plain torch operations."""
    from gpu_costs import cost
    from plain_torch import plain_histogram, plain_moments, plain_power

    from actstats_kernels import gpu

    bandwidth = b.report["copy bandwidth"]["GB/s"]
    plain = {
        "moments": lambda x: plain_moments(x),
        "spectrum": lambda x: plain_power(x),
        "everything": lambda x: (plain_moments(x), plain_histogram(x), plain_power(x)),
    }
    rows = []
    for channels, height, width in b.shapes:
        counted = cost(channels, height, width)
        for name, dtype in b.dtypes.items():
            x = maps(b, (b.batch, channels, height, width), dtype)
            for choice, wanted in CHOICES.items():
                into = buffers(b, b.batch, channels, wanted)
                seconds = b.kernel_seconds(lambda x=x, into=into: gpu.accumulate(x, *into))
                rate = x.numel() * x.element_size() / seconds / 1e9
                row = {"maps": list(x.shape), "dtype": name, "what": choice, "ms": 1e3 * seconds}
                row |= {"GB/s of one read": rate, "share of copy": rate / bandwidth}
                if "power" in wanted:
                    row["TFLOP/s useful"] = b.batch * counted.useful / seconds / 1e12
                    row["TFLOP/s executed"] = 3 * b.batch * counted.executed / seconds / 1e12
                if choice in plain:
                    try:
                        again = b.kernel_seconds(lambda x=x, c=choice: plain[c](x), repeats=3)
                        row["plain torch ms"] = 1e3 * again
                    except b.torch.OutOfMemoryError:
                        row["plain torch ms"] = "out of memory"
                rows.append(row)
    return rows


def markdown(report: dict[str, Any]) -> str:
    """Return the report as tables."""
    parts = [f"# {report['machine']['device']}\n"]
    for name, content in report.items():
        parts.append(f"\n## {name}\n")
        rows = content if isinstance(content, list) else [content]
        columns = list(dict.fromkeys(key for row in rows for key in row))
        parts += [" | ".join(["", *columns, ""]).strip(), "|" + " --- |" * len(columns)]
        parts += [" | ".join(["", *(_cell(row.get(c, "")) for c in columns), ""]).strip() for row in rows]
    return "\n".join(parts) + "\n"


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_cell(v)}" for key, v in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dry-run", action="store_true", help="tiny, on the CPU, in Triton's interpreter")
    parser.add_argument(
        "--seconds", type=float, default=400, help="begin no section after so many (default 400)"
    )
    parser.add_argument(
        "--out", type=Path, default=HERE / "results" / "gpu.json", help="the JSON; .md goes beside it"
    )
    options = parser.parse_args()
    if options.dry_run:
        # Triton looks at it when a kernel is defined.
        os.environ["TRITON_INTERPRET"] = "1"
    import torch

    if not options.dry_run and not torch.cuda.is_available():
        raise SystemExit("torch sees no CUDA device here; --dry-run shows that the script runs")
    b = Bench(options.dry_run, options.seconds)
    b.report["machine"] = machine(b)
    sections = {"copy bandwidth": copy_bandwidth, "check": check, "top-k": ranking, "kernels": kernels}
    for name, work in {**sections, "sweep over forward": sweeps, "end to end": end_to_end}.items():
        b.section(name, work)
    b.report["machine"]["seconds"] = time.perf_counter() - b.begun
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(b.report, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(markdown(b.report))
    print(markdown(b.report))
    wrong = failures(b.report["check"]) if isinstance(b.report["check"], list) else [b.report["check"]]
    if wrong:
        raise SystemExit(f"{len(wrong)} checks failed, first: {wrong[0]}")


if __name__ == "__main__":
    main()
