"""Images in Parquet files, as on the Hugging Face Hub: encoded images in a column `image`, labels in `label`.

Files are read in place, with one or a few requests per row group. Labels are read when the source is opened, and
those of remote files are cached. The path of an image is the name of its file and its row number.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from actstats.data.image import UNREADABLE, ImageError
from actstats.data.objects import RemoteFile, Shared
from actstats.data.patience import MachineError, image_error
from actstats.data.source import NO_LABEL, EncodedSource, fingerprint, unnamed, within
from actstats.errors import ActstatsError, UnavailableError, one_line
from actstats.support import cache_folder, keep_cached, require_package

IMAGE: Final = "image"
"""Column of images: their encoded bytes, or a structure with a field `bytes`."""
LABEL: Final = "label"
"""Optional column of labels."""
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
        data = self._read.get(group)[index - self._starts[group]]
        if data is None:
            raise ImageError(UNREADABLE, "its row has no image")
        return data

    def _rows_of(self, number: int) -> list[bytes | None]:
        """Return the images of a row group."""
        file, group = self._groups[number]
        with _opened(self._files[file], self._footers[file]) as opened:
            column = opened.read_row_group(group, columns=[IMAGE]).column(IMAGE)
        return [row.get("bytes") if isinstance(row, dict) else row for row in column.to_pylist()]


@contextmanager
def _opened(file: Path | RemoteFile, footer: Any = None) -> Iterator[Any]:
    """Open a Parquet file; errors are reported in one line."""
    parquet = require_package("pyarrow.parquet", "reading images from Parquet files")
    import pyarrow

    place = file.url if isinstance(file, RemoteFile) else file
    try:
        where = file.raw() if isinstance(file, RemoteFile) else file
        with parquet.ParquetFile(where, metadata=footer, pre_buffer=True) as opened:
            yield opened
    except FileNotFoundError:
        raise ActstatsError(
            f"{place} no longer exists; restore it and rerun the same command to resume"
        ) from None
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(failure := image_error(error), MachineError):
            raise UnavailableError(f"{place} {failure.message}") from None
        reason = getattr(error, "strerror", None) or one_line(error, 200)
        raise ActstatsError(f"{place} is not a complete, readable Parquet file: {reason}") from None


def _described(file: Path | RemoteFile) -> tuple[Any, NDArray[np.int64], list[str]]:
    """Return the footer, labels and class names of a file."""
    place = file.url if isinstance(file, RemoteFile) else file
    with _opened(file) as opened:
        columns = opened.schema_arrow.names
        if IMAGE not in columns or not _holds_bytes(opened.schema_arrow.field(IMAGE).type):
            raise ActstatsError(
                f"{place} has no column {IMAGE!r} with the bytes of images; its columns are {', '.join(columns)}"
            )
        metadata = opened.schema_arrow.metadata or {}
        classes = _class_names(metadata.get(b"huggingface", b"{}"))
        labels = np.full(opened.metadata.num_rows, NO_LABEL, dtype=np.int64)
        if LABEL in columns:
            kept = _kept_labels(file)
            found = None if kept is None else _from_cache(kept, len(labels))
            if found is None:
                column = opened.read(columns=[LABEL]).column(LABEL)
                try:
                    found = column.cast("int64").fill_null(NO_LABEL).to_numpy()
                except (ValueError, NotImplementedError):
                    raise ActstatsError(
                        f"the column {LABEL!r} of {place} must contain class numbers, not {column.type}"
                    ) from None
                if kept is not None:
                    keep_cached(kept, found.astype("<i8").tobytes())
            labels = found
        return opened.metadata, labels, classes


def _holds_bytes(kind: Any) -> bool:
    import pyarrow.types as types

    if types.is_struct(kind):
        return any(f.name == "bytes" and _holds_bytes(f.type) for f in kind)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _class_names(recorded: bytes) -> list[str]:
    """Return the class names that a dataset on the hub records."""
    try:
        names = json.loads(recorded)["info"]["features"][LABEL]["names"]
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
