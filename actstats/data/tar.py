"""Images in tar files and WebDataset shards, read in place: nothing is unpacked and nothing is written.

Opening reads the headers alone. Images are in the order of their names within a shard, shard after shard,
so that a tar of a folder is swept like the folder. An image's class is the number in its `.cls` member
(WebDataset), or else the folder in its name. Members are only ever names and byte ranges: links are passed
over, and a leading `/` or `..` in a name means nothing.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from actstats.data.image import MISSING, UNREADABLE, ImageError, is_image_name
from actstats.data.source import NO_LABEL, EncodedSource, Listing, fingerprint, folder_classes, printable
from actstats.errors import ActstatsError

_COMPRESSED: Final = {
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ": "unxz",
    b"\x28\xb5\x2f\xfd": "unzstd",
}
_OPEN_SHARDS: Final = 64


@dataclass(frozen=True, slots=True)
class Member:
    """Where one file lies: `size` bytes from `offset` of shard number `shard`."""

    shard: int
    offset: int
    size: int


class TarSource(EncodedSource):
    """The images in one or more tar files."""

    kind = "tar"

    def __init__(self, spec: str, shards: Sequence[Path], limit: int | None) -> None:
        """Index `shards` and list their first `limit` images.

        With more than one shard, each path begins with its shard's. Raises `ActstatsError` for what is no
        tar file.
        """
        # Open descriptors are shared by all threads; one put out of the cache is closed when its last
        # reader is done.
        self._descriptor = lru_cache(maxsize=_OPEN_SHARDS)(_Descriptor)
        self._shards = list(shards)
        base = os.path.commonpath([shard.parent for shard in shards])
        names: list[str] = []
        paths: list[str] = []
        members: list[Member] = []
        numbers: dict[str, Member] = {}
        for number, shard in enumerate(shards):
            prefix = f"{printable(shard.relative_to(base).as_posix())}/" if len(shards) > 1 else ""
            for name, member in sorted(index_tar(shard, number).items()):
                if is_image_name(name.rpartition("/")[2]):
                    names.append(name)
                    paths.append(prefix + name)
                    members.append(member)
                elif name.endswith(".cls"):
                    numbers[_sample(prefix + name)] = member
        labels, classes = folder_classes(names)
        paths, labels, self._members = paths[:limit], labels[:limit], members[:limit]
        if numbers:
            labels, classes = self._numbered(paths, numbers), []
        mark = fingerprint(paths, (member.size for member in self._members))
        super().__init__(spec, Listing(paths, labels, classes, mark))

    def read(self, index: int) -> bytes:
        """Return the encoded bytes of image `index`; thread-safe; raises `ImageError`."""
        return self._read(self._members[index])

    def _read(self, member: Member) -> bytes:
        try:
            descriptor = self._descriptor(self._shards[member.shard])
            data = os.pread(descriptor.number, member.size, member.offset)
        except FileNotFoundError:
            raise ImageError(MISSING, "its tar file is not there any more") from None
        except OSError as error:
            raise ImageError(UNREADABLE, f"cannot be read: {error.strerror}") from None
        if len(data) != member.size:
            raise ImageError(UNREADABLE, "its tar file was cut short")
        return data

    def _numbered(self, paths: Sequence[str], numbers: dict[str, Member]) -> NDArray[np.int64]:
        labels = np.full(len(paths), NO_LABEL, dtype=np.int64)
        for index, path in enumerate(paths):
            member = numbers.get(_sample(path))
            if member is not None:
                labels[index] = _class_number(self._read(member), f"{_sample(path)}.cls")
        return labels


class _Descriptor:
    """An open file for `os.pread`, closed when nobody refers to it any more."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


def index_tar(path: Path, shard: int = 0) -> dict[str, Member]:
    """Return the regular files of a tar by name: relative, with `/`, the last where a name occurs twice.

    Raises `ActstatsError` if it is compressed, damaged or no tar file.
    """
    found: dict[str, Member] = {}
    try:
        with path.open("rb") as file:
            _refuse_compressed(path, file.read(6))
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as archive:
                kept: list[tarfile.TarInfo] = vars(archive)["members"]
                while (entry := archive.next()) is not None:
                    kept.clear()  # A million of them would fill the memory.
                    if entry.isreg() and entry.sparse is None:
                        parts = (
                            part for part in printable(entry.name).split("/") if part not in ("", ".", "..")
                        )
                        found["/".join(parts)] = Member(shard, entry.offset_data, entry.size)
                # `tarfile` takes a damaged header for the end; the true end is zeros, or nothing.
                file.seek(archive.offset)
                if any(file.read(tarfile.BLOCKSIZE)):
                    raise tarfile.ReadError("damaged header")
    except tarfile.TarError as error:
        raise ActstatsError(f"{path} is not a whole tar file ({error}); fetch or pack it again") from None
    except OSError as error:
        raise ActstatsError(f"cannot read {path}: {error.strerror}") from None
    return found


def _refuse_compressed(path: Path, head: bytes) -> None:
    for magic, tool in _COMPRESSED.items():
        if head.startswith(magic):
            raise ActstatsError(f"{path} is compressed and cannot be read in place; {tool} it first")


def _sample(path: str) -> str:
    """Return the key of the WebDataset sample that a member belongs to: its path up to the name's first dot."""
    folder, slash, name = path.rpartition("/")
    return f"{folder}{slash}{name.partition('.')[0]}"


def _class_number(data: bytes, name: str) -> int:
    try:
        return int(data)
    except ValueError:
        raise ActstatsError(f"{name} should hold the number of a class, not {data[:20]!r}") from None
