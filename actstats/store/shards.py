"""Encode the values of a partition in several threads, as the objects that Zarr would write, byte for byte.

Zarr encodes the chunks of a shard on one event loop, which is slower on one core and no faster on several.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Final

import numpy as np
import zarr
from numcodecs.blosc import Blosc
from numcodecs.zstd import Zstd
from numpy.typing import NDArray

from actstats.store.digests import with_checksum

_THREADS: Final = 8
_SHUFFLES: Final = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}
_Step = Callable[[Any], bytes]


def encoded(items: Iterable[tuple[str, zarr.Array[Any], NDArray[Any]]]) -> Iterator[tuple[str, bytes]]:
    """Yield for each name, sharded array and values of a partition the name and the partition's object.

    The values of the next item are encoded while the caller uses the object of this one. In the last partition of
    images, the fill value takes the place of those that a whole one has more.
    """
    threads = min(_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads, thread_name_prefix="actstats-encode") as pool:
        begun: deque[tuple[str, list[Future[bytes]]]] = deque()
        for name, array, values in items:
            begun.append((name, [pool.submit(encode) for encode in _chunks(array, values)]))
            if len(begun) > 1:
                first, chunks = begun.popleft()
                yield first, _shard([chunk.result() for chunk in chunks])
        for name, chunks in begun:
            yield name, _shard([chunk.result() for chunk in chunks])


def _chunks(array: zarr.Array[Any], values: NDArray[Any]) -> Iterator[Callable[[], bytes]]:
    """Yield a function for each chunk that returns it encoded. The chunks follow each other along the units."""
    assert array.shards is not None
    metadata: Any = array.metadata.to_dict()
    (sharding,) = metadata["codecs"]
    codecs = sharding["configuration"]["codecs"]
    steps = [_STEPS[codec["name"]](codec.get("configuration", {})) for codec in codecs]
    shape, dtype = array.chunks, array.dtype.newbyteorder("<")
    values = values.astype(dtype, copy=False).reshape(-1, *array.shape[1:])

    def encode(start: int) -> bytes:
        chunk = values[:, start : start + shape[1]]
        if chunk.shape != shape:
            whole = np.full(shape, array.fill_value, dtype)
            whole[: chunk.shape[0], : chunk.shape[1]] = chunk
            chunk = whole
        data: Any = np.ascontiguousarray(chunk)
        for step in steps:
            data = step(data)
        return bytes(data)

    for start in range(0, array.shards[1], shape[1]):
        yield partial(encode, start)


def _bytes(configuration: dict[str, Any]) -> Callable[[Any], Any]:
    return lambda chunk: chunk


def _zstd(configuration: dict[str, Any]) -> _Step:
    return Zstd(**configuration).encode  # type: ignore[no-any-return]


def _blosc(configuration: dict[str, Any]) -> _Step:
    # In a thread other than the main one, numcodecs compresses a buffer in one thread: several give other bytes.
    return Blosc(**{**configuration, "shuffle": _SHUFFLES[configuration["shuffle"]]}).encode  # type: ignore[no-any-return]


def _crc32c(configuration: dict[str, Any]) -> _Step:
    return lambda chunk: with_checksum(bytes(chunk))


_STEPS: Final = {"bytes": _bytes, "zstd": _zstd, "blosc": _blosc, "crc32c": _crc32c}
"""By the name of a codec, a function of its configuration that returns what encodes a chunk."""


def _shard(chunks: list[bytes]) -> bytes:
    """Return a shard of encoded chunks: these, and the index of their offsets and lengths."""
    lengths = [len(chunk) for chunk in chunks]
    index = np.stack([np.cumsum([0, *lengths[:-1]]), lengths], axis=1)
    return b"".join([*chunks, with_checksum(index.astype("<u8").tobytes())])
