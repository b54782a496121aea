"""Stores: a Zarr v3 group, written partition by partition, that `xarray.open_zarr` opens as one lazy dataset.

A partition is a block of consecutive images. Each variable has one object per partition, so writers of different
partitions never touch the same object. The flag that marks a partition complete is written after its data have
reached the disk. So however a sweep ends, each partition is either complete or will be computed again.
"""

from __future__ import annotations

import functools
import json
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import google_crc32c
import numpy as np
import zarr
import zarr.codecs
import zarr.core.group
from numpy.typing import NDArray
from zarr.storage import StorePath

from actstats.data import MISSING, OK, PENDING, REFUSED, UNREADABLE
from actstats.errors import ActstatsError, ManifestMismatchError, one_line
from actstats.records import InvalidError, load, shortened
from actstats.store import manifest as manifests
from actstats.store.arrays import check_arrays
from actstats.store.manifest import Manifest
from actstats.store.place import StorePlace, Use, place_of
from actstats.store.schema import Schema
from actstats.support import URL, html_facts

if TYPE_CHECKING:
    from zarr.abc.store import Store as Objects
    from zarr.core.array_spec import ArrayConfigParams

    from actstats.metrics import Output

# A shard has a hundred chunks and more. Encoding or decoding them one by one, the default, takes half again as long.
zarr.config.update_defaults({"codec_pipeline": {"batch_size": 128}})

_INDEXES: Final = ("image", "partition")
"""Coordinates that number images and partitions; stores of earlier versions lack them."""
_COORDINATES: Final = (
    "path", "label", "status", "layer", "channel", "height", "width",
    "bin_left", "bin_right", "completed",
)  # fmt: skip
_LARGEST_ROOT: Final = 1 << 28
"""Most bytes of `zarr.json`: the manifest and the metadata of all arrays, a few megabytes in a large store."""
_PER_PARTITION: Final = ("status", "provenance", "completed")
_FLAG_SIZE: Final = 5
"""Bytes of an object of `completed`: a Boolean and its checksum."""
_TRIES: Final = 10
"""How many times a process enters a store that others remove meanwhile."""
_WRITTEN: Final[ArrayConfigParams] = {"write_empty_chunks": True}
"""Objects that hold only fill values are written, too, so that a missing object means damage."""
STATUSES: Final = {
    PENDING: "pending",
    OK: "read",
    MISSING: "missing",
    UNREADABLE: "unreadable",
    REFUSED: "refused",
}
"""Names of the values of the coordinate `status`."""
_DAMAGE: Final = (ValueError, OSError, RuntimeError, KeyError)
"""Exceptions that Zarr raises for damaged objects."""


class Store:
    """An open store, from `Store.open` or `Store.open_or_create`; `write` adds a partition."""

    def __init__(self, place: StorePlace, mode: str = "r") -> None:
        self.place = place
        self.group, self.record = _group(place, mode)
        self.manifest: dict[str, Any] = {
            k: v for k, v in self.group.attrs.asdict().items() if k != "coordinates"
        }
        self._use: Use | None = None
        self._rest: dict[str, str] = {}

    def _repr_html_(self) -> str:
        record, complete = self.record, self.completed
        facts = [
            ("network", f"{record.arch}, weights {record.weights.source}"),
            ("images", f"{record.data.images:,} of {record.data.spec}"),
            ("layers", len(record.layers)),
            ("variables", ", ".join(record.outputs)),
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
    ) -> Store:
        """Open the store of this sweep to resume it, or create it.

        With `overwrite`, the store of another sweep is replaced; the store of this sweep is always kept.

        Raises:
            ManifestMismatchError: `path` holds the store of another sweep, and `overwrite` is not set.
            ActstatsError: `path` is not a store, or the store is damaged, in use, or cannot be written.
        """
        place = place_of(path)
        write = functools.partial(_write_group, manifest=manifest, schema=schema, paths=paths, labels=labels)
        store = cls._entered(place, manifest, write, overwrite)
        try:
            if version := manifests.outdated(store.manifest):
                raise ManifestMismatchError(
                    f"{path} was begun by actstats {version}, and numbers have been corrected since "
                    "(docs/corrections.md): choose another `store=`, or use `overwrite=True` to replace it"
                )
            if found := manifests.differences(store.manifest, manifest):
                raise ManifestMismatchError(
                    f"{path} holds another sweep: {'; '.join(found[:4])}{' and more' * (len(found) > 4)}. "
                    "Choose another `store=`, or use `overwrite=True` to replace it"
                )
            with place.explained():
                place.complete(write)
            store._require_whole()
            store._check_coordinates(schema, paths, labels)
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def _entered(
        cls, place: StorePlace, manifest: Mapping[str, Any], write: Callable[[Objects], None], overwrite: bool
    ) -> Store:
        """Return the store in use by this process, created if needed, whatever other processes do meanwhile."""
        for _ in range(_TRIES):
            with place.explained():
                place.tidy()
                if (overwrite and place.clear(lambda: _is_another(place, manifest))) or not place.exists():
                    place.make(write)
                try:
                    use = place.use()
                except FileNotFoundError:  # another process has removed it again
                    continue
            with ExitStack() as stack:
                stack.callback(use.close)
                try:
                    store = cls(place, "r+")
                except ActstatsError:
                    if use.is_there():
                        raise
                    continue
                stack.pop_all()
            store._use = use
            return store
        raise ActstatsError(
            f"{place.location} is removed again and again by other processes; choose another `store=`"
        )

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
        return self.record.partition_size

    @property
    def images(self) -> int:
        """Length of the image axis."""
        return self.record.data.images

    @property
    def partitions(self) -> int:
        """Number of partitions."""
        return self.record.partitions

    @property
    def completed(self) -> NDArray[np.bool_]:
        """Whether each partition is complete, bool [partitions]; found with a single listing."""
        done = np.zeros(self.partitions, dtype=bool)
        # A power cut may leave a flag that is empty or cut short; format 1 had no checksums.
        least = 1 if self.record.format == 1 else _FLAG_SIZE
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
                self._write(partition, arrays, status, json.dumps(provenance or {}))
            except FileNotFoundError:
                self._refuse_moved()
                raise

    def _write(
        self, partition: int, arrays: Mapping[str, NDArray[Any]], status: NDArray[np.int8], provenance: str
    ) -> None:
        self._refuse_moved()
        # Remove only the flag: another process may be writing data of the same partition.
        self.place.remove([self._key("completed", partition)])
        for name, values in arrays.items():
            self._replace(name, partition, values)
        self._array("status")[self._where("status", partition)] = status
        self._array("provenance")[partition] = provenance
        self.place.flush()
        self._refuse_moved()
        self._array("completed")[partition] = True
        with suppress(
            FileNotFoundError
        ):  # another process that computes the same partition has removed the flag
            self.place.flush()

    def _replace(self, name: str, partition: int, values: NDArray[Any]) -> None:
        where = self._where(name, partition)
        try:
            self._array(name)[where] = values
        except OSError:  # of the disk or the bucket, not of the data
            raise
        except _DAMAGE:
            # To replace part of an object, as in a smaller last partition, Zarr reads it first; this one is damaged.
            self.place.remove([self._key(name, partition)])
            self._array(name)[where] = values

    def _array(self, name: str) -> Any:
        """Return an array to write to. Zarr does not store that objects of fill values are written, too."""
        array: Any = self.group[name]
        return array.with_config(_WRITTEN)

    def discard(self, partitions: Sequence[int]) -> None:
        """Remove these partitions: first their flags, durably, then their data."""
        data = [*(name for name in _PER_PARTITION if name != "completed"), *self.record.outputs]
        for names in (["completed"], data):
            self.place.remove([self._key(name, partition) for name in names for partition in partitions])

    def statuses(self) -> NDArray[np.int8]:
        """Return the status of each image, int8 [images], -1 in incomplete partitions."""
        status = np.full(self.images, -1, dtype=np.int8)
        size = self.record.partition_length
        done = np.flatnonzero(self.completed).tolist()
        if self.record.format == 1:
            for start, stop in map(self.bounds, done):
                status[start:stop] = self.read("status", slice(start, stop))
            return status
        # Decode the objects directly, ten times faster than Zarr: there may be thousands when a sweep starts.
        objects = self.place.read([self._key("status", partition) for partition in done])
        for partition, data in zip(done, objects, strict=True):
            values, checksum = data[:-4], int.from_bytes(data[-4:], "little")
            if len(values) != size or google_crc32c.value(values) != checksum:
                raise ActstatsError(
                    f"{self.path} is damaged: status of partition {partition}; sweep again with `repair=True`"
                )
            start, stop = self.bounds(partition)
            status[start:stop] = np.frombuffer(values, dtype=np.int8)[: stop - start]
        return status

    def provenance(self) -> list[dict[str, Any]]:
        """Return the provenance of each complete partition; empty in format 1."""
        if "provenance" not in self.group:
            return []
        done = np.flatnonzero(self.completed)
        found = []
        for text in self.read("provenance", ...)[done].tolist():
            try:
                record = json.loads(text)
            except ValueError:
                record = {}
            found.append(record if isinstance(record, dict) else {})
        return found

    def missing_objects(self) -> list[tuple[str, int]]:
        """Return the variable and partition of each object that is missing or empty in a complete partition.

        Earlier versions did not write the objects of partitions of which no image could be read. Their values are
        the fill values, which Zarr returns.
        """
        done = np.flatnonzero(self.completed).tolist()
        found = []
        for name in (*self.record.outputs, *(n for n in _PER_PARTITION if n in self.group)):
            sizes = self._objects(name)
            found += [(name, partition) for partition in done if not sizes.get(partition)]
        if found and manifests.outdated(self.manifest) and not any(n in _PER_PARTITION for n, _ in found):
            status = self.statuses()
            found = [(name, p) for name, p in found if (status[slice(*self.bounds(p))] == OK).any()]
        return found

    def missing_coordinates(self) -> list[str]:
        """Return the coordinates whose object is missing or empty, which Zarr would read as zeros."""
        if self.record.format == 1:
            return []  # format 1 has no objects for coordinates of zeros
        return [name for name in self._shared() if not self._objects(name).get(0)]

    def _shared(self) -> list[str]:
        outputs = self.record.outputs
        return sorted(n for n in self.group.array_keys() if n not in outputs and n not in _PER_PARTITION)

    def damage(self) -> Iterator[tuple[str, int | None, str]]:
        """Read every object of the complete partitions, and yield (variable, partition, reason) for damaged ones.

        The partition is None for coordinates, which all partitions share.
        """
        yield from (("zarr.json", None, reason) for reason in self._damaged_metadata())
        missing = set(self.missing_objects())
        yield from (
            (name, partition, "its object is missing or empty") for name, partition in sorted(missing)
        )
        gone = self.missing_coordinates()
        yield from ((name, None, "its object is missing or empty") for name in gone)
        for name in self._shared():
            if name not in gone and (reason := self._unreadable(name, ...)):
                yield name, None, reason
        for partition in np.flatnonzero(self.completed).tolist():
            for name in (*self.record.outputs, *_PER_PARTITION):
                if name not in self.group or (name, partition) in missing:
                    continue
                if reason := self._unreadable(name, self._where(name, partition)):
                    yield name, partition, reason

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

    def _damaged_metadata(self) -> Iterator[str]:
        """Yield damage to the manifest and to the metadata of arrays, which the store holds twice."""
        if self.record.format == 1:
            return
        if self.manifest.get("checksum") != manifests.checksum(self.manifest):
            yield "the manifest does not match its checksum"
        root = json.loads(self.place.read(["zarr.json"])[0])
        for name, metadata in root["consolidated_metadata"]["metadata"].items():
            try:
                same = json.loads(self.place.read([f"{name}/zarr.json"])[0]) == metadata
            except (OSError, ValueError):
                same = False
            if not same:
                yield f"the metadata of {name} do not match the consolidated metadata"

    def _unreadable(self, name: str, where: Any) -> str | None:
        try:
            self.group[name][where]
        except _DAMAGE as error:
            return one_line(error)
        return None

    def _require_whole(self) -> None:
        if not self.place.whole():
            raise ActstatsError(
                f"{self.path} is still being created, or its creation was interrupted; rerun its sweep to finish it"
            )

    def _check_coordinates(self, schema: Schema, paths: Sequence[str], labels: NDArray[np.int64]) -> None:
        """Raise `ActstatsError` if the coordinates of the store are not those of this sweep."""
        for name, (_, expected) in schema.coordinates(paths, labels).items():
            found = self.read(name, ...)
            same = np.array_equal(found, expected, equal_nan=expected.dtype.kind == "f")
            if not same:
                raise ActstatsError(
                    f"{self.path} is damaged: its coordinate {name!r} does not match its images and layers; "
                    "remove the store and sweep again"
                )

    def _objects(self, name: str) -> dict[int, int]:
        """Return the size in bytes of each object of an array, by partition, with a single listing."""
        found: dict[int, int] = {}
        for key, size in self.place.sizes(name).items():
            first, *rest = key.replace("/", ".").split(".")  # c.3.0; c/3/0 in format 1
            if first == "c" and rest and rest[0].isdecimal() and int(rest[0]) < self.partitions:
                found[int(rest[0])] = size
        return found

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
                root = getattr(place.store, "root", place.store)
                return ActstatsError(
                    f"{root} is damaged: {place.path.partition('/')[0]} cannot be read ({one_line(error)}); "
                    f"run `actstats info --verify {root}` to list all damage"
                )
    return None


def missing_error(path: str | Path, missing: Sequence[tuple[str, int]]) -> ActstatsError:
    """Return the error about missing objects of complete partitions."""
    name, partition = missing[0]
    more = f" and {len(missing) - 1} more objects are" if len(missing) > 1 else " is"
    return ActstatsError(
        f"{path} is damaged: {name} of partition {partition}{more} missing or empty; sweep again with `repair=True`"
    )


def _group(place: StorePlace, mode: str) -> tuple[zarr.Group, Manifest]:
    """Open the Zarr group of a store, and check its manifest and the metadata of its arrays.

    Raises:
        ActstatsError: it is not a store that this version supports.
    """
    path = place.location
    if not place.exists():
        raise ActstatsError(f"no store at {path}; create one with `actstats sweep --out {path} ...`")
    try:
        root = load(place.root(_LARGEST_ROOT))
    except PermissionError as error:
        raise ActstatsError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, OSError) as error:
        raise ActstatsError(
            f"{path} is not a store of actstats: it is not a Zarr v3 group ({one_line(error)})"
        ) from error
    attributes = root.get("attributes") if isinstance(root, dict) and root.get("zarr_format") == 3 else None
    if not isinstance(attributes, dict):
        raise ActstatsError(f"{path} is not a store of actstats: it is not a Zarr v3 group")
    if "actstats" not in attributes:
        raise ActstatsError(f"{path} is not a store of actstats, but another Zarr group")
    found = attributes["actstats"]
    if found not in manifests.READABLE:
        readable = " and ".join(map(str, manifests.READABLE))
        raise ActstatsError(
            f"{path} has store format {shortened(found)}, but this version of actstats reads {readable}; "
            "use the version that wrote it"
        )
    if mode != "r" and found != manifests.FORMAT:
        raise ActstatsError(
            f"{path} has store format {found}, which this version of actstats reads but does not write; "
            "choose another `store=`, or `overwrite=True`"
        )
    try:
        record = Manifest.from_json(attributes)
        check_arrays(_arrays_in(root), record)
    except InvalidError as error:
        raise ActstatsError(
            f"{path} is damaged, or was not written by actstats: {error}; remove the store and sweep again"
        ) from error
    objects = place.objects(read_only=mode == "r")
    metadata = zarr.core.group.GroupMetadata.from_dict(root)
    return zarr.Group(zarr.AsyncGroup(metadata, StorePath(objects))), record


def _arrays_in(root: dict[str, Any]) -> dict[str, Any]:
    """Return the consolidated metadata of the arrays in the root object.

    Raises:
        InvalidError: the root object has other entries than those of a store.
    """
    consolidated = root.get("consolidated_metadata")
    known = {"zarr_format": 3, "node_type": "group", "attributes": root["attributes"]}
    if not isinstance(consolidated, dict) or root != {**known, "consolidated_metadata": consolidated}:
        raise InvalidError("zarr.json has other entries than those of a store")
    arrays = consolidated.get("metadata")
    known = {"kind": "inline", "must_understand": False, "metadata": arrays}
    if not isinstance(arrays, dict) or consolidated != known:
        raise InvalidError("the consolidated metadata in zarr.json are not those of a store")
    return arrays


def _is_another(place: StorePlace, manifest: Mapping[str, Any]) -> bool:
    """Whether the existing store is of another sweep; raises an error if it is not a store."""
    try:
        found = Store(place).manifest
    except ActstatsError:
        if place.exists():
            raise
        return False  # another process has removed it
    return found.get("actstats") != manifests.FORMAT or bool(manifests.differences(found, manifest))


def _write_group(
    objects: Objects,
    manifest: Mapping[str, Any],
    schema: Schema,
    paths: Sequence[str],
    labels: NDArray[np.int64],
) -> None:
    coordinates = " ".join((*_INDEXES, *_COORDINATES, "provenance"))
    group = zarr.create_group(
        objects,
        zarr_format=3,
        attributes={**manifest, "checksum": manifests.checksum(manifest), "coordinates": coordinates},
    )
    # A flat folder per array, so that a single listing finds its partitions.
    common: dict[str, Any] = {"chunk_key_encoding": {"name": "default", "separator": "."}}
    checksum = zarr.codecs.Crc32cCodec()
    codec, level = parse_compression(manifest.get("compression", "zstd:1"))
    compressors = [checksum] if codec == "none" else [zarr.codecs.ZstdCodec(level=level), checksum]
    for output in schema.outputs:
        chunks, shards = schema.chunks(output)
        group.create_array(
            output.name,
            shape=tuple(schema.lengths[dim] for dim in output.dims),
            dtype=output.dtype,
            chunks=chunks,
            shards=shards,
            compressors=compressors,
            fill_value=output.missing if output.per_image or output.merge == "rank" else output.neutral,
            dimension_names=output.dims,
            attributes=_attributes(output),
            config=_WRITTEN,
            **common,
        )
    for name, (dims, values) in schema.coordinates(paths, labels).items():
        array = group.create_array(
            name,
            shape=values.shape,
            dtype=str if values.dtype.kind == "O" else values.dtype,
            chunks=tuple(max(1, n) for n in values.shape),
            compressors=[zarr.codecs.ZstdCodec(level=1), checksum],
            dimension_names=dims,
            config=_WRITTEN,
            **common,
        )
        array[...] = values
    flags: dict[str, Any] = {"flag_values": list(STATUSES), "flag_meanings": " ".join(STATUSES.values())}
    for name, dtype, fill, size, dims, attributes in (
        ("status", "int8", -1, schema.partition_size, ("image",), flags),
        ("provenance", str, "", 1, ("partition",), {}),
        ("completed", "bool", False, 1, ("partition",), {}),
    ):
        group.create_array(
            name,
            shape=(schema.lengths[dims[0]],),
            dtype=dtype,
            chunks=(size,),
            compressors=[checksum],
            fill_value=fill,
            dimension_names=dims,
            attributes=attributes,
            config=_WRITTEN,
            **common,
        )
    with warnings.catch_warnings():
        # With consolidated metadata, xarray opens a store in one read; without, it warns.
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        zarr.consolidate_metadata(objects)


def _attributes(output: Output) -> dict[str, Any]:
    found = {
        "units": output.units,
        "long_name": output.description,
        "merge": "" if output.per_image else output.merge,
    }
    return {name: value for name, value in found.items() if value}


def parse_compression(text: str) -> tuple[str, int]:
    """Return the codec and level of "none", "zstd" or "zstd:LEVEL".

    >>> parse_compression("zstd")
    ('zstd', 1)

    Raises:
        ActstatsError: the codec is unknown, or the level is not between 1 and 22.
    """
    codec, _, level = text.partition(":")
    if codec == "none" and not level:
        return "none", 0
    if codec == "zstd" and (not level or level.isdecimal()) and 1 <= int(level or 1) <= 22:
        return "zstd", int(level or 1)
    raise ActstatsError(
        f"unknown compression {text!r}; choose none, zstd or zstd:LEVEL with LEVEL from 1 to 22"
    )
