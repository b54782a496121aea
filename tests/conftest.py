"""Images that the tests make for themselves, and small networks to sweep."""

from __future__ import annotations

import json
import shutil
import signal
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

pytest_plugins = ["tests.machine", "tests.seeds", "tests.s3", "tests.browser"]


def pytest_configure() -> None:
    """Let Ctrl-C stop the commands that tests start, also where the shell runs the tests in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def photograph(seed: int, size: tuple[int, int] = (96, 80)) -> Image.Image:
    """A smooth coloured picture with some texture, of `size` (width, height); seeded."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
    return Image.fromarray(np.clip(smooth + rng.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two classes and 14 images."""
    folder = tmp_path_factory.mktemp("photographs")
    for index in range(14):
        path = folder / ("cat", "dog")[index % 2] / f"{index:02}.png"
        path.parent.mkdir(exist_ok=True)
        photograph(index).save(path)
    return folder


@pytest.fixture
def damaged(photographs: Path, tmp_path: Path) -> Path:
    """The same folder, in which `cat/02.png` cannot be read."""
    folder = tmp_path / "images"
    shutil.copytree(photographs, folder)
    (folder / "cat" / "02.png").write_bytes(b"damaged")
    return folder


class SmallNet(nn.Module):
    """Convolution, normalisation and in-place activation, twice, and a classifier: 5, 11 and 3 units."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first = nn.Sequential(nn.Conv2d(3, 5, 3, stride=2), nn.BatchNorm2d(5), nn.ReLU(inplace=True))
            self.second = nn.Sequential(nn.Conv2d(5, 11, 3), nn.BatchNorm2d(11), nn.ReLU(inplace=True))
            self.classifier = nn.Linear(11, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(self.first(x))
        return self.classifier(x.mean((-2, -1)))


def files_of(store: Path) -> dict[str, int]:
    """A checksum of each object but the manifests and the provenance, which hold dates and times."""
    return {
        str(path.relative_to(store)): zlib.crc32(path.read_bytes())
        for path in sorted(store.rglob("*"))
        if path.is_file() and path.parent != store and path.parent.name != "provenance"
    }


def reseal(store: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the root document of a store, with the checksum and the digest that belong to the change."""
    from actstats.store.digests import as_json, sealed

    document = json.loads((store / "zarr.json").read_bytes())
    change(document)
    (store / "zarr.json").write_bytes(as_json(sealed(document)))


def damages(path: Path) -> Iterator[tuple[str, bytes | None]]:
    """Four ways to damage a file: the name of each, and the bytes that it leaves."""
    data = path.read_bytes()
    yield "deleted", None
    yield "emptied", b""
    yield "truncated", data[: len(data) // 2]
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    yield "flipped", bytes(flipped)
