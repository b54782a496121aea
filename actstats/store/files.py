"""Zarr stores on a local disk that survive power failures, and locks between processes that use them.

The data of a partition must reach the disk before the flag that marks it complete. `DurableStore.flush` is the
barrier between the two.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import glob
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from zarr.storage import LocalStore

if TYPE_CHECKING:
    from zarr.core.buffer import Buffer


_SUFFIX: Final = 8
"""Number of hexadecimal digits appended to the name of a store that is being created or removed."""
_PARTIAL: Final = ".partial"
"""Suffix of a file that is being written."""


class DurableStore(LocalStore):
    """A Zarr store of local files that are durable, together with their folders, after `flush`.

    Each object is written to a file `.XXXXXXXX.partial` in the root and then renamed, so readers never see a partial
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
        self._check_writable()
        file, partial = self.root / key, self.root / f".{os.urandom(_SUFFIX // 2).hex()}{_PARTIAL}"
        try:
            partial.write_bytes(value.as_buffer_like())
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


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class InUse:
    """A lock that marks a folder as used by this process, and tells whether others use it (`flock` on the folder).

    File systems without locks behave as if no other process used the folder. The lock is released when the process
    ends, even if it is killed.
    """

    def __init__(self, folder: Path) -> None:
        """Acquire a shared lock on `folder`."""
        self._folder = folder
        self._descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.share()

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

    def share(self) -> None:
        """Make the lock shared; wait while another process holds an exclusive lock."""
        self._lock(fcntl.LOCK_SH)

    def close(self) -> None:
        """Release the lock."""
        os.close(self._descriptor)


@contextlib.contextmanager
def in_use(folder: Path) -> Iterator[InUse]:
    """Hold a shared lock on a folder within a `with` block."""
    use = InUse(folder)
    try:
        yield use
    finally:
        use.close()


def remove_abandoned(path: Path) -> list[Path]:
    """Remove the folders that killed processes left beside `path` while creating or removing a store.

    Return the removed folders.
    """
    removed = []
    for folder in path.parent.glob(f".{glob.escape(path.name)}.*"):
        suffix = folder.name.removeprefix(f".{path.name}.")
        if len(suffix) != _SUFFIX or not set(suffix) <= set("0123456789abcdef") or not folder.is_dir():
            continue
        with contextlib.suppress(OSError), in_use(folder) as use:
            if use.alone():
                shutil.rmtree(folder)
                removed.append(folder)
    return removed


def remove_partial(path: Path, use: InUse) -> None:
    """Remove partial files that killed processes left in the store at `path`, unless another process uses it."""
    if use.alone():
        for partial in path.glob(f".*{_PARTIAL}"):
            partial.unlink()
    use.share()


def beside(path: Path) -> Path:
    """Return an unused path beside `path` that `remove_abandoned` recognizes."""
    return path.parent / f".{path.name}.{os.urandom(_SUFFIX // 2).hex()}"
