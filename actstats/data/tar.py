"""Images in tar files and WebDataset shards, local or remote, read in place without unpacking.

Opening reads only the headers, and only once: the index of a complete tar file is cached. A remote file is read as a
whole to index it; afterwards, images stored next to each other are read with one request. Images are sorted by name
within a shard, shard after shard, so that a tar of a folder is swept in the same order as the folder; a limit selects
the first members of the file. The class of an image is the number in its `.cls` member (WebDataset), or else the
folder in its name. Members are only treated as names and byte ranges: links are followed to members of the same tar
(`tar_links`), and a leading `/` or `..` in a name is ignored.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, Final

import numpy as np
from numpy.typing import NDArray

from actstats.data.image import MAX_BYTES, MISSING, is_hidden, is_image_name, refuse_large_file
from actstats.data.objects import RemoteFile, Shared, together
from actstats.data.patience import MachineError, image_error
from actstats.data.source import NO_LABEL, EncodedSource, encodable, fingerprint, folder_classes
from actstats.data.tar_links import Links, Member
from actstats.errors import ActstatsError, one_line
from actstats.support import URL, cache_folder, keep_cached

_COMPRESSED: Final = {
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ": "unxz",
    b"\x28\xb5\x2f\xfd": "unzstd",
}
_OPEN_SHARDS: Final = 64
_INDEXED_AT_ONCE: Final = 8
_CLASS_BYTES: Final = 20
"""Largest size of a `.cls` member that may hold a class number."""
_KEPT_FROM: Final = 1_000
"""Smallest number of members for which the index of a tar file is cached."""
_INDEX: Final = 2
"""Version of the cached indexes."""
_SKIPPED: Final = frozenset({"", ".", ".."})
"""Parts of a member's name that are ignored."""
_LARGEST_HEADER: Final = 1 << 24
"""Largest number of bytes of a header, which may contain long names and maps of holes."""


class TarSource(EncodedSource):
    """The images in one or more tar files."""

    kind = "tar"

    def __init__(self, spec: str, shards: Iterable[Path | RemoteFile], limit: int | None) -> None:
        """Index `shards` up to their first `limit` images.

        With more than one shard, each path begins with that of its shard. Raises `ActstatsError` if one is not a tar
        file, or they contain no images.
        """
        # Open descriptors are shared by all threads. One that leaves the cache is closed when its last
        # reader is done.
        self._descriptor = lru_cache(maxsize=_OPEN_SHARDS)(_Descriptor)
        self._shards = list(shards)
        names: list[str] = []
        paths: list[str] = []
        self._members: list[tuple[int, Member]] = []
        numbers: dict[str, str] = {}
        for number, (prefix, index) in enumerate(
            zip(_prefixes(self._shards), _indexes(self._shards, limit), strict=False)
        ):
            for name, member in sorted(index.items()):
                if is_image_name(name):
                    names.append(name)
                    paths.append(prefix + name)
                    self._members.append((number, member))
                elif member.text is not None:
                    numbers[_sample(prefix + name)] = member.text
        labels, classes = folder_classes(names)
        if numbers:
            labels, classes = _numbered(paths, numbers), []
        mark = fingerprint(paths, (member.size for _, member in self._members))
        super().__init__(spec, paths, labels, classes, mark)
        self._ranges, self._range_of = together(
            (shard, member.offset, member.offset + member.stored) for shard, member in self._members
        )
        self._fetched = Shared(self._fetch, len(self._ranges))
        if not paths:
            raise ActstatsError(
                f"no images in {spec}: no member has the extension of an image (.jpg, .png, ...)"
            )

    def read(self, index: int) -> bytes:
        """Return the encoded bytes of image `index`; thread-safe.

        Raises:
            ImageError: the image cannot be read.
            ActstatsError: its tar file no longer exists.
        """
        shard, member = self._members[index]
        refuse_large_file(max(member.size, member.stored))
        file = self._shards[shard]
        if isinstance(file, RemoteFile):
            number = self._range_of[index]
            start = member.offset - self._ranges[number][1]
            return member.content(self._fetched.get(number)[start : start + member.stored])
        try:
            data = self._descriptor(file).read(member.offset, member.stored)
        except FileNotFoundError:
            raise ActstatsError(
                f"the tar file {file} no longer exists; restore it and rerun the same command to resume"
            ) from None
        except OSError as error:
            raise image_error(error) from None
        if len(data) != member.stored:
            raise MachineError(MISSING, "its tar file is shorter than when it was opened")
        return member.content(data)

    def _fetch(self, number: int) -> bytes:
        shard, start, stop = self._ranges[number]
        file = self._shards[shard]
        assert isinstance(file, RemoteFile)
        # Ranges are fetched ahead, also those of a member that is too large to be read.
        return file.read(start, stop) if stop - start <= MAX_BYTES else b""


class _Descriptor:
    """An open file for reading at any place, closed when it is no longer referenced."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, offset: int, size: int) -> bytes:
        """Return `size` bytes, or fewer at the end of the file; thread-safe."""
        data = os.pread(self.number, size, offset)
        while 0 < len(data) < size and (more := os.pread(self.number, size - len(data), offset + len(data))):
            data += more
        return data

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


def _prefixes(shards: Sequence[Path | RemoteFile]) -> list[str]:
    """Return the prefix of the image paths of each shard; empty if there is only one shard."""
    if len(shards) == 1:
        return [""]
    names = [PurePosixPath(shard.url if isinstance(shard, RemoteFile) else shard) for shard in shards]
    base = os.path.commonpath([name.parent for name in names])
    return [f"{encodable(name.relative_to(base).as_posix())}/" for name in names]


def _indexes(shards: Sequence[Path | RemoteFile], limit: int | None) -> Iterator[dict[str, Member]]:
    """Yield the members of each shard, up to the first `limit` images in total."""
    if limit is None:
        # Indexing remote files takes long the first time.
        with ThreadPoolExecutor(_INDEXED_AT_ONCE) as pool:
            yield from pool.map(members_of, shards)
        return
    for shard in shards:
        found = members_of(shard, limit)
        yield found
        limit -= sum(map(is_image_name, found))
        if limit <= 0:
            return


def members_of(path: Path | RemoteFile, images: int | None = None) -> dict[str, Member]:
    """Return the images and `.cls` files of a tar by name, the last one if a name occurs twice.

    With `images`, stop after that many images and the rest of the last one's sample. The index of a complete tar is
    cached, and used as long as the size and modification time of the tar stay the same.

    Raises `ActstatsError` if the file is compressed, damaged or not a tar.
    """
    remote = isinstance(path, RemoteFile)
    # The first members of a file on a disk are found sooner than the index of all of them is read.
    kept = _kept_index(path) if images is None or remote else None
    members = _from_cache(kept) if kept is not None else None
    if members is None:
        members = list(_scan(path) if images is None else _first(_scan(path), images))
        if images is None and kept is not None and (len(members) >= _KEPT_FROM or remote):
            _keep(kept, members)
    elif images is not None:
        members = list(_first(members, images))
    return {member.name: member for member in members}


def _first(members: Iterable[Member], images: int) -> Iterator[Member]:
    """Yield the members up to the last of the first `images` images, with the rest of its sample."""
    seen: set[str] = set()
    last = ""
    for member in members:
        if len(seen) == images and _sample(member.name) != last:
            break
        if is_image_name(member.name):
            if member.name not in seen and len(seen) == images:
                continue
            seen.add(member.name)
            last = _sample(member.name)
        yield member


def _scan(tar: Path | RemoteFile) -> Iterator[Member]:
    """Yield the images and `.cls` files of a tar in the order of the file, then those that symbolic links lead to."""
    path = tar.url if isinstance(tar, RemoteFile) else tar
    try:
        with tar.open() if isinstance(tar, RemoteFile) else tar.open("rb", buffering=0) as file:
            _refuse_compressed(path, file.read(6))
            file.seek(0)
            yield from (
                replace(member, text=_text(file, member)) if member.name.endswith(".cls") else member
                for member in _members(file)
                if is_image_name(member.name) or (member.name.endswith(".cls") and not is_hidden(member.name))
            )
    except (ActstatsError, MemoryError):
        raise
    except OSError as error:
        raise ActstatsError(f"cannot read {path}: {error.strerror}") from None
    except RecursionError:
        raise ActstatsError(f"{path} is not a readable tar file: its headers form a long chain") from None
    except Exception as error:  # `tarfile` raises many kinds for damaged headers
        raise ActstatsError(
            f"{path} is not a complete tar file ({one_line(error, 100)}); download or create it again"
        ) from None


def _members(file: IO[bytes]) -> Iterator[Member]:
    """Yield the regular files of a tar and hard links to them, then what symbolic links lead to."""
    links = Links()
    with tarfile.open(fileobj=_Headers(file), mode="r:") as archive:  # type: ignore[call-overload]
        kept: list[tarfile.TarInfo] = vars(archive)["members"]
        while (entry := archive.next()) is not None:
            kept.clear()  # A million entries would fill the memory.
            name = _relative(entry.name)
            member = None
            if entry.isreg():
                pieces = (
                    None if entry.sparse is None else tuple((start, size) for start, size in entry.sparse)
                )
                member = Member(name, entry.offset_data, entry.size, pieces=pieces)
                links.add(member)
            elif entry.islnk():
                member = links.same(name, _relative(entry.linkname))
            elif entry.issym():
                links.link(name, encodable(entry.linkname), rooted=entry.name.startswith("/"))
            if member is not None:
                yield member
            while not archive.pax_headers and (plain := _plain(file, archive.offset)) is not None:
                archive.offset = plain.offset + -(-plain.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                links.add(plain)
                yield plain
            file.seek(0)  # From elsewhere, `tarfile` checks that the member before the header is whole.
        # `tarfile` treats a damaged header as the end. The real end is zeros or the end of the file.
        file.seek(archive.offset)
        if any(file.read(tarfile.BLOCKSIZE)):
            raise tarfile.ReadError("damaged header")
    yield from links.members()


def _plain(file: IO[bytes], start: int) -> Member | None:
    """Return the regular file whose header is at `start`, or None of another header, which `tarfile` reads.

    Nearly all headers of a tar are plain. `tarfile` takes four times as long for them.
    """
    file.seek(start)
    header = file.read(tarfile.BLOCKSIZE)
    if len(header) < tarfile.BLOCKSIZE or header[156:157] != b"0" or header[257:262] != b"ustar":
        return None
    size = header[124:136].strip(b" \0")
    path = b"%b/%b" % (header[345:500].partition(b"\0")[0], header[:100].partition(b"\0")[0])
    if not (path.isascii() and size.isdigit()):
        return None
    try:
        checksum = int(header[148:156].strip(b" \0"), 8)
        # The lower half of Adler-32 is the sum of the bytes plus 1, modulo 65,521: 20 times faster than `sum`.
        if zlib.adler32(header[:148] + b" " * 8 + header[156:]) & 0xFFFF != (checksum + 1) % 65_521:
            return None
        return Member(_relative(path.decode()), start + tarfile.BLOCKSIZE, int(size, 8))
    except ValueError:
        return None


class _Headers:
    """A tar as `tarfile` sees it, which reads only headers: any larger read is refused."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _LARGEST_HEADER:
            raise tarfile.ReadError(f"header of {size:,} bytes")
        return self._file.read(size)


def _relative(name: str) -> str:
    """Return the name of a member without a leading `/`, and without `.` and `..`."""
    name = encodable(name)
    parts = name.split("/")
    return name if _SKIPPED.isdisjoint(parts) else "/".join(part for part in parts if part not in _SKIPPED)


def _text(file: IO[bytes], member: Member) -> str:
    """Return the text of a `.cls` member."""
    file.seek(member.offset)
    return file.read(min(member.size, _CLASS_BYTES + 1)).decode("latin-1")


def _kept_index(path: Path | RemoteFile) -> Path | None:
    """Return the path of the cached index of a tar, which depends on its path or URL, size and version."""
    if isinstance(path, RemoteFile):
        mark = f"{_INDEX}\0{path.url}\0{path.size}\0{path.version}"
    else:
        try:
            state = path.stat()
        except OSError:
            return None
        mark = f"{_INDEX}\0{path.absolute()}\0{state.st_size}\0{state.st_mtime_ns}"
    return (
        cache_folder() / "tar" / f"{hashlib.sha256(mark.encode('utf-8', 'surrogateescape')).hexdigest()}.json"
    )


def _from_cache(file: Path) -> list[Member] | None:
    try:
        with file.open("rb") as opened:
            names, offsets, sizes, texts, holes = json.load(opened)
        members = [Member(*fields) for fields in zip(names, offsets, sizes, texts, holes, strict=True)]
        return members if all(map(_is_valid, members)) else None
    except (OSError, ValueError, TypeError):
        return None


def _is_valid(member: Member) -> bool:
    return (
        type(member.name) is str
        and type(member.offset) is type(member.size) is int
        and min(member.offset, member.size) >= 0
        and (member.text is None or type(member.text) is str)
        and all(type(start) is type(size) is int for start, size in member.pieces or ())
    )


def _keep(file: Path, members: list[Member]) -> None:
    columns = ([getattr(m, name) for m in members] for name in ("name", "offset", "size", "text", "pieces"))
    keep_cached(file, json.dumps(list(columns)).encode())


def _refuse_compressed(path: Path | URL, head: bytes) -> None:
    for magic, tool in _COMPRESSED.items():
        if head.startswith(magic):
            raise ActstatsError(f"{path} is compressed and cannot be read in place; {tool} it first")


def _sample(path: str) -> str:
    """Return the key of the WebDataset sample that a member belongs to: its path up to the name's first dot."""
    folder, slash, name = path.rpartition("/")
    return f"{folder}{slash}{name.partition('.')[0]}"


def _numbered(paths: list[str], numbers: dict[str, str]) -> NDArray[np.int64]:
    """Return the label of each image, from its `.cls` member."""
    labels = np.full(len(paths), NO_LABEL, dtype=np.int64)
    for index, path in enumerate(paths):
        text = numbers.get(_sample(path))
        if text is None:
            continue
        try:
            number = int(text) if len(text) <= _CLASS_BYTES else -1
        except ValueError:
            number = -1
        if not 0 <= number < 2**31:
            raise ActstatsError(f"{_sample(path)}.cls must contain the number of a class, not {text[:20]!r}")
        labels[index] = number
    return labels
