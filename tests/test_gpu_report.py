"""Each line of the GPU's report runs, tiny and without a GPU, and its counts are right."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from tests.data.images import require_torchcodec
from tests.machine import need

need("linux")  # Triton has no build for other systems

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.once
@pytest.mark.compiler
def test_a_dry_run_fills_every_stage(tmp_path):
    require_torchcodec()
    out = tmp_path / "gpu.json"
    command = [sys.executable, str(BENCHMARKS / "gpu_report.py"), "--dry-run", "--out", str(out)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr[-3000:]
    report = json.loads(out.read_text())
    assert list(report) == [
        "machine", "compile", "check", "forward", "kernels", "trace", "compiled", "sweeps", "JPEGs",
        "everything else",
    ]  # fmt: skip
    assert list(report["machine"][0]["seconds"]) == list(report)
    assert "dry run" in report["machine"][0]["device"]
    assert all(row["right"] for row in report["check"])
    assert not [row for rows in report.values() for row in rows if "skipped" in row or "failed" in row]
    assert {row["what"] for row in report["kernels"]} == {
        "moments",
        "moments, histogram",
        "spectrum",
        "everything",
        "histogram",
    }
    assert {(row["dtype"], row["what"]) for row in report["forward"]} == {
        (dtype, what) for dtype in ("bf16", "f32", "tf32") for what in ("everything", "moments, histogram")
    }
    assert report["forward"][0]["floor µs"] > 0
    assert [row["what"] for row in report["compiled"]] == ["compiled, everything", "compiled, bare"]
    assert report["trace"][-1]["right"]
    tables = out.with_suffix(".md").read_text()
    assert tables.count("\n## ") == len(report)
    read = subprocess.run([*command[:2], "--read", str(out)], capture_output=True, text=True)
    assert read.stdout.splitlines()[0] == "# none: dry run in Triton's interpreter"
    # An interpreter is not as fast as was expected of a GPU: that is what the list is for.
    assert "of the expected time" in read.stdout.split("\n## ")[0]


@pytest.fixture
def bench(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from gpu_bench import Bench

    return Bench(True, 400, tmp_path / "results" / "gpu.json")


def test_a_stage_is_skipped_where_a_library_is_missing(bench):
    def work(_):
        import a_library_that_nobody_has  # type: ignore[import-not-found]  # noqa: F401

    bench.stage("sweeps", work)
    assert bench.report["sweeps"] == [{"skipped": "a_library_that_nobody_has is not installed"}]


def test_what_a_stage_found_before_it_failed_is_in_the_file(bench):
    bench.dry = False
    seen = []

    def work(_):
        yield {"what": "first"}
        seen.append(json.loads(bench.out.read_text()))
        raise RuntimeError("an illegal memory access")

    bench.stage("kernels", work)
    bench.stage("sweeps", lambda _: iter([{"what": "second"}]))
    assert seen == [{"kernels": [{"what": "first"}]}]
    assert json.loads(bench.out.read_text()) == {
        "kernels": [{"what": "first"}, {"failed": "RuntimeError: an illegal memory access"}],
        "sweeps": [{"what": "second"}],
    }


def test_when_the_time_is_over_the_rest_is_skipped(bench):
    def work(_):
        yield {"what": "first"}
        bench.seconds = 0
        yield {"what": "second"}
        raise AssertionError

    bench.stage("kernels", work)
    bench.stage("sweeps", work)
    found = [[next(iter(row)) for row in rows] for rows in bench.report.values()]
    assert found == [["what", "what", "skipped"], ["skipped"]]


def test_only_some_stages_run(tmp_path):
    out = tmp_path / "gpu.json"
    command = [sys.executable, str(BENCHMARKS / "gpu_report.py"), "--dry-run", "--out", str(out)]
    subprocess.run([*command, "--stages", "compile"], check=True, capture_output=True)
    assert list(json.loads(out.read_text())) == ["machine", "compile"]
    ran = subprocess.run([*command, "--stages", "kernel"], capture_output=True, text=True)
    assert ran.returncode == 2
    assert "invalid choice: 'kernel'" in ran.stderr


def test_a_stage_ends_at_its_own_limit(bench):
    bench.stage("kernels", lambda _: iter([{"what": "first"}, {"what": "second"}]), limit=0)
    bench.stage("sweeps", lambda _: iter([{"what": "third"}]))
    found = [[next(iter(row)) for row in rows] for rows in bench.report.values()]
    assert found == [["what", "skipped"], ["what"]]


def test_the_idle_time_and_the_groups_of_a_trace(bench):
    import gpu_trace

    def event(cat, name, ts, dur):
        return {"cat": cat, "name": name, "ts": ts, "dur": dur}

    events = [
        {"name": "process_name"},
        event("kernel", "accumulate_kernel", 10, 30),
        event("kernel", "convolution", 30, 20),  # overlaps
        event("gpu_memcpy", "Memcpy HtoD", 100, 10),
        event("cuda_runtime", "cudaLaunchKernel", 0, 1),
        event("cuda_runtime", "cudaStreamSynchronize", 1, 1),
        event("cuda_runtime", "cudaMemcpyAsync", 2, 1),
        event("cuda_driver", "cuLaunchKernelEx", 3, 1),
        event("cuda_runtime", "cudaDeviceSynchronize", 4, 1),
    ]
    whole, ours, others = gpu_trace.summary(events, batch=2, passes=1)
    assert (whole["µs an image"], whole["share of time idle"], whole["calls that wait"]) == (50, 0.5, 1)
    assert whole["launches a pass"] == 2
    assert (ours["kernels"], ours["µs an image"], ours["share of device time"]) == (
        "accumulate_kernel",
        15,
        0.5,
    )
    assert (others["kernels"], others["calls a pass"]) == ("others", 2)
    assert gpu_trace.summary([], batch=2).__next__()["share of time idle"] == 0


def test_kernels_to_compile_are_those_that_the_hooks_see(bench):
    import gpu_compile
    from gpu_networks import hooked_maps, subjects

    found = set(gpu_compile.kernels_of_networks(bench))
    [tiny] = subjects(bench)
    narrow, wide = (hooked_maps(bench, tiny, precision) for precision in ("bf16", "f32"))
    assert {x.dtype for x in narrow} == {torch.bfloat16}
    assert {x.dtype for x in wide} == {torch.float32}
    assert {x for x, _ in found} == {*narrow, *wide}
    assert all(
        len({(x.shape[2:], x.dtype, wanted) for x, wanted in group}) == 1
        for group in gpu_compile._groups(found)
    )


def test_surprises_of_a_report_are_listed(bench, tmp_path):
    import gpu_report

    report = {
        "machine": [{"device": "NVIDIA H100"}],
        "check": [{"maps": [4, 64, 56, 56], "dtype": "bf16", "right": False}, {"maps": [1], "right": True}],
        "forward": [{"network": "googlenet", "what": "everything", "dtype": "bf16", "over expected": 1.3}],
        "kernels": [{"what": "spectrum", "dtype": "f32", "maps": [8, 2, 7, 7], "over expected": 0.3}],
        "sweeps": [{"failed": "OutOfMemoryError: CUDA out of memory"}],
    }
    assert gpu_report.surprises(report) == [
        "check: bf16 [4, 64, 56, 56]: wrong",
        "kernels: spectrum f32 [8, 2, 7, 7]: 0.3 of the expected time",
        "sweeps: OutOfMemoryError: CUDA out of memory",
    ]
    assert gpu_report.markdown(report).splitlines()[2] == "- check: bf16 [4, 64, 56, 56]: wrong"


def test_what_lies_in_wheels_can_be_imported(bench, tmp_path, monkeypatch):
    import gpu_report

    monkeypatch.setattr(sys, "path", list(sys.path))
    with zipfile.ZipFile(tmp_path / "carried-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carried_in_a_wheel/__init__.py", "VALUE = 3")
    gpu_report.unpack(tmp_path, tmp_path / "unpacked")
    assert importlib.import_module("carried_in_a_wheel").VALUE == 3


def test_without_a_gpu_it_says_so(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "gpu_report.py"), "--out", str(tmp_path / "gpu.json")]
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run(command, capture_output=True, text=True, env=hidden)
    assert ran.returncode == 1
    assert ran.stderr.strip() == "torch sees no CUDA device here; --dry-run shows that the script runs"


@pytest.mark.once
def test_the_counts_and_errors_of_the_documentation(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu_costs

    small, large = gpu_costs.cost(8, 7, 7), gpu_costs.cost(64, 56, 56)
    assert (small.values, small.useful) == (8 * 49, 8 * 2 * 49 * 49)
    assert large.useful == 64 * 4 * 56**3
    # Down the columns two products of 64 x 64 by 64 x 64, along the rows three of 64 x 32 by 32 x 32 for each parity,
    # and for the rings of four images two of 64 x 32 by 32.
    assert large.executed == 64 * 2 * (2 * 64**3 + 2 * 3 * 64 * 32 * 32 + 2 * 64 * 32 * 32 / 4)
    assert large.unfolded == 64 * 3 * 4 * 64**3
    assert [gpu_costs.cost(64, n, n).reads for n in (7, 28, 56, 112, 224)] == [1, 2, 2, 3, 3]
    for dtype in (torch.float32, torch.bfloat16):
        errors = [gpu_costs.emulated_error(14, way, dtype, maps=8) for way in ("ieee", "bf16x3")]
        assert errors[0] < 1e-6
        assert errors[1] < 1e-5
    for name, made in (("resources", gpu_costs.resources_table), ("costs", gpu_costs.costs_table)):
        assert (gpu_costs.MEASURED / f"gpu_{name}.md").read_text() == made(), (
            "run python benchmarks/gpu_costs.py"
        )
