"""Stores whose manifest or metadata somebody changed, with right checksums: refused in one line, or harmless.

    python benchmarks/faults/manifests.py --count 1000

makes a thousand changes at random. Here are a few of each kind, and stores that claim far more than they hold.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import zarr
from numcodecs.zstd import Zstd

import actstats
from actstats.errors import ActstatsError
from actstats.records import load
from actstats.store import Store
from actstats.store.codecs import content_size
from actstats.store.description import describe
from actstats.store.digests import chunks_in, digest, entry_of, manifest_in
from actstats.store.manifest import Manifest
from actstats.store.sweep import open_sweep
from tests.hostile import mutations
from tests.hostile.mutations import Mutation
from tests.hostile.reading import _forget_peak, _status

MEMORY = 150_000
"""kB that opening a store of a few kilobytes may take."""


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mutations.made(tmp_path_factory.mktemp("good"), images=8)


def root_of(store: Path) -> Any:
    return json.loads((store / "zarr.json").read_text())


def test_changes_of_every_kind_are_refused_or_harmless(good, tmp_path):
    chosen = list(mutations.drawn(root_of(good), 40, seed=5))
    assert {mutation.kind for mutation in chosen} == set(mutations.KINDS)
    readers = ["info", "top", "open_dataset"]
    found = list(mutations.outcomes(good, tmp_path, chosen, readers))
    assert [f"{each.mutation} {each.reader}: {each.fault} {each.said}" for each in found if each.fault] == []
    assert {each.result for each in found} == {"refused", "same"}


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("attributes", "data", "images"), "12", "invalid data.images: '12'"),
        (("attributes", "partition_size"), 0, "invalid partition_size: 0"),
        (("attributes", "partition_size"), 3, "not that of a store with this manifest"),
        (("attributes", "layers", 0, "units"), True, "invalid layers[0].units: True"),
        (("attributes", "layers", 0, "height"), 7, "coordinate 'height' contradicts the manifest"),
        (("attributes", "layers", 0, "name"), "other", "coordinate 'layer' contradicts the manifest"),
        (("attributes", "arch"), "\ud800", "invalid arch: '\\ud800'"),
        (("attributes", "outputs"), ["mean", "mean"], "outputs has an entry twice"),
        (("attributes", "preprocessing"), {"resize": 8}, "preprocessing.crop is missing"),
        (("attributes", "weights"), {"source": "none", "sha256": "0" * 64}, "weights.seed is missing"),
        pytest.param(
            ("attributes", "preprocessing", "mean", 0),
            10**400,
            "invalid preprocessing.mean[0]: 1000",
            id="beyond all floats",
        ),
        (("attributes", "new"), 1, "unknown entry new"),
        (("consolidated_metadata",), None, "zarr.json has other entries than those of a store"),
        (("consolidated_metadata", "metadata", "mean", "attributes", "scale_factor"), 2, "unknown entry"),
        (("consolidated_metadata", "metadata", "histogram", "attributes", "merge"), "max", "not declared"),
        (("consolidated_metadata", "metadata", "mean", "fill_value"), 0.0, "'fill_value' of mean"),
        (("consolidated_metadata", "metadata", "mean", "data_type"), "float64", "not declared"),
        (("consolidated_metadata", "metadata", "label", "data_type"), "int32", "'data_type' of label"),
        (("consolidated_metadata", "metadata", "label", "codecs"), [], "'codecs' of label"),
        (("consolidated_metadata", "metadata", "status", "node_type"), "group", "'node_type' of status"),
        (("consolidated_metadata", "metadata", "status", "shape", 0), 8.0, "'shape' of status"),
        (("consolidated_metadata", "metadata", "completed", "fill_value"), 0, "'fill_value' of completed"),
        (("consolidated_metadata", "must_understand"), 0, "the consolidated metadata in zarr.json"),
        (("zarr_format",), 3.0, "zarr.json has other entries"),
        (("consolidated_metadata", "metadata", "../../x"), {}, "does not belong to the store"),
    ],
)
def test_a_change_is_named(good, tmp_path, path, value, words):
    store = tmp_path / "s.zarr"
    shutil.copytree(good, store)
    mutations.write(store, mutations.mutated(root_of(good), Mutation("", "another value", path, value)))
    with pytest.raises(ActstatsError) as error:
        actstats.open_dataset(store)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert str(error.value).endswith("remove the store and sweep again")


def test_a_manifest_of_as_many_variables_as_allowed_is_accepted(good):
    manifest = root_of(good)["attributes"]
    manifest["outputs"] = [f"v{index}" for index in range(10_000)]
    manifest["digests"] = {f"{name}/zarr.json": "0" * 8 for name in manifest["outputs"]}
    assert len(Manifest.from_json(manifest).digests or {}) == 10_000
    manifest["digests"] |= {f"w{index}/zarr.json": "0" * 8 for index in range(10_001)}
    with pytest.raises(ActstatsError, match="invalid digests: it has 20,001 entries"):
        Manifest.from_json(manifest)


def test_a_newer_version_is_named(good):
    entries = root_of(good)["attributes"]
    entries = {**entries, "of_the_future": 1, "versions": {**entries["versions"], "actstats": "99.1"}}
    with pytest.raises(ActstatsError, match=r"written by actstats 99\.1.*unknown entry of_the_future"):
        Manifest.from_json(entries)
    with pytest.raises(ActstatsError, match=r"^unknown entry of_the_future$"):
        Manifest.from_json({**entries, "versions": {**entries["versions"], "actstats": "0.1.0"}})


def test_metadata_of_another_format_run_no_code(good, tmp_path):
    """A Zarr v2 array with a filter that unpickles, which numcodecs up to 0.16.5 would apply."""
    store, ran = tmp_path / "s.zarr", tmp_path / "ran"
    shutil.copytree(good, store)
    root = root_of(good)
    root["consolidated_metadata"]["metadata"]["path"] = {
        "zarr_format": 2, "shape": [8], "chunks": [8], "dtype": "|O", "fill_value": "", "order": "C",
        "filters": [{"id": "vlen-utf8"}, {"id": "pickle"}], "compressor": None, "dimension_separator": ".",
        "attributes": {},
    }  # fmt: skip
    (store / "path" / "0").write_bytes(pickle.dumps(_Ran(str(ran))))
    mutations.write(store, root)
    with pytest.raises(ActstatsError, match="of path is not that of a store"):
        Store.open(store)
    assert not ran.exists()


class _Ran:
    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> Any:
        return os.mkdir, (self.name,)


def claiming(good: Path, store: Path, changes: dict[str, Any], lengths: dict[str, int]) -> None:
    """Write a copy of `good` whose manifest has `changes`, and whose arrays have the `lengths` of dimensions."""
    shutil.copytree(good, store)
    root = root_of(good)
    attributes, arrays = root["attributes"], root["consolidated_metadata"]["metadata"]
    old = {
        dim: length
        for each in arrays.values()
        for dim, length in zip(each["dimension_names"], each["shape"], strict=True)
    }
    for name, value in changes.items():
        target, last = attributes, name.split(".")
        for key in last[:-1]:
            target = target[int(key) if key.isdecimal() else key]
        target[last[-1]] = value
    size = min(attributes["partition_size"], attributes["data"]["images"])
    for name, each in arrays.items():
        dims = each["dimension_names"]
        each["shape"] = [lengths.get(dim, length) for dim, length in zip(dims, each["shape"], strict=True)]
        grid = each["chunk_grid"]["configuration"]
        first = (
            1 if name in ("completed", "provenance") or name in attributes["outputs"] else each["shape"][0]
        )
        first = size if name == "status" or (dims[0] == "image" and len(dims) > 1) else first
        for chunks in (grid["chunk_shape"], each["codecs"][0].get("configuration", {}).get("chunk_shape")):
            if chunks is not None:
                chunks[0] = first
                chunks[1:] = [
                    lengths.get(d, n) if n == old[d] else n for d, n in zip(dims[1:], chunks[1:], strict=True)
                ]
                if "unit" in lengths and len(chunks) > 1:
                    chunks[1] = 64 if chunks is not grid["chunk_shape"] else -(-lengths["unit"] // 64) * 64
    if "image" in lengths and lengths["image"] > 100:
        (store / "path" / "c.0").write_bytes(of_strings(lengths["image"]))
    mutations.write(store, root)


def with_checksum(data: bytes) -> bytes:
    return data + google_crc32c.value(data).to_bytes(4, "little")


def of_strings(count: int, text: bytes = b"") -> bytes:
    each = len(text).to_bytes(4, "little") + text
    return with_checksum(Zstd(level=1).encode(count.to_bytes(4, "little") + each * count))


IMAGES = 30_000_000


@pytest.mark.parametrize(
    ("changes", "lengths", "words"),
    [
        ({"data.images": IMAGES}, {"image": IMAGES, "partition": IMAGES // 4}, "30,000,000 images"),
        ({"data.images": IMAGES, "partition_size": IMAGES}, {"image": IMAGES, "partition": 1}, "more than 1024 MiB"),
        ({"layers.0.units": 10**8}, {"unit": 10**8 + 16}, "invalid layers[0].units"),
        ({"layers.0.units": 2**21}, {"unit": 2**21 + 16}, "2,097,168 units, more than"),
        ({"top_k": 2**31 - 1}, {"rank": 2**31 - 1}, "more than 1024 MiB"),
    ],
)  # fmt: skip
def test_claims_are_bounded_by_what_is_stored(good, tmp_path, changes, lengths, words):
    store = tmp_path / "s.zarr"
    claiming(good, store, changes, lengths)
    for flag in (store / "completed").glob("c.*"):
        flag.unlink()
    _forget_peak()
    before = _status("VmRSS")
    with pytest.raises(ActstatsError) as error:
        Store.open(store)
    assert words in str(error.value)
    assert _status("VmHWM") - before < MEMORY


def test_claims_that_are_stored_are_accepted(good, tmp_path):
    """The helper above makes consistent stores, of which only the size is refused."""
    claiming(good, tmp_path / "s.zarr", {"data.images": 4, "partition_size": 4}, {"image": 4, "partition": 1})
    assert Store.open(tmp_path / "s.zarr").partitions == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("path/c.0", of_strings(8, bytes(200_000_000))),
        ("path/c.0", with_checksum(Zstd(level=1).encode((2**31 - 1).to_bytes(4, "little")))),
        ("label/c.0", with_checksum(Zstd(level=1).encode(bytes(1 << 30)))),
        ("provenance/c.0", with_checksum((2**31 - 1).to_bytes(4, "little"))),
    ],
)
def test_an_object_that_decodes_to_gigabytes_is_damage(good, tmp_path, name, content):
    store = tmp_path / "s.zarr"
    shutil.copytree(good, store)
    (store / name).write_bytes(content)
    mutations.write(store, root_of(good))
    _forget_peak()
    before = _status("VmRSS")
    with pytest.raises(ActstatsError, match=r"claims to have|damaged"):
        Store.open(store).read(name.partition("/")[0], ...)
    assert _status("VmHWM") - before < MEMORY


def with_record(good: Path, store: Path, status: bytes | None = None, **changes: Any) -> None:
    """Copy a store with another record of its first partition, and another status of its images."""
    shutil.copytree(good, store)
    record = {**json.loads((store / "provenance/c.0").read_bytes()[8:-4]), **changes}
    if status is not None:
        data = with_checksum(status)
        record["digests"]["status"] = [digest("status/c.0", data)]
        (store / "status/c.0").write_bytes(data)
    text = json.dumps(record).encode()
    head = (1).to_bytes(4, "little") + len(text).to_bytes(4, "little")
    (store / "provenance/c.0").write_bytes(with_checksum(head + text))


@pytest.mark.parametrize(
    "changes",
    [
        {"device": 5},
        {"versions": ["torch"]},
        {"versions": {"torch": 2}},
        {"compiled": "no"},
        {"attack": 3},
        {"attack": {"images": "4", "distance": 1.0, "unmoved": 0}},
    ],
)
def test_provenance_of_another_type_is_not_reported(good, tmp_path, changes):
    with_record(good, tmp_path / "s.zarr", **changes)
    description = describe(tmp_path / "s.zarr")
    assert sum(description.computed_on.values()) == 2
    assert description.attack is None


@pytest.mark.parametrize("part", [None, 0, 1])
def test_digests_of_another_form_are_damage(good, tmp_path, part):
    """No digest, that of the index of a shard alone, or more than two."""
    record = json.loads((good / "provenance/c.0").read_bytes()[8:-4])
    index, chunks = record["digests"]["mean"]
    entry = [] if part is None else [index] if part == 0 else [index, chunks, chunks]
    with_record(good, tmp_path / "s.zarr", digests={**record["digests"], "mean": entry})
    store = Store.open(tmp_path / "s.zarr")
    assert [partition for _, partition, _ in store.damage()] == [0]
    with pytest.raises(ActstatsError, match=r"(mean|provenance) of partition 0"):
        store.read("mean", ...)


def test_a_top_image_that_does_not_exist_is_refused(good, tmp_path):
    store, key = tmp_path / "s.zarr", "top_image/c.0.0.0"
    shutil.copytree(good, tmp_path / "changed")
    zarr.open_group(tmp_path / "changed", mode="r+")["top_image"][0] = 10**6
    data = (tmp_path / "changed" / key).read_bytes()
    digests = json.loads((good / "provenance/c.0").read_bytes()[8:-4])["digests"]
    entry = entry_of(key, data, chunks_in(digests["top_image"]))
    with_record(good, store, digests={**digests, "top_image": entry})
    (store / key).write_bytes(data)
    layer = root_of(good)["attributes"]["layers"][0]["name"]
    with pytest.raises(ActstatsError, match=r"image 1000000 of .* does not exist"):
        open_sweep(store).top(f"{layer}/0")


def test_a_status_that_does_not_exist_is_refused(good, tmp_path):
    size = len((good / "status/c.0").read_bytes()) - 4
    with_record(good, tmp_path / "s.zarr", status=bytes([77] * size))
    with pytest.raises(ActstatsError, match="the status of an image is none of"):
        describe(tmp_path / "s.zarr")


@pytest.mark.parametrize("level", [-5, 1, 22])
@pytest.mark.parametrize("size", [0, 1, 255, 256, 70_000, 2**20])
def test_the_size_of_a_frame_is_read_from_its_header(size, level):
    data = np.random.default_rng(0).bytes(size)
    assert content_size(Zstd(level=level).encode(data)) == size


def test_json_that_is_nested_deeply_is_refused_as_any_other_damage():
    for text in (
        "[" * 100_000,
        "[" * 100_000 + "]" * 100_000,
        '{"a":' * 100_000,
        '{"a": 1, "a": 2}',
        "1" * 10_000,
    ):
        with pytest.raises(ValueError, match=r".+"):
            load(text)


@pytest.mark.linux
@pytest.mark.parametrize(
    "name", ["zarr.json", "path/c.0", "label/c.0", "status/c.0", "mean/c.0.0", "provenance/c.1"]
)
def test_an_object_that_is_a_link_to_a_device_is_not_read(good, tmp_path, name):
    store = tmp_path / "s.zarr"
    shutil.copytree(good, store)
    (store / name).unlink()
    (store / name).symlink_to("/dev/zero")
    with pytest.raises(ActstatsError) as error:
        actstats.open_dataset(store).load()
    assert "\n" not in str(error.value)
    (store / name).unlink()
    os.mkfifo(store / name)
    with pytest.raises(ActstatsError):
        actstats.open_dataset(store).load()


@pytest.mark.parametrize(
    ("manifest", "store", "words"),
    [
        (7, "s.zarr", "invalid manifest: 7"),
        ({}, "s.zarr", "manifest.actstats is missing"),
        (None, "s.zarr", "unknown entry manifest.x"),
        (None, 3, "invalid store: 3"),
    ],
)
def test_a_plan_is_checked_as_a_store_is(good, manifest, store, words):
    known = manifest_in(root_of(good)) | ({"x": 1} if store == "s.zarr" else {})
    text = json.dumps(
        {"actstats_plan": 1, "manifest": known if manifest is None else manifest, "store": store}
    )
    with pytest.raises(ActstatsError, match=f"^not a valid plan in JSON: {words}"):
        actstats.SweepPlan.from_json(text)
