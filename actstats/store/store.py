"""Stores: a Zarr v3 group, written partition by partition, that `xarray.open_zarr` opens as one lazy dataset.

A partition is a block of consecutive images. Each variable has one object per partition, so writers of different
partitions never touch the same object. The flag that marks a partition complete is written after its data have
reached the disk. So however a sweep ends, each partition is either complete or will be computed again.
"""

from __future__ import annotations

import errno
import functools
import json
import math
import traceback
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from operator import floordiv
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import zarr
import zarr.core.group
from numpy.typing import NDArray
from zarr.storage import MemoryStore, StorePath

from actstats.data import OK
from actstats.errors import ActstatsError, ManifestMismatchError, one_line
from actstats.records import InvalidError, load, shortened
from actstats.store import manifest as manifests
from actstats.store.arrays import check_arrays, same_json
from actstats.store.codecs import bounded
from actstats.store.creation import STATUSES, WRITTEN, objects_of
from actstats.store.digests import (
    ABSENT,
    COPY,
    FLAG,
    NOT_WRITTEN,
    ROOT,
    Entry,
    Record,
    VerifiedObjects,
    as_json,
    broken_seal,
    damaged,
    described,
    digest,
    entry_of,
    fits,
    has_checksum,
    read_record,
)
from actstats.store.manifest import Manifest, ProvenanceRecord
from actstats.store.place import StorePlace, Use, place_of, read_or_empty
from actstats.store.repair import recovered_manifest, restore
from actstats.store.schema import Schema, axis_coordinates, unit_coordinates
from actstats.store.shards import encoded
from actstats.support import URL, html_facts

if TYPE_CHECKING:
    from zarr.core.buffer import Buffer

# A shard has a hundred chunks and more. Encoding or decoding them one by one, the default, takes half again as long.
zarr.config.update_defaults({"codec_pipeline": {"batch_size": 128}})

_LARGEST_ROOT: Final = 1 << 28
"""Most bytes of `zarr.json`: the manifest and the metadata of all arrays, a few megabytes in a large store."""
_WITHOUT_EVIDENCE: Final = 1 << 20
_IMAGES_PER_BYTE: Final = 64
"""Paths are unique. Those that differ in a running number, and in nothing else, take a byte for five images."""
_PER_PARTITION: Final = ("status", "provenance", "completed")
_TRIES: Final = 10
"""How many times a process enters a store that others remove meanwhile."""
_DAMAGE: Final = (ValueError, OSError, RuntimeError, KeyError)
"""Exceptions that Zarr raises for damaged objects."""


class Store:
    """An open store, from `Store.open` or `Store.open_or_create`; `write` adds a partition."""

    def __init__(self, place: StorePlace, mode: str = "r") -> None:
        self.place = place
        self.objects = VerifiedObjects(place.objects(read_only=True), place.location)
        """The objects, which are checked as they are read."""
        self.group, self.manifest = _group(place, self.objects, mode)
        self.restored: list[str] = []
        """Keys of the damaged objects that were restored when the store was opened."""
        self._use: Use | None = None
        self._rest: dict[str, str] = {}

    def _repr_html_(self) -> str:
        m, complete = self.manifest, self.completed
        facts = [
            ("network", f"{m.arch}, weights {m.weights.source}"),
            ("images", f"{m.data.images:,} of {m.data.spec}"),
            ("layers", len(m.layers)),
            ("variables", ", ".join(m.outputs)),
            ("partitions", f"{int(complete.sum())} of {len(complete)} complete"),
        ]
        return html_facts(str(self.path), facts)

    @classmethod
    def open(cls, path: str | Path, *, mode: str = "r") -> Store:
        """Open an existing store in `mode` "r" or "r+".

        Raises:
            ActstatsError: there is no store at `path`, it was not written by actstats, or it is damaged.
        """
        place = place_of(path)
        store = cls(place, mode)
        store._require_whole()
        return store

    @classmethod
    def find(cls, path: str | Path) -> Store | None:
        """Open the store at `path` for reading; None if there is none, or it is still being created.

        Raises:
            ActstatsError: what is at `path` was not written by actstats, or it is damaged.
        """
        place = place_of(path)
        try:
            return cls.open(path) if place.exists() else None
        except ActstatsError:
            if place.exists() and place.whole():
                raise
            return None

    @classmethod
    def open_or_create(
        cls,
        path: str | Path,
        manifest: Mapping[str, Any],
        schema: Schema,
        paths: Sequence[str],
        labels: NDArray[np.int64],
        *,
        overwrite: bool = False,
        repair: bool = False,
    ) -> Store:
        """Open the store of this sweep to resume it, or create it.

        Args:
            path: path or URL of the store.
            manifest: record of the sweep.
            schema: its variables and dimensions.
            paths: path of each image.
            labels: label of each image, int64 [images].
            overwrite: whether to replace the store of another sweep; the store of this sweep is always kept.
            repair: whether to restore damaged objects that all partitions share.

        Returns:
            The open store, marked as used by this process until `close`.

        Raises:
            ManifestMismatchError: `path` holds the store of another sweep, and `overwrite` is not set.
            ActstatsError: `path` is not a store, or the store is damaged, in use, or cannot be written.
        """
        place = place_of(path)
        created = functools.partial(objects_of, schema=schema, paths=paths, labels=labels)
        store = cls._entered(place, manifest, created, overwrite=overwrite, repair=repair)
        try:
            _refuse_another(place, store.manifest.json, manifest)
            with place.explained():
                place.complete(lambda: created(store.manifest.json))
            store._require_whole()
            store._check_coordinates(schema, paths, labels)
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def _entered(
        cls,
        place: StorePlace,
        manifest: Mapping[str, Any],
        created: Callable[[Mapping[str, Any]], Mapping[str, bytes]],
        *,
        overwrite: bool,
        repair: bool,
    ) -> Store:
        """Return the store in use by this process, created if needed, whatever other processes do meanwhile."""
        tries = 0
        while True:
            tries += 1
            restored: list[str] = []
            with place.explained():
                try:
                    place.tidy()
                    if (
                        overwrite and place.clear(lambda: _is_another(place, manifest))
                    ) or not place.exists():
                        place.make(created(manifest))
                    elif repair:
                        recovered = recovered_manifest(place.location)
                        _refuse_another(place, recovered, manifest)
                        place.complete(functools.partial(created, recovered))
                        restored = restore(place, recovered, functools.partial(created, recovered))
                    use = place.use()
                except OSError as error:
                    # Another process has removed or replaced it; network file systems take a moment to notice.
                    if error.errno not in (errno.ENOENT, errno.ESTALE) or tries == _TRIES:
                        raise
                    continue
            with ExitStack() as stack:
                stack.callback(use.close)
                try:
                    store = cls(place, "r+")
                except ActstatsError:
                    if use.is_there() or tries == _TRIES:
                        raise
                    continue
                stack.pop_all()
            store._use, store.restored = use, restored
            return store

    def use(self) -> None:
        """Prevent other processes from overwriting the store until `close`."""
        self._use = self.place.use()

    def close(self) -> None:
        """Allow other processes to overwrite the store again."""
        if self._use is not None:
            self._use.close()
            self._use = None

    @property
    def path(self) -> Path | URL:
        """Path or URL of the store."""
        return self.place.location

    @property
    def partition_size(self) -> int:
        """Images per partition."""
        return self.manifest.partition_size

    @property
    def images(self) -> int:
        """Length of the image axis."""
        return self.manifest.data.images

    @property
    def partitions(self) -> int:
        """Number of partitions."""
        return self.manifest.partitions

    @property
    def completed(self) -> NDArray[np.bool_]:
        """Whether each partition is complete, bool [partitions]; found with a single listing."""
        done = np.zeros(self.partitions, dtype=bool)
        # A power cut may leave a flag that is empty or cut short; format 1 had no checksums.
        least = 1 if self.manifest.format == 1 else len(FLAG)
        sizes = self._objects("completed")
        done[[partition for partition, size in sizes.items() if size >= least]] = True
        return done

    def bounds(self, partition: int) -> tuple[int, int]:
        """Return the image range [start, stop) of a partition."""
        start = partition * self.partition_size
        return start, min(start + self.partition_size, self.images)

    def write(
        self,
        partition: int,
        arrays: Mapping[str, NDArray[Any]],
        status: NDArray[np.int8],
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        """Write one partition, and mark it complete once all its data are on the disk.

        Args:
            partition: index of the partition.
            arrays: values of each variable, [images, unit, ...] or [unit, ...].
            status: status of each image, int8 [images].
            provenance: where and how the partition was computed, JSON-serializable.

        Raises:
            ActstatsError: the disk is full, or the store cannot be written or was moved. The partition remains
                incomplete.
        """
        with self.place.explained():
            try:
                self._write(partition, arrays, status, provenance or {})
            except FileNotFoundError:
                self._refuse_moved()
                raise

    def _write(
        self,
        partition: int,
        arrays: Mapping[str, NDArray[Any]],
        status: NDArray[np.int8],
        provenance: Mapping[str, Any],
    ) -> None:
        self._refuse_moved()
        # Remove only the flag: another process may be writing data of the same partition.
        self.place.remove([self._key("completed", partition)])
        shards = ((name, self._array(name), values) for name, values in arrays.items())
        digests = {name: self._put(name, partition, data) for name, data in encoded(shards)}
        digests["status"] = self._put("status", partition, self._encoded("status", partition, status))
        record = json.dumps({**provenance, "partition": partition, "digests": digests})
        text = np.array(record, dtype=object)
        self._put("provenance", partition, self._encoded("provenance", partition, text))
        self.place.flush()
        self._refuse_moved()
        self._put("completed", partition, self._encoded("completed", partition, np.array(True)))
        # Another process that computes the same partition may have removed the flag.
        with suppress(FileNotFoundError):
            self.place.flush()

    def _put(self, name: str, partition: int, data: bytes) -> Entry:
        """Write the object of a partition, and return its entry for the partition's record."""
        key, array = self._key(name, partition), self._array(name)
        self.place.put(key, data)
        chunks = None if array.shards is None else math.prod(map(floordiv, array.shards, array.chunks))
        entry = entry_of(key, data, chunks)
        assert entry is not None
        return entry

    def _encoded(self, name: str, partition: int, values: NDArray[Any]) -> bytes:
        """Return the object of a partition of a small array, which has no shards."""
        written: dict[str, Buffer] = {}
        path = StorePath(MemoryStore(written), name)
        # Zarr does not store that objects of fill values are written, too.
        array: Any = zarr.Array(zarr.AsyncArray(self._array(name).metadata, path, WRITTEN))
        array[self._where(name, partition)] = values
        return written[self._key(name, partition)].to_bytes()

    def _array(self, name: str) -> Any:
        return self.group[name]

    def discard(self, partitions: Sequence[int]) -> None:
        """Remove these partitions: first their flags, durably, then their data."""
        data = [*(name for name in _PER_PARTITION if name != "completed"), *self.manifest.outputs]
        for names in (["completed"], data):
            self.place.remove([self._key(name, partition) for name in names for partition in partitions])

    def statuses(self) -> NDArray[np.int8]:
        """Return the status of each image, int8 [images], -1 in incomplete partitions.

        Raises:
            ActstatsError: an object of a complete partition is damaged, or has values that no sweep writes.
        """
        status = np.full(self.images, -1, dtype=np.int8)
        size = self.manifest.partition_length
        done = np.flatnonzero(self.completed).tolist()
        if self.manifest.format == 1:
            for start, stop in map(self.bounds, done):
                status[start:stop] = self.read("status", slice(start, stop))
        else:
            # Decode the objects directly, ten times faster than Zarr: there may be thousands when a sweep starts.
            objects = self._read_with_records("status", done)
            for partition, data in zip(done, objects, strict=True):
                if len(data) != size + 4 or not has_checksum(data):
                    raise damaged(
                        self.path, f"status of partition {partition}", "does not match its checksum"
                    )
                start, stop = self.bounds(partition)
                status[start:stop] = np.frombuffer(data, dtype=np.int8, count=stop - start)
        if not np.isin(status, list(STATUSES)).all():
            raise _foreign(self.path, "the status of an image is none of `flag_values`")
        return status

    def _read_with_records(self, name: str, partitions: Sequence[int]) -> list[bytes]:
        """Return the objects of these partitions, checked against the partitions' records."""
        keys = [self._key(name, partition) for partition in partitions]
        if "provenance" not in self.group:
            return self.place.read(keys)
        for again in (True, False):
            records = [self._key("provenance", partition) for partition in partitions]
            contents = self.place.read([*keys, *records])
            try:
                for partition, key, data, record in zip(
                    partitions, keys, contents, contents[len(keys) :], strict=False
                ):
                    self.objects.keep_record(partition, record)
                    if not self.objects.matches(key, name, partition, data):
                        raise damaged(self.path, described(key), NOT_WRITTEN)
            except ActstatsError:
                # The partition may have been computed again between the two requests, or be about to be.
                if not again and self.completed[partition]:
                    raise
            else:
                break
        return contents[: len(keys)]

    def provenance(self) -> list[dict[str, Any]]:
        """Return the provenance of each complete partition; empty in format 1."""
        if "provenance" not in self.group:
            return []
        done = np.flatnonzero(self.completed)
        records = []
        for text in self.read("provenance", ...)[done].tolist():
            try:
                record = load(text)
            except ValueError:
                record = {}
            records.append(ProvenanceRecord.known(record))
        return records

    def missing_objects(self) -> list[tuple[str, int]]:
        """Return the variable and partition of each object that is missing or empty in a complete partition.

        Earlier versions did not write the objects of partitions of which no image could be read. Their values are
        the fill values, which Zarr returns.
        """
        done = np.flatnonzero(self.completed).tolist()
        missing = []
        for name in (
            *self.manifest.outputs,
            *(n for n in _PER_PARTITION if n in self.group and n != "completed"),
        ):
            sizes = self._objects(name)
            missing += [(name, partition) for partition in done if not sizes.get(partition)]
        if missing and self.manifest.outdated and not any(n in _PER_PARTITION for n, _ in missing):
            status = self.statuses()
            missing = [(name, p) for name, p in missing if (status[slice(*self.bounds(p))] == OK).any()]
        if missing:
            # Another process may have begun to compute a partition again: to do so it first removes its flag.
            still = self.completed
            missing = [(name, p) for name, p in missing if still[p]]
        return missing

    def missing_coordinates(self) -> list[str]:
        """Return the coordinates whose object is missing or empty, which Zarr would read as zeros."""
        if self.manifest.format == 1:
            return []  # format 1 has no objects for coordinates of zeros
        return [name for name in self._shared() if not self._objects(name).get(0)]

    def _shared(self) -> list[str]:
        outputs = self.manifest.outputs
        return sorted(n for n in self.group.array_keys() if n not in outputs and n not in _PER_PARTITION)

    def require_objects(self) -> None:
        """Raise `ActstatsError` if an object of a complete partition or a coordinate is missing or empty."""
        if missing := self.missing_objects():
            (name, partition), more = missing[0], len(missing) - 1
            others = f" and {more} more object{'s' * (more > 1)}" if more else ""
            raise damaged(
                self.path,
                f"{name} of partition {partition}{others}",
                "are missing or empty" if more else ABSENT,
            )
        if gone := self.missing_coordinates():
            raise damaged(self.path, f"its coordinate {gone[0]}", ABSENT)

    def damage(self) -> Iterator[tuple[str, int | None, str]]:
        """Read every object of the complete partitions, and yield (name, partition, reason) for damaged ones.

        The partition is None for objects that all partitions share, such as coordinates. A partition with all its
        data, but without its flag, is included, though it counts as incomplete.
        """
        yield from ((name, None, reason) for name, reason in self._damage_to_shared())
        complete, missing = self.completed, self.missing_objects()
        for partition in range(self.partitions):
            if complete[partition]:
                gone = {name for name, p in missing if p == partition}
                yield from ((name, partition, reason) for name, reason in self._damage_to(partition, gone))
            elif [name for name, _ in self._damage_to(partition)] == ["completed"]:
                yield "completed", partition, "the flag is lost, so the partition counts as incomplete"

    def without_digests(self) -> list[int]:
        """Return the complete partitions whose objects have checksums only, which earlier versions wrote."""
        done = np.flatnonzero(self.completed).tolist()
        if "provenance" not in self.group:
            return done
        records = self.place.read([self._key("provenance", partition) for partition in done])
        return [p for p, data in zip(done, records, strict=True) if read_record(p, data) is None]

    def _damage_to_shared(self) -> Iterator[tuple[str, str]]:
        """Yield the name of each damaged object that all partitions share, and the reason."""
        for key, expected in self.objects.digests.items():
            if key != ROOT and digest(key, data := self._bytes(key)) != expected:
                yield (
                    key if key.endswith(ROOT) else key.partition("/")[0],
                    f"it {NOT_WRITTEN if data else ABSENT}",
                )
        if self.objects.digests:
            root = self._bytes(ROOT)
            if root != as_json(load(root)):
                yield ROOT, "it has other bytes than were written"
            if self._bytes(COPY) != as_json(self.manifest.json):
                yield COPY, "it is not a copy of the manifest"
            return
        yield from ((f"{name}/{ROOT}", reason) for name, reason in self._damaged_metadata())
        gone = self.missing_coordinates()
        for name in self._shared():
            reason = f"it {ABSENT}" if name in gone else self._unreadable(name, ...)
            if reason is None and self._contradicts(name, self.read(name, ...)):
                reason = "it contradicts the manifest"
            if reason:
                yield name, reason

    def _damage_to(self, partition: int, missing: Container[str] = ()) -> Iterator[tuple[str, str]]:
        """Yield the name of each damaged object of a partition, and the reason."""
        names = [name for name in (*self.manifest.outputs, *_PER_PARTITION) if name in self.group]
        record: Record | None = None
        if "provenance" in names:
            try:
                record = self.objects.record_in(partition, self._bytes(self._key("provenance", partition)))
            except ValueError as error:
                yield "provenance", f"it {error}"
                return  # nothing says what the other objects were
        for name in names:
            key = self._key(name, partition)
            if name in missing:
                yield name, f"it {ABSENT}"
            elif name == "completed" and self.manifest.format != 1:
                if self._bytes(key) != FLAG:
                    yield name, "the flag is damaged"
            elif record is not None and name in record:
                if not fits(record[name], key, self._bytes(key)):
                    yield name, f"it {NOT_WRITTEN}"
            elif reason := self._unreadable(name, self._where(name, partition)):
                yield name, reason

    def _bytes(self, key: str) -> bytes:
        return read_or_empty(self.place, key)

    def read(self, name: str, where: Any) -> NDArray[Any]:
        """Return the values of an array at `where`, a NumPy index.

        Raises:
            ActstatsError: an object is damaged.
        """
        try:
            return np.asarray(self.group[name][where])
        except _DAMAGE as error:
            raise ActstatsError(
                f"{self.path} is damaged: {name} cannot be read ({one_line(error)}); "
                f"run `actstats info --verify {self.path}` to list all damage"
            ) from error

    def _damaged_metadata(self) -> Iterator[tuple[str, str]]:
        """Yield the arrays whose metadata are not the consolidated ones, and the reason."""
        if self.manifest.format == 1:
            return
        root = load(self.place.root(_LARGEST_ROOT))
        for name, metadata in root["consolidated_metadata"]["metadata"].items():
            try:
                same = load(self._bytes(f"{name}/{ROOT}")) == metadata
            except ValueError:
                same = False
            if not same:
                yield name, "does not match the consolidated metadata"

    def _unreadable(self, name: str, where: Any) -> str | None:
        try:
            self.group[name][where]
        except _DAMAGE as error:
            return one_line(error)
        return None

    def _require_whole(self) -> None:
        if not self.objects.digests and isinstance(self.path, Path):
            for name, reason in self._damaged_metadata():
                raise damaged(self.path, f"{name}/{ROOT}", reason)
        if not self.place.whole():
            raise ActstatsError(
                f"{self.path} is still being created, or its creation was interrupted; rerun its sweep to finish it"
            )
        # Anything of that size is allocated only if the store has paths for it.
        if self.images > _WITHOUT_EVIDENCE:
            size = sum(self.place.sizes("path").values())
            if self.images > _IMAGES_PER_BYTE * size:
                raise _foreign(
                    self.path, f"it claims {self.images:,} images, but their paths take {size:,} bytes"
                )

    def require_coordinates(self, values: Mapping[str, Any]) -> None:
        """Raise `ActstatsError` if coordinates, by name, are not those that follow from the manifest."""
        for name in values:
            if self._contradicts(name, values[name]):
                raise _foreign(self.path, f"its coordinate {name!r} contradicts the manifest")

    def _contradicts(self, name: str, values: Any) -> bool:
        expected = self._derived.get(name)
        if expected is None:
            return False
        return not np.array_equal(np.asarray(values), expected, equal_nan=expected.dtype.kind == "f")

    @functools.cached_property
    def _derived(self) -> dict[str, NDArray[Any]]:
        return {
            **unit_coordinates(self.manifest.layers),
            **axis_coordinates(),
            "image": np.arange(self.images),
            "partition": np.arange(self.partitions),
        }

    def _check_coordinates(self, schema: Schema, paths: Sequence[str], labels: NDArray[np.int64]) -> None:
        """Raise `ActstatsError` if the coordinates of the store are not those of this sweep."""
        for name, (_, expected) in schema.coordinates(paths, labels).items():
            stored = self.read(name, ...)
            same = np.array_equal(stored, expected, equal_nan=expected.dtype.kind == "f")
            if not same:
                raise ActstatsError(
                    f"{self.path} is damaged: its coordinate {name} does not match its images and layers; "
                    "sweep again with `repair=True`"
                )

    def _objects(self, name: str) -> dict[int, int]:
        """Return the size in bytes of each object of an array, by partition, with a single listing."""
        sizes: dict[int, int] = {}
        for key, size in self.place.sizes(name).items():
            first, *rest = key.replace("/", ".").split(".")  # c.3.0; c/3/0 in format 1
            if first == "c" and rest and rest[0].isdecimal() and int(rest[0]) < self.partitions:
                sizes[int(rest[0])] = size
        return sizes

    def _where(self, name: str, partition: int) -> slice | int:
        """Return the index or slice of a partition along the first axis of an array."""
        first, *_ = self.group[name].metadata.dimension_names  # type: ignore[union-attr, misc]
        return slice(*self.bounds(partition)) if first == "image" else partition

    def _key(self, name: str, partition: int) -> str:
        if name not in self._rest:
            dims = self.group[name].metadata.dimension_names  # type: ignore[union-attr]
            self._rest[name] = ".0" * (len(dims or ()) - 1)
        return f"{name}/c.{partition}{self._rest[name]}"

    def _refuse_moved(self) -> None:
        if self._use is not None and not self._use.is_there():
            raise ActstatsError(
                f"{self.path} was moved, removed or replaced while its sweep was running; put it back and rerun "
                "the same command to resume"
            )


def damage_in(error: Exception) -> ActstatsError | None:
    """Return an `ActstatsError` for an error that Zarr raised about a damaged object; None for other errors.

    With lazy datasets, such errors may be raised wherever dask reads.
    """
    if not isinstance(error, _DAMAGE):
        return None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if not frame.f_globals.get("__name__", "").startswith("zarr."):
            continue
        for value in frame.f_locals.values():
            place = getattr(value, "store_path", value)
            if isinstance(place, StorePath) and place.path:
                store: Any = place.store
                root = getattr(store, "location", None) or getattr(store, "root", store)
                return ActstatsError(
                    f"{root} is damaged: {place.path.partition('/')[0]} cannot be read ({one_line(error)}); "
                    f"run `actstats info --verify {root}` to list all damage"
                )
    return None


def _group(place: StorePlace, objects: VerifiedObjects, mode: str) -> tuple[zarr.Group, Manifest]:
    """Open the Zarr group of a store, and check its manifest and the metadata of its arrays.

    Raises:
        ActstatsError: it is not a store that this version supports, or it is damaged.
    """
    path = place.location
    root, reason = None, ""
    try:
        if not place.exists():
            raise ActstatsError(f"no store at {path}; create one with `actstats sweep --out {path} ...`")
        root = load(place.root(_LARGEST_ROOT))
    except PermissionError as error:
        raise ActstatsError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, OSError) as error:
        reason = f" ({one_line(error)})"
    attributes = root.get("attributes") if isinstance(root, dict) and root.get("zarr_format") == 3 else None
    if not isinstance(root, dict) or not isinstance(attributes, dict) or "actstats" not in attributes:
        if read_or_empty(place, COPY):  # only stores of actstats have it
            raise damaged(path, ROOT, f"is missing or cannot be read{reason}")
        kind = ", but another Zarr group" if isinstance(attributes, dict) else ": it is not a Zarr v3 group"
        raise ActstatsError(f"{path} is not a store of actstats{kind}{reason}")
    version = attributes["actstats"]
    if version not in manifests.READABLE:
        readable = " and ".join(map(str, manifests.READABLE))
        raise ActstatsError(
            f"{path} has store format {shortened(version)}, but this version of actstats reads {readable}; "
            "use the version that wrote it"
        )
    if mode != "r" and version != manifests.FORMAT:
        raise ActstatsError(
            f"{path} has store format {version}, which this version of actstats reads but does not write; "
            "choose another `store=`, or `overwrite=True`"
        )
    if reason := broken_seal(root) or "":
        raise damaged(path, ROOT, f"was changed ({reason})")
    try:
        record = Manifest.from_json(attributes)
        check_arrays(_arrays_in(root), record)
    except InvalidError as error:
        raise _foreign(path, str(error)) from error
    objects.digests = record.digests or {}
    with bounded():
        metadata = zarr.core.group.GroupMetadata.from_dict(root)
    return zarr.Group(zarr.AsyncGroup(metadata, StorePath(objects))), record


def _foreign(path: Path | URL, reason: str) -> ActstatsError:
    """Return the error about a store that contradicts itself."""
    return ActstatsError(
        f"{path} is damaged, or was not written by actstats: {reason}; remove the store and sweep again"
    )


def _arrays_in(root: dict[str, Any]) -> dict[str, Any]:
    """Return the consolidated metadata of the arrays in the root object.

    Raises:
        InvalidError: the root object has other entries than those of a store.
    """
    consolidated = root.get("consolidated_metadata")
    known = {"zarr_format": 3, "node_type": "group", "attributes": root["attributes"]}
    if not isinstance(consolidated, dict) or not same_json(
        root, {**known, "consolidated_metadata": consolidated}
    ):
        raise InvalidError("zarr.json has other entries than those of a store")
    arrays = consolidated.get("metadata")
    known = {"kind": "inline", "must_understand": False, "metadata": arrays}
    if not isinstance(arrays, dict) or not same_json(consolidated, known):
        raise InvalidError("the consolidated metadata in zarr.json are not those of a store")
    return arrays


def _is_another(place: StorePlace, manifest: Mapping[str, Any]) -> bool:
    """Whether the existing store is of another sweep; raises an error if it is not a store."""
    try:
        existing = Store(place).manifest
    except ActstatsError:
        if place.exists():
            raise
        return False  # another process has removed it
    return existing.format != manifests.FORMAT or bool(manifests.differences(existing.json, manifest))


def _refuse_another(place: StorePlace, existing: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
    """Raise `ManifestMismatchError` if the manifest `existing` in a store is not that of this sweep."""
    path = place.location
    if version := manifests.outdated(existing):
        raise ManifestMismatchError(
            f"{path} was begun by actstats {version}, and numbers have been corrected since "
            "(docs/corrections.md): choose another `store=`, or use `overwrite=True` to replace it"
        )
    if differences := manifests.differences(existing, manifest):
        raise ManifestMismatchError(
            f"{path} holds another sweep: {'; '.join(differences[:4])}{' and more' * (len(differences) > 4)}. "
            "Choose another `store=`, or use `overwrite=True` to replace it"
        )
