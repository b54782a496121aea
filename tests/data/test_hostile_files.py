"""Parquet files, tars and metadata that ask for far more than they hold: refused in one line, in little memory."""

from __future__ import annotations

import json
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actstats.data import open_source
from actstats.data.parquet_pages import page_sizes
from actstats.errors import ActstatsError
from actstats.models import load_model
from tests.hostile.reading import _forget_peak, _status

MEMORY = 250_000
"""kB that opening a file of a few kilobytes may take."""


def write(path: Path, images: Any, labels: Any = None, **options: Any) -> Path:
    columns = {"image": images} | ({} if labels is None else {"label": labels})
    pq.write_table(pa.table(columns), path, **{"compression": "zstd", **options})
    return path


def taken(path: Path, rows: int = 0) -> tuple[str, int]:
    """Open a file and read its first rows; return the error's line, and the kB that it took."""
    _forget_peak()
    before, said = _status("VmRSS"), ""
    try:
        source = open_source(path)
        for row in range(rows):
            assert source.read(row) is not None
    except ActstatsError as error:
        said = str(error)
    return said, _status("VmHWM") - before


def test_one_value_in_many_rows_is_in_memory_once(tmp_path):
    """A few kilobytes that pyarrow expands to 2 GB where it reads plain bytes."""
    image = pa.DictionaryArray.from_arrays(
        np.zeros(20_000, np.int32), pa.array([bytes(100_000)], pa.binary())
    )
    path = write(tmp_path / "x.parquet", image, store_schema=False)
    assert path.stat().st_size < 20_000
    said, kilobytes = taken(path, rows=3)
    assert said == ""
    assert kilobytes < MEMORY


@pytest.mark.parametrize("nested", [False, True])
def test_pages_that_decode_to_gigabytes_are_refused(tmp_path, nested):
    image: Any = pa.array([bytes(1 << 20) + bytes([n]) for n in range(256)], pa.binary())
    if nested:
        image = pa.StructArray.from_arrays([image], ["bytes"])
    path = write(tmp_path / "x.parquet", image, use_dictionary=False)
    assert path.stat().st_size < 200_000
    said, kilobytes = taken(path, rows=1)
    assert "would take 268," in said
    assert kilobytes < MEMORY


def test_labels_may_be_numbers_as_text(tmp_path):
    images = pa.array([b"a", b"b", b"c", b"d"], pa.binary())
    path = write(tmp_path / "x.parquet", images, pa.array(["3", None, "3", "10"]))
    assert open_source(path).labels.tolist() == [3, -1, 3, 10]


def test_rows_without_content_are_refused(tmp_path):
    rows = 3_000_000
    path = write(tmp_path / "x.parquet", pa.nulls(rows, pa.binary()), np.zeros(rows, np.int64))
    said, kilobytes = taken(path)
    assert "it claims 3,000,000 rows in" in said
    assert kilobytes < MEMORY


def test_a_footer_that_contradicts_the_pages_is_refused(tmp_path):
    path = write(tmp_path / "x.parquet", pa.array([b"a", b"b", b"c"], pa.binary()), compression="none")
    data = path.read_bytes()
    for at in range(4, len(data) - 8):
        path.write_bytes(data[:at] + b"\xff" + data[at + 1 :])
        said, _ = taken(path, rows=1)
        assert "\n" not in said


def test_images_of_a_file_are_read_as_they_were_written(tmp_path):
    rng = np.random.default_rng(0)
    images = [rng.bytes(int(size)) for size in rng.integers(1, 3000, 40)]
    images[7] = images[3]
    struct_of = pa.StructArray.from_arrays(
        [pa.array(images, pa.binary()), pa.array([str(n) for n in range(40)])], ["bytes", "path"]
    )
    for number, (column, options) in enumerate(
        [
            (pa.array(images, pa.binary()), {}),
            (pa.array(images, pa.large_binary()), {"use_dictionary": False}),
            (struct_of, {"compression": "snappy", "data_page_version": "2.0"}),
            (struct_of, {"compression": "gzip", "dictionary_pagesize_limit": 5000}),
        ]
    ):
        path = write(tmp_path / f"{number}.parquet", column, np.arange(40) % 3, row_group_size=11, **options)
        source = open_source(path)
        assert [source.read(index) for index in range(40)] == images
        assert source.labels.tolist() == [index % 3 for index in range(40)]


def test_the_headers_of_pages_are_read_to_their_end():
    with pytest.raises(ValueError, match="damaged"):
        list(page_sizes(b"\x15"))
    for nested in (b"\x1c", b"\x19"):  # structs, and lists
        with pytest.raises(ValueError, match="too deeply"):
            list(page_sizes(nested * 5000))
    assert list(page_sizes(b"\x15\x00\x15\xc8\x01\x15\x04\x00ab")) == [100]


def test_deep_metadata_is_refused_or_ignored(tmp_path):
    deep = b'{"info":' + b"[" * 100_000
    table = pa.table({"image": pa.array([b"x"], pa.binary()), "label": [0]})
    pq.write_table(table.replace_schema_metadata({b"huggingface": deep}), tmp_path / "x.parquet")
    assert open_source(tmp_path / "x.parquet").classes == []
    weights = tmp_path / "w.safetensors"
    for header in (
        json.dumps({
            "__metadata__": {"preprocessing": "[" * 100_000},
            "features.0.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        }),
        "[" * 100_000,
        '{"a":' * 100_000,
    ):  # fmt: skip
        weights.write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(4))
        with pytest.raises(ActstatsError) as error:
            load_model("squeezenet1_1", weights)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [b"L", b"K", b"x", b"g"])
def test_a_tar_of_chained_headers_is_refused_in_one_line(tmp_path, kind):
    entry = tarfile.TarInfo("././@LongLink")
    entry.type, content = kind, b"aaaa\0" if kind in b"LK" else b"10 a=bbbb\n"
    entry.size = len(content)
    block = entry.tobuf(tarfile.GNU_FORMAT) + content.ljust(512, b"\0")
    (tmp_path / "x.tar").write_bytes(block * 20_000 + bytes(1024))
    with pytest.raises(ActstatsError) as error:
        open_source(tmp_path / "x.tar")
    assert "\n" not in str(error.value)
    assert "recursion" not in str(error.value)
