"""A folder of images, flat or with a folder per class, like ImageNet's training and validation sets.

Images are sorted by path, by code point. Links are followed. Hidden files and folders, files without the extension of
an image, and anything that is not a regular file are skipped.
"""

from __future__ import annotations

import csv
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from actstats.data.image import (
    MISSING,
    UNREADABLE,
    ImageError,
    is_hidden,
    is_image_name,
    refuse_large_file,
)
from actstats.data.objects import read_remote
from actstats.data.patience import image_error
from actstats.data.source import EncodedSource, encodable, fingerprint, folder_classes
from actstats.errors import ActstatsError
from actstats.support import URL

_THREADS: Final = 16
"""Number of folders listed, or file sizes read, in parallel. On a network file system each takes milliseconds."""
_AHEAD: Final = 2 * _THREADS


class FolderSource(EncodedSource):
    """The images under one folder."""

    kind = "folder"

    def __init__(self, spec: str, root: Path, names: Sequence[str], more: Sequence[str] = ()) -> None:
        """Use the files `names` under `root`. The files `more` only contribute their classes."""
        paths = [encodable(name) for name in names]
        others = [encodable(name) for name in more]
        labels, classes = folder_classes([*paths, *others], _annotated(root, [*names, *more]))
        self._root = os.fspath(root)
        self._names = list(names)
        with ThreadPoolExecutor(_THREADS) as pool:
            blocks = pool.map(self._sizes, range(0, len(names), 256))
            mark = fingerprint(paths, (size for block in blocks for size in block))
        super().__init__(spec, paths, labels[: len(paths)], classes, mark)

    def read(self, index: int) -> bytes:
        """Return the encoded bytes of image `index`; thread-safe.

        Raises:
            ImageError: the file is missing, is not a regular file, is too large, or cannot be read.
            ActstatsError: the whole folder no longer exists.
        """
        try:
            # Pipes and devices are not read: a pipe could block, and a device never end.
            descriptor = os.open(self._file(index), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with open(descriptor, "rb", buffering=0) as file:  # noqa: PTH123
                state = os.fstat(descriptor)
                if not stat.S_ISREG(state.st_mode):
                    raise ImageError(UNREADABLE, "not a regular file")
                refuse_large_file(state.st_size)
                return file.readall()
        except FileNotFoundError:
            if not os.path.isdir(self._root):  # noqa: PTH112
                raise ActstatsError(
                    f"the folder {self._root} no longer exists; restore it and rerun the same command to resume"
                ) from None
            raise ImageError(MISSING, "the file does not exist") from None
        except OSError as error:
            raise image_error(error) from None

    def _file(self, index: int) -> str:
        return os.path.join(self._root, self._names[index])  # noqa: PTH118

    def _sizes(self, start: int) -> list[int]:
        return [_size(self._file(index)) for index in range(start, min(start + 256, len(self._names)))]


class RemoteFolderSource(EncodedSource):
    """The images below one URL, each fetched with a request of its own."""

    kind = "folder"

    def __init__(self, spec: str, url: URL, files: Sequence[tuple[str, int]], limit: int | None) -> None:
        """Take the first `limit` of `files`, each a name relative to `url` and a size."""
        names = [name for name, _ in files]
        labels, classes = folder_classes(names)
        mark = fingerprint(names[:limit], (size for _, size in files[:limit]))
        super().__init__(spec, names[:limit], labels[:limit], classes, mark)
        self._url = url
        self._bytes = [size for _, size in files[:limit]]

    def read(self, index: int) -> bytes:
        """Return the encoded bytes of image `index`; thread-safe.

        Raises:
            ImageError: the file is missing or too large.
            UnavailableError: the bucket or the file cannot be reached.
        """
        size = self._bytes[index]
        refuse_large_file(size)
        try:
            return read_remote(self._url, self.paths[index], size)
        except FileNotFoundError:
            raise ImageError(MISSING, "the file does not exist") from None


def list_folder(root: Path, limit: int | None = None) -> tuple[list[str], list[str]]:
    """Return the names of the first `limit` images under `root`, sorted, relative to it and separated by `/`.

    The second list has one more image of each folder that the limit excludes, which gives the name of its class.

    Raises `ActstatsError` if a folder cannot be listed.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            walk = _Walk(pool)
            found = walk.images(os.fspath(root))
            names = list(islice(found, limit))
            return names, list(walk.first_of_each_folder(found, names))
        except OSError as error:
            raise ActstatsError(f"cannot list the folder {error.filename}: {error.strerror}") from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True)
class _Entries:
    """The entries of a folder, sorted like the paths below it; True for folders."""

    identity: tuple[int, int]
    names: list[tuple[str, bool]]


class _Walk:
    """Lists a tree of folders in order, reading some folders ahead in threads."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._skipping = False

    def images(self, root: str) -> Iterator[str]:
        yield from self._below(self._pool.submit(_entries, root), root, "", frozenset())

    def first_of_each_folder(self, rest: Iterator[str], listed: Sequence[str]) -> Iterator[str]:
        """Yield one image of each folder without an image in `listed`, from the rest of `images`."""
        seen = {name.rpartition("/")[0] for name in listed}
        self._skipping = True
        for name in rest:
            if (folder := name.rpartition("/")[0]) not in seen:
                seen.add(folder)
                yield name

    def _below(
        self, listing: Future[_Entries], folder: str, prefix: str, above: frozenset[tuple[int, int]]
    ) -> Iterator[str]:
        entries = listing.result()
        if entries.identity in above:  # a link to a folder that contains it
            return
        folders = iter([name for name, is_folder in entries.names if is_folder])
        ahead = [(name, self._submit(folder, name)) for name in islice(folders, _AHEAD)]
        passed = False
        for name, is_folder in entries.names:
            if is_folder:
                inner, future = ahead.pop(0)
                if (following := next(folders, None)) is not None:
                    ahead.append((following, self._submit(folder, following)))
                yield from self._below(
                    future, f"{folder}/{inner}", f"{prefix}{inner}/", above | {entries.identity}
                )
            elif not passed:
                yield f"{prefix}{name}"
                passed = self._skipping

    def _submit(self, folder: str, name: str) -> Future[_Entries]:
        return self._pool.submit(_entries, f"{folder}/{name}", first=self._skipping)


def _entries(folder: str, *, first: bool = False) -> _Entries:
    """List a folder; with `first`, only up to its first image, which gives the name of its class."""
    state = os.stat(folder)  # noqa: PTH116
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                continue
            if _is_folder(entry):
                found.append((entry.name, True))
            elif is_image_name(entry.name) and _may_be_read(entry):
                found.append((entry.name, False))
                if first:
                    break
    # Sort as in paths, where the name of a folder is followed by a slash.
    found.sort(key=lambda item: f"{item[0]}/" if item[1] else item[0])
    return _Entries((state.st_dev, state.st_ino), found)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno not in _NO_TARGET:
            raise
        return False


def _may_be_read(entry: os.DirEntry[str]) -> bool:
    """Return whether it is a file or a broken link (a missing image), not a pipe, a device or a link to one."""
    try:
        return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))  # noqa: PTH110
    except OSError:
        return entry.is_symlink()


_NO_TARGET: Final = (errno.ELOOP, errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)
"""Errors of a link that leads nowhere."""


def _size(file: str) -> int:
    """Return the size of a file; -1 if it is a link that leads nowhere."""
    try:
        return os.stat(file).st_size  # noqa: PTH116
    except OSError as error:
        if error.errno not in _NO_TARGET:
            raise ActstatsError(f"cannot read {file}: {error.strerror}") from None
        return -1


_ANNOTATIONS: Final = "val_annotations.txt"
"""File beside a folder `images` with the class of each of its images, as in the validation set of Tiny ImageNet."""


def _annotated(root: Path, names: Sequence[str]) -> dict[str, str]:
    """Return the class of each image that a file of annotations beside its folder lists, by its printable name."""
    classes: dict[str, str] = {}
    for folder in {name.rpartition("/")[0] for name in names}:
        around, _, last = folder.rpartition("/")
        file = root / around / _ANNOTATIONS
        if last != "images" or not file.is_file():
            continue
        try:
            rows = file.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        except OSError as error:
            raise ActstatsError(f"cannot read {file}: {error.strerror}") from None
        fields = (row.split("\t") for row in rows)
        classes |= {encodable(f"{folder}/{row[0]}"): row[1].strip() for row in fields if len(row) > 1}
    return classes


def segmented_images(root: Path, limit: int | None = None) -> tuple[list[str], list[str]] | None:
    """Return the images of a segmented dataset under `root/images`, as `list_folder` does, or None.

    A segmented dataset is a folder laid out like Broden (`index.csv` and `images/`), whose index lists the images in
    order, or one with `images/` and `masks/`. The masks, which are images too, are not listed.

    Raises:
        ActstatsError: the index cannot be read.
    """
    if not (root / "images").is_dir():
        return None
    if (root / "index.csv").is_file():
        names = [row["image"] for row in read_rows(root / "index.csv", "image")]
        return names[:limit], [] if limit is None else names[limit:]
    return list_folder(root / "images", limit) if (root / "masks").is_dir() else None


def read_rows(file: Path, *columns: str) -> list[dict[str, str]]:
    """Return the rows of a CSV file, which must have these columns, as dicts of strings.

    Raises:
        ActstatsError: the file does not exist or is not CSV, or a column is missing.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            reader = csv.DictReader(text)
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                raise ActstatsError(f"{file} has no column {', '.join(missing)}")
            return [{key: value or "" for key, value in row.items() if key is not None} for row in reader]
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise ActstatsError(f"cannot read {file}: {reason}") from None
