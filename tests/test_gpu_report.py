"""Each line of the GPU's report runs, tiny and without a GPU, and its counts are right."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton has no build for this system")

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_a_dry_run_fills_every_section(tmp_path):
    out = tmp_path / "gpu.json"
    command = [sys.executable, str(BENCHMARKS / "gpu_report.py"), "--dry-run", "--out", str(out)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr[-3000:]
    report = json.loads(out.read_text())
    assert list(report) == [
        "machine",
        "copy bandwidth",
        "check",
        "top-k",
        "kernels",
        "sweep over forward",
        "end to end",
    ]
    assert "dry run" in report["machine"]["device"]
    assert report["top-k"]["equal"]
    assert {row["what"] for row in report["kernels"]} == {
        "moments",
        "moments, histogram",
        "spectrum",
        "everything",
    }
    assert out.with_suffix(".md").read_text().count("\n## ") == len(report)


def test_a_section_is_skipped_where_a_library_is_missing(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from gpu_bench import Bench

    def work(_: Bench) -> None:
        import a_library_that_nobody_has  # noqa: F401

    bench = Bench(True, 400)
    bench.section("end to end", work)
    assert bench.report["end to end"] == {"skipped": "a_library_that_nobody_has is not installed"}


def test_without_a_gpu_it_says_so(tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    command = [sys.executable, str(BENCHMARKS / "gpu_report.py"), "--out", str(tmp_path / "gpu.json")]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 1
    assert ran.stderr.strip() == "torch sees no CUDA device here; --dry-run shows that the script runs"


def test_the_counts_and_errors_of_the_documentation(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu_costs

    small, large = gpu_costs.cost(8, 7, 7), gpu_costs.cost(8, 56, 56)
    assert (small.values, small.useful) == (8 * 49, 8 * 2 * 49 * 49)
    # Two products of 56 x 56 by 56 x 56, padded to 64 but for the 56 rows that blocks of 16 make 64.
    assert large.useful == 8 * 4 * 56**3
    assert large.executed == 8 * 4 * 64**3
    assert (small.least_reads, large.least_reads) == (1, 2)
    assert (
        gpu_costs.emulated_error(14, "tf32x3", maps=8) < 1e-5 < gpu_costs.emulated_error(14, "tf32", maps=8)
    )
    for name, made in (("resources", gpu_costs.resources_table), ("costs", gpu_costs.costs_table)):
        assert (gpu_costs.MEASURED / f"gpu_{name}.md").read_text() == made(), (
            "run python benchmarks/gpu_costs.py"
        )
