"""Where a store lies: a folder of this machine, or a bucket. Nothing above this knows which.

A `StorePlace` has objects by key, such as `mean/c.3.0`. What is written is either there whole or not at all, and a
store is made so that of several processes which start together one makes it and the others find it.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from zarr.abc.store import Store as Objects
from zarr.storage import LocalStore

from actstats.errors import ActstatsError
from actstats.store.files import DurableStore, InUse, beside, remove_abandoned, remove_partial, sync
from actstats.support import URL, located, require_extra


class Use(Protocol):
    """Says that this process is using a store."""

    def is_there(self) -> bool:
        """Whether the store that is being used is still the one at its place."""

    def close(self) -> None:
        """Stop using it."""


class StorePlace(Protocol):
    """Where a store lies, or may be made."""

    @property
    def location(self) -> Path | URL:
        """Its path or URL."""

    def objects(self, *, read_only: bool) -> Objects:
        """Return the store's objects as Zarr reads and writes them."""

    def exists(self) -> bool:
        """Whether anything is there: a store, or what is not one."""

    def whole(self) -> bool:
        """Whether the store that is there has been made to its end."""

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the size in bytes of each object below `folder` by the rest of its key, from one listing."""

    def read(self, keys: Sequence[str]) -> list[bytes]:
        """Return these objects.

        Raises:
            FileNotFoundError: one is not there.
        """

    def remove(self, keys: Iterable[str]) -> None:
        """Remove these objects, as far as they are there; a power cut does not bring them back."""

    def flush(self) -> None:
        """Return once everything written would survive a power cut."""

    def tidy(self) -> None:
        """Finish what killed processes left of making or removing a store."""

    def make(self, write: Callable[[Objects], None]) -> None:
        """Make the store that `write` writes, unless another process is faster.

        It may not be `whole` until `complete` was called, by any process that is to write into it.
        """

    def complete(self, write: Callable[[Objects], None]) -> None:
        """Make the store whole if it is not; `write` has to write the same store as it was made from."""

    def clear(self) -> None:
        """Remove the store that is there.

        Raises:
            ActstatsError: another process is using or removing it.
        """

    def use(self) -> Use:
        """Begin to use the store that is there, beside others."""

    def explained(self) -> AbstractContextManager[None]:
        """Turn what fails inside into one line that names the store and says what to do."""


def place_of(path: str | Path) -> StorePlace:
    """Return the place that a path, or a URL such as `s3://bucket/x.zarr`, names; nothing is opened yet.

    Raises:
        ActstatsError: a URL that cannot be had, or the library for it is not installed.
    """
    location = located(path)
    if isinstance(location, Path):
        return Folder(location)
    require_extra("obstore", "cloud", f"a store at {location}")
    from actstats.store.bucket import Bucket

    return Bucket(location)


class Folder:
    """A folder on a local disk, or on one that is mounted."""

    def __init__(self, location: Path) -> None:
        self.location = location
        self._durable = DurableStore(location)

    def objects(self, *, read_only: bool) -> Objects:
        """Return the folder's files."""
        return LocalStore(self.location, read_only=True) if read_only else self._durable

    def exists(self) -> bool:
        """Whether there is a file or folder of this name."""
        return self.location.exists()

    def whole(self) -> bool:
        """Return True: a folder gets its name when it is whole."""
        return True

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the size of each file below `folder`."""
        return dict(_sizes(f"{self.location}/{folder}", ""))

    def read(self, keys: Sequence[str]) -> list[bytes]:
        """Return the contents of these files."""
        return [(self.location / key).read_bytes() for key in keys]

    def remove(self, keys: Iterable[str]) -> None:
        """Remove these files, and have the disk hold that."""
        folders = set()
        for file in (self.location / key for key in keys):
            with contextlib.suppress(FileNotFoundError):
                file.unlink()
                folders.add(file.parent)
        for folder in folders:
            sync(folder)

    def flush(self) -> None:
        """Have the disk hold what was written."""
        self._durable.flush()

    def tidy(self) -> None:
        """Remove what killed processes left beside the store."""
        remove_abandoned(self.location)

    def make(self, write: Callable[[Objects], None]) -> None:
        """Make the store beside its place and move it there, so that it is whole whenever it is seen."""
        path = self.location
        if path.parent.is_file():
            raise NotADirectoryError(errno.ENOTDIR, f"{path.parent} is a file, not a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        making = beside(path)
        making.mkdir()
        use = InUse(making)
        try:
            files = DurableStore(making)
            write(files)
            files.flush()
            try:
                making.rename(path)
            except OSError as error:
                # Of several processes that start one sweep together, one makes the store and the others open it.
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            for folder in itertools.takewhile(lambda folder: folder != folder.parent, path.parents):
                sync(folder)
        finally:
            use.close()
            shutil.rmtree(making, ignore_errors=True)

    def complete(self, write: Callable[[Objects], None]) -> None:
        """Do nothing: it is whole."""

    def clear(self) -> None:
        """Remove the folder, unless another process is using it."""
        path = self.location
        use = InUse(path)
        try:
            if not use.alone():
                raise ActstatsError(
                    f"{path} is in use by another process; stop that one, or choose another `store=`"
                )
            aside = beside(path)
            path.rename(aside)
            sync(path.parent)
            shutil.rmtree(aside)
        finally:
            use.close()

    def use(self) -> Use:
        """Lock the folder, and remove what killed processes were writing to it."""
        use = InUse(self.location)
        remove_partial(self.location, use)
        return use

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Turn what a file system can say into one line."""
        path = self.location
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise ActstatsError(
                    f"no room to write {path} ({reason}); completed partitions are kept: "
                    "free some space and rerun the same command to resume"
                ) from error
            raise ActstatsError(f"cannot write {path}: {reason}") from error


def _sizes(folder: str, prefix: str) -> Iterator[tuple[str, int]]:
    try:
        entries = os.scandir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return
    with entries:
        for entry in entries:
            if entry.is_dir():
                yield from _sizes(entry.path, f"{prefix}{entry.name}/")
            else:
                yield f"{prefix}{entry.name}", entry.stat().st_size
