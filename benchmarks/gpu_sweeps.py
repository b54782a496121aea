"""The stages of `gpu_report.py` that run networks: forward passes with hooks, and whole sweeps."""

from __future__ import annotations

import io
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpu_bench import CHOICES, Bench, Times, buffers
from gpu_networks import FEWER, PRECISIONS, Subject, hooked_maps, inference, subjects, tf32

if TYPE_CHECKING:
    from PIL import Image

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


def forwards(b: Bench) -> Iterator[dict[str, Any]]:
    """Time forward passes with statistics, relative to bare ones, with the time expected of an H100.

    Each row gives `over forward` and `added µs an image` by the wall clock, and what Python and the device take for
    themselves, with hooks and bare. `floor µs` is the time of one read of all hooked maps at the bandwidth of a copy
    on the same device. That bandwidth counts both what a copy reads and what it writes, so the floor is what reading
    alone takes at that rate. `floors` is the added time over the floor, and `device floors` the same without gaps
    between kernels.
    """
    for precision in PRECISIONS:
        for subject in subjects(b):
            yield from _forwards(b, subject, precision, ("everything", "moments, histogram"))


def other_forwards(b: Bench) -> Iterator[dict[str, Any]]:
    """Time forward passes with the moments alone, and with plain torch operations in the hooks."""
    for precision in ("bf16", "f32"):
        for subject in subjects(b, FEWER):
            yield from _forwards(b, subject, precision, ("moments",))
            yield from _forwards(b, subject, precision, ("moments", "everything"), plain=True)


def _forwards(
    b: Bench, subject: Subject, precision: str, choices: tuple[str, ...], *, plain: bool = False
) -> Iterator[dict[str, Any]]:
    from gpu_costs import expected

    from actstats.layers import watch

    sizes = [x.size for x in hooked_maps(b, subject, precision)]
    with inference(b, precision):
        bare = b.times(lambda: subject.model(subject.images))
    for choice in choices:
        row = {"network": subject.name, "dtype": precision}
        row["what"] = f"plain torch, {choice}" if plain else choice
        receive = _plain(choice) if plain else receiver(b, subject, choice)
        try:
            with inference(b, precision), watch(subject.model, subject.layers, receive):
                times = b.times(lambda: subject.model(subject.images))
        except b.torch.OutOfMemoryError:
            yield {**row, "ms": "out of memory"}
            continue
        row |= {"images/s": b.batch / times.wall, "bare images/s": b.batch / bare.wall}
        row |= {"over forward": times.wall / bare.wall, **added(b, subject, precision, times, bare)}
        if not plain:
            seconds = sum(expected(choice, *size) for size in sizes)
            row["expected µs"] = 1e6 * seconds
            row["over expected"] = (times.device - bare.device) / b.batch / seconds
        yield row | times.columns() | {f"bare {name}": value for name, value in bare.columns().items()}


def added(b: Bench, subject: Subject, precision: str, times: Times, bare: Times) -> dict[str, float]:
    """Return the cells for the time that statistics add to one image, and the least that it could be."""
    wall, device = (
        (one - other) / b.batch for one, other in ((times.wall, bare.wall), (times.device, bare.device))
    )
    number = sum(x.bytes_an_image for x in hooked_maps(b, subject, precision))
    floor = number / b.report["machine"][0]["copy GB/s"] / 1e9
    return {
        "added µs an image": 1e6 * wall,
        "floor µs": 1e6 * floor,
        "floors": wall / floor,
        "device floors": device / floor,
    }


def receiver(b: Bench, subject: Subject, choice: str) -> Callable[[int, Any], None]:
    """Return a function that computes a `choice` of the statistics of a layer's maps."""
    from actstats_kernels import gpu

    into = [buffers(b, b.batch, layer.units, CHOICES[choice]) for layer in subject.layers]
    return lambda layer, maps: gpu.accumulate(maps, *into[layer])


def _plain(choice: str) -> Callable[[int, Any], None]:
    from plain_torch import plain_moments, plain_statistics

    def receive(_: int, maps: Any) -> None:
        if choice == "moments":
            plain_moments(maps)
        else:
            plain_statistics(maps, True)

    return receive


def compiled(b: Bench) -> Iterator[dict[str, Any]]:
    """Time compiled forward passes with all statistics, then bare ones compiled with the same options.

    The row of the bare one gives the time with statistics relative to it.
    """
    from actstats.passes.network import Network

    for precision in ("bf16",) if b.dry else ("bf16", "f32"):
        for subject in subjects(b, FEWER):
            model, images, receive = subject.model, subject.images, receiver(b, subject, "everything")
            row = {"network": subject.name, "dtype": precision}
            with inference(b, precision):
                eager = b.times(lambda model=model, images=images: model(images))

            network = Network(model, subject.layers, b.device, "bf16" if precision == "bf16" else "off")
            with tf32(b, precision != "f32"):
                begun = time.perf_counter()
                network.compile(images)
                seconds = time.perf_counter() - begun
                all_ = b.times(
                    lambda network=network, images=images, receive=receive: network(images, receive)
                )
            yield {**row, "what": "compiled, everything", **_of_compiled(b, seconds, all_, eager)}

            alone = b.torch.compile(
                model, fullgraph=True, dynamic=False, options={"freezing": b.device.type == "cpu"}
            )
            with inference(b, precision):
                begun = time.perf_counter()
                alone(images)
                b.synchronize()
                seconds = time.perf_counter() - begun
                bare = b.times(lambda alone=alone, images=images: alone(images))
            row |= {"what": "compiled, bare", **_of_compiled(b, seconds, bare, eager)}
            yield row | {
                "everything over this": all_.wall / bare.wall,
                **added(b, subject, precision, all_, bare),
            }


def _of_compiled(b: Bench, seconds: float, times: Times, eager: Times) -> dict[str, float]:
    return {
        "compile s": seconds,
        "images/s": b.batch / times.wall,
        "over eager bare": times.wall / eager.wall,
        **times.columns(),
    }


def sweeps(b: Bench) -> Iterator[dict[str, Any]]:
    """Time whole sweeps over decoded images in memory, the last with a compiled network."""
    number, pictures = _pictures(b)
    for amp, compiles in (("bf16", False), ("off", False), ("bf16", True)):
        data = "images in memory, compiled" if compiles else "images in memory"
        yield _sweep(b, data, Held(pictures, number), number, "pillow", amp, compiles)


def jpegs(b: Bench) -> Iterator[dict[str, Any]]:
    """Time whole sweeps over JPEG files, decoded by the CPU and by the device."""
    number, pictures = _pictures(b)
    with tempfile.TemporaryDirectory() as folder:
        encoded = [io.BytesIO() for _ in pictures]
        for picture, into in zip(pictures, encoded, strict=True):
            picture.save(into, "JPEG", quality=90)
        for i in range(number):
            (Path(folder) / f"{i:05}.jpg").write_bytes(encoded[i % len(encoded)].getvalue())
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


def _sweep(
    b: Bench, data: str, source: Any, number: int, decode: str, amp: str, compiles: bool = False
) -> dict[str, Any]:
    """Run a sweep; `images/s` leaves out the first batch, which warms up, and the compilation of the network.

    A network that cannot be compiled is an error, since it would be measured eagerly.
    """
    import actstats

    preprocessing = actstats.Preprocessing.imagenet(size=12, resize=14) if b.dry else None
    model: Any = next(subjects(b)).model if b.dry else "googlenet"
    seen: list[Any] = []
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        done = actstats.sweep(
            model, source, Path(folder) / "store.zarr", weights="none", preprocessing=preprocessing,
            batch_size=b.batch, partition_size=4 if b.dry else 1024, device=b.device.type, amp=amp,
            compile=compiles, strict=compiles, workers=os.cpu_count(), decode=decode, on_progress=seen.append,
        )  # fmt: skip
        seconds = time.perf_counter() - begun
    first, last = seen[0], done.progress
    return {
        "what": data,
        "amp": amp,
        "images": number,
        "images/s": (last.done - first.done) / (last.seconds - first.seconds),
        "with the first batch": last.rate,
        "with start-up": number / seconds,
        "share of time waiting for data": last.waiting_share,
    }
