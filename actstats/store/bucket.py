"""A store in a bucket: S3 and what speaks its protocol, Google Cloud Storage, Azure; `memory://` for tests.

There is no rename there and no lock, but a write on condition. So the root, `zarr.json`, is the agreement: it is
written first, on condition that there is none, and who comes later opens what the first has written. The other
objects of a new store follow from it, and everyone who is to write into the store adds those that are missing, the
last of them `_LAST`: without it the store is not whole.

To remove a store is to put a notice in place of its root, on condition that the root is still the same.
"""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, TypeVar

import obstore
from obstore.exceptions import AlreadyExistsError, PreconditionError
from zarr.abc.store import Store as Objects
from zarr.storage import MemoryStore, ObjectStore

from actstats.errors import ActstatsError
from actstats.remote import FIRST_PATIENCE, RESUME, explained, opened
from actstats.support import URL

if TYPE_CHECKING:
    from obstore import UpdateVersion
    from zarr.core.buffer import Buffer

P = ParamSpec("P")
R = TypeVar("R")

_ROOT: Final = "zarr.json"
_LAST: Final = "completed/zarr.json"
"""The object that is written last when a store is made."""
_NOTICE: Final = "actstats_removing"
"""Entry of the root of a store that is being removed: the folders that go."""
_ABANDONED: Final = 60.0
"""Seconds after which a removal that shows no progress is another process's to finish."""
_AT_ONCE: Final = 32
"""Requests on their way at a time."""
_AT_A_TIME: Final = 1000
"""Objects that are removed between two signs of life."""


class Bucket:
    """A place in a bucket, by its URL."""

    def __init__(self, location: URL) -> None:
        self.location = URL(location.rstrip("/"))
        self._store = opened(self.location)
        self._first = opened(self.location, patience=FIRST_PATIENCE)

    def objects(self, *, read_only: bool) -> Objects:
        """Return the objects below the URL."""
        return BucketObjects(self.location, read_only=read_only)

    def exists(self) -> bool:
        """Whether a store, or any object at all, lies below the URL."""
        with explained(self.location):
            found = self._root(self._first)
            if found is not None:
                return not _is_notice(found[0])
            return any(obstore.list(self._store, chunk_size=1))

    def whole(self) -> bool:
        """Whether the object is there that is written last."""
        with explained(self.location), suppress(FileNotFoundError):
            obstore.head(self._store, _LAST)
            return True
        return False

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the size of each object below `folder`."""
        with explained(self.location):
            found = (meta for batch in obstore.list(self._store, f"{folder}/") for meta in batch)
            return {meta["path"].removeprefix(f"{folder}/"): meta["size"] for meta in found}

    def read(self, keys: Sequence[str]) -> list[bytes]:
        """Return these objects, several requests at a time."""
        with explained(self.location):
            return self._at_once(lambda key: bytes(obstore.get(self._store, key).bytes()), keys)

    def remove(self, keys: Iterable[str]) -> None:
        """Remove these objects; S3 takes a thousand with one request."""
        with self.explained(), suppress(FileNotFoundError):
            obstore.delete(self._store, list(keys))

    def flush(self) -> None:
        """Do nothing: an object that was written is kept."""

    def tidy(self) -> None:
        """Wait until a store that is being removed is gone, or remove it if nobody does any more."""
        seen, since = None, time.monotonic()
        with self.explained():
            while (root := self._root(self._first)) and _is_notice(root[0]):
                if root[0] != seen:
                    seen, since = root[0], time.monotonic()
                elif time.monotonic() - since > _ABANDONED:
                    self._remove_all(json.loads(root[0])[_NOTICE], root[1])
                    return
                time.sleep(1)

    def make(self, write: Callable[[Objects], None]) -> None:
        """Put the root, unless there is one."""
        self._put_new(_ROOT, _written(write)[_ROOT])

    def complete(self, write: Callable[[Objects], None]) -> None:
        """Put the objects that a new store has and this one has not."""
        if not self.whole():
            tree = _written(write)
            others = [key for key in tree if key not in (_ROOT, _LAST)]
            with self.explained():
                self._at_once(lambda key: self._put_new(key, tree[key]), others)
                self._put_new(_LAST, tree[_LAST])

    def clear(self) -> None:
        """Remove the store; a sweep that is running into it stops before its next partition."""
        with self.explained():
            if root := self._root(self._store):
                self._remove_all(list(json.loads(root[0])["consolidated_metadata"]["metadata"]), root[1])

    def use(self) -> BucketInUse:
        """Remember which store it is."""
        return BucketInUse(self)

    def explained(self) -> AbstractContextManager[None]:
        """Turn an error of the network inside into one line."""
        return explained(self.location, RESUME)

    def version(self) -> str | None:
        """Return what tells this store from another one at this place, None where there is none."""
        with self.explained(), suppress(FileNotFoundError):
            return obstore.head(self._store, _ROOT)["e_tag"]
        return None

    def _root(self, store: obstore.store.ObjectStore) -> tuple[bytes, UpdateVersion] | None:
        try:
            found = obstore.get(store, _ROOT)
            return bytes(found.bytes()), _version(found.meta)
        except FileNotFoundError:
            return None

    def _put_new(self, key: str, data: bytes) -> None:
        # One that arrived, and whose answer did not, may be refused when it is tried again: that is no harm.
        with suppress(AlreadyExistsError):
            obstore.put(self._store, key, data, mode="create", use_multipart=False)

    def _remove_all(self, folders: list[str], root: UpdateVersion) -> None:
        """Remove what lies in `folders`, then the root, which has to be this version of it."""
        for folder in folders:
            root = self._put_notice(folders, root)
            keys = [f"{folder}/{key}" for key in self.sizes(folder)]
            for first in range(0, len(keys), _AT_A_TIME):
                self.remove(keys[first : first + _AT_A_TIME])
                root = self._put_notice(folders, root)
        self.remove([_ROOT])

    def _put_notice(self, folders: list[str], root: UpdateVersion) -> UpdateVersion:
        notice = json.dumps({_NOTICE: folders, "sign_of_life": os.urandom(8).hex()}).encode()
        try:
            return _version(obstore.put(self._store, _ROOT, notice, mode=root, use_multipart=False))
        except PreconditionError:
            found = self._root(self._store)
            if found is not None and found[0] == notice:  # it arrived, its answer did not
                return found[1]
            raise ActstatsError(
                f"{self.location} is being made or removed by another process; wait for that one, or choose "
                "another `store=`"
            ) from None

    def _at_once(self, do: Callable[[str], R], keys: Sequence[str]) -> list[R]:
        with ThreadPoolExecutor(max(1, min(_AT_ONCE, len(keys)))) as pool:
            return list(pool.map(do, keys))


class BucketInUse:
    """A store in a bucket that this process is using; others see nothing of it."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket, self._version = bucket, bucket.version()

    def is_there(self) -> bool:
        """Whether the store still has the same root."""
        return self._bucket.version() == self._version

    def close(self) -> None:
        """Do nothing."""


def _explaining(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, R]]:
    @functools.wraps(method)
    async def explaining(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with explained(self.url, "" if self.read_only else RESUME):
            return await method(self, *args, **kwargs)

    return explaining


class BucketObjects(ObjectStore[Any]):
    """Zarr's store of objects in a bucket, whose errors are one line; another process opens it by its URL."""

    def __init__(self, url: URL, *, read_only: bool) -> None:
        super().__init__(opened(url), read_only=read_only)
        self.url = url

    def with_read_only(self, read_only: bool = False) -> BucketObjects:
        """Return the same objects, to be written or not."""
        return type(self)(self.url, read_only=read_only)

    def __reduce__(self) -> tuple[Any, ...]:
        # Neither credentials nor connections go with it.
        return functools.partial(type(self), read_only=self.read_only), (self.url,)

    get = _explaining(ObjectStore.get)
    get_partial_values = _explaining(ObjectStore.get_partial_values)
    exists = _explaining(ObjectStore.exists)
    set = _explaining(ObjectStore.set)
    delete = _explaining(ObjectStore.delete)


def _written(write: Callable[[Objects], None]) -> dict[str, bytes]:
    """Return the objects of the store that `write` writes."""
    tree: dict[str, Buffer] = {}
    write(MemoryStore(tree))
    return {key: value.to_bytes() for key, value in tree.items()}


def _is_notice(root: bytes) -> bool:
    return root.startswith(f'{{"{_NOTICE}"'.encode())


def _version(found: Any) -> UpdateVersion:
    """Return what a write is conditional on, of an object's metadata."""
    known: Any = {name: found[name] for name in ("e_tag", "version") if found.get(name) is not None}
    version: UpdateVersion = known
    return version
