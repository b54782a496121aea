"""What the stages of `gpu_report.py` share: the device, timing, maps and buffers, and the file they write to."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

# From a checkout, with only torch and triton installed, it runs too.
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
    """The device, the size of the work, and what was found so far: rows by stage, also in the file `out`."""

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
        """Median seconds of `work`, each by itself, after two runs that compile and warm."""
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
        """Seconds of `work` on the device, by events around many runs, so that launching is hidden as in a sweep."""
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
        """Seconds since the start."""
        return time.perf_counter() - self.begun

    def stage(self, name: str, work: Callable[[Bench], Iterable[dict[str, Any]]]) -> None:
        """Run one stage as far as the time goes: each row is in the file as soon as it is found.

        What fails, or lacks a library, is a row too, and the next stage begins.
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
        """Write what was found so far; whoever ends the run here finds a whole file."""
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
    """Rectified normal maps in channels_last memory, a few images repeated."""
    torch = b.torch
    x = torch.randn(shape, device=b.device, generator=torch.Generator(b.device).manual_seed(0)).relu_()
    return x.to(dtype, memory_format=torch.channels_last)
