"""The store: one Zarr v3 group that `xarray.open_zarr` opens as one lazy dataset, written partition by partition.

A partition is a block of consecutive images. Chunks and shards are aligned to it, so that no two writers touch one
object, and `completed` is written last: whatever stops a sweep, a partition is either complete or computed again.
"""

from __future__ import annotations

import errno
import math
import secrets
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
import zarr.codecs
from numpy.typing import NDArray

from actstats.errors import ActstatsError, ManifestMismatchError
from actstats.metrics.protocol import Output
from actstats.store import manifest as manifests
from actstats_kernels.bins import FREQUENCY_BINS, HISTOGRAM_BINS, frequencies, histogram_edges

if TYPE_CHECKING:
    from actstats.layers import Layer

UNITS_A_CHUNK = 700
"""What a chunk holds of the unit axis, about: small enough to read one layer, large enough to write fast."""

COORDINATES = (
    "path", "label", "status", "layer", "channel", "height", "width",
    "bin_left", "bin_right", "completed",
)  # fmt: skip


@dataclass(frozen=True)
class Schema:
    """What a store holds: the variables, and the length of every dimension."""

    outputs: tuple[Output, ...]
    layers: tuple[Layer, ...]
    images: int
    partition_size: int
    top_k: int
    sizes: Mapping[str, int]

    @property
    def units(self) -> int:
        """Length of the unit axis: the channels of all layers."""
        return sum(layer.units for layer in self.layers)

    @property
    def partitions(self) -> int:
        """Number of blocks of `partition_size` images; the last may be shorter."""
        return math.ceil(self.images / self.partition_size)

    @property
    def lengths(self) -> dict[str, int]:
        """The length of each dimension by name."""
        return {
            "image": self.images,
            "unit": self.units,
            "partition": self.partitions,
            "frequency": FREQUENCY_BINS,
            "bin": HISTOGRAM_BINS,
            "rank": self.top_k,
            **self.sizes,
        }

    def bytes(self, images: int | None = None) -> int:
        """Return the size of all variables for so many images, before compression."""
        images = self.images if images is None else images
        lengths = {**self.lengths, "image": images, "partition": math.ceil(images / self.partition_size)}
        return sum(
            math.prod(lengths[dim] for dim in output.dims) * np.dtype(output.dtype).itemsize
            for output in self.outputs
        )


class Store:
    """An open store. `Store.open` finds one, `Store.create` makes one; `write` completes one partition."""

    def __init__(self, path: Path, group: zarr.Group) -> None:
        self.path = path
        self.group = group
        self.manifest: dict[str, Any] = {k: v for k, v in group.attrs.asdict().items() if k != "coordinates"}

    @classmethod
    def open(cls, path: str | Path, *, mode: str = "r") -> Store:
        """Open an existing store, `mode` "r" or "r+".

        Raises:
            ActstatsError: nothing is there, or something that no sweep wrote.
        """
        store = cls(Path(path), _group(Path(path), mode))
        expected = {"data", "layers", "outputs", "partition_size"} - store.manifest.keys()
        if absent := sorted(expected.union(set(COORDINATES).difference(store.group))):
            raise ActstatsError(f"{path} is damaged: it has no {absent[0]!r}; sweep again with --overwrite")
        return store

    @classmethod
    def open_or_create(
        cls,
        path: str | Path,
        manifest: Mapping[str, Any],
        schema: Schema,
        paths: Sequence[str],
        labels: NDArray[np.int64],
        *,
        compression: str = "zstd:1",
        overwrite: bool = False,
    ) -> Store:
        """Open the store of this very sweep, or make it.

        Raises:
            ManifestMismatchError: a store is there, and its sweep differs; the text names in what.
            ActstatsError: something else is there, or the place cannot be written.
        """
        path = Path(path)
        if path.exists() and overwrite:
            _group(path, "r")  # refuses to remove what actstats did not write
            shutil.rmtree(path)
        if not path.exists():
            with _writing(path):
                _create(path, manifest, schema, paths, labels, compression)
        store = cls.open(path, mode="r+")
        if found := manifests.differences(store.manifest, manifest):
            raise ManifestMismatchError(
                f"{path} holds another sweep: {'; '.join(found[:4])}{' and more' * (len(found) > 4)}. "
                "Choose another --out, or --overwrite to start afresh"
            )
        return store

    @property
    def partition_size(self) -> int:
        """Images a partition."""
        return int(self.manifest["partition_size"])

    @property
    def images(self) -> int:
        """Length of the image axis."""
        return int(self.manifest["data"]["images"])

    @property
    def completed(self) -> NDArray[np.bool_]:
        """Which partitions are complete, bool [partitions]."""
        return np.asarray(self.group["completed"][:], dtype=bool)  # type: ignore[index]

    def bounds(self, partition: int) -> tuple[int, int]:
        """Return the first image of a partition and the one after its last."""
        start = partition * self.partition_size
        return start, min(start + self.partition_size, self.images)

    def write(self, partition: int, arrays: Mapping[str, NDArray[Any]], status: NDArray[np.int8]) -> None:
        """Write one partition's arrays, [images, unit, ...] or [unit, ...] each, then mark it complete.

        Raises:
            ActstatsError: the disk is full, or the store cannot be written; the partition stays incomplete.
        """
        start, stop = self.bounds(partition)
        with _writing(self.path):
            for name, values in arrays.items():
                array = self.group[name]
                if array.metadata.dimension_names[0] == "image":  # type: ignore[union-attr, index]
                    array[start:stop] = values  # type: ignore[index]
                else:
                    array[partition] = values  # type: ignore[index]
            self.group["status"][start:stop] = status  # type: ignore[index]
            self.group["completed"][partition] = True  # type: ignore[index]


def _group(path: Path, mode: str) -> zarr.Group:
    """Open what a sweep wrote, in the format that this version writes, or say in one line why not."""
    if not path.exists():
        raise ActstatsError(f"no store at {path}; `actstats sweep --out {path} ...` makes one")
    try:
        group = zarr.open_group(path, mode=mode, zarr_format=3)  # type: ignore[arg-type]
    except PermissionError as error:
        raise ActstatsError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, OSError, KeyError) as error:
        raise ActstatsError(f"{path} is not a store that actstats wrote: it is no Zarr v3 group") from error
    if "actstats" not in group.attrs:
        raise ActstatsError(f"{path} is a Zarr group, but not one that actstats wrote")
    found = group.attrs["actstats"]
    if found != manifests.FORMAT:
        raise ActstatsError(
            f"{path} has store format {found}, this version of actstats reads {manifests.FORMAT}; "
            "use the version that wrote it"
        )
    return group


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn what a file system can say into one line that names the store and the way on."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise ActstatsError(
                f"no room to write {path} ({reason}); completed partitions are kept: "
                "free space and run the same command to go on"
            ) from error
        raise ActstatsError(f"cannot write {path}: {reason}") from error


def _create(
    path: Path,
    manifest: Mapping[str, Any],
    schema: Schema,
    paths: Sequence[str],
    labels: NDArray[np.int64],
    compression: str,
) -> None:
    """Make the store beside its place and move it there, so that it is whole whenever it is seen."""
    if path.parent.is_file():
        raise NotADirectoryError(errno.ENOTDIR, f"{path.parent} is a file, not a folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    making = path.parent / f".{path.name}.{secrets.token_hex(4)}"
    making.mkdir()
    try:
        attributes = {**manifest, "coordinates": " ".join(COORDINATES)}
        group = zarr.create_group(making, zarr_format=3, attributes=attributes)
        for output in schema.outputs:
            _create_variable(group, output, schema, compression)
        for name, (dims, values) in _coordinates(schema, paths, labels).items():
            array = group.create_array(
                name,
                shape=values.shape,
                dtype=str if values.dtype.kind == "O" else values.dtype,
                chunks=tuple(max(1, n) for n in values.shape),
                dimension_names=dims,
            )
            array[...] = values
        group.create_array(
            "status",
            shape=(schema.images,),
            dtype="int8",
            chunks=(schema.partition_size,),
            fill_value=-1,
            dimension_names=("image",),
            attributes={
                "flag_values": [-1, 0, 1, 2, 3],
                "flag_meanings": "pending ok missing unreadable refused",
            },
        )
        group.create_array(
            "completed",
            shape=(schema.partitions,),
            dtype="bool",
            chunks=(1,),
            fill_value=False,
            compressors=None,
            dimension_names=("partition",),
        )
        with warnings.catch_warnings():
            # xarray opens a store in one read with it, and complains without it.
            warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
            zarr.consolidate_metadata(making)
        try:
            making.rename(path)
        except OSError as error:
            # Of several processes that start one sweep together, one makes the store; the others open that.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _create_variable(group: zarr.Group, output: Output, schema: Schema, compression: str) -> None:
    lengths = schema.lengths
    shape = tuple(lengths[dim] for dim in output.dims)
    blocks = math.ceil(schema.units / UNITS_A_CHUNK)
    units = math.ceil(schema.units / blocks)
    first = schema.partition_size if output.per_image else 1
    attributes: dict[str, Any] = {"units": output.units, "long_name": output.description}
    if not output.per_image:
        attributes["merge"] = output.merge
    group.create_array(
        output.name,
        shape=shape,
        dtype=output.dtype,
        chunks=(first, units, *shape[2:]),
        shards=(first, units * blocks, *shape[2:]),
        compressors=_codec(compression),
        fill_value=output.missing if output.per_image or output.merge == "rank" else output.neutral,
        dimension_names=output.dims,
        attributes={name: value for name, value in attributes.items() if value},
    )


def _coordinates(
    schema: Schema, paths: Sequence[str], labels: NDArray[np.int64]
) -> dict[str, tuple[tuple[str, ...], NDArray[Any]]]:
    layers = schema.layers
    counts = [layer.units for layer in layers]
    left, right = histogram_edges()
    found: dict[str, tuple[tuple[str, ...], NDArray[Any]]] = {
        "path": (("image",), np.array(paths, dtype=object)),
        "label": (("image",), labels),
        "layer": (("unit",), np.repeat(np.array([layer.name for layer in layers], dtype=object), counts)),
        "channel": (("unit",), np.concatenate([np.arange(n, dtype=np.int32) for n in counts])),
        "height": (
            ("unit",),
            np.repeat(np.array([layer.height for layer in layers], dtype=np.int32), counts),
        ),
        "width": (("unit",), np.repeat(np.array([layer.width for layer in layers], dtype=np.int32), counts)),
        "frequency": (("frequency",), frequencies()),
        "bin_left": (("bin",), left),
        "bin_right": (("bin",), right),
    }
    return found


def parse_compression(text: str) -> tuple[str, int]:
    """Return the codec and level of "none", "zstd" or "zstd:LEVEL".

    >>> parse_compression("zstd")
    ('zstd', 1)

    Raises:
        ActstatsError: another codec, or a level that is not of 1 to 22.
    """
    codec, _, level = text.partition(":")
    if codec == "none" and not level:
        return "none", 0
    if codec == "zstd" and (not level or level.isdecimal()) and 1 <= int(level or 1) <= 22:
        return "zstd", int(level or 1)
    raise ActstatsError(
        f"compression {text!r} is not known; give none, zstd or zstd:LEVEL with LEVEL of 1 to 22"
    )


def _codec(text: str) -> Any:
    codec, level = parse_compression(text)
    return None if codec == "none" else zarr.codecs.ZstdCodec(level=level)
