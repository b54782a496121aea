"""Read the four formats that PyTorch has written, without unpacking them: zip, stream, tar, and a bare pickle.

Nothing is written to a disk, and memory is bounded by the size of the file.
"""

from __future__ import annotations

import io
import stat
import struct
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import IO, Any, Final, cast

from actstats.models.checkpoints.pickles import MOST_BYTES, Budget, Machine, storage_key
from actstats.models.checkpoints.records import Refused, Storage, TensorRecord, dtype_named

_MAGIC: Final = 0x1950A86A20F9469CFC6C
"""The first object of a stream."""
_STREAM_VERSION: Final = 1001
_MOST_AXES: Final = 64
_MOST_DIRECTORY: Final = 32 << 20
"""Bytes of a zip's directory: some 400,000 members, where a large optimiser's state has 10,000."""
_TAR_MEMBERS: Final = ("storages", "tensors", "pickle")


def read_archive(file: IO[bytes]) -> tuple[Any, Machine]:
    """Return the content of a file, and the machine that read it; tensors are read later, while the file is open.

    Raises `Refused` for a file that must not be read; and ValueError, KeyError, `zipfile.BadZipFile`,
    `tarfile.TarError` or the like for a damaged file.
    """
    end = file.seek(0, io.SEEK_END)
    file.seek(257)
    is_tar = file.read(5) == b"ustar"
    file.seek(0)
    start = file.read(64)
    file.seek(0)
    if (kind := kind_of(start)) and not is_tar:
        raise Refused(f"it is {kind}")
    if start[:4] == b"PK\x03\x04":
        return _read_zip(file, end)
    return _read_tar(file, end) if is_tar else _read_stream(file, end)


class Window:
    """A file for reading pickles, which limits the total number of bytes that are read."""

    def __init__(self, file: IO[bytes], end: int) -> None:
        self._file = file
        self._left = end - file.tell()
        self._allowed = MOST_BYTES

    def read(self, size: int = -1, /) -> bytes:
        """Return `size` bytes, or none if there are fewer, so that a claimed size takes no memory."""
        return self._count(self._file.read(size)) if 0 <= size <= self._left else b""

    def readline(self) -> bytes:
        """Return the bytes to the end of the line."""
        return self._count(self._file.readline(min(self._left, self._allowed)))

    def _count(self, data: bytes) -> bytes:
        self._left -= len(data)
        self._allowed -= len(data)
        if self._allowed < 0:
            raise Refused(f"its pickle is larger than {MOST_BYTES:,} bytes")
        return data


class _Bounded:
    """A file whose reads take memory only for bytes that exist, whatever size a header claims."""

    def __init__(self, file: IO[bytes], end: int) -> None:
        self._file = file
        self._end = end
        self.seek = file.seek
        self.tell = file.tell
        self.seekable = file.seekable

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._end - self._file.tell())
        return self._file.read(left if size < 0 else min(size, left))


class _Places:
    """An archive whose storages are in one file, each at a known offset."""

    def __init__(self, file: IO[bytes]) -> None:
        self.places: dict[str, tuple[int, int]] = {}
        self._file = file
        self._read: dict[str, bytearray] = {}

    def data(self, key: str, size: int) -> bytearray:
        if key not in self._read:
            start, length = self.places[key]
            self._file.seek(start)
            self._read[key] = _filled(bytearray(length), self._file)
        return _at_least(size, self._read[key])

    def place(self, key: str, itemsize: int, end: int) -> None:
        """Record the storage at the file's position, which begins with its number of values, and skip it."""
        (numel,) = struct.unpack("<q", self._file.read(8))
        start = self._file.tell()
        if numel < 0 or start + numel * itemsize > end:
            raise Refused("it is truncated: the values of its tensors end too early")
        self.places[key] = (start, numel * itemsize)
        self._file.seek(start + numel * itemsize)


def _read_stream(file: IO[bytes], end: int, budget: Budget | None = None) -> tuple[Any, Machine]:
    """Read what `torch.save` wrote before version 1.6, or a bare pickle. A nested file shares its parent's budget."""
    archive = _Places(file)
    machine = Machine(archive, unpack=_read_nested if budget is None else None, budget=budget or Budget(end))
    window = Window(file, end)
    content = machine.read(window)
    if content != _MAGIC:
        return content, machine
    if machine.read(window) != _STREAM_VERSION:
        raise Refused("it is of an unknown version of PyTorch's format")
    system = machine.read(window)
    if not isinstance(system, Mapping) or not system.get("little_endian", True):
        raise Refused("it was written on a big-endian machine")
    content = machine.read(window)
    for key in map(storage_key, machine.read(window)):
        archive.place(key, machine.storages[key].dtype.itemsize, end)
    return content, machine


def _read_nested(data: bytes, parent: Machine) -> Any:
    """Read a storage that Python's own pickle wrote: a stream within the pickle."""
    file = io.BytesIO(data)
    content, machine = _read_stream(file, len(data), parent.budget)
    parent.foreign |= machine.foreign
    return content


class _Zip:
    def __init__(self, file: zipfile.ZipFile, root: str) -> None:
        self._file = file
        self._root = root
        self._read: dict[str, bytearray] = {}

    def data(self, key: str, size: int) -> bytearray:
        if key not in self._read:
            info = self._file.getinfo(f"{self._root}data/{key}")
            with self._file.open(info) as member:
                self._read[key] = _filled(bytearray(info.file_size), member)
        return _at_least(size, self._read[key])


def _read_zip(file: IO[bytes], end: int) -> tuple[Any, Machine]:
    if _directory_size(file, end) > _MOST_DIRECTORY:
        raise Refused("it has a directory of far too many members")
    archive = zipfile.ZipFile(file)
    members = archive.infolist()
    _check_names(info.filename for info in members)
    for info in members:
        if stat.S_ISLNK(info.external_attr >> 16):
            raise Refused(f"its member {info.filename!r} is a link")
    roots = [name.removesuffix("data.pkl") for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise Refused(_kind_of_zip(archive.namelist()))
    (root,) = roots
    # The code of TorchScript is compressed. It is never read.
    members = [info for info in members if not info.filename.startswith(f"{root}code/")]
    for info in members:
        if info.compress_type != zipfile.ZIP_STORED:
            raise Refused(f"its member {info.filename!r} is compressed, which PyTorch's never are")
    if sum(info.file_size for info in members) > end:
        raise Refused("its members claim more bytes than the file has")
    names = set(archive.namelist())
    if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
        raise Refused("it was written on a big-endian machine")
    if archive.getinfo(f"{root}data.pkl").file_size > MOST_BYTES:
        raise Refused(f"its pickle is larger than {MOST_BYTES:,} bytes")
    machine = Machine(_Zip(archive, root), unpack=_read_nested, budget=Budget(end))
    content = machine.read(io.BytesIO(archive.read(f"{root}data.pkl")))
    if f"{root}constants.pkl" in names and not machine.storages:
        raise Refused(
            "it is a TorchScript program without weights of its own, such as a frozen one; save the state_dict() of "
            "the module instead"
        )
    return content, machine


_OF_ZIPS: Final = {
    ".data/extern_modules": "a torch.package archive; save the state_dict() of the module that it holds",
    "archive_format": "an exported program; save torch.export.load(FILE).state_dict",
    "serialized_exported_program.json": "an exported program; save torch.export.load(FILE).state_dict",
    "model.weights.h5": "a Keras model; convert its weights to PyTorch's names and layouts",
    ".npy": "an archive of NumPy arrays; save them with torch.save or safetensors",
}
"""Description of a zip archive by the ending of one of its members."""
_BEGINNINGS: Final = {
    b"\x89HDF": "an HDF5 file, as Keras writes them; convert its weights to PyTorch's names and layouts",
    b"\x93NUMPY": "a NumPy array",
    b"GGUF": "a GGUF file, whose weights are quantised",
    b"\x1f\x8b": "compressed with gzip; decompress it",
    b"BZh": "compressed with bzip2; decompress it",
    b"\xfd7zXZ": "compressed with xz; decompress it",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; decompress it",
    b"version https://git-lfs": "only a pointer of Git LFS; download the file that it points to",
    b"<": "a web page, not the file that was to be downloaded",
}
"""Description of a file by its first bytes."""


def kind_of(start: bytes) -> str | None:
    """Return a description of a file that PyTorch did not write, from its first bytes; None if it is unknown."""
    if start[:1] == b"\x08" and start[2:3] == b"\x12":  # the version of its format, and the producer's name
        return "an ONNX file; convert its weights to PyTorch's names"
    return next((kind for first, kind in _BEGINNINGS.items() if start.lstrip().startswith(first)), None)


def _kind_of_zip(names: Iterable[str]) -> str:
    kinds = (kind for end, kind in _OF_ZIPS.items() if any(name.endswith(end) for name in names))
    return f"it is {next(kinds, 'a zip archive of something else')}"


def _directory_size(file: IO[bytes], end: int) -> int:
    """Return the size of a zip's directory, which `zipfile` reads at once; PyTorch writes no comment after it."""
    file.seek(max(0, end - 98))
    tail = file.read()
    if tail[-22:-18] != b"PK\x05\x06":
        raise zipfile.BadZipFile("no directory at the end")
    is_large = tail[-42:-38] == b"PK\x06\x07"
    size: int = struct.unpack("<Q", tail[-58:-50])[0] if is_large else struct.unpack("<I", tail[-10:-6])[0]
    return size


def _read_tar(file: IO[bytes], end: int) -> tuple[Any, Machine]:
    """Read what `torch.save` wrote before 2017."""
    archive = tarfile.TarFile(fileobj=cast(IO[bytes], _Bounded(file, end)))  # which reads no compressed ones
    members = archive.getmembers()
    _check_names(member.name for member in members)
    for member in members:
        if not (member.isreg() or member.isdir()) or member.issparse():
            raise Refused(f"its member {member.name!r} is a link or a device")
        if member.offset_data + member.size > end:
            raise Refused(f"it is truncated: its member {member.name!r} ends too early")
    if not set(_TAR_MEMBERS) <= set(archive.getnames()):
        raise Refused("it is a tar archive of something else; give a file that is in it")
    opened = [found for name in _TAR_MEMBERS if (found := archive.extractfile(name))]
    if len(opened) != len(_TAR_MEMBERS):
        raise Refused("it has a folder in the place of a file")
    storages, tensors, content = opened
    objects: dict[str, Any] = {}
    machine = Machine(
        _Places(storages), find=lambda identifier: _found(objects, identifier), budget=Budget(end)
    )
    _note_storages(storages, archive.getmember("storages").size, machine, objects)
    _note_tensors(tensors, archive.getmember("tensors").size, machine, objects)
    return machine.read(Window(content, archive.getmember("pickle").size)), machine


def _found(objects: Mapping[str, Any], identifier: Any) -> Any:
    # A container comes as a tuple: its class, and the source code of that.
    return identifier[0] if isinstance(identifier, tuple) else objects[storage_key(identifier)]


def _note_storages(file: IO[bytes], end: int, machine: Machine, objects: dict[str, Any]) -> None:
    archive = machine.archive
    assert isinstance(archive, _Places)
    for _ in range(machine.read(Window(file, end))):
        key, _, cls = machine.read(Window(file, end))
        dtype = dtype_named(cls)
        if dtype is None:
            raise Refused("it has a storage of an unknown kind")
        key = storage_key(key)
        archive.place(key, dtype.itemsize, end)
        objects[key] = Storage(archive, key, dtype, archive.places[key][1] // dtype.itemsize)
    for key, root, start, numel in machine.read(Window(file, end)):
        whole = objects[storage_key(root)]
        objects[storage_key(key)] = Storage(archive, whole.key, whole.dtype, numel, start)


def _note_tensors(file: IO[bytes], end: int, machine: Machine, objects: dict[str, Any]) -> None:
    for _ in range(machine.read(Window(file, end))):
        key, storage, _ = machine.read(Window(file, end))
        (ndim,) = struct.unpack("<i4x", file.read(8))
        if not 0 <= ndim <= _MOST_AXES:
            raise Refused("it has a tensor of an impossible shape")
        shape = struct.unpack(f"<{2 * ndim + 1}q", file.read(16 * ndim + 8))
        record = TensorRecord(
            objects[storage_key(storage)],
            shape[-1],
            shape[:ndim],
            shape[ndim:-1],
            objects[storage_key(storage)].dtype,
        )
        objects[storage_key(key)] = record


def _check_names(names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        path = PurePosixPath(name)
        if path.is_absolute() or PureWindowsPath(name).anchor or ".." in path.parts or "\\" in name:
            raise Refused(f"its member {name!r} points outside of it")
        if name in seen:
            raise Refused(f"it has two members {name!r}")
        seen.add(name)


def _filled(buffer: bytearray, file: IO[bytes]) -> bytearray:
    view = memoryview(buffer)
    while len(view):
        count = file.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise Refused("it is truncated: the values of its tensors end too early")
        view = view[count:]
    return buffer


def _at_least(size: int, data: bytearray) -> bytearray:
    if len(data) < size:
        raise Refused("it has a tensor with fewer values than it claims")
    return data
