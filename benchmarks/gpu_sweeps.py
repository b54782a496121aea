"""The stages of `gpu_report.py` that run networks: forward passes with hooks, and whole sweeps."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpu_bench import CHOICES, Bench, buffers

if TYPE_CHECKING:
    from PIL import Image

NETWORKS = ("googlenet", "resnet50")
IMAGES = 2048


class Held:
    """A source of `number` decoded images, which repeats a few pictures."""

    kind = spec = fingerprint = "memory"

    def __init__(self, pictures: list[Image.Image], number: int) -> None:
        import numpy as np

        self.pictures, self.classes = pictures, list[str]()
        self.paths = [f"{i}.png" for i in range(number)]
        self.labels = np.full(number, -1, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, index: int) -> Image.Image:
        """Return one of the pictures."""
        return self.pictures[index % len(self.pictures)]


def networks(b: Bench) -> Iterator[tuple[str, Any, Any, list[Any]]]:
    """Yield each network with its input and its layers."""
    from actstats.layers import select_layers

    for name in ("tiny",) if b.dry else NETWORKS:
        if b.dry:
            nn = b.torch.nn
            model, side = (
                nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3)),
                12,
            )
        else:
            from actstats.models import load_model

            model, side = load_model(name, "none").model, 224
        model = model.eval().to(b.device).to(memory_format=b.torch.channels_last)
        x = b.torch.randn(b.batch, 3, side, side, device=b.device).to(memory_format=b.torch.channels_last)
        yield name, model, x, select_layers(model, x[:2])


def forwards(b: Bench) -> Iterator[dict[str, Any]]:
    """Time forward passes with all statistics, relative to bare ones, with the time expected of an H100."""
    yield from _forwards(b, ("everything",))


def other_forwards(b: Bench) -> Iterator[dict[str, Any]]:
    """Time forward passes with fewer statistics, and with plain torch operations in the hooks."""
    yield from _forwards(b, ("moments", "moments, histogram"))
    yield from _forwards(b, ("moments", "everything"), plain=True)


def _forwards(b: Bench, choices: tuple[str, ...], *, plain: bool = False) -> Iterator[dict[str, Any]]:
    from gpu_costs import expected
    from plain_torch import plain_moments, plain_statistics

    from actstats.layers import watch
    from actstats_kernels import gpu

    for name, model, x, layers in networks(b):
        for precision, dtype in b.dtypes.items():
            amp = b.torch.autocast(b.device.type, dtype=dtype, enabled=precision != "f32")
            with b.torch.inference_mode(), amp:
                bare = b.seconds_of(lambda model=model, x=x: model(x))
                for choice in choices:
                    into = [buffers(b, b.batch, layer.units, CHOICES[choice]) for layer in layers]

                    def take(i: int, m: Any, choice: str = choice, into: Any = into) -> None:
                        if not plain:
                            gpu.accumulate(m, *into[i])
                        elif choice == "moments":
                            plain_moments(m)
                        else:
                            plain_statistics(m, True)

                    with watch(model, layers, take):
                        seconds = b.seconds_of(lambda model=model, x=x: model(x), repeats=3 if plain else 15)
                    row = {
                        "network": name,
                        "dtype": precision,
                        "what": f"plain torch, {choice}" if plain else choice,
                    }
                    row |= {"images/s": b.batch / seconds, "bare images/s": b.batch / bare}
                    row |= {
                        "over forward": seconds / bare,
                        "added µs an image": 1e6 * (seconds - bare) / b.batch,
                    }
                    if not plain:
                        item = 4 if precision == "f32" else 2
                        sizes = [(layer.units, layer.height, layer.width, item) for layer in layers]
                        wanted = sum(expected(choice, *size) for size in sizes)
                        row |= {
                            "expected µs": 1e6 * wanted,
                            "over expected": (seconds - bare) / b.batch / wanted,
                        }
                    yield row


def sweeps(b: Bench) -> Iterator[dict[str, Any]]:
    """Time whole sweeps over decoded images in memory."""
    number, pictures = _pictures(b)
    for amp in ("bf16", "off"):
        yield _sweep(b, "images in memory", Held(pictures, number), number, "pillow", amp)


def jpegs(b: Bench) -> Iterator[dict[str, Any]]:
    """Time whole sweeps over JPEG files, decoded by the CPU and by the device."""
    number, pictures = _pictures(b)
    with tempfile.TemporaryDirectory() as folder:
        for i in range(number):
            pictures[i % len(pictures)].save(Path(folder) / f"{i:05}.jpg", quality=90)
        for decode in ("pillow", "device"):
            yield _sweep(b, f"JPEG files, decoded by {decode}", folder, number, decode, "bf16")


def _pictures(b: Bench) -> tuple[int, list[Image.Image]]:
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    number, side = (6, 40) if b.dry else (IMAGES, 500)
    coarse = [
        Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)) for _ in range(min(number, 64))
    ]
    return number, [image.resize((side, side * 3 // 4), Image.Resampling.BICUBIC) for image in coarse]


def _sweep(b: Bench, data: str, source: Any, number: int, decode: str, amp: str) -> dict[str, Any]:
    import actstats

    preprocessing = actstats.Preprocessing.imagenet(size=12, resize=14) if b.dry else None
    model: Any = next(networks(b))[1] if b.dry else "googlenet"
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        done = actstats.sweep(
            model, source, Path(folder) / "store.zarr", weights="none", preprocessing=preprocessing,
            batch_size=b.batch, partition_size=4 if b.dry else 1024, device=b.device.type, amp=amp,
            workers=os.cpu_count(), decode=decode,
        )  # fmt: skip
        seconds = time.perf_counter() - begun
    return {
        "what": data,
        "amp": amp,
        "images": number,
        "images/s": number / done.progress.seconds,
        "with start-up": number / seconds,
        "share of time waiting for data": done.progress.waiting / done.progress.seconds,
    }
