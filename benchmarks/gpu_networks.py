"""The networks of `gpu_report.py`, their precisions, and the maps that their hooks see."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from gpu_bench import Bench

NETWORKS = ("googlenet", "resnet50", "convnext_tiny", "vit_b_16")
FEWER = NETWORKS[:2]
PRECISIONS = ("bf16", "f32", "tf32")


@dataclass(frozen=True, eq=False)
class Subject:
    """A network on the device in channels_last memory, a batch of images, and the layers of a sweep."""

    name: str
    model: Any
    images: Any
    layers: list[Any]


def subjects(b: Bench, names: tuple[str, ...] = NETWORKS) -> Iterator[Subject]:
    """Yield the networks, or a tiny one in a dry run."""
    for name in ("tiny",) if b.dry else names:
        yield _subject(b, name)


@cache
def _subject(b: Bench, name: str) -> Subject:
    from actstats.layers import select_layers

    if name == "tiny":
        nn = b.torch.nn
        model, side = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3)), 12
    else:
        from actstats.models import load_model

        model, side = load_model(name, "none").model, 224
    last = b.torch.channels_last
    model = model.eval().to(b.device).to(memory_format=last)
    images = b.torch.randn(b.batch, 3, side, side, device=b.device).to(memory_format=last)
    return Subject(name, model, images, select_layers(model, images[:2]))


@contextmanager
def tf32(b: Bench, allowed: bool) -> Iterator[None]:
    """Let convolutions and matrix products of f32 use TF32 or not."""
    backends = b.torch.backends.cuda.matmul, b.torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = allowed
        yield
    finally:
        for backend, was in zip(backends, before, strict=True):
            backend.allow_tf32 = was


@contextmanager
def inference(b: Bench, precision: str) -> Iterator[None]:
    """Run forward passes under autocast ("bf16"), in f32 without TF32 ("f32"), or with it ("tf32")."""
    amp = b.torch.autocast(b.device.type, dtype=b.torch.bfloat16, enabled=precision == "bf16")
    with tf32(b, precision != "f32"), b.torch.inference_mode(), amp:
        yield


@dataclass(frozen=True)
class Maps:
    """Shape, strides and dtype of the maps that a kernel reads."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: Any

    @classmethod
    def of(cls, x: Any) -> Maps:
        """Describe a tensor."""
        return cls(tuple(x.shape), tuple(x.stride()), x.dtype)

    @property
    def size(self) -> tuple[int, int, int, int]:
        """Channels, height and width of a map, and bytes of a value."""
        _, channels, height, width = self.shape
        return channels, height, width, self.dtype.itemsize

    @property
    def bytes_an_image(self) -> int:
        """Bytes of the maps of one image."""
        channels, height, width, itemsize = self.size
        return channels * height * width * itemsize


@cache
def hooked_maps(b: Bench, subject: Subject, precision: str) -> list[Maps]:
    """Return the maps that the hooks of a network see, for two images."""
    from actstats.layers import watch

    found: list[Maps] = []
    with (
        inference(b, precision),
        watch(subject.model, subject.layers, lambda _, maps: found.append(Maps.of(maps))),
    ):
        subject.model(subject.images[:2])
    return found
