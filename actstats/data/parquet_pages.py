"""The bytes of a row group of a Parquet file, checked before pyarrow decodes them.

A page names the size of its content, and pyarrow allocates that much. So the columns to read are fetched as bytes,
and the headers of their pages are read first.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

_SLACK: Final = 1 << 26
_RATIO: Final = 16
"""Pages may decode to `_SLACK` bytes, and this many times their stored size: images are hardly compressible."""
_DEPTH: Final = 16
_PADDING: Final = 128
"""Bytes that pyarrow reads beyond a column of some writers, which may have left a header out of its size."""


class Pages(io.RawIOBase):
    """The columns of a row group as a file, of which the rest is absent."""

    def __init__(
        self, read: Callable[[int, int], bytes], group: Any, columns: Sequence[str], most: int | None = None
    ) -> None:
        """Read the columns, and those within them.

        Args:
            read: returns the bytes [start, stop) of the file.
            group: metadata of the row group.
            columns: names of columns.
            most: most bytes of all decoded pages; None for `_SLACK` and `_RATIO`.

        Raises:
            ValueError: the pages decode to more bytes, or their headers are damaged.
        """
        self._position = 0
        self._parts: list[tuple[int, bytes]] = []
        decoded = stored = 0
        for index in range(group.num_columns):
            column = group.column(index)
            if column.path_in_schema.partition(".")[0] not in columns:
                continue
            first = [column.data_page_offset]
            if column.has_dictionary_page:
                first.append(column.dictionary_page_offset)
            start, size = min(first), column.total_compressed_size
            if start < 0 or size < 0:
                raise ValueError("a column lies outside of the file")
            data = read(start, start + size)
            decoded += sum(page_sizes(data))
            stored += size
            self._parts.append((start, data))
        limit = _SLACK + _RATIO * stored if most is None else most
        if decoded > limit:
            raise ValueError(
                f"a row group of {stored:,} bytes would take {decoded:,} when decoded, more than {limit:,}"
            )
        self._stop = max((start + len(data) for start, data in self._parts), default=0)

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._stop}[whence]
        self._position = base + offset
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """Return the next bytes, those of columns and zeros between them.

        Raises:
            OSError: they lie behind all columns.
        """
        size = self._stop - self._position if size is None or size < 0 else size
        here, stop = self._position, self._position + size
        if stop > self._stop + _PADDING:
            raise OSError("the metadata of the file contradict each other")
        found = bytearray(size)  # what lies between columns is not decoded
        for start, data in self._parts:
            first, last = max(start, here), min(start + len(data), stop)
            if first < last:
                found[first - here : last - here] = data[first - start : last - start]
        self._position = stop
        return bytes(found)


def page_sizes(data: bytes) -> Iterator[int]:
    """Yield the size of each page of a column when it is decoded.

    Raises:
        ValueError: a header is damaged, or a page is longer than the column.
    """
    position = 0
    while position < len(data):
        sizes: dict[int, int] = {}
        try:
            position = _struct(data, position, sizes)
        except IndexError:
            raise ValueError("the header of a page is damaged") from None
        decoded, stored = sizes.get(2, -1), sizes.get(3, -1)
        if decoded < 0 or not 0 <= stored <= len(data) - position:
            raise ValueError("the header of a page is damaged")
        yield decoded
        position += stored


def _struct(data: bytes, position: int, found: dict[int, int] | None = None, depth: int = 0) -> int:
    """Return the end of a struct in Thrift's compact protocol; its integers are put into `found` by their number."""
    field = 0
    while kind := data[position]:
        position += 1
        if kind >> 4:
            field += kind >> 4
        else:
            field, position = _integer(data, position)
        kind &= 15
        if kind in (4, 5, 6):
            value, position = _integer(data, position)
            if found is not None:
                found[field] = value
        else:
            position = _skip(data, position, kind, depth)
    return position + 1


def _skip(data: bytes, position: int, kind: int, depth: int) -> int:
    """Return the end of a value that is not an integer of a struct."""
    if depth > _DEPTH:
        raise ValueError("the header of a page is nested too deeply")
    if kind in (1, 2):  # a Boolean, which is its type
        return position
    if kind == 3:
        return position + 1
    if kind in (4, 5, 6):
        return _integer(data, position)[1]
    if kind == 7:
        return position + 8
    if kind == 8:
        length, position = _varint(data, position)
        return position + length
    if kind == 12:
        return _struct(data, position, depth=depth + 1)
    if kind in (9, 10):
        header = data[position]
        position += 1
        count = header >> 4
        if count == 15:
            count, position = _varint(data, position)
        for _ in range(min(count, len(data))):
            # A Boolean in a list takes a byte.
            position = _skip(data, position, 3 if header & 15 in (1, 2) else header & 15, depth + 1)
        return position
    raise ValueError("the header of a page is damaged")


def _integer(data: bytes, position: int) -> tuple[int, int]:
    value, position = _varint(data, position)
    return (value >> 1) ^ -(value & 1), position


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("the header of a page is damaged")
