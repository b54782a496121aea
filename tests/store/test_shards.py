"""Shards that are encoded in threads equal those of Zarr, byte for byte."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore

from actstats.store.shards import encoded

COMPRESSORS = {
    "zstd": [ZstdCodec(level=1), Crc32cCodec()],
    "zstd:19": [ZstdCodec(level=19), Crc32cCodec()],
    "none": [Crc32cCodec()],
    "without checksums": [ZstdCodec(level=0)],
}


def new_array(objects, shape, first, units, compression, dtype, fill):
    shard = (first, -(-shape[1] // units) * units, *shape[2:])
    return zarr.create_array(
        MemoryStore(objects), shape=shape, chunks=(first, units, *shape[2:]), shards=shard, dtype=dtype,
        compressors=COMPRESSORS[compression], fill_value=fill, config={"write_empty_chunks": True},
        chunk_key_encoding={"name": "default", "separator": "."},
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(list(COMPRESSORS)),
    st.sampled_from(["bool", "int8", "uint16", "int64", "float16", "float32", "float64"]),
    st.tuples(st.integers(1, 9), st.integers(1, 70)),
    st.lists(st.integers(1, 4), max_size=2),
    st.integers(1, 4),
    st.integers(1, 40),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_shards_equal_those_of_zarr(compression, dtype, shape, rest, first, units, fortran, seed):
    shape = (*shape, *rest)
    fill = np.nan if dtype.startswith("float") else 1
    objects = {}
    array = new_array(objects, shape, first, min(units, shape[1]), compression, dtype, fill)
    values = np.random.default_rng(seed).normal(scale=3, size=shape).astype(dtype)
    array[...] = values
    parts = [values[start : start + first] for start in range(0, shape[0], first)]
    if fortran:
        parts = list(map(np.asfortranarray, parts))
    found = list(encoded((f"c.{p}", array, part) for p, part in enumerate(parts)))
    expected = {name: data.to_bytes() for name, data in objects.items() if name != "zarr.json"}
    assert {name + ".0" * (len(shape) - 1): data for name, data in found} == expected


def test_values_without_the_axis_of_partitions_and_of_another_dtype():
    objects = {}
    array = new_array(objects, (3, 5), 1, 2, "zstd", "int64", 0)
    values = np.arange(5, dtype=np.int32)
    array[2] = values
    assert dict(encoded([("c.2.0", array, values)])) == {"c.2.0": objects["c.2.0"].to_bytes()}


def test_an_error_in_a_thread_is_raised_by_the_caller(monkeypatch):
    array = new_array({}, (3, 5), 1, 2, "zstd", "int64", 0)

    def fails(*_):
        raise MemoryError("no memory today")

    monkeypatch.setattr(np, "ascontiguousarray", fails)
    with pytest.raises(MemoryError, match="no memory today"):
        list(encoded([("c.0.0", array, np.arange(5))] * 3))
