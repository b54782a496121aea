"""The metadata of a store's arrays: only those that this project writes are accepted.

Metadata choose the code that decodes objects, and how much memory that takes. So before anything is decoded, the
metadata that belong to the manifest are computed and must equal those of the store. Only what a custom metric decides
is taken from the store, within bounds: the dtype, further dimensions and their lengths, the merge rule and the texts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import numpy as np

from actstats.metrics import Output
from actstats.metrics.builtin import BUILTINS, PAIRS
from actstats.records import Identifier, InvalidError, Longest, Range, Text, parse, shortened
from actstats.store.codecs import compressors, zstd
from actstats.store.manifest import Manifest
from actstats.store.schema import unit_chunks
from actstats_kernels.bins import FREQUENCY_BINS, HISTOGRAM_BINS

COORDINATES: Final = {
    "image": ("image", "int64"),
    "partition": ("partition", "int64"),
    "path": ("image", "string"),
    "label": ("image", "int64"),
    "status": ("image", "int8"),
    "layer": ("unit", "string"),
    "channel": ("unit", "int32"),
    "height": ("unit", "int32"),
    "width": ("unit", "int32"),
    "frequency": ("frequency", "float64"),
    "bin_left": ("bin", "float64"),
    "bin_right": ("bin", "float64"),
    "completed": ("partition", "bool"),
    "provenance": ("partition", "string"),
}
"""Dimension and dtype of each coordinate."""
LATER: Final = frozenset({"image", "partition", "provenance"})
"""Coordinates that the first versions did not write."""
_FILLS: Final = {"status": -1, "completed": False}
_OUTPUTS: Final = {
    output.name: (builtin.outputs_for(wide_counts=False), builtin.outputs_for(wide_counts=True))
    for builtin in BUILTINS.values()
    for output in builtin.outputs
} | {name: ((output,), (output,)) for name, output in PAIRS.items()}
_MOST_VALUES: Final = 2**31
"""Most values of a unit in a partition or image, or of an image or partition in a further dimension."""
_LARGEST_CHUNK: Final = 1 << 30
"""Most bytes of a decoded chunk."""
_CRC32C: Final = {"name": "crc32c"}


@dataclass(frozen=True, kw_only=True)
class _Texts:
    """Attributes of a variable."""

    units: Text = ""
    long_name: Text = ""
    merge: Literal["sum", "min", "max", "rank"] | None = None


@dataclass(frozen=True, kw_only=True)
class _Flags:
    """Attributes of `status`."""

    flag_values: tuple[Annotated[int, Range(-128, 127)], ...]
    flag_meanings: Text


@dataclass(frozen=True, kw_only=True)
class _Empty:
    """Attributes of the other coordinates."""


@dataclass(frozen=True, kw_only=True)
class _Free:
    """What a metric decides about its variable."""

    data_type: Literal[
        "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
        "float16", "float32", "float64",
    ]  # fmt: skip
    shape: Annotated[tuple[Annotated[int, Range(0, 2**31)], ...], Longest(16)]
    dimension_names: Annotated[tuple[Identifier, ...], Longest(16)]


def check_arrays(arrays: Mapping[str, Any], manifest: Manifest) -> None:
    """Check the metadata of all arrays, by name, against the manifest.

    Raises:
        InvalidError: an array is missing or does not belong to the store, or its metadata are not those that a sweep
            with this manifest writes.
    """
    lengths = {
        "image": manifest.data.images,
        "unit": manifest.units,
        "partition": manifest.partitions,
        "frequency": FREQUENCY_BINS,
        "bin": HISTOGRAM_BINS,
        "rank": manifest.top_k,
    }
    known = {*manifest.outputs, *COORDINATES}
    if clash := set(manifest.outputs) & COORDINATES.keys():
        raise InvalidError(f"invalid outputs: {min(clash)!r} is a coordinate")
    if extra := arrays.keys() - known:
        raise InvalidError(f"array {shortened(min(extra))} does not belong to the store")
    for name in sorted(known):
        if name in arrays:
            metadata = arrays[name]
            if not isinstance(metadata, Mapping):
                raise InvalidError(f"the metadata of {name} are not an object")
            kind = _Flags if name == "status" else _Empty if name in COORDINATES else _Texts
            attributes = parse(kind, metadata.get("attributes", {}), f"{name}.attributes")
            expected = (
                _variable(name, metadata, attributes.merge, lengths, manifest)
                if isinstance(attributes, _Texts)
                else _coordinate(name, lengths, manifest)
            )
            _require_equal(name, metadata, expected)
        elif name not in LATER:
            raise InvalidError(f"array {name!r} is missing")


def _coordinate(name: str, lengths: Mapping[str, int], manifest: Manifest) -> dict[str, Any]:
    dim, dtype = COORDINATES[name]
    length = lengths[dim]
    chunk = {"status": manifest.partition_length, "provenance": 1, "completed": 1}.get(name, length)
    codecs: list[Any] = [_encoding(dtype)]
    if manifest.format == 1:
        codecs += [zstd(0)] if name != "completed" else []
    else:
        codecs += [zstd(1)] if name not in ("status", "completed", "provenance") else []
        codecs += [_CRC32C]
    fill = _FILLS.get(name, "" if dtype == "string" else 0)
    return _document((dim,), (length,), dtype, (chunk,), codecs, fill, manifest)


def _variable(
    name: str, metadata: Mapping[str, Any], rule: str | None, lengths: dict[str, int], manifest: Manifest
) -> dict[str, Any]:
    """Return the metadata of a variable, and add the further dimensions that it has to `lengths`."""
    free = parse(_Free, {key: metadata[key] for key in _Free.__dataclass_fields__ if key in metadata}, name)
    output = Output(name, free.dimension_names, free.data_type, merge=rule or "sum")
    if output.dtype == "bool" and rule in ("min", "max"):
        raise InvalidError(f"{name} cannot be merged by {rule}")
    if len(free.shape) != len(output.dims) or (rule is None) != output.per_image:
        raise InvalidError(f"the metadata of {name} contradict themselves")
    _require_declared(output)
    for dim, length in zip(output.dims[2:], free.shape[2:], strict=True):
        lengths.setdefault(dim, length)
    if len(set(output.dims)) < len(output.dims) or math.prod(free.shape[2:]) > _MOST_VALUES:
        raise InvalidError(f"the dimensions of {name} are out of bounds")
    shape = tuple(lengths[dim] for dim in output.dims)
    first = manifest.partition_length if output.per_image else 1
    units, shard = unit_chunks(shape[1], manifest.format)
    if math.prod((first, units, *shape[2:])) * np.dtype(output.dtype).itemsize > _LARGEST_CHUNK:
        raise InvalidError(f"a chunk of {name} has more than {_LARGEST_CHUNK >> 20} MiB")
    inner = [_encoding(output.dtype), *compressors(manifest.compression, output.dtype)]
    if manifest.format != 1:
        inner.append(_CRC32C)
    sharding = {
        "chunk_shape": [first, units, *shape[2:]],
        "codecs": inner,
        "index_codecs": [_encoding("uint64"), _CRC32C],
        "index_location": "end",
    }
    fill = output.missing if output.per_image or output.merge == "rank" else output.neutral
    codecs = [{"name": "sharding_indexed", "configuration": sharding}]
    return _document(output.dims, shape, output.dtype, (first, shard, *shape[2:]), codecs, fill, manifest)


def _require_declared(output: Output) -> None:
    """Raise `InvalidError` if a built-in variable has other dimensions, dtype or merge rule than declared."""
    for builtin in _OUTPUTS.get(output.name, ()):
        declared = next(other for other in builtin if other.name == output.name)
        if (declared.dims, declared.dtype) == (output.dims, output.dtype) and (
            output.per_image or declared.merge == output.merge
        ):
            return
    if output.name in _OUTPUTS or output.merge == "rank":
        raise InvalidError(f"{output.name} is not declared as the built-in variable of this name")


def _document(
    dims: tuple[str, ...],
    shape: tuple[int, ...],
    dtype: str,
    chunks: tuple[int, ...],
    codecs: list[Any],
    fill: Any,
    manifest: Manifest,
) -> dict[str, Any]:
    separator = "/" if manifest.format == 1 else "."
    if dtype == "bool":
        fill = bool(fill)
    elif dtype.startswith("float") and math.isfinite(fill):
        fill = float(fill)
    elif isinstance(fill, float):
        fill = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(fill)]
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunks)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": separator}},
        "fill_value": fill,
        "codecs": codecs,
        "dimension_names": list(dims),
    }


def _encoding(dtype: str) -> dict[str, Any]:
    if dtype == "string":
        return {"name": "vlen-utf8"}
    if np.dtype(dtype).itemsize == 1:
        return {"name": "bytes"}
    return {"name": "bytes", "configuration": {"endian": "little"}}


def _require_equal(name: str, metadata: Mapping[str, Any], expected: dict[str, Any]) -> None:
    # Versions of Zarr differ in what they leave out.
    metadata = {"storage_transformers": [], **_without_empty(metadata)}
    metadata.pop("attributes", None)
    if not same_json(metadata.pop("storage_transformers"), []):
        raise InvalidError(f"{name} has storage transformers")
    for key in sorted({*metadata, *expected}):
        if key not in metadata or key not in expected or not same_json(metadata[key], expected[key]):
            raise InvalidError(f"{shortened(key)} of {name} is not that of a store with this manifest")


def _without_empty(value: Any) -> Any:
    """Return JSON without empty configurations of codecs."""
    if isinstance(value, list):
        return [_without_empty(item) for item in value]
    if isinstance(value, Mapping):
        kept = {key: item for key, item in value.items() if key != "configuration" or item != {}}
        return {key: _without_empty(item) for key, item in kept.items()}
    return value


def same_json(actual: Any, expected: Any) -> bool:
    """Whether two JSON values are equal and of the same types: Python says that `true` is 1, and 1.0, too."""
    if isinstance(expected, list):
        return (
            isinstance(actual, list)
            and len(actual) == len(expected)
            and all(map(same_json, actual, expected))
        )
    if isinstance(expected, Mapping):
        return (
            isinstance(actual, Mapping)
            and actual.keys() == expected.keys()
            and all(same_json(actual[key], value) for key, value in expected.items())
        )
    kinds = (int, float) if isinstance(expected, float) else (type(expected),)
    return type(actual) in kinds and bool(actual == expected)
