"""Make the documentation's tables of measured figures, so that none is ever typed.

    pytest benchmarks -o addopts= --benchmark-only --benchmark-json=benchmarks/results/cpu.json
    python benchmarks/memory.py > benchmarks/results/memory.jsonl
    python benchmarks/tables.py

Reads `benchmarks/results/` and writes `docs/measured/*.md`, which `docs/performance.md` shows.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results"
MEASURED = HERE.parent / "docs" / "measured"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table; the first column is text, the others are numbers."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *rows]) + "\n"


def machine(results: dict[str, Any]) -> str:
    """Return what was measured where and when."""
    found = results["machine_info"]
    cpu = found["cpu"]
    threads = {b["extra_info"]["threads"] for b in results["benchmarks"] if "threads" in b["extra_info"]}
    return (
        f"{cpu['brand_raw']}, {cpu['count']} cores, {', '.join(map(str, sorted(threads)))} threads, "
        f"{found['system']}, Python {found['python_version']}, {results['datetime'][:10]}.\n"
    )


def sweeps(results: dict[str, Any]) -> str:
    """Return the table of whole sweeps over the bare forward pass."""
    rows: dict[str, dict[str, str]] = defaultdict(dict)
    networks: list[str] = []
    for b in results["benchmarks"]:
        info = b["extra_info"]
        if "over_forward" in info:
            rows[info["what"]][info["network"]] = f"{info['over_forward']:.2f}"
            networks += [info["network"]] * (info["network"] not in networks)
    return table(
        ["what the hooks compute", *networks],
        [[what, *(cells.get(n, "") for n in networks)] for what, cells in rows.items()],
    )


def kernels(results: dict[str, Any]) -> str:
    """Return the table of the fused kernel by shape: its time, and how many times longer the others take."""
    medians: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for b in results["benchmarks"]:
        info = b["extra_info"]
        if "way" in info:
            medians[info["shape"], info["what"]][info["way"]] = b["stats"]["median"]
    rows = [
        [
            f"{shape}, {what}",
            f"{1e3 * ways['fused']:.2f} ms",
            f"{ways['plain torch'] / ways['fused']:.1f}",
            f"{ways['float64 reference'] / ways['fused']:.0f}",
        ]
        for (shape, what), ways in medians.items()
    ]
    return table(
        ["maps (C x H x W) of 32 images", "fused kernel", "plain torch, times", "reference, times"], rows
    )


def memory(lines: list[dict[str, Any]]) -> str:
    """Return the table of peak memory and store sizes."""
    rows = [
        [
            f"{line['arch']}, {line['images']:,} images",
            f"{line['peak_mib']:,.0f} MiB",
            f"{line['store_bytes_an_image'] / 1e3:.1f} kB",
            f"{50_000 * line['store_bytes_an_image'] / 1e9:.1f} GB",
            f"{line['seconds']:.0f} s",
        ]
        for line in lines
        if "images" in line
    ]
    return table(["sweep", "peak memory", "store, an image", "store, 50,000 images", "time"], rows)


def main() -> None:
    """Write what there are results for."""
    MEASURED.mkdir(exist_ok=True)
    if (file := RESULTS / "cpu.json").exists():
        results = json.loads(file.read_text())
        for name, make in (("machine", machine), ("sweeps", sweeps), ("kernels", kernels)):
            (MEASURED / f"{name}.md").write_text(make(results))
    if (file := RESULTS / "memory.jsonl").exists():
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        (MEASURED / "memory.md").write_text(memory(lines))


if __name__ == "__main__":
    main()
