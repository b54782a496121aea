"""Stores in a bucket: S3 and compatible services, Google Cloud Storage and Azure; `memory://` for tests.

Buckets have neither renames nor locks, only conditional writes. So the root object, `zarr.json`, is written first, on
condition that it does not exist, and later processes open the store that the first one created. The other objects of
a new store follow from the root. Every process that writes to the store first adds the missing ones, `_LAST` at the
end: without it the store is incomplete.

A store is removed by first replacing its root with a notice, on condition that the root has not changed.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, TypeVar

import obstore
from obstore.exceptions import AlreadyExistsError, PreconditionError
from zarr.abc.store import Store as Objects
from zarr.storage import ObjectStore

from actstats.records import load
from actstats.remote import FIRST_PATIENCE, RESUME, explained, opened
from actstats.store.digests import COPY, ROOT
from actstats.support import URL

if TYPE_CHECKING:
    from obstore import UpdateVersion

P = ParamSpec("P")
R = TypeVar("R")

_LAST: Final = "completed/zarr.json"
"""The object that is written last when a store is created."""
_NOTICE: Final = "actstats_removing"
"""Entry in the root of a store that is being removed, with the folders to remove."""
_ABANDONED: Final = 60.0
"""Seconds without progress after which another process takes over a removal."""
_AT_ONCE: Final = 32
"""Maximum number of concurrent requests."""
_AT_A_TIME: Final = 1000
"""Number of objects to remove between two updates of the notice."""


class Bucket:
    """A location in a bucket, given by its URL."""

    def __init__(self, location: URL) -> None:
        self.location = URL(location.rstrip("/"))
        self._store = opened(self.location)
        self._first = opened(self.location, patience=FIRST_PATIENCE)

    def objects(self, *, read_only: bool) -> Objects:
        """Return the objects below the URL."""
        return BucketObjects(self.location, read_only=read_only)

    def exists(self) -> bool:
        """Whether there is a store, or any other object, below the URL."""
        with explained(self.location):
            root = self._root(self._first)
            if root is not None:
                return not _is_notice(root[0])
            return any(obstore.list(self._store, chunk_size=1))

    def whole(self) -> bool:
        """Whether the object that is written last exists."""
        with explained(self.location), suppress(FileNotFoundError):
            obstore.head(self._store, _LAST)
            return True
        return False

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the size of each object below `folder`."""
        with explained(self.location):
            objects = (meta for batch in obstore.list(self._store, f"{folder}/") for meta in batch)
            return {meta["path"].removeprefix(f"{folder}/"): meta["size"] for meta in objects}

    def read(self, keys: Sequence[str]) -> list[bytes]:
        """Return the contents of these objects, read concurrently."""
        with explained(self.location):
            return self._at_once(lambda key: bytes(obstore.get(self._store, key).bytes()), keys)

    def root(self, most: int) -> bytes:
        """Return the object `zarr.json`."""
        try:
            with explained(self.location):
                response = obstore.get(self._store, ROOT)
                if response.meta["size"] > most:
                    raise ValueError(f"{ROOT} is larger than {most >> 20} MiB")
                return bytes(response.bytes())
        except FileNotFoundError:
            raise FileNotFoundError(errno.ENOENT, f"it has no {ROOT}") from None

    def put(self, key: str, data: bytes) -> None:
        """Write an object."""
        with self.explained():
            obstore.put(self._store, key, data)

    def remove(self, keys: Iterable[str]) -> None:
        """Remove these objects; on S3 a thousand per request."""
        keys = list(keys)
        with self.explained():
            try:
                obstore.delete(self._store, keys)
            except FileNotFoundError:  # other services stop at the first object that does not exist
                self._at_once(self._remove_one, keys)

    def flush(self) -> None:
        """Do nothing, as objects are durable once they are written."""

    def tidy(self) -> None:
        """Wait until another process has removed the store, or take over if its removal was abandoned."""
        seen, since = None, time.monotonic()
        with self.explained():
            while (root := self._root(self._first)) and _is_notice(root[0]):
                if root[0] != seen:
                    seen, since = root[0], time.monotonic()
                elif time.monotonic() - since > _ABANDONED:
                    self._remove_all(load(root[0])[_NOTICE], root[1])
                    return
                time.sleep(1)

    def make(self, objects: Mapping[str, bytes]) -> None:
        """Write the root, unless it exists."""
        self._put_new(ROOT, objects[ROOT])

    def complete(self, objects: Callable[[], Mapping[str, bytes]]) -> None:
        """Write the objects of a new store that are missing."""
        if not self.whole():
            tree = objects()
            others = [key for key in tree if key not in (ROOT, _LAST)]
            with self.explained():
                self._at_once(lambda key: self._put_new(key, tree[key]), others)
                self._put_new(_LAST, tree[_LAST])

    def clear(self, unwanted: Callable[[], bool]) -> bool:
        """Remove the store if it is unwanted; a sweep that is writing to it stops before its next partition."""
        with self.explained():
            root = self._root(self._store)
            if root is None or _is_notice(root[0]) or not unwanted():
                return False
            self._remove_all(list(load(root[0])["consolidated_metadata"]["metadata"]), root[1])
            return True

    def use(self) -> BucketInUse:
        """Return a record of the current store, which detects its replacement."""
        if not self.exists():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.location))
        return BucketInUse(self, self.version())

    def explained(self) -> AbstractContextManager[None]:
        """Turn network errors into a one-line `ActstatsError`."""
        return explained(self.location, RESUME)

    def version(self) -> str | None:
        """Return the ETag of the root, which identifies the store, or None if there is no store."""
        with self.explained(), suppress(FileNotFoundError):
            return obstore.head(self._store, ROOT)["e_tag"]
        return None

    def _root(self, store: obstore.store.ObjectStore) -> tuple[bytes, UpdateVersion] | None:
        try:
            response = obstore.get(store, ROOT)
            return bytes(response.bytes()), _version(response.meta)
        except FileNotFoundError:
            return None

    def _put_new(self, key: str, data: bytes) -> None:
        # A retry is refused if the first request succeeded but its response was lost, which is harmless.
        with suppress(AlreadyExistsError):
            obstore.put(self._store, key, data, mode="create", use_multipart=False)

    def _remove_one(self, key: str) -> None:
        with suppress(FileNotFoundError):
            obstore.delete(self._store, key)

    def _remove_all(self, folders: list[str], root: UpdateVersion) -> None:
        """Remove the objects in `folders`, then the root, as long as no other process changes the root."""
        with suppress(_OvertakenError):
            for folder in folders:
                root = self._put_notice(folders, root)
                keys = [f"{folder}/{key}" for key in self.sizes(folder)]
                for first in range(0, len(keys), _AT_A_TIME):
                    self.remove(keys[first : first + _AT_A_TIME])
                    root = self._put_notice(folders, root)
            self.remove([COPY])
            self.remove([ROOT])

    def _put_notice(self, folders: list[str], root: UpdateVersion) -> UpdateVersion:
        notice = json.dumps({_NOTICE: folders, "sign_of_life": os.urandom(8).hex()}).encode()
        try:
            return _version(obstore.put(self._store, ROOT, notice, mode=root, use_multipart=False))
        except PreconditionError:
            current = self._root(self._store)
            if current is not None and current[0] == notice:  # the write succeeded, but its response was lost
                return current[1]
            raise _OvertakenError from None

    def _at_once(self, do: Callable[[str], R], keys: Sequence[str]) -> list[R]:
        with ThreadPoolExecutor(max(1, min(_AT_ONCE, len(keys)))) as pool:
            return list(pool.map(do, keys))


class _OvertakenError(Exception):
    """Another process has removed, replaced or taken over the store that this one is removing."""


class BucketInUse:
    """A store in a bucket that this process is using, which is not visible to other processes."""

    def __init__(self, bucket: Bucket, version: str | None) -> None:
        self._bucket, self._version = bucket, version

    def is_there(self) -> bool:
        """Whether the store still has the same root."""
        return self._bucket.version() == self._version

    def close(self) -> None:
        """Do nothing, as there is no lock to release."""


def _explaining(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, R]]:
    @functools.wraps(method)
    async def explaining(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with explained(self.url, "" if self.read_only else RESUME):
            return await method(self, *args, **kwargs)

    return explaining


class BucketObjects(ObjectStore[Any]):
    """A Zarr store of objects in a bucket, with one-line errors. It is pickled by its URL."""

    def __init__(self, url: URL, *, read_only: bool) -> None:
        super().__init__(opened(url), read_only=read_only)
        self.url = url

    def with_read_only(self, read_only: bool = False) -> BucketObjects:
        """Return a store of the same objects that is writable or read-only."""
        return type(self)(self.url, read_only=read_only)

    def __reduce__(self) -> tuple[Any, ...]:
        # Neither credentials nor connections are pickled.
        return functools.partial(type(self), read_only=self.read_only), (self.url,)

    get = _explaining(ObjectStore.get)
    get_partial_values = _explaining(ObjectStore.get_partial_values)
    exists = _explaining(ObjectStore.exists)
    set = _explaining(ObjectStore.set)
    delete = _explaining(ObjectStore.delete)


def _is_notice(root: bytes) -> bool:
    return root.startswith(f'{{"{_NOTICE}"'.encode())


def _version(meta: Any) -> UpdateVersion:
    """Return the part of an object's metadata that conditional writes compare."""
    known: Any = {name: meta[name] for name in ("e_tag", "version") if meta.get(name) is not None}
    version: UpdateVersion = known
    return version
