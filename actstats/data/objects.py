"""Remote files, read by ranges: in buckets, on web servers, and on the Hugging Face Hub.

A request takes as long as transferring several megabytes. Images that are stored next to each other are therefore
fetched together (`together`), and the results are kept for all threads while the next request is under way
(`Shared`).
"""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar
from urllib.parse import unquote

from actstats import remote
from actstats.errors import ActstatsError, UnavailableError, one_line
from actstats.support import URL, needs

if TYPE_CHECKING:
    from obstore.store import ObjectStore

T = TypeVar("T")

_HUB: Final = "hf://"
_PATIENCE: Final = 4.0
"""Seconds for which a request of images is retried; each image is tried several times (`Patience`)."""
_BLOCK: Final = 8 << 20
"""Number of bytes per request when a file is read sequentially."""
_TOGETHER: Final = 4 << 20
"""Maximum number of bytes per request for adjacent images."""
_GAP: Final = 64 << 10
"""Maximum gap in bytes between two images that are fetched together."""
_KEPT: Final = 16
"""Number of results that `Shared` keeps."""


class RemoteFile:
    """A remote file, given by its URL; `version` changes with its content."""

    def __init__(self, url: URL) -> None:
        """Request the size and version of the file.

        Raises:
            ActstatsError: the file does not exist, or cannot be reached.
        """
        self.url = url
        self._tag: str | None = None
        if url.startswith(_HUB):
            with _hub_explained(url):
                found = hub().info(url)
            self.size, self.version = int(found["size"]), str(found.get("blob_id") or found.get("etag"))
        else:
            self._folder, self._key = _folder_and_key(url)
            with _explained(url):
                head = _opened(self._folder, remote.FIRST_PATIENCE).head(self._key)
            self.size, self.version = head["size"], str(head["e_tag"] or head["last_modified"])
            if head["e_tag"] and not head["e_tag"].startswith("W/"):
                self._tag = head["e_tag"]  # a weak one never matches

    @property
    def name(self) -> str:
        """Name of the file, without its folder."""
        return self.url.name

    def read(self, start: int, stop: int, patience: float = _PATIENCE) -> bytes:
        """Return the bytes [start, stop), with one request, which is retried for `patience` seconds.

        Raises:
            UnavailableError: the file cannot be reached, or fewer bytes arrived.
            ActstatsError: the file no longer exists, or has been replaced.
        """
        if self.url.startswith(_HUB):
            with _hub_explained(self.url):
                data: bytes = hub().cat_file(self.url, start=start, end=stop)
        else:
            import obstore.exceptions

            options: dict[str, Any] = {"range": (start, stop)} | (
                {"if_match": self._tag} if self._tag else {}
            )
            store = _opened(self._folder, patience)
            with _explained(self.url, remote.RESUME):
                try:
                    answer = store.get(self._key, options=options)  # type: ignore[arg-type]
                    replaced, data = answer.meta["e_tag"] not in (None, self._tag), bytes(answer.bytes())
                except obstore.exceptions.PreconditionError:
                    replaced, data = True, b""
            if self._tag and replaced:
                raise ActstatsError(
                    f"{self.url} has been replaced since it was opened; completed partitions are kept: rerun the "
                    "same command, which checks that the images are still the same"
                )
        if len(data) != stop - start:
            raise incomplete(self.url, len(data), stop - start)
        return data

    def open(self, block: int = _BLOCK) -> io.BufferedReader:
        """Open the file for sequential reading, with one request per block."""
        return io.BufferedReader(self.raw(), block)

    def raw(self) -> io.RawIOBase:
        """Open the file for reading, with one request per `read`."""
        return _Raw(self)


def incomplete(url: str, found: int, expected: int) -> UnavailableError:
    """Return the error for a transfer of fewer bytes than expected, as after a proxy that gives up."""
    return UnavailableError(f"{url}: {found:,} bytes arrived instead of {expected:,}", remote.RESUME)


def _folder_and_key(url: URL) -> tuple[URL, str]:
    """Return the folder that contains an object, and the object's key in it.

    On the web, characters of the address may be escaped, which the key is not. A few cannot be written in any other
    way, so that the address is a folder with an empty key.

    >>> (
    ...     _folder_and_key(URL("https://host/my%20set/val%201.tar")),
    ...     _folder_and_key(URL("s3://bucket/val%201.tar")),
    ... )
    (('https://host/my%20set', 'val 1.tar'), ('s3://bucket', 'val%201.tar'))
    """
    folder, _, key = url.rpartition("/")
    if url.startswith(("http://", "https://")):
        key = unquote(key)
        if "/" in key or "\ufffd" in key:  # %2F, and bytes that are not UTF-8
            return url, ""
    return URL(folder), key


class _Raw(io.RawIOBase):
    def __init__(self, file: RemoteFile) -> None:
        self._file, self._at = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file.size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        stop = min(self._at + len(buffer), self._file.size)
        if stop <= self._at:
            return 0
        data = self._file.read(self._at, stop, remote.PATIENCE)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def list_remote(url: URL) -> Iterator[tuple[str, int]]:
    """Yield the name, relative to `url`, and the size of every file below it, sorted by name.

    Raises:
        ActstatsError: `url` is a web server, which has no listing, or it does not exist or cannot be reached.
    """
    if url.startswith(("http://", "https://")):
        raise ActstatsError(
            f"{url}: a web server does not list its files; name tar or parquet files, such as "
            "https://host/shard-{000..009}.tar"
        )
    if url.startswith(_HUB):
        with _hub_explained(url):
            files = hub().find(url, detail=True)
        root = _HUB + hub().resolve_path(url).unresolve()
        names = {f"{_HUB}{name}".removeprefix(f"{root}/"): int(info["size"]) for name, info in files.items()}
        yield from sorted(names.items())
        return
    import obstore.exceptions

    problem = url if _is_odd(url, "x") else ""
    listed: list[tuple[str, int]] = []
    with _explained(url):
        try:
            for batch in _opened(url, remote.FIRST_PATIENCE).list() if not problem else ():
                listed += [(meta["path"], meta["size"]) for meta in batch]
        except obstore.exceptions.InvalidPathError as error:
            problem = str(error).partition("\n")[0]
        if problem:
            listed = list(remote.by_boto3(url, problem).list())
    yield from sorted(listed)


def read_remote(url: URL, key: str, size: int) -> bytes:
    """Return the content of a file of `size` bytes below `url`, with one request.

    Raises:
        FileNotFoundError: the file does not exist.
        UnavailableError: the file cannot be reached, or it has another size.
        ActstatsError: the bucket does not exist.
    """
    if url.startswith(_HUB):
        file = RemoteFile(URL(f"{url.rstrip('/')}/{key}"))
        return file.read(0, file.size)
    if _is_odd(url, key):
        data: bytes = remote.by_boto3(url).read(key)
    else:
        with remote.explained(url, remote.RESUME):
            data = bytes(_opened(url, _PATIENCE).get(key).bytes())
    if len(data) != size:
        raise incomplete(f"{url.rstrip('/')}/{key}", len(data), size)
    return data


def _is_odd(url: URL, key: str) -> bool:
    """Return whether obstore cannot name an object: a part of its key is empty, as in `a//b`, or `.` or `..`."""
    inside = url.partition("://")[2].rstrip("/").partition("/")[2]
    return any(part in ("", ".", "..") for part in (f"{inside}/{key}" if inside else key).split("/"))


@lru_cache(maxsize=64)
def _opened(url: URL, patience: float) -> ObjectStore:
    return remote.opened(url, patience=patience)


@contextmanager
def _explained(url: URL, advice: str = "") -> Iterator[None]:
    try:
        with remote.explained(url, advice):
            yield
    except FileNotFoundError as error:
        raise ActstatsError(f"there is no {url}{advice}") from error


@cache
def hub() -> Any:
    """Return the fsspec file system of the Hugging Face Hub."""
    with needs("huggingface_hub", "reading images from the Hugging Face hub"):
        from huggingface_hub import HfFileSystem
    return HfFileSystem()


@contextmanager
def _hub_explained(url: URL) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise ActstatsError(f"there is no {url}, or it needs a token (HF_TOKEN)") from error
    except ActstatsError:
        raise
    except Exception as error:  # of several libraries for HTTP
        if getattr(getattr(error, "response", None), "status_code", None) == 401:
            raise ActstatsError(
                f"access to {url} is denied: the token (HF_TOKEN) is invalid or has expired"
            ) from error
        raise UnavailableError(f"cannot read {url}: {one_line(error, 200)}", remote.RESUME) from error


def together(places: Iterable[tuple[int, int, int]]) -> tuple[list[tuple[int, int, int]], list[int]]:
    """Return ranges to fetch with one request each, and the index of the range of each place.

    A place is (file, start, stop). Consecutive places in a file with only small gaps share a range.

    >>> together([(0, 512, 1000), (0, 1536, 2000), (1, 0, 9), (0, 99999999, 99999999 + 5)])
    ([(0, 512, 2000), (1, 0, 9), (0, 99999999, 100000004)], [0, 0, 1, 2])
    """
    ranges: list[tuple[int, int, int]] = []
    number = []
    for file, start, stop in places:
        if ranges:
            last, first, end = ranges[-1]
            if file == last and 0 <= start - end <= _GAP and stop - first <= _TOGETHER:
                ranges[-1] = (last, first, stop)
                number.append(len(ranges) - 1)
                continue
        ranges.append((file, start, stop))
        number.append(len(ranges) - 1)
    return ranges, number


class Shared(Generic[T]):
    """Cache of the last few results of a function of a number, which is called only once for all threads.

    If numbers are requested in order, the next one is computed ahead.
    """

    def __init__(self, function: Callable[[int], T], count: int) -> None:
        self._function, self._count = function, count
        self._found: OrderedDict[int, Future[T]] = OrderedDict()
        self._lock = threading.Lock()

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(2, thread_name_prefix="actstats-fetch")

    def get(self, number: int) -> T:
        """Return the result of the function, or raise its exception."""
        with self._lock:
            found, mine = self._future(number)
            following, ahead = None, False
            if number - 1 in self._found and number + 1 < self._count:
                following, ahead = self._future(number + 1)
        if following is not None and ahead:
            self._pool.submit(self._fill, number + 1, following)
        if mine:
            self._fill(number, found)
        return found.result()

    def _future(self, number: int) -> tuple[Future[T], bool]:
        if number in self._found:
            self._found.move_to_end(number)
            return self._found[number], False
        self._found[number] = future = Future[T]()
        while len(self._found) > _KEPT:
            self._found.popitem(last=False)
        return future, True

    def _fill(self, number: int, future: Future[T]) -> None:
        try:
            future.set_result(self._function(number))
        except BaseException as error:  # raised in every thread that waits for it
            with self._lock:
                self._found.pop(number, None)
            future.set_exception(error)
