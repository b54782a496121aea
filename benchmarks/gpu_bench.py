"""Shared by the stages of `gpu_report.py`: the device, timing, maps and buffers, and the results file."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable
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

    def seconds_of(self, work: Callable[[], object], repeats: int = 15) -> float:
        """Return the median seconds of single runs of `work`, after two runs to compile and warm up."""
        for _ in range(1 if self.dry else 3):
            work()
        self.synchronize()
        found = []
        for _ in range(1 if self.dry else repeats):
            begun = time.perf_counter()
            work()
            self.synchronize()
            found.append(time.perf_counter() - begun)
        return statistics.median(found)

    def kernel_seconds(self, work: Callable[[], object], repeats: int = 20) -> float:
        """Return the seconds of `work` on the device, by events around many runs, which hide the cost of launches."""
        if self.device.type != "cuda":
            return self.seconds_of(work)
        for _ in range(3):
            work()
        start, stop = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeats):
            work()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) / 1e3 / repeats

    def spent(self) -> float:
        """Return the seconds since the start."""
        return time.perf_counter() - self.begun

    def stage(self, name: str, work: Callable[[Bench], Iterable[dict[str, Any]]]) -> None:
        """Run one stage while time is left, and write each row to the file as soon as it is measured.

        A failure or a missing library is recorded as a row, and the next stage begins.
        """
        rows = self.report[name] = []
        print(f"[{self.spent():5.0f} s] {name}", flush=True)
        try:
            for row in () if self.spent() > self.seconds else work(self):
                rows.append(row)
                self.save()
                if self.spent() > self.seconds:
                    break
            if self.spent() > self.seconds:
                rows.append({"skipped": f"the rest: {self.spent():.0f} s were spent"})
        except ModuleNotFoundError as error:
            rows.append({"skipped": f"{error.name} is not installed"})
        except Exception as error:
            if self.dry:
                raise
            rows.append({"failed": f"{type(error).__name__}: {error}"})
        self.save()

    def save(self) -> None:
        """Write the results so far; the file is complete even if the run is ended here."""
        self.out.parent.mkdir(parents=True, exist_ok=True)
        part = self.out.with_suffix(".part")
        part.write_text(json.dumps(self.report, indent=1) + "\n")
        part.replace(self.out)


def buffers(b: Bench, images: int, channels: int, wanted: tuple[str, ...]) -> list[Any]:
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
