"""Shards that are encoded in threads equal those of Zarr, byte for byte."""

from __future__ import annotations

import google_crc32c
import hypothesis.strategies as st
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

import actstats
from actstats.data.preprocessing import Preprocessing
from actstats.store import Store
from actstats.store.codecs import bounded
from actstats.store.shards import encoded
from tests.conftest import SmallNet

SMALL = Preprocessing.imagenet(size=32, resize=36)

COMPRESSORS = {
    "zstd": [ZstdCodec(level=1), Crc32cCodec()],
    "zstd:19": [ZstdCodec(level=19), Crc32cCodec()],
    "blosc:lz4": [BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle"), Crc32cCodec()],
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


def test_a_store_of_blosc_has_the_values_of_one_of_zstd(photographs, tmp_path):
    stores = {}
    for compression in ("zstd", "blosc:lz4"):
        stores[compression] = tmp_path / f"{compression[:5]}.zarr"
        options = {"device": "cpu", "batch_size": 4, "partition_size": 5, "compression": compression}
        actstats.sweep(SmallNet(), photographs, stores[compression], preprocessing=SMALL, **options)
    zstd, blosc = (xr.open_zarr(store).drop_vars("provenance") for store in stores.values())
    xr.testing.assert_identical(zstd.drop_attrs(), blosc.drop_attrs())
    assert blosc.attrs["compression"] == "blosc:lz4"
    assert list(Store.open(stores["blosc:lz4"]).damage()) == []


def test_a_chunk_of_blosc_that_claims_another_size_is_not_decoded():
    objects = {}
    array = new_array(objects, (4, 64), 4, 64, "blosc:lz4", "float32", 0)
    array[...] = np.arange(256.0, dtype=np.float32).reshape(4, 64)
    with bounded():
        array = zarr.open_array(MemoryStore(objects))
    assert array[3, 63] == 255
    data = bytearray(objects["c.0.0"].to_bytes())
    for place, claim in ((4, 2**31 - 1), (12, 2**31 - 1)):  # of the content, and of the buffer
        changed = bytearray(data)
        changed[place : place + 4] = claim.to_bytes(4, "little")
        length = int.from_bytes(data[-12:-4], "little")
        changed[length - 4 : length] = google_crc32c.value(bytes(changed[: length - 4])).to_bytes(4, "little")
        objects["c.0.0"] = default_buffer_prototype().buffer.from_bytes(bytes(changed))
        with pytest.raises(ValueError, match="claims to have"):
            array[...]
