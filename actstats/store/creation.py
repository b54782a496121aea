"""Create the objects that belong to all partitions of a store: the manifest, metadata and coordinates."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import zarr
import zarr.codecs
from numpy.typing import NDArray
from zarr.storage import MemoryStore

from actstats.data import MISSING, OK, PENDING, REFUSED, UNREADABLE
from actstats.store.codecs import compressors
from actstats.store.digests import COPY, ROOT, as_json, digest, manifest_in, sealed
from actstats.store.schema import Schema

if TYPE_CHECKING:
    from zarr.core.array_spec import ArrayConfigParams
    from zarr.core.buffer import Buffer

    from actstats.metrics import Output

_INDEXES: Final = ("image", "partition")
"""Coordinates that number images and partitions; stores of earlier versions lack them."""
_COORDINATES: Final = (
    "path", "label", "status", "layer", "channel", "height", "width",
    "bin_left", "bin_right", "completed",
)  # fmt: skip
WRITTEN: Final[ArrayConfigParams] = {"write_empty_chunks": True}
"""Objects that hold only fill values are written, too, so that a missing object means damage."""
STATUSES: Final = {
    PENDING: "pending",
    OK: "read",
    MISSING: "missing",
    UNREADABLE: "unreadable",
    REFUSED: "refused",
}
"""Names of the values of the coordinate `status`."""


def objects_of(
    manifest: Mapping[str, Any], schema: Schema, paths: Sequence[str], labels: NDArray[np.int64]
) -> dict[str, bytes]:
    """Return the objects of a new store by key: metadata, coordinates, and the second copy of the manifest.

    Args:
        manifest: record of the sweep, without digests.
        schema: its variables and dimensions.
        paths: path of each image.
        labels: label of each image, int64 [images].
    """
    tree: dict[str, Buffer] = {}
    objects = MemoryStore(tree)
    coordinates = " ".join((*_INDEXES, *_COORDINATES, "provenance"))
    group = zarr.create_group(
        objects,
        zarr_format=3,
        attributes={**manifest, "coordinates": coordinates},
    )
    # A flat folder per array, so that a single listing finds its partitions.
    common: dict[str, Any] = {"chunk_key_encoding": {"name": "default", "separator": "."}}
    checksum = zarr.codecs.Crc32cCodec()
    compression = manifest.get("compression", "zstd:1")
    for output in schema.outputs:
        chunks, shards = schema.chunks(output)
        group.create_array(
            output.name,
            shape=tuple(schema.lengths[dim] for dim in output.dims),
            dtype=output.dtype,
            chunks=chunks,
            shards=shards,
            compressors=[*compressors(compression, output.dtype), checksum],
            fill_value=output.missing if output.per_image or output.merge == "rank" else output.neutral,
            dimension_names=output.dims,
            attributes=_attributes(output),
            config=WRITTEN,
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
            config=WRITTEN,
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
            config=WRITTEN,
            **common,
        )
    with warnings.catch_warnings():
        # With consolidated metadata, xarray opens a store in one read; without, it warns.
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        zarr.consolidate_metadata(objects)
    contents = {key: data.to_bytes() for key, data in tree.items()}
    digests = {key: digest(key, data) for key, data in contents.items() if key != ROOT}
    root = sealed(json.loads(contents[ROOT]), digests)
    return {**contents, ROOT: as_json(root), COPY: as_json(manifest_in(root))}


def _attributes(output: Output) -> dict[str, Any]:
    attributes = {
        "units": output.units,
        "long_name": output.description,
        "merge": "" if output.per_image else output.merge,
    }
    return {name: value for name, value in attributes.items() if value}
