"""Encoded images and tar files, made where they are needed."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image


def require_torchcodec() -> None:
    """Skip the test, or the module, where torchcodec is not installed or torch is older than it needs."""
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 11):
        pytest.skip("torchcodec needs torch 2.11", allow_module_level=True)
    pytest.importorskip("torchcodec")


def picture(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    """An RGB image of noise."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """The bytes of `image` as a file of `kind`."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_folder(root: Path, files: Mapping[str, bytes]) -> Path:
    """A folder with these files by relative path."""
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def write_tar(path: Path, files: Mapping[str, bytes], mode: str = "w", **options: object) -> Path:
    """A tar file with these members in this order."""
    with tarfile.open(path, mode, **options) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path
