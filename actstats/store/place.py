"""Locations of stores: a common interface to local folders and buckets.

A `StorePlace` has objects with keys such as `mean/c.3.0`, which are written atomically. If several processes start
together, one of them creates the store and the others open it.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, Protocol

from zarr.abc.store import Store as Objects

from actstats.errors import ActstatsError
from actstats.store.files import (
    DurableStore,
    InUse,
    RegularFiles,
    new_folder_beside,
    one_at_a_time,
    remove_abandoned,
    require_regular,
    set_aside,
    sync,
    sync_listing,
)
from actstats.support import URL, located, require_package


class Use(Protocol):
    """A store in use by this process."""

    def is_there(self) -> bool:
        """Whether the store has not been moved or replaced."""

    def close(self) -> None:
        """Stop using the store."""


class StorePlace(Protocol):
    """Location of a store, which may not exist yet."""

    @property
    def location(self) -> Path | URL:
        """Path or URL of the store."""

    def objects(self, *, read_only: bool) -> Objects:
        """Return a Zarr store of the objects."""

    def exists(self) -> bool:
        """Whether there is anything at this location, even if it is not a store."""

    def whole(self) -> bool:
        """Whether the creation of the existing store is finished."""

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the size in bytes of each object below `folder` by its relative key, with a single listing."""

    def read(self, keys: Sequence[str]) -> list[bytes]:
        """Return the contents of these objects.

        Raises:
            FileNotFoundError: an object does not exist.
        """

    def root(self, most: int) -> bytes:
        """Return the root object, `zarr.json`, of at most `most` bytes.

        Raises:
            FileNotFoundError: it does not exist.
            ValueError: it is larger, or not a file.
        """

    def put(self, key: str, data: bytes) -> None:
        """Write an object, replacing any previous one atomically."""

    def remove(self, keys: Iterable[str]) -> None:
        """Remove these objects durably; ignore those that do not exist."""

    def flush(self) -> None:
        """Block until everything written is durable."""

    def tidy(self) -> None:
        """Clean up after processes that were killed while creating or removing a store."""

    def make(self, objects: Mapping[str, bytes]) -> None:
        """Create the store of these objects, by key, unless another process creates it first.

        Every process that writes to the store must call `complete` first; until then it may not be `whole`. Another
        process may already have removed or replaced the store again.
        """

    def complete(self, objects: Callable[[], Mapping[str, bytes]]) -> None:
        """Finish creating the store if needed; `objects` returns those that follow from its manifest."""

    def clear(self, unwanted: Callable[[], bool]) -> bool:
        """Remove the existing store if `unwanted` returns True, unless another process removes or replaces it first.

        Return whether it was unwanted.

        Raises:
            ActstatsError: another process is using the store.
        """

    def use(self) -> Use:
        """Mark the existing store as used by this process; others may use it too.

        Raises:
            FileNotFoundError: there is no store.
        """

    def explained(self) -> AbstractContextManager[None]:
        """Turn errors into a one-line `ActstatsError` that names the store and says what to do."""


def place_of(path: str | Path) -> StorePlace:
    """Return the location for a path, or a URL such as `s3://bucket/x.zarr`, without opening it.

    Raises:
        ActstatsError: the URL is not supported, or the required library is not installed.
    """
    location = located(path)
    if isinstance(location, Path):
        return Folder(location)
    require_package("obstore", f"a store at {location}")
    from actstats.store.bucket import Bucket

    return Bucket(location)


_LOST: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL})
"""Errors of files that do not exist, or are no files (`require_regular`). Others may pass."""


def read_or_empty(place: StorePlace, key: str) -> bytes:
    """Return the contents of an object; empty if it does not exist, or is not a file.

    Raises:
        ActstatsError: it cannot be read.
    """
    try:
        return place.read([key])[0]
    except OSError as error:
        if isinstance(error, FileNotFoundError) or error.errno in _LOST:
            return b""
        raise ActstatsError(f"cannot read {place.location}/{key}: {error.strerror or error}") from error


class Folder:
    """A folder on a local or mounted disk.

    Where the path is a symbolic link, the store is created and replaced at the link's target.
    """

    def __init__(self, location: Path) -> None:
        self.location = location
        self._durable = DurableStore(location)

    def objects(self, *, read_only: bool) -> Objects:
        """Return a Zarr store of the files in the folder."""
        return RegularFiles(self.location, read_only=True) if read_only else self._durable

    def exists(self) -> bool:
        """Whether there is a file or folder at the path.

        Raises:
            ActstatsError: the path is too long, or leads through a folder that this process may not read.
        """
        try:
            return self.location.exists()
        except OSError as error:
            if error.errno == errno.ESTALE:  # may pass
                raise
            raise ActstatsError(f"cannot open {self.location}: {error.strerror}") from error

    def whole(self) -> bool:
        """Return True, as a folder is renamed to its path only when it is whole."""
        return True

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the size of each file below `folder`."""
        return dict(_sizes(f"{self.location}/{folder}", ""))

    def read(self, keys: Sequence[str]) -> list[bytes]:
        """Return the contents of these files."""
        files = [self.location / key for key in keys]
        for file in files:
            require_regular(file)
        return [file.read_bytes() for file in files]

    def root(self, most: int) -> bytes:
        """Return the contents of `zarr.json`."""
        file = self.location / "zarr.json"
        entry = file.stat()
        if not stat.S_ISREG(entry.st_mode) or entry.st_size > most:
            raise ValueError(f"zarr.json is not a file of at most {most >> 20} MiB")
        return file.read_bytes()

    def put(self, key: str, data: bytes) -> None:
        """Write a file."""
        self._durable.put(key, data)

    def remove(self, keys: Iterable[str]) -> None:
        """Remove these files, and flush the removal to the disk."""
        folders = set()
        for file in (self.location / key for key in keys):
            with contextlib.suppress(FileNotFoundError):
                file.unlink()
                folders.add(file.parent)
        for folder in folders:
            sync(folder)

    def flush(self) -> None:
        """Flush everything written to the disk."""
        self._durable.flush()

    def tidy(self) -> None:
        """Remove what killed processes left beside and in the store."""
        remove_abandoned(self._target())

    def make(self, objects: Mapping[str, bytes]) -> None:
        """Create the store beside its path and rename it, so that others never see an incomplete store."""
        path = self._target()
        if path.parent.is_file():
            raise NotADirectoryError(errno.ENOTDIR, f"{path.parent} is a file, not a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_folder_beside(path) as making:
            files = DurableStore(making)
            for key, data in objects.items():
                files.put(key, data)
            files.flush()
            try:
                making.rename(path)
            except OSError:
                # Another process has created the store in the meantime, or a network file system has repeated a
                # request that had succeeded.
                if not path.exists():
                    raise
            for folder in itertools.takewhile(lambda folder: folder != folder.parent, path.parents):
                sync_listing(folder)

    def complete(self, objects: Callable[[], Mapping[str, bytes]]) -> None:
        """Do nothing, as a folder is always whole."""

    def clear(self, unwanted: Callable[[], bool]) -> bool:
        """Remove the folder if it is unwanted, unless another process is using it."""
        path = self._target()
        if not path.exists():
            return False
        with one_at_a_time(path.parent), contextlib.ExitStack() as stack:
            try:
                use = InUse(path)
            except FileNotFoundError:
                return False
            stack.callback(use.close)
            if not unwanted():
                return False
            if not use.alone():
                raise ActstatsError(
                    f"{self.location} is in use by another process; stop that process, or choose another `store=`"
                )
            if not use.is_there():
                return True
            aside = set_aside(path)
        shutil.rmtree(aside, ignore_errors=True)
        return True

    def use(self) -> Use:
        """Lock the folder."""
        return InUse(self.location)

    def _target(self) -> Path:
        """Return the absolute path of the folder, behind symbolic links."""
        return Path(os.path.realpath(self.location))

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Turn file system errors into a one-line `ActstatsError`."""
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
                with contextlib.suppress(FileNotFoundError):  # another process has removed it
                    yield f"{prefix}{entry.name}", entry.stat().st_size
