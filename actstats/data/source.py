"""The interface of image sources: paths, labels, a fingerprint, and decoding one image at a time."""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Protocol

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
    `spec` is what the user passed, and `kind` the type of source that it is. A source may also have `notes`, lines
    about its labels and images that a sweep passes on to the user.
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


class Sample:
    """The images of a source at `indices`, as a source of its own with the fingerprint `mark`.

    `sample` says how a random sample was drawn, as `N:SEED`.
    """

    sample: str | None = None

    def __init__(self, source: Source, indices: Sequence[int], mark: str) -> None:
        self._source, self._indices = source, list(indices)
        self.kind, self.spec, self.classes = source.kind, source.spec, source.classes
        self.paths = [source.paths[index] for index in self._indices]
        self.labels = source.labels[self._indices]
        self.fingerprint = mark
        self.notes: Sequence[str] = list(getattr(source, "notes", ()))

    def __len__(self) -> int:
        return len(self._indices)

    def image(self, index: int) -> Image.Image:
        """Return image `index` of the sample, decoded, in mode RGB; raises `ImageError`; thread-safe."""
        return self._source.image(self._indices[index])


class EncodedSource(ABC):
    """A source whose images are encoded files, wherever they are stored."""

    kind: str
    notes: Sequence[str] = ()

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

    def select(self, indices: Sequence[int], mark: str) -> EncodedSource:
        """Return the images at `indices` as a source of encoded files with the fingerprint `mark`."""
        return _EncodedSample(self, indices, mark)


class _EncodedSample(Sample, EncodedSource):
    """Images of a source of encoded files, which can be read encoded too."""

    _source: EncodedSource

    def read(self, index: int) -> bytes:
        return self._source.read(self._indices[index])

    image = EncodedSource.image


def fingerprint(paths: Iterable[str], sizes: Iterable[int]) -> str:
    """Return the SHA-256, in hex, of all paths and sizes in bytes, in order.

    This distinguishes lists of images without reading the images. A file replaced by another of the same size is not
    detected.
    """
    digest = hashlib.sha256()
    for path, size in zip(paths, sizes, strict=True):
        digest.update(f"{path}\0{size}\n".encode())
    return digest.hexdigest()


_SYNSET: Final = re.compile(r"n\d{8}")
_CONTAINERS: Final = frozenset({"images", "image", "imgs", "img"})
"""Names of folders that say what the files are, not what they show."""
_SPLITS: Final = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})


def folder_classes(
    paths: Sequence[str], listed: Mapping[str, str] | None = None
) -> tuple[NDArray[np.int64], list[str]]:
    """Return the label of each image, int64 [n], and the class names in order: the names of the images' folders.

    A folder that all classes have (`cat/images/1.png`, `dog/images/2.png`) is not the class, but the one around it
    is. Among folders named after WordNet synsets, these are the classes, however deep the images are. Names are
    sorted as text, or as numbers if all of them are numbers. An image in no such folder has the label `NO_LABEL`.
    `listed` has the names of the classes of some paths, which come from elsewhere.

    >>> folder_classes(["cat/1.png", "val/dog/2.png", "3.png"])
    (array([ 0,  1, -1]), ['cat', 'dog'])
    >>> folder_classes(["n01443537/images/0.png", "n01629819/images/0.png"])
    (array([0, 1]), ['n01443537', 'n01629819'])
    >>> folder_classes(["10/a.png", "9/b.png"])
    (array([1, 0]), ['9', '10'])
    """
    above = [path.rpartition("/")[0] for path in paths]
    named = {folder: name for folder, name in _named_folders(set(above)).items() if name}
    listed = listed or {}
    classes = in_order({*named.values(), *listed.values()})
    number = {name: index for index, name in enumerate(classes)}
    label = {folder: number[name] for folder, name in named.items()}
    labels = [label.get(folder, NO_LABEL) for folder in above]
    if listed:
        labels = [number[listed[p]] if p in listed else n for p, n in zip(paths, labels, strict=True)]
    return np.array(labels, dtype=np.int64), classes


def in_order(names: Iterable[str]) -> list[str]:
    """Return class names sorted as text, or as numbers if all of them are numbers."""
    text = sorted(names)
    return sorted(text, key=int) if all(map(is_number, text)) else text


def is_number(name: str) -> bool:
    """Return whether the name of a class is a number, in decimal digits."""
    return name.isascii() and name.isdecimal()


def _named_folders(folders: set[str]) -> dict[str, str]:
    """Return the class that each folder of images stands for; empty if it stands for none."""
    parts = {folder: folder.split("/") for folder in folders if folder}
    synsets = {
        folder: next((name for name in reversed(names) if _SYNSET.fullmatch(name)), "")
        for folder, names in parts.items()
    }
    if len(set(synsets.values()) - {""}) > 1:
        return {
            folder: synsets[folder] or ("" if names[-1].lower() in _CONTAINERS else names[-1])
            for folder, names in parts.items()
        }
    while len({names[-1] for names in parts.values()}) == 1:
        last = next(iter(parts.values()))[-1]
        around = {folder: names[:-1] for folder, names in parts.items()}
        tell = all(names and names[-1].lower() not in _SPLITS for names in around.values())
        if tell and (len(parts) > 1 or last.lower() in _CONTAINERS):
            parts = around
        elif last.lower() in _CONTAINERS:
            return dict.fromkeys(parts, "")
        else:
            break
    return {folder: names[-1] for folder, names in parts.items()}


def within(labels: NDArray[np.int64], classes: Sequence[str]) -> NDArray[np.int64]:
    """Return labels with `NO_LABEL` in place of any that is negative, or that has no name although classes have."""
    unknown = (labels < 0) | (labels >= (len(classes) or 2**31))
    return np.where(unknown, NO_LABEL, labels)


def unnamed(labels: NDArray[np.int64], classes: Sequence[str]) -> list[str]:
    """Return a line about the labels that `within` drops because no class has their number."""
    count = int((labels >= (len(classes) or 2**31)).sum())
    if not count:
        return []
    return [
        f"images stored without a class: {count:,}; their labels, up to {labels.max()}, have no name among the "
        f"{len(classes)} classes"
    ]


def encodable(name: str) -> str:
    r"""Return a file name as text that can be encoded: bytes that are not UTF-8 appear as `\xff`."""
    if name.isascii():
        return name
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
