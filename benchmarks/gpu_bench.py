"""Shared by the stages of `gpu_report.py`: the device, timing, maps and buffers, and the results file."""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# This also runs from a checkout with only torch and triton installed.
_ROOT = Path(__file__).parents[1]
sys.path += [str(_ROOT), str(_ROOT / "kernels")]

BATCH = 256
SHAPES = [(64, 112, 112), (192, 56, 56), (192, 28, 28), (480, 14, 14), (832, 7, 7), (1000, 1, 1)]
CHOICES = {
    "moments": ("moments", "argmax"),
    "moments, histogram": ("moments", "argmax", "histogram"),
    "spectrum": ("power",),
    "everything": ("moments", "argmax", "histogram", "power"),
}
KERNEL_CHOICES = {**CHOICES, "histogram": ("histogram",)}


@dataclass(frozen=True)
class Times:
    """Median seconds of one run of some work.

    Attributes:
        wall: from an idle device until the device is done.
        host: until Python has issued the run. If it is close to `wall`, the device waits for Python.
        device: on the device, without gaps between kernels.
    """

    wall: float
    host: float
    device: float

    def columns(self) -> dict[str, float]:
        """Return the cells of a row."""
        return {"ms": 1e3 * self.wall, "host ms": 1e3 * self.host, "device ms": 1e3 * self.device}


class Bench:
    """The device, the size of the work, and the results so far: rows by stage, also written to the file `out`."""

    def __init__(self, dry: bool, seconds: float, out: Path) -> None:
        import torch

        self.torch, self.dry, self.seconds, self.begun = torch, dry, seconds, time.perf_counter()
        self.out = out
        self.device = torch.device("cpu" if dry else "cuda")
        self.batch = 2 if dry else BATCH
        self.shapes = [(8, 12, 10), (8, 5, 5), (9, 1, 1)] if dry else SHAPES
        self.dtypes = {"bf16": torch.bfloat16, "f32": torch.float32}
        self.report: dict[str, list[dict[str, Any]]] = {}

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            self.torch.cuda.synchronize()

    def times(self, work: Callable[[], object], repeats: int = 7) -> Times:
        """Return the times of `work`, after runs to compile and warm up; slow work is repeated less often."""
        for _ in range(0 if self.dry else 2):
            work()
        first, _ = self._single(work)
        repeats = 1 if self.dry else max(3, min(repeats, int(1 / first)))
        runs = [self._single(work) for _ in range(repeats)]
        wall, host = (statistics.median(each) for each in zip(*runs, strict=True))
        if self.device.type != "cuda":
            return Times(wall, host, wall)
        return Times(wall, host, self._on_device(work, min(repeats, 3), host))

    def device_seconds(self, work: Callable[[], object], repeats: int = 20) -> float:
        """Return the mean seconds of `work` on the device, after runs to compile and warm up."""
        if self.device.type != "cuda":
            return self.times(work).wall
        for _ in range(2):
            work()
        return self._on_device(work, repeats, self._single(work)[1])

    def _single(self, work: Callable[[], object]) -> tuple[float, float]:
        """Return the seconds until one run of `work` is done, and until it has been issued."""
        self.synchronize()
        begun = time.perf_counter()
        work()
        issued = time.perf_counter()
        self.synchronize()
        return time.perf_counter() - begun, issued - begun

    def _on_device(self, work: Callable[[], object], repeats: int, host: float) -> float:
        start, stop = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        # The device sleeps, for clock cycles at 2 GHz, while Python issues the runs: so it never waits for launches.
        self.torch.cuda._sleep(int(2e9 * min(1.5 * host * repeats + 1e-3, 0.5)))
        start.record()
        for _ in range(repeats):
            work()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) / 1e3 / repeats

    def spent(self) -> float:
        """Return the seconds since the start."""
        return time.perf_counter() - self.begun

    def stage(
        self, name: str, work: Callable[[Bench], Iterable[dict[str, Any]]], limit: float = math.inf
    ) -> None:
        """Run one stage for up to `limit` seconds while time is left, and write each row to the file immediately.

        A failure or a missing library is recorded as a row, and the next stage begins.
        """
        rows = self.report[name] = []
        begun = self.spent()
        print(f"[{begun:5.0f} s] {name}", flush=True)
        try:
            for row in () if begun > self.seconds else work(self):
                rows.append(row)
                self.save()
                if self.spent() > min(self.seconds, begun + limit):
                    break
            if self.spent() > min(self.seconds, begun + limit):
                rows.append({"skipped": f"the rest: {self.spent() - begun:.0f} s were spent"})
        except ModuleNotFoundError as error:
            rows.append({"skipped": f"{error.name} is not installed"})
        except Exception as error:
            if self.dry:
                raise
            rows.append({"failed": f"{type(error).__name__}: {error}"})
        for row in self.report.get("machine", [])[:1]:
            row.setdefault("seconds", {})[name] = self.spent() - begun
        self.save()

    def save(self) -> None:
        """Write the results so far; the file is complete even if the run is ended here."""
        self.out.parent.mkdir(parents=True, exist_ok=True)
        part = self.out.with_suffix(".part")
        part.write_text(json.dumps(self.report, indent=1) + "\n")
        part.replace(self.out)


def buffers(b: Bench, images: int, channels: int, wanted: tuple[str, ...]) -> list[Any]:
    """Return the buffers of `gpu.accumulate`, with None for the statistics that are not wanted."""
    torch, on = b.torch, b.device
    made = {
        "moments": lambda: torch.empty(5, images, channels, device=on),
        "argmax": lambda: torch.empty(images, channels, dtype=torch.int32, device=on),
        "histogram": lambda: torch.zeros(channels, 520, dtype=torch.int32, device=on),
        "power": lambda: torch.zeros(channels, 18, dtype=torch.float64, device=on),
    }
    return [make() if name in wanted else None for name, make in made.items()]


def maps(b: Bench, shape: tuple[int, ...], dtype: Any) -> Any:
    """Return rectified normal maps in channels_last memory: a few images, repeated."""
    torch = b.torch
    x = torch.randn(shape, device=b.device, generator=torch.Generator(b.device).manual_seed(0)).relu_()
    return x.to(dtype, memory_format=torch.channels_last)
