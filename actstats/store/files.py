"""A Zarr store on a local disk that survives a power cut, and who else is using it.

The order in which bytes reach the disk is what makes a partition complete or not: its data, then the flag
that says so. `DurableStore.flush` is the barrier between the two.
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
"""Hexadecimal digits after the name of a store that is being made or removed."""
_PARTIAL: Final = ".partial"
"""Ending of an object that is being written."""


class DurableStore(LocalStore):
    """Zarr's store of local files, which are on the disk, with the folders they lie in, after `flush`.

    An object is written to a file `.XXXXXXXX.partial` in the root and moved to its place, so that it is whole
    whenever it is seen. The root itself is never made: where it was moved away, writing fails.
    """

    def __init__(self, root: Path | str, *, read_only: bool = False) -> None:
        super().__init__(root, read_only=read_only)
        self._written: set[Path] = set()
        self._lock = threading.Lock()

    async def set(self, key: str, value: Buffer) -> None:
        """Write an object; it replaces the one before in one step."""
        await asyncio.to_thread(self.set_sync, key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write an object unless it is there."""
        if not await self.exists(key):
            await self.set(key, value)

    def set_sync(self, key: str, value: Buffer) -> None:
        """Write an object, as `set`."""
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
        """Return once everything written since the last call would survive a power cut."""
        with self._lock:
            files, self._written = self._written, set()
        for file in files:
            sync(file)
        folders = {folder for file in files for folder in file.parents if folder.is_relative_to(self.root)}
        for folder in sorted(folders, key=lambda folder: len(folder.parts), reverse=True):
            sync(folder)


def sync(path: Path) -> None:
    """Have the disk hold what a file, or the list of names of a folder, holds now."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class InUse:
    """Says that this process is using a folder, and whether others are (`flock` on the folder itself).

    A file system without such locks lets everything pass. The lock ends with the process, however that ends.
    """

    def __init__(self, folder: Path) -> None:
        """Begin to use `folder`, beside others."""
        self._folder = folder
        self._descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.share()

    def _lock(self, kind: int) -> bool:
        try:
            fcntl.flock(self._descriptor, kind)
        except BlockingIOError:
            return False
        except OSError:  # no locks on this file system
            return True
        return True

    def is_there(self) -> bool:
        """Whether the folder in use still has its name."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), self._folder.stat())
        except OSError:
            return False

    def alone(self) -> bool:
        """Whether no other process uses the folder; from then on none can begin to."""
        return self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB)

    def share(self) -> None:
        """Let others use the folder too; wait first for one that is alone in it."""
        self._lock(fcntl.LOCK_SH)

    def close(self) -> None:
        """Stop using the folder."""
        os.close(self._descriptor)


@contextlib.contextmanager
def in_use(folder: Path) -> Iterator[InUse]:
    """Use a folder inside a `with` block."""
    use = InUse(folder)
    try:
        yield use
    finally:
        use.close()


def remove_abandoned(path: Path) -> list[Path]:
    """Remove what killed processes left beside the store at `path` while making or removing it; return what that
    was.
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
    """Remove the objects that killed processes were writing to the store at `path`, if no one else uses it."""
    if use.alone():
        for partial in path.glob(f".*{_PARTIAL}"):
            partial.unlink()
    use.share()


def beside(path: Path) -> Path:
    """Return a name beside `path` that nothing has yet, which `remove_abandoned` knows."""
    return path.parent / f".{path.name}.{os.urandom(_SUFFIX // 2).hex()}"
