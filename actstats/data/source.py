"""The interface of image sources: paths, labels, a fingerprint, and decoding one image at a time."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from actstats.data.image import decode
from actstats.data.jpeg import decode_array

UNNAMED = "unnamed-"
"""Prefix of the fingerprint of images without one of their own, which changes each time they are opened."""

NO_LABEL = -1
"""Label of an image whose class is unknown."""


class Source(Protocol):
    """A fixed list of images. Any object with these attributes can be swept.

    `paths` are unique, relative and separated by `/`. `labels` is int64 [n], `NO_LABEL` if unknown. `classes[label]`
    is the name of a class (empty if labels are only numbers). `fingerprint` is equal for equal lists of images.
    `spec` is what the user passed, and `kind` the type of source that it is.
    """

    kind: str
    spec: str
    paths: list[str]
    labels: NDArray[np.int64]
    classes: list[str]
    fingerprint: str

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def image(self, index: int) -> Image.Image:
        """Return image `index`, decoded and in mode RGB; called from several threads.

        Raises `ImageError` if this image cannot be read, `ActstatsError` if the whole source is no longer available.
        """
        ...


class Subset:
    """The images of a source at `indices`, in that order; its classes stay those of the whole source."""

    def __init__(self, source: Source, indices: Sequence[int]) -> None:
        self._source, self.indices = source, list(indices)
        self.kind, self.spec, self.classes = source.kind, source.spec, source.classes
        self.paths = [source.paths[index] for index in self.indices]
        self.labels = source.labels[self.indices]
        self.fingerprint = source.fingerprint

    def __len__(self) -> int:
        return len(self.indices)

    def image(self, index: int) -> Image.Image:
        """Return image `index` of the subset, decoded, in mode RGB; raises `ImageError`; thread-safe."""
        return self._source.image(self.indices[index])


class EncodedSource(ABC):
    """A source whose images are encoded files, wherever they are stored."""

    kind: str

    def __init__(
        self, spec: str, paths: list[str], labels: NDArray[np.int64], classes: list[str], mark: str
    ) -> None:
        self.spec, self.paths, self.labels, self.classes, self.fingerprint = (
            spec,
            paths,
            labels,
            classes,
            mark,
        )

    def __len__(self) -> int:
        return len(self.paths)

    @abstractmethod
    def read(self, index: int) -> bytes:
        """Return the encoded bytes of image `index`; thread-safe; raises `ImageError`."""

    def image(self, index: int) -> Image.Image:
        """Return image `index`, decoded, in mode RGB; thread-safe; raises `ImageError`."""
        return decode(self.read(index))

    def decoded(self, index: int) -> NDArray[np.uint8] | Image.Image:
        """Return image `index` as an array, uint8 [H, W, 3], or like `image`, whichever is faster."""
        return decode_array(self.read(index))


def fingerprint(paths: Iterable[str], sizes: Iterable[int]) -> str:
    """Return the SHA-256, in hex, of all paths and sizes in bytes, in order.

    This distinguishes lists of images without reading the images. A file replaced by another of the same size is not
    detected.
    """
    digest = hashlib.sha256()
    for path, size in zip(paths, sizes, strict=True):
        digest.update(f"{path}\0{size}\n".encode())
    return digest.hexdigest()


def folder_classes(paths: Sequence[str]) -> tuple[NDArray[np.int64], list[str]]:
    """Return the label of each image, int64 [n], and the sorted class names: the names of the images' folders.

    An image outside of any folder has the label `NO_LABEL`.

    >>> folder_classes(["cat/1.png", "val/dog/2.png", "3.png"])
    (array([ 0,  1, -1]), ['cat', 'dog'])
    """
    folders = [path.rpartition("/")[0].rpartition("/")[2] for path in paths]
    classes = sorted(set(folders) - {""})
    number = {name: index for index, name in enumerate(classes)} | {"": NO_LABEL}
    return np.array([number[folder] for folder in folders], dtype=np.int64), classes


def printable(name: str) -> str:
    r"""Return a file name as text that can be encoded: bytes that are not UTF-8 appear as `\xff`."""
    if name.isascii():
        return name
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
