"""The stage of `gpu_report.py` that shows what the device does during forward passes with hooks."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

from gpu_bench import Bench
from gpu_networks import Subject, inference, subjects
from gpu_sweeps import receiver

PASSES = 5
ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
RUNTIME = ("cuda_runtime", "cuda_driver")
COPIES = ("cudaMemcpy", "cudaMemcpy2D", "cudaMemcpyFromSymbol", "cudaMemcpyToSymbol")


def trace(b: Bench) -> Iterator[dict[str, Any]]:
    """Profile bf16 forward passes of GoogLeNet, bare and with all statistics, and prove that no hook waits.

    The profiler slows Python down, so the device is idle for a smaller share of the time without it. The trace with
    statistics is written beside the results.
    """
    [subject] = subjects(b, ("googlenet",))
    for what in ("bare", "everything"):
        for row in summary(_events(b, subject, what), b.batch):
            yield {"what": what, **row}
    yield _waiting(b, subject)


def _watched(b: Bench, subject: Subject, what: str) -> Any:
    from actstats.layers import watch

    if what == "bare":
        return nullcontext()
    return watch(subject.model, subject.layers, receiver(b, subject, what))


def _events(b: Bench, subject: Subject, what: str) -> list[dict[str, Any]]:
    from torch.profiler import ProfilerActivity, profile

    out = b.out.with_name(f"{b.out.stem}_trace.json.gz")
    kind = ProfilerActivity.CUDA if b.device.type == "cuda" else ProfilerActivity.CPU
    with inference(b, "bf16"), _watched(b, subject, what):
        for _ in range(1 if b.dry else 3):
            subject.model(subject.images)
        b.synchronize()
        with profile(activities=[kind]) as found:
            for _ in range(1 if b.dry else PASSES):
                subject.model(subject.images)
            b.synchronize()
    found.export_chrome_trace(str(out))
    with gzip.open(out, "rt") as file:
        events: list[dict[str, Any]] = json.load(file)["traceEvents"]
    return events


def summary(events: list[dict[str, Any]], batch: int, passes: int = PASSES) -> Iterator[dict[str, Any]]:
    """Yield a row for the whole trace, then one for each of our kernels, and one for all others.

    Calls that make the host wait are counted up to the last launch, which leaves out the one that ends the loop.
    """
    work = sorted((e["ts"], e["ts"] + e["dur"], e["name"]) for e in events if e.get("cat") in ON_DEVICE)
    calls = [(e["ts"], e["name"]) for e in events if e.get("cat") in RUNTIME]
    launches = [ts for ts, name in calls if "Launch" in name]
    waits = [
        name
        for ts, name in calls
        if ts < max(launches, default=0) and ("Synchronize" in name or name in COPIES)
    ]
    busy, end = 0.0, -float("inf")
    for start, stop, _ in work:
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    span = end - work[0][0] if work else 0.0
    yield {
        "kernels": "all",
        "µs an image": span / passes / batch,
        "calls a pass": len(work) / passes,
        "share of time idle": 1 - busy / span if span else 0.0,
        "calls that wait": len(waits),
        "launches a pass": len(launches) / passes,
    }
    groups: dict[str, list[float]] = defaultdict(list)
    for start, stop, name in work:
        groups[name if name in _ours() else "others"].append(stop - start)
    total = sum(map(sum, groups.values()))
    for name, each in groups.items():
        row = {"kernels": name, "µs an image": sum(each) / passes / batch, "calls a pass": len(each) / passes}
        yield {**row, "share of device time": sum(each) / total}


def _ours() -> set[str]:
    """Return the names of our Triton kernels."""
    from actstats_kernels import gpu

    return {name for name in dir(gpu) if name.endswith("_kernel")}


def _waiting(b: Bench, subject: Subject) -> dict[str, Any]:
    """Run a pass during which torch raises an error for any call that waits for the device."""
    row = {"what": "a pass in which waiting is an error"}
    with inference(b, "bf16"), _watched(b, subject, "everything"):
        subject.model(subject.images)
        if b.device.type == "cuda":
            b.torch.cuda.set_sync_debug_mode("error")
        try:
            subject.model(subject.images)
        except RuntimeError as error:
            return {**row, "right": False, "error": str(error)}
        finally:
            if b.device.type == "cuda":
                b.torch.cuda.set_sync_debug_mode("default")
    return {**row, "right": True}
