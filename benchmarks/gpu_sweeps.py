"""The sections of `gpu_report.py` that run networks: forward passes with hooks, and whole sweeps."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpu_bench import CHOICES, Bench, buffers

if TYPE_CHECKING:
    from PIL import Image

NETWORKS = ("googlenet", "resnet50")
IMAGES = 2048


class Held:
    """A source of `number` images that are decoded already, a few pictures in turn."""

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


def networks(b: Bench) -> list[tuple[str, Any, Any, list[Any]]]:
    """Each network, its input, and its layers."""
    from actstats.layers import select_layers

    found = []
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
        found.append((name, model, x, select_layers(model, x[:2])))
    return found


def sweeps(b: Bench) -> list[dict[str, Any]]:
    """Forward passes with the statistics in hooks over bare ones, and with plain torch operations in them."""
    from plain_torch import plain_moments, plain_statistics

    from actstats.layers import watch
    from actstats_kernels import gpu

    rows = []
    for name, model, x, layers in networks(b):
        for precision, dtype in b.dtypes.items():
            amp = b.torch.autocast(b.device.type, dtype=dtype, enabled=precision != "f32")
            with b.torch.inference_mode(), amp:
                bare = b.seconds_of(lambda model=model, x=x: model(x))
                for choice in ("moments", "moments, histogram", "everything"):
                    into = [buffers(b, b.batch, layer.units, CHOICES[choice]) for layer in layers]
                    with watch(model, layers, lambda i, m, into=into: gpu.accumulate(m, *into[i])):
                        seconds = b.seconds_of(lambda model=model, x=x: model(x))
                    row = {"network": name, "dtype": precision, "what": choice, "images/s": b.batch / seconds}
                    rows.append({**row, "bare images/s": b.batch / bare, "over forward": seconds / bare})
                for choice in ("moments", "everything"):
                    with watch(
                        model,
                        layers,
                        lambda _, m, c=choice: (
                            plain_moments(m) if c == "moments" else plain_statistics(m, True)
                        ),
                    ):
                        seconds = b.seconds_of(lambda model=model, x=x: model(x), repeats=3)
                    row = {"network": name, "dtype": precision, "what": f"plain torch, {choice}"}
                    rows.append({**row, "images/s": b.batch / seconds, "over forward": seconds / bare})
    return rows


def end_to_end(b: Bench) -> dict[str, Any]:
    """Whole sweeps into a store: from images held decoded in memory, and from JPEG files."""
    import numpy as np
    from PIL import Image

    import actstats

    rng = np.random.default_rng(0)
    number, side = (6, 40) if b.dry else (IMAGES, 500)
    coarse = [
        Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)) for _ in range(min(number, 64))
    ]
    pictures = [image.resize((side, side * 3 // 4), Image.Resampling.BICUBIC) for image in coarse]
    preprocessing = actstats.Preprocessing.imagenet(size=12, resize=14) if b.dry else None
    model: Any = networks(b)[0][1] if b.dry else "googlenet"

    found: dict[str, Any] = {"images": number}
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder) / "jpeg"
        files.mkdir()
        for i in range(number):
            pictures[i % len(pictures)].save(files / f"{i:05}.jpg", quality=90)
        for data, source, decode in (
            ("images in memory", Held(pictures, number), "pillow"),
            ("JPEG files", str(files), "pillow"),
            ("JPEG files, decoded on the device", str(files), "device"),
        ):
            for amp in ("off", "bf16"):
                begun = time.perf_counter()
                done = actstats.sweep(
                    model, source, Path(folder) / f"{data}-{amp}.zarr", weights="none", preprocessing=preprocessing,
                    batch_size=b.batch, partition_size=4 if b.dry else 1024, device=b.device.type, amp=amp,
                    workers=os.cpu_count(), decode=decode,
                )  # fmt: skip
                seconds = time.perf_counter() - begun
                found[f"{data}, amp {amp}"] = {
                    "images/s": number / done.progress.seconds,
                    "with start-up": number / seconds,
                    "share of time waiting for data": done.progress.waiting / done.progress.seconds,
                }
    return found
