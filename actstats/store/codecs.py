"""Codecs that decode no more than the metadata of an array allow, whatever a chunk says about itself.

A frame of zstd or blosc names the size of its content, and a chunk of strings their number, and decoders allocate
that much before they look further. Twenty bytes may ask for gigabytes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import zarr
import zarr.codecs
from zarr.registry import register_codec

from actstats.errors import ActstatsError

if TYPE_CHECKING:
    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer

_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_HEADER: Final = 18
"""Most bytes of the header of a zstd frame."""
_LONGEST: Final = 4 * 4096
"""Most bytes of a string of 4,096 characters."""
_TEXT: Final = 1 << 24
_RATIO: Final = 64
"""Strings of more than `_TEXT` bytes are not compressed more than this: paths are unique."""


def zstd(level: int) -> dict[str, Any]:
    """Return the codec zstd as in the metadata of an array."""
    return {"name": "zstd", "configuration": {"level": level, "checksum": False}}


def compressors(compression: str, dtype: str = "float32") -> list[dict[str, Any]]:
    """Return the codecs that compress a variable, as in the metadata of its array.

    >>> compressors("zstd"), compressors("none")
    ([{'name': 'zstd', 'configuration': {'level': 1, 'checksum': False}}], [])

    Raises:
        ActstatsError: `compression` is not "none", "zstd", "zstd:LEVEL" with a level from 1 to 22, or "blosc:lz4".
    """
    codec, _, level = compression.partition(":")
    if compression == "none":
        return []
    if compression == "blosc:lz4":
        blosc = {"typesize": np.dtype(dtype).itemsize, "cname": "lz4", "clevel": 5, "shuffle": "bitshuffle"}
        return [{"name": "blosc", "configuration": {**blosc, "blocksize": 0}}]
    if codec == "zstd" and (not level or level.isdecimal()) and 1 <= int(level or 1) <= 22:
        return [zstd(int(level or 1))]
    raise ActstatsError(
        f"unknown compression {compression!r}; choose none, zstd, zstd:LEVEL with LEVEL from 1 to 22, or blosc:lz4"
    )


def content_size(frame: bytes) -> int | None:
    """Return the size in bytes that a zstd frame has when it is decoded, or None if its header does not say it.

    >>> from numcodecs.zstd import Zstd
    >>> content_size(Zstd().encode(bytes(100_000)))
    100000
    """
    if len(frame) < 6 or frame[:4] != _MAGIC:
        return None
    descriptor = frame[4]
    single = descriptor >> 5 & 1
    start = 5 + (1 - single) + (0, 1, 2, 4)[descriptor & 3]
    length = (single, 2, 4, 8)[descriptor >> 6]
    if not length:
        return None
    return int.from_bytes(frame[start : start + length], "little") + 256 * (length == 2)


def _require_size(chunk_bytes: Buffer, chunk_spec: ArraySpec) -> None:
    """Raise `ValueError` if a frame claims another size than that of the chunk, or more text than paths have."""
    size = content_size(bytes(chunk_bytes.as_numpy_array()[:_HEADER]))
    count, dtype = math.prod(chunk_spec.shape), chunk_spec.dtype.to_native_dtype()
    if dtype.kind in "OTU":
        most = 4 + 4 * count + min(count * _LONGEST, _TEXT + _RATIO * len(chunk_bytes))
        fits = size is not None and size <= most
    else:
        fits = size == count * dtype.itemsize
    if not fits:
        raise ValueError(f"a chunk of {count:,} values claims to have {size} bytes")


def _require_blosc(chunk_bytes: Buffer, chunk_spec: ArraySpec) -> None:
    """Raise `ValueError` if a buffer of blosc claims another size than that of the chunk, or than it has itself."""
    _, size, _, length = struct.unpack("<4I", bytes(chunk_bytes.as_numpy_array()[:16]).ljust(16, b"\0"))
    expected = math.prod(chunk_spec.shape) * chunk_spec.dtype.to_native_dtype().itemsize
    if size != expected or length != len(chunk_bytes):
        raise ValueError(f"a chunk of {expected:,} bytes claims to have {size:,}")


def _require_count(chunk_bytes: Buffer, chunk_spec: ArraySpec) -> None:
    """Raise `ValueError` if a chunk claims another number of strings than it has."""
    count = int.from_bytes(bytes(chunk_bytes.as_numpy_array()[:4]), "little")
    if count != math.prod(chunk_spec.shape):
        raise ValueError(f"a chunk of {math.prod(chunk_spec.shape):,} strings claims to have {count:,}")


class _Bounded:
    """A codec that checks what a chunk says about its own size before it is decoded."""

    @staticmethod
    def _require(chunk_bytes: Buffer, chunk_spec: ArraySpec) -> None:
        """Raise `ValueError` if the chunk claims another size than its array's metadata allow."""
        raise NotImplementedError

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Any:
        self._require(chunk_bytes, chunk_spec)
        return await super()._decode_single(chunk_bytes, chunk_spec)  # type: ignore[misc]

    def _decode_sync(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Any:
        self._require(chunk_bytes, chunk_spec)
        return super()._decode_sync(chunk_bytes, chunk_spec)  # type: ignore[misc]


class BoundedZstd(_Bounded, zarr.codecs.ZstdCodec):
    """zstd, for chunks of the size that the array's metadata say."""

    _require = staticmethod(_require_size)


class BoundedBlosc(_Bounded, zarr.codecs.BloscCodec):
    """Blosc, for chunks of the size that the array's metadata say."""

    _require = staticmethod(_require_blosc)


# Zarr knows the codec of strings by this name of its class.
class VLenUTF8Codec(_Bounded, zarr.codecs.VLenUTF8Codec):
    """Strings, of the number that the array's metadata say."""

    _require = staticmethod(_require_count)


_BOUNDED: Final = {"zstd": BoundedZstd, "blosc": BoundedBlosc, "vlen-utf8": VLenUTF8Codec}
for _name, _codec in _BOUNDED.items():
    register_codec(_name, _codec)


@contextmanager
def bounded() -> Iterator[None]:
    """Let the arrays whose metadata are read within a `with` block use these codecs."""
    names = {f"codecs.{name}": f"{codec.__module__}.{codec.__qualname__}" for name, codec in _BOUNDED.items()}
    with zarr.config.set(names):
        yield
