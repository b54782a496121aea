"""Zarr stores on a local disk that survive power failures, and what several processes need to share one.

The data of a partition must reach the disk before the flag that marks it complete. `DurableStore.flush` is the
barrier between the two.

Temporary files and folders are named after the process that makes them (`_marked`), so that any other process of the
same machine can find out whether it is still alive. This needs no locks, which network file systems may lack, or
keep to one node. Locks (`flock`) only protect a store from being overwritten while it is used.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import functools
import hashlib
import os
import re
import shutil
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from zarr.storage import LocalStore

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype


_PARTIAL: Final = ".partial"
"""Suffix of a file that is being written."""
_REMOVED: Final = "removed-"
"""Begins the mark of a store that is being removed, which any process may finish."""
_MARK: Final = re.compile(
    rf"{_REMOVED}[0-9a-f]{{8}}|(?:(?P<machine>[0-9a-f]{{8}})-(?P<pid>\d+)-(?P<start>[0-9a-f]{{8}})-)?[0-9a-f]{{8}}"
)
"""The marks of temporary files and folders; earlier versions did not name the process."""
_UNKNOWN: Final = "0" * 8
_OURS: Final[set[str]] = set()
"""The marks that this process uses at the moment."""


class DurableStore(LocalStore):
    """A Zarr store of local files that are durable, together with their folders, after `flush`.

    Each object is written to a file `.MARK.partial` in the root and then renamed, so readers never see a partial
    object. The root itself is never created: if it has been moved, writing fails.
    """

    def __init__(self, root: Path | str, *, read_only: bool = False) -> None:
        super().__init__(root, read_only=read_only)
        self._written: set[Path] = set()
        self._lock = threading.Lock()

    async def set(self, key: str, value: Buffer) -> None:
        """Write an object, replacing any previous one atomically."""
        await asyncio.to_thread(self.set_sync, key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write an object unless it exists."""
        if not await self.exists(key):
            await self.set(key, value)

    def set_sync(self, key: str, value: Buffer) -> None:
        """Write an object synchronously, see `set`."""
        self.put(key, value.as_buffer_like())

    def put(self, key: str, data: Any) -> None:
        """Write an object, see `set`."""
        self._check_writable()
        file = self.root / key
        with _marked() as mark:
            partial = self.root / f".{mark}{_PARTIAL}"
            try:
                partial.write_bytes(data)
                if file.parent != self.root:
                    file.parent.mkdir(exist_ok=True)
                partial.replace(file)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
        with self._lock:
            self._written.add(file)

    def flush(self) -> None:
        """Block until everything written since the last call is on the disk."""
        with self._lock:
            files, self._written = self._written, set()
        for file in files:
            sync(file)
        folders = {folder for file in files for folder in file.parents if folder.is_relative_to(self.root)}
        for folder in sorted(folders, key=lambda folder: len(folder.parts), reverse=True):
            sync(folder)


class RegularFiles(LocalStore):
    """A Zarr store of local files that refuses to read devices and pipes, also through links."""

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return an object or a part of it; None if it does not exist."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            require_regular(self.root / key)
        return await super().get(key, prototype, byte_range)


def require_regular(path: Path) -> None:
    """Raise `OSError` if there is something other than a file or a folder at `path`, which may never end."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.EINVAL, f"{path.name} is not a file")


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class InUse:
    """A shared lock that marks a folder as used by this process, and tells whether others use it (`flock`).

    File systems without locks behave as if no other process used the folder. The lock is released when the process
    ends, even if it is killed.
    """

    def __init__(self, folder: Path) -> None:
        """Lock `folder`; wait while another process is about to remove it."""
        self._folder = folder
        self._descriptor = _opened(folder)
        self._lock(fcntl.LOCK_SH)

    def _lock(self, kind: int) -> bool:
        try:
            fcntl.flock(self._descriptor, kind)
        except BlockingIOError:
            return False
        except OSError:  # the file system does not support locks
            return True
        return True

    def is_there(self) -> bool:
        """Whether the locked folder is still at its path."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), self._folder.stat())
        except OSError:
            return False

    def alone(self) -> bool:
        """Try to make the lock exclusive; return False if another process uses the folder."""
        return self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB)

    def close(self) -> None:
        """Release the lock."""
        os.close(self._descriptor)


@contextlib.contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Let one process at a time run the block, if the file system supports locks."""
    try:
        descriptor = _opened(folder)
    except PermissionError:  # a folder may be written but not read
        yield
        return
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _opened(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


@contextlib.contextmanager
def new_folder_beside(path: Path) -> Iterator[Path]:
    """Create a folder beside `path`, to be renamed within the block; it is removed at the end otherwise."""
    with _marked() as mark:
        folder = path.parent / f".{path.name}.{mark}"
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def sync_listing(folder: Path) -> None:
    """Flush the entries of a folder to the disk, unless it may be written but not read."""
    with contextlib.suppress(PermissionError):
        sync(folder)


def set_aside(path: Path) -> Path:
    """Rename a folder, durably, so that any process may finish removing it; return its new path."""
    aside = path.parent / f".{path.name}.{_REMOVED}{os.urandom(4).hex()}"
    path.rename(aside)
    sync_listing(path.parent)
    return aside


def remove_abandoned(path: Path) -> None:
    """Remove the folders that killed processes left beside the store `path`, and the partial files inside it."""
    for folder in _left(path.parent, f".{path.name}.", ""):
        shutil.rmtree(folder, ignore_errors=True)
    for partial in _left(path, ".", _PARTIAL):
        with contextlib.suppress(OSError):
            partial.unlink()


def _left(folder: Path, before: str, after: str) -> Iterator[Path]:
    """Yield the files and folders whose names are a mark between `before` and `after`, and that no process uses."""
    try:
        names = [entry.name for entry in folder.iterdir()]
    except OSError:  # it does not exist yet, or may not be read
        return
    for name in names:
        if name.startswith(before) and name.endswith(after):
            mark = _MARK.fullmatch(name[len(before) : len(name) - len(after)])
            if mark and _abandoned(mark, folder / name if (folder / name).is_dir() else folder):
                yield folder / name


def _abandoned(mark: re.Match[str], folder: Path) -> bool:
    """Whether no process can be using what has this mark; `folder` is what earlier versions locked meanwhile."""
    if mark[0].startswith(_REMOVED):
        return True
    if mark["pid"] is None:
        return _unused(folder)
    pid, start = int(mark["pid"]), mark["start"]
    if (mark["machine"], pid, start) == (_machine(), os.getpid(), _start(os.getpid())):
        return mark[0] not in _OURS
    return mark["machine"] == _machine() and not _runs(pid, start)


def _unused(folder: Path) -> bool:
    """Whether no other process has locked the folder, on a file system whose locks exclude."""
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
        first = _opened(folder)
        stack.callback(os.close, first)
        second = _opened(folder)
        stack.callback(os.close, second)
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@contextlib.contextmanager
def _marked() -> Iterator[str]:
    """Yield a new name that says which process of which machine uses it, until the end of the block."""
    pid = os.getpid()
    mark = f"{_machine()}-{pid}-{_start(pid)}-{os.urandom(4).hex()}"
    _OURS.add(mark)
    try:
        yield mark
    finally:
        _OURS.discard(mark)


@functools.cache
def _machine() -> str:
    """Return a name of the process numbers that this process sees: of the machine, or of a container on it."""
    machine, numbers = Path("/etc/machine-id"), Path("/proc/self/ns/pid")
    names = [socket.gethostname()]
    with contextlib.suppress(OSError):
        names.append(machine.read_text())
    with contextlib.suppress(OSError):
        names.append(str(numbers.readlink()))
    return _digits(*names)


def _runs(pid: int, start: str) -> bool:
    """Whether process `pid` exists, unless it certainly is a later one of the same number."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # a process of another user
    return _start(pid) in (start, _UNKNOWN)


def _start(pid: int) -> str:
    """Return digits for the time at which a process started, as numbers of processes are used again."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return _UNKNOWN  # not on Linux, or hidden
    return _digits(boot, fields[19])


def _digits(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:8]
