"""A folder of images: flat, or by class (each class a folder), as ImageNet's training and validation sets
lie.

Images are in the order of their paths, by code point. Links are followed. Hidden files and folders, and
files that are no images by their ending, are passed over.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from actstats.data.image import MISSING, UNREADABLE, ImageError, is_image_name
from actstats.data.source import EncodedSource, Listing, fingerprint, folder_classes, printable
from actstats.errors import ActstatsError


class FolderSource(EncodedSource):
    """The images under one folder."""

    kind = "folder"

    def __init__(self, spec: str, root: Path, names: list[str], limit: int | None) -> None:
        """List the first `limit` of `names`, which are files under `root` as `find_images` gives them."""
        labels, classes = folder_classes([printable(name) for name in names])
        self._root = os.fspath(root)
        self._names = names[:limit]
        paths = [printable(name) for name in self._names]
        mark = fingerprint(paths, (_size(self._file(index)) for index in range(len(paths))))
        super().__init__(spec, Listing(paths, labels[:limit], classes, mark))

    def read(self, index: int) -> bytes:
        """Return the encoded bytes of image `index`; thread-safe; raises `ImageError`."""
        try:
            with open(self._file(index), "rb", buffering=0) as file:  # noqa: PTH123 - twice as fast as Path
                return file.readall()
        except FileNotFoundError:
            raise ImageError(MISSING, "the file is not there") from None
        except OSError as error:
            raise ImageError(UNREADABLE, f"cannot be read: {error.strerror}") from None

    def _file(self, index: int) -> str:
        return os.path.join(self._root, self._names[index])  # noqa: PTH118


def find_images(root: Path) -> list[str]:
    """Return the names of all images under `root`, relative to it and with `/`, sorted.

    Raises `ActstatsError` where a folder cannot be listed.
    """
    try:
        return sorted(_walk(os.fspath(root), "", frozenset()))
    except OSError as error:
        raise ActstatsError(f"cannot list the folder {error.filename}: {error.strerror}") from None


def _walk(folder: str, prefix: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
    state = os.stat(folder)  # noqa: PTH116
    here = (state.st_dev, state.st_ino)
    if here in above:  # A link to a folder that it lies in.
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _walk(entry.path, f"{prefix}{entry.name}/", above | {here})
            # A broken link is listed: its image is missing. Pipes and devices, which may block, are not.
            elif is_image_name(entry.name) and (entry.is_file() or entry.is_symlink()):
                yield f"{prefix}{entry.name}"


def _size(file: str) -> int:
    try:
        return os.stat(file).st_size  # noqa: PTH116
    except OSError:
        return -1
