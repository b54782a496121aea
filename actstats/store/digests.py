"""Digests that say which object an object is, and a Zarr store that checks them as objects are read.

The checksum of a chunk notices a flipped bit, but not that an object is a copy of another one. A digest is a CRC-32
of an object's key, length and bytes. It is not a CRC32C: as each chunk ends with its own, the CRC32C of a shard
depends on its length only. For a shard, the digest is that of its index, and the checksums of its chunks are listed.
Together they identify every byte, and Zarr computes the checksums anyway when it decodes chunks, so checking a shard
costs next to nothing.

The digests of coordinates and of the arrays' metadata are in the manifest. Those of a partition are in its entry of
`provenance`, which is written after the partition's data and before its flag. They detect accidents: whoever writes a
store can compute them, too.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import google_crc32c
import numpy as np
from zarr.abc.store import RangeByteRequest, Store
from zarr.storage import WrapperStore

from actstats.errors import ActstatsError
from actstats.records import Form, InvalidError, load, parse, shortened
from actstats.store import manifest as manifests
from actstats.support import URL

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

ROOT: Final = "zarr.json"
COPY: Final = "manifest.json"
"""The second copy of the manifest."""
_OF_A_PARTITION: Final = re.compile(r"(\w+)/c\.(\d+)(?:\.0)*")
_INDEX_ENTRY: Final = 16
"""Bytes of the index of a shard for each chunk, offset and length; a checksum of `_CRC` bytes follows."""
_CRC: Final = 4
_MOST_INDEXES: Final = 1000

Entry = tuple[Annotated[str, Form("([0-9a-f]{8})+", "digests of 8 hexadecimal digits", 1 << 24)], ...]
"""Digest of an object. For a shard, digest of its index, and the checksums of its chunks in one text."""
Record = Mapping[str, Entry]
"""Entries of the objects of a partition by variable."""


@dataclass(frozen=True)
class _Digests:
    """The part of the provenance of a partition that is checked."""

    digests: Record


def digest(key: str, data: bytes | bytearray | memoryview) -> str:
    """Return the digest of an object, eight hexadecimal digits.

    >>> digest("mean/c.0.0", b"values"), digest("mean/c.1.0", b"values")
    ('20cc8163', 'bb69cd0c')
    """
    return f"{zlib.crc32(data, zlib.crc32(f'{key} {len(data)} '.encode())):08x}"


def entry_of(key: str, data: bytes | bytearray | memoryview, chunks: int | None) -> Entry | None:
    """Return the entry of an object for the record of its partition; a shard has this many `chunks`.

    Return None for a shard whose index does not belong to it.
    """
    if chunks is None:
        return (digest(key, data),)
    index = data[-_INDEX_ENTRY * chunks - _CRC :]
    ranges = _ranges(index)
    if len(ranges) != chunks or any(stop > len(data) or stop - start < _CRC for start, stop in ranges):
        return None
    return digest(key, index), "".join(bytes(data[stop - _CRC : stop]).hex() for _, stop in ranges)


def fits(entry: Entry, key: str, data: bytes) -> bool:
    """Whether an object is, byte by byte, the one with this entry."""
    chunks = chunks_in(entry)
    if entry_of(key, data, chunks) != entry:
        return False
    ranges = [] if chunks is None else _ranges(data[-_INDEX_ENTRY * chunks - _CRC :])
    return all(has_checksum(data[start:stop]) for start, stop in ranges)


def with_checksum(data: bytes) -> bytes:
    """Return data followed by their CRC32C, as Zarr's codec `crc32c` writes it."""
    checksum: int = google_crc32c.value(data)
    return data + checksum.to_bytes(_CRC, "little")


def has_checksum(data: bytes) -> bool:
    """Whether data end with the CRC32C of the rest."""
    return bool(google_crc32c.value(data[:-_CRC]) == int.from_bytes(data[-_CRC:], "little"))


def chunks_in(entry: Entry) -> int | None:
    """Return the number of chunks of a shard with this entry; None for another object."""
    return None if len(entry) == 1 else len(entry[1]) // 8


def _ranges(index: bytes | bytearray | memoryview) -> list[tuple[int, int]]:
    """Return the range [start, stop) of each chunk of a shard, from its index."""
    entries = np.frombuffer(index[: len(index) - _CRC - (len(index) - _CRC) % _INDEX_ENTRY], "<u8")
    return [(start, start + length) for start, length in entries.reshape(-1, 2).tolist()]


def as_json(document: Mapping[str, Any]) -> bytes:
    """Return the bytes of a document, formatted as Zarr does."""
    return json.dumps(document, indent=2).encode()


def manifest_in(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest in the root document of a store."""
    return {name: value for name, value in document["attributes"].items() if name != "coordinates"}


def sealed(document: Mapping[str, Any], digests: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the root document of a store with `digests`, its own digest, and the checksum of its manifest.

    Without `digests`, those that it has are kept; stores of earlier versions have none.
    """
    manifest = manifest_in(document)
    known = manifest.pop("digests", None) if digests is None else digests
    manifest.pop("digests", None)
    manifest.pop("checksum", None)
    if known is not None:
        manifest["digests"] = {**known, ROOT: _digest_of_rest(document)}
    manifest["checksum"] = manifests.checksum(manifest)
    attributes = {**manifest, "coordinates": document["attributes"]["coordinates"]}
    return {**document, "attributes": attributes}


def broken_seal(document: Mapping[str, Any]) -> str | None:
    """Return why a root document is not as it was written, or None; documents of format 1 have no seal."""
    manifest = manifest_in(document)
    if manifest.get("actstats") == 1 and "checksum" not in manifest:
        return None
    if manifest.get("checksum") != manifests.checksum(manifest):
        return "the manifest does not match its checksum"
    digests = manifest.get("digests")
    if isinstance(digests, dict) and digests.get(ROOT) != _digest_of_rest(document):
        return "the consolidated metadata do not match their digest"
    return None


def _digest_of_rest(document: Mapping[str, Any]) -> str:
    """Return the digest of a root document without the manifest."""
    attributes = {"coordinates": document["attributes"].get("coordinates")}
    return digest(ROOT, json.dumps({**document, "attributes": attributes}, sort_keys=True).encode())


def read_record(partition: int, data: bytes) -> Record | None:
    """Return the digests in the object of `provenance` of a partition; None in stores without digests.

    Raises:
        ValueError: the object is damaged, or that of another partition.
    """
    if len(data) < 8 + _CRC or not has_checksum(data):
        raise ValueError("does not match its checksum")
    # A single string in the format vlen-utf8: the number of strings, then the length of each before its bytes.
    record = load(data[8:-_CRC])
    if not isinstance(record, dict) or "digests" not in record:
        return None
    if record.get("partition") != partition:
        raise ValueError(f"is that of partition {shortened(record.get('partition'))}")
    try:
        digests = parse(_Digests, {"digests": record["digests"]}).digests
    except InvalidError as error:
        raise ValueError(f"has {error}") from None
    for name, entry in digests.items():
        if len(entry) not in (1, 2) or len(entry[0]) != 8:
            raise ValueError(f"has an invalid digest of {name}")
    return digests


def damaged(location: Path | URL, what: str, reason: str) -> ActstatsError:
    """Return the error about a damaged object of the store at `location`."""
    return ActstatsError(
        f"{location} is damaged: {what} {reason}; run `actstats repair {location}`, or sweep again with `repair=True`"
    )


NOT_WRITTEN: Final = "is not the object that was written there"
FLAG: Final = with_checksum(b"\1")
"""An object of `completed`: a Boolean and its checksum."""
ABSENT: Final = "is missing or empty"


class VerifiedObjects(WrapperStore[Store]):
    """The objects of a store, read-only, each checked against its digest when it is read.

    Of a shard, the index and the chunks that are read are checked. Objects without a digest are not checked.
    """

    _supports_sync_io = False

    def __init__(
        self, objects: Store, location: Path | URL, digests: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(objects)
        self.location = location
        self.digests: Mapping[str, str] = digests or {}
        self._records: dict[int, Record | None] = {}
        self._chunks: dict[str, dict[tuple[int, int], str]] = {}
        """Checksum of each chunk by its range, of the shards whose index was read last."""

    def _with_store(self, store: Store) -> VerifiedObjects:
        return type(self)(store, self.location, self.digests)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._store, self.location, self.digests)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return an object or a part of it.

        Raises:
            ActstatsError: it is not the object that was written.
        """
        data = await self._store.get(key, prototype, byte_range)
        if key in self.digests:
            if data is None or not len(data):
                raise damaged(self.location, described(key, self.digests), ABSENT)
            if byte_range is None and digest(key, data.as_buffer_like()) != self.digests[key]:
                raise damaged(self.location, described(key, self.digests), NOT_WRITTEN)
        elif data is not None and (match := _OF_A_PARTITION.fullmatch(key)):
            if isinstance(byte_range, RangeByteRequest):
                await self._check_chunk(key, int(match[2]), data, byte_range)
            elif match[1] == "completed":
                if self.digests and data.to_bytes() != FLAG:
                    raise damaged(self.location, described(key), NOT_WRITTEN)
            else:
                return await self._checked(key, match[1], int(match[2]), data, prototype, byte_range)
        return data

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Return several objects or parts of them, see `get`."""
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def get_ranges(self, key: str, byte_ranges: Sequence[ByteRequest | None], **options: Any) -> Any:
        """Yield ranges of an object, each checked as in `get`; later versions of Zarr read chunks in this way."""
        store: Any = self._store
        match = _OF_A_PARTITION.fullmatch(key)
        async for group in store.get_ranges(key, byte_ranges, **options):
            for number, data in group:
                byte_range = byte_ranges[number]
                if match and data is not None and isinstance(byte_range, RangeByteRequest):
                    await self._check_chunk(key, int(match[2]), data, byte_range)
            yield group

    async def _checked(
        self,
        key: str,
        name: str,
        partition: int,
        data: Buffer,
        prototype: BufferPrototype,
        byte_range: ByteRequest | None,
    ) -> Buffer:
        """Return an object of a partition, or the index of a shard, once it matches the partition's record."""
        for _ in range(2):
            if partition not in self._records:
                stored = await self._store.get(f"provenance/c.{partition}", prototype)
                try:
                    self.keep_record(partition, None if stored is None else stored.to_bytes())
                except ActstatsError:
                    if await self._complete(partition):
                        raise
                    return data
            if self.matches(key, name, partition, data.as_buffer_like(), whole=byte_range is None):
                return data
            # The partition may have been computed again since its record was read.
            del self._records[partition]
            stored = await self._store.get(key, prototype, byte_range)
            data = data if stored is None else stored
        if await self._complete(partition):
            raise damaged(self.location, described(key), NOT_WRITTEN)
        return data

    async def _check_chunk(
        self, key: str, partition: int, data: Buffer, byte_range: RangeByteRequest
    ) -> None:
        """Check the checksum at the end of a chunk, which Zarr compares with the chunk, against the record."""
        expected = self._chunks.get(key, {}).get((byte_range.start, byte_range.end))
        if expected in (None, data.to_bytes()[-_CRC:].hex()):
            return
        if await self._complete(partition):
            raise damaged(self.location, described(key), NOT_WRITTEN)

    async def _complete(self, partition: int) -> bool:
        """Whether a partition is complete; one that is not may hold anything."""
        return await self._store.exists(f"completed/c.{partition}")

    def keep_record(self, partition: int, data: bytes | None) -> None:
        """Keep the record of a partition, given its object of `provenance`.

        Raises:
            ActstatsError: the object is damaged, or that of another partition.
        """
        try:
            record = self.record_in(partition, data)
        except ValueError as error:
            raise damaged(self.location, f"provenance of partition {partition}", str(error)) from error
        self._records[partition] = record

    def record_in(self, partition: int, data: bytes | None) -> Record | None:
        """Return the record in the object of `provenance` of a partition; None in stores without digests.

        Raises:
            ValueError: the object is missing, damaged, or that of another partition.
        """
        record = read_record(partition, data) if data else None
        if record is None and self.digests:
            raise ValueError("has no digests" if data else ABSENT)
        return record

    def matches(
        self, key: str, name: str, partition: int, data: bytes | bytearray | memoryview, *, whole: bool = True
    ) -> bool:
        """Whether an object matches the record that was kept; if it is not `whole`, the data are its index."""
        record = self._records[partition]
        if record is None or name not in record:
            return True
        entry = record[name]
        if whole:
            return entry_of(key, data, chunks_in(entry)) == entry
        if len(entry) == 1 or digest(key, data) != entry[0]:
            return False
        texts = (entry[1][start : start + 8] for start in range(0, len(entry[1]), 8))
        self._chunks[key] = dict(zip(_ranges(data), texts, strict=False))
        while len(self._chunks) > _MOST_INDEXES:
            self._chunks.pop(next(iter(self._chunks)))
        return True


def described(key: str, shared: Container[str] = ()) -> str:
    """Return the name of an object for messages; `shared` has the keys of those that belong to all partitions.

    >>> described("mean/c.3.0"), described("mean/zarr.json"), described("path/c.0", {"path/c.0"})
    ('mean of partition 3', 'mean/zarr.json', 'its coordinate path')
    """
    match = _OF_A_PARTITION.fullmatch(key)
    if match is None:
        return key
    return f"its coordinate {match[1]}" if key in shared else f"{match[1]} of partition {match[2]}"
