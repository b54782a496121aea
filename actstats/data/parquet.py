"""Images in Parquet files, as on the Hugging Face Hub: encoded images in a column `image`, labels in `label`.

Files are read in place, with one or a few requests per row group. Labels are read when the source is opened, and
those of remote files are cached. The path of an image is the name of its file and its row number.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from actstats.data.image import UNREADABLE, ImageError
from actstats.data.objects import RemoteFile, Shared
from actstats.data.parquet_pages import Pages
from actstats.data.patience import MachineError, image_error
from actstats.data.source import NO_LABEL, EncodedSource, fingerprint, unnamed, within
from actstats.errors import ActstatsError, UnavailableError, one_line
from actstats.records import load
from actstats.support import cache_folder, keep_cached, require_package

IMAGE: Final = "image"
"""Column of images: their encoded bytes, or a structure with a field `bytes`."""
LABEL: Final = "label"
"""Optional column of labels."""
_ROWS: Final = 100_000
_BYTES_PER_ROW: Final = 8
"""A file may claim `_ROWS` rows, and one more for each `_BYTES_PER_ROW` of its bytes: every image has more."""
_SLACK: Final = 1 << 20
_BYTES_PER_LABEL: Final = 16
_KEPT: Final = 1
"""Version of the cached labels."""


class ParquetSource(EncodedSource):
    """The images in the rows of one or more Parquet files."""

    kind = "parquet"

    def __init__(self, spec: str, files: Sequence[Path | RemoteFile], limit: int | None) -> None:
        """Read the labels of the first `limit` rows.

        Raises:
            ActstatsError: a file is not a Parquet file, has no column of images, or cannot be read.
        """
        self._files = list(files)
        self._footers: list[Any] = []
        paths: list[str] = []
        labels: list[NDArray[np.int64]] = []
        sizes: list[int] = []
        self._groups: list[tuple[int, int]] = []
        self._starts: list[int] = []
        named: list[tuple[str, list[str]]] = []
        for number, file in enumerate(self._files):
            if limit is not None and len(paths) >= limit:
                break
            footer, found, names = _described(file)
            if (found != NO_LABEL).any():
                named.append((file.name, names))
            self._footers.append(footer)
            name = file.name.removesuffix(".parquet")
            start = len(paths)
            for group in range(footer.num_row_groups):
                self._groups.append((number, group))
                self._starts.append(start)
                start += footer.row_group(group).num_rows
            rows = footer.num_rows
            paths += [f"{name}/{row:07}" for row in range(rows)]
            labels.append(found)
            # The sizes of individual images are unknown unless all of them are read.
            sizes += [footer.row_group(group).total_byte_size for group in range(footer.num_row_groups)]
        paths = paths[:limit]
        if not paths:
            raise ActstatsError(f"no images in {spec}: it has no rows")
        mark = fingerprint((*paths, *map(str, self._groups)), (*[0] * len(paths), *sizes))
        classes = _common_classes(named)
        numbers = np.concatenate(labels)[: len(paths)]
        super().__init__(spec, paths, within(numbers, classes), classes, mark)
        self.notes = unnamed(numbers, classes)
        self._read = Shared(self._rows_of, len(self._groups))

    def read(self, index: int) -> bytes:
        """Return the encoded bytes of image `index`; thread-safe.

        Raises:
            ImageError: the row has no image.
            ActstatsError: its file no longer exists, or is damaged.
        """
        group = int(np.searchsorted(self._starts, index, side="right")) - 1
        row = self._read.get(group)[index - self._starts[group]]
        with _explained(self._files[self._groups[group][0]]):
            data = _bytes_of(row)
        if data is None:
            raise ImageError(UNREADABLE, "its row has no image")
        return data

    def _rows_of(self, number: int) -> Any:
        """Return the images of a row group, as pyarrow keeps them: equal images once."""
        file, group = self._groups[number]
        return _column(self._files[file], self._footers[file], group, IMAGE)


def _column(file: Path | RemoteFile, footer: Any, group: int, name: str, most: int | None = None) -> Any:
    """Return a column of a row group, whose pages may decode to `most` bytes (see `Pages`).

    Columns of bytes are dictionaries: a value that is stored once is in memory once, in however many rows it is.
    """
    parquet = require_package("pyarrow.parquet", "reading images from Parquet files")
    with _explained(file):
        described = footer.row_group(group)
        pages = Pages(partial(_read, file), described, [name], most)
        leaves = [described.column(index) for index in range(described.num_columns)]
        texts = [
            leaf.path_in_schema
            for leaf in leaves
            if leaf.path_in_schema.partition(".")[0] == name and leaf.physical_type == "BYTE_ARRAY"
        ]
        with parquet.ParquetFile(pages, metadata=footer, read_dictionary=texts) as opened:
            column = opened.read_row_group(group, columns=[name]).column(name)
        if len(column) != described.num_rows:
            raise ValueError(f"a row group has {len(column):,} rows instead of {described.num_rows:,}")
        return column


def _read(file: Path | RemoteFile, start: int, stop: int) -> bytes:
    """Return the bytes [start, stop) of a file."""
    if isinstance(file, RemoteFile):
        if not 0 <= start <= stop <= file.size:
            raise ValueError("a column lies outside of the file")
        return file.read(start, stop)
    with file.open("rb") as opened:
        if stop > os.fstat(opened.fileno()).st_size:
            raise ValueError("a column lies outside of the file")
        opened.seek(start)
        return opened.read(stop - start)


@contextmanager
def _explained(file: Path | RemoteFile) -> Iterator[None]:
    """Report errors of a Parquet file in one line."""
    import pyarrow

    place = file.url if isinstance(file, RemoteFile) else file
    try:
        yield
    except FileNotFoundError:
        raise ActstatsError(
            f"{place} no longer exists; restore it and rerun the same command to resume"
        ) from None
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        if isinstance(failure := image_error(error), MachineError):
            raise UnavailableError(f"{place} {failure.message}") from None
        reason = getattr(error, "strerror", None) or one_line(error, 200)
        raise ActstatsError(f"{place} is not a complete, readable Parquet file: {reason}") from None


def _described(file: Path | RemoteFile) -> tuple[Any, NDArray[np.int64], list[str]]:
    """Return the footer, labels and class names of a file."""
    parquet = require_package("pyarrow.parquet", "reading images from Parquet files")
    place = file.url if isinstance(file, RemoteFile) else file
    size = file.size if isinstance(file, RemoteFile) else file.stat().st_size
    with (
        _explained(file),
        parquet.ParquetFile(file.raw() if isinstance(file, RemoteFile) else file) as opened,
    ):
        columns = opened.schema_arrow.names
        if IMAGE not in columns or not _holds_bytes(opened.schema_arrow.field(IMAGE).type):
            raise ActstatsError(
                f"{place} has no column {IMAGE!r} with the bytes of images; its columns are {', '.join(columns)}"
            )
        metadata = opened.schema_arrow.metadata or {}
        classes = _class_names(metadata.get(b"huggingface", b"{}"))
        footer = opened.metadata
        groups = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
        if min(groups, default=0) < 0 or sum(groups) != footer.num_rows:
            raise ValueError("its row groups do not have the rows that it claims")
        if footer.num_rows > _ROWS + size // _BYTES_PER_ROW:
            raise ValueError(f"it claims {footer.num_rows:,} rows in {size:,} bytes")
        labels = np.full(footer.num_rows, NO_LABEL, dtype=np.int64)
        if LABEL in columns:
            kept = _kept_labels(file)
            found = None if kept is None else _from_cache(kept, len(labels))
            if found is None:
                parts = [_labels(file, footer, group, place) for group in range(footer.num_row_groups)]
                found = np.concatenate([np.empty(0, np.int64), *parts])
                if kept is not None:
                    keep_cached(kept, found.astype("<i8").tobytes())
            labels = found
        return footer, labels, classes


def _labels(file: Path | RemoteFile, footer: Any, group: int, place: object) -> NDArray[np.int64]:
    """Return the labels of a row group."""
    most = _SLACK + _BYTES_PER_LABEL * footer.row_group(group).num_rows
    column = _column(file, footer, group, LABEL, most)
    found, kind = [np.empty(0, np.int64)], column.type
    for chunk in column.chunks:
        texts = hasattr(chunk, "dictionary")  # numbers as text, each of which is parsed once
        kind = chunk.dictionary.type if texts else kind
        try:
            numbers = chunk.dictionary.cast("int64").take(chunk.indices) if texts else chunk.cast("int64")
            found.append(numbers.fill_null(NO_LABEL).to_numpy(zero_copy_only=False))
        except (ValueError, NotImplementedError):
            raise ActstatsError(
                f"the column {LABEL!r} of {place} must contain class numbers, not {kind}"
            ) from None
    return np.concatenate(found)


def _bytes_of(row: Any) -> bytes | None:
    """Return the bytes in a value of the column of images."""
    import pyarrow

    while isinstance(row, pyarrow.StructScalar):
        if not row.is_valid:
            return None
        row = row["bytes"]
    data: bytes | None = row.as_py()
    return data


def _holds_bytes(kind: Any) -> bool:
    import pyarrow.types as types

    if types.is_struct(kind):
        return any(f.name == "bytes" and _holds_bytes(f.type) for f in kind)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _class_names(recorded: bytes) -> list[str]:
    """Return the class names that a dataset on the hub records."""
    try:
        names = load(recorded)["info"]["features"][LABEL]["names"]
    except (ValueError, KeyError, TypeError):
        return []
    return [str(name) for name in names] if isinstance(names, list) else []


def _common_classes(named: Sequence[tuple[str, list[str]]]) -> list[str]:
    """Return the class names of files, each given with its name; none if a file has none.

    Raises:
        ActstatsError: the same number has different names in two files.
    """
    longest, most = max(named, key=lambda file: len(file[1]), default=("", []))
    for file, classes in named:
        for number, (name, other) in enumerate(zip(classes, most, strict=False)):
            if name != other:
                raise ActstatsError(
                    f"class {number} is {name!r} in {file} and {other!r} in {longest}: write the files again with "
                    "the same class names, or sweep them separately"
                )
    return most if all(classes for _, classes in named) else []


def _kept_labels(file: Path | RemoteFile) -> Path | None:
    if not isinstance(file, RemoteFile):
        return None
    mark = hashlib.sha256(f"{_KEPT}\0{file.url}\0{file.size}\0{file.version}".encode()).hexdigest()
    return cache_folder() / "parquet" / f"{mark}.labels"


def _from_cache(kept: Path, count: int) -> NDArray[np.int64] | None:
    try:
        found = np.frombuffer(kept.read_bytes(), dtype="<i8")
    except (OSError, ValueError):
        return None
    return found.astype(np.int64) if len(found) == count else None
