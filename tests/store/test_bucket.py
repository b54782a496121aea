"""Stores in a bucket: equal to local ones whatever the network does, made by one of many."""

from __future__ import annotations

import subprocess
import sys
import time
import zlib
from pathlib import Path

import obstore
import pytest
import xarray as xr
from zarr.storage import ObjectStore

import actstats
from actstats import remote, support
from actstats.data.preprocessing import Preprocessing
from actstats.errors import ActstatsError, ManifestMismatchError
from actstats.store import Store, bucket
from tests.conftest import SmallNet, files_of
from tests.s3 import BUCKET

URL = f"s3://{BUCKET}/deep/s.zarr"
SMALL = Preprocessing.imagenet(size=32, resize=36)


def sweep(images: Path, store: str | Path, **options):
    settings = {
        "batch_size": 4,
        "partition_size": 5,
        "metrics": ["mean", "histogram"],
        "device": "cpu",
        "workers": 0,
    }
    return actstats.sweep(SmallNet(), images, store, preprocessing=SMALL, **{**settings, **options})


@pytest.fixture(scope="module")
def whole(photographs, tmp_path_factory) -> Path:
    """The same sweep into a folder."""
    path = tmp_path_factory.mktemp("whole") / "s.zarr"
    sweep(photographs, path)
    return path


def opened(url: str = URL) -> obstore.store.ObjectStore:
    return obstore.store.from_url(url, client_options={"allow_http": True})


def objects_of(url: str = URL) -> dict[str, int]:
    """A checksum of each object, as `files_of` has them."""
    store = opened(url)
    found = {meta["path"] for meta in obstore.list(store).collect()} - {"zarr.json", "manifest.json"}
    return {
        key: zlib.crc32(bytes(obstore.get(store, key).bytes()))
        for key in found
        if "provenance" not in key or key.endswith("zarr.json")
    }


def expected(whole: Path) -> dict[str, int]:
    provenance = "provenance/zarr.json"
    return {**files_of(whole), provenance: zlib.crc32((whole / provenance).read_bytes())}


def test_a_store_in_a_bucket_holds_what_one_in_a_folder_does(photographs, whole, s3):
    sweep(photographs, URL, part=(1, 2))
    assert Store.open(URL).completed.tolist() == [False, True, False]
    summary = sweep(photographs, URL)
    assert (str(summary.store), summary.partitions, summary.complete) == (URL, 2, True)
    assert objects_of() == expected(whole)
    theirs = xr.open_zarr(ObjectStore(opened(), read_only=True)).load()
    xr.testing.assert_equal(
        theirs.drop_vars("provenance"), xr.open_zarr(whole).drop_vars("provenance").load()
    )
    before = len(s3.seen)
    assert sweep(photographs, URL).partitions == 0
    assert not [method for method, _ in s3.seen[before:] if method not in ("GET", "HEAD")]


def test_a_network_that_refuses_one_request_in_ten_changes_nothing(photographs, whole, s3):
    s3.refused_every = 10
    assert sweep(photographs, URL).complete
    assert s3.refused > 5
    assert objects_of() == expected(whole)


def test_a_sweep_goes_on_after_a_bucket_was_gone_for_five_seconds(photographs, whole, s3):
    def cut(progress):
        if progress.done == 5:
            s3.down_until = time.monotonic() + 5

    assert sweep(photographs, URL, on_progress=cut).complete
    assert s3.dropped
    assert objects_of() == expected(whole)


def test_a_bucket_that_stays_away_ends_a_sweep_in_one_line_and_keeps_what_was_complete(
    photographs, whole, s3, monkeypatch
):
    monkeypatch.setattr(remote, "PATIENCE", 0.5)

    def cut(progress):
        if progress.done == 10:
            s3.down_until = float("inf")

    with pytest.raises(ActstatsError) as error:
        sweep(photographs, URL, on_progress=cut)
    assert str(error.value).startswith(f"s3://{BUCKET} does not respond (")
    assert str(error.value).endswith("; completed partitions are kept: rerun the same command to resume")
    assert "\n" not in str(error.value)
    s3.down_until = 0
    done = int(Store.open(URL).completed.sum())
    assert done >= 1
    assert sweep(photographs, URL).partitions == 3 - done
    assert objects_of() == expected(whole)


CREATE = """
import sys
from types import SimpleNamespace
import numpy as np
from actstats.metrics import resolve_metrics
from actstats.store import Schema, Store, manifest
from tests.analysis.made import PREPROCESSING

layers = (SimpleNamespace(name="a", units=2, height=4, width=4),)
schema = Schema(tuple(resolve_metrics(["mean", "histogram"]).outputs()), layers, 8, 4, 3, {})
layer = {"name": "a", "module": "a", "call": 0, "units": 2, "height": 4, "width": 4}
record = manifest.build(
    arch="made", weights={"source": "module", "sha256": "0"}, preprocessing=PREPROCESSING, layers=[layer],
    selectors=["all"], metrics=["mean", "histogram"], outputs=[output.name for output in schema.outputs], top_k=3,
    batch_size=4, partition_size=4, device="cpu", amp="off", bitround=None, compression="zstd:1",
    data={"spec": "made", "kind": "made", "images": 8, "fingerprint": "0", "classes": []},
) | {"created": sys.argv[2]}
print("ready", flush=True)
sys.stdin.readline()
store = Store.open_or_create(sys.argv[1], record, schema, list("abcdefgh"), np.zeros(8, np.int64))
assert not list(store.damage())
"""


def test_of_eight_clients_that_start_together_one_makes_the_store(s3):
    s3.held = "/s.zarr/zarr.json"  # so that on a busy machine, too, the first has not finished before another begins
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CREATE, URL, str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(8)
    ]
    assert {process.stdout.readline() for process in processes} == {"ready\n"}
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    ended = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0] * 8, ended
    store = Store.open(URL)
    assert list(store.damage()) == []
    assert store.manifest.created in map(str, range(8))
    written = [path for method, path in s3.seen if method == "PUT" and path.endswith("/s.zarr/zarr.json")]
    assert len(written) > 1, "they did not start together"


def test_a_store_whose_making_was_interrupted_is_finished_by_its_sweep_alone(
    photographs, whole, s3, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(bucket.Bucket, "complete", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            sweep(photographs, URL)
    with pytest.raises(
        ActstatsError, match="is still being created, or its creation was interrupted; rerun its sweep"
    ):
        Store.open(URL)
    with pytest.raises(ManifestMismatchError):
        sweep(photographs, URL, batch_size=3)
    sweep(photographs, URL)
    assert objects_of() == expected(whole)


def test_overwriting_removes_the_other_sweep_alone_and_stops_who_still_writes(photographs, whole, s3):
    obstore.put(opened(), "notes.txt", b"not of the store")
    with pytest.raises(ActstatsError, match="is not a store of actstats"):
        sweep(photographs, URL)
    obstore.delete(opened(), "notes.txt")

    def overwrite(progress):
        if progress.done == 8:
            obstore.put(opened(), "notes.txt", b"not of the store")
            assert sweep(photographs, URL, overwrite=True).complete

    with pytest.raises(ActstatsError, match="was moved, removed or replaced while its sweep was running"):
        sweep(photographs, URL, batch_size=3, on_progress=overwrite)
    found = objects_of()
    assert found.pop("notes.txt") is not None
    assert found == expected(whole)


def test_a_removal_that_was_interrupted_is_finished(photographs, whole, s3, monkeypatch):
    sweep(photographs, URL, batch_size=3)
    with monkeypatch.context() as patch:
        patch.setattr(bucket.Bucket, "remove", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            sweep(photographs, URL, overwrite=True)
    with pytest.raises(ActstatsError, match=f"no store at {URL}"):
        Store.open(URL)
    monkeypatch.setattr(bucket, "_ABANDONED", 0.1)
    sweep(photographs, URL)
    assert objects_of() == expected(whole)


def test_damage_in_a_bucket_is_noticed_and_repaired(photographs, whole, s3):
    sweep(photographs, URL)
    obstore.delete(opened(), "mean/c.1.0")
    data = bytearray(bytes(obstore.get(opened(), "histogram/c.2.0.0").bytes()))
    data[len(data) // 2] ^= 1
    obstore.put(opened(), "histogram/c.2.0.0", bytes(data))
    assert {(name, partition) for name, partition, _ in Store.open(URL).damage()} == {
        ("mean", 1),
        ("histogram", 2),
    }
    with pytest.raises(ActstatsError, match="mean of partition 1 is missing or empty"):
        actstats.open_dataset(URL)
    sweep(photographs, URL, repair=True)
    assert objects_of() == expected(whole)


def test_objects_are_removed_where_others_do_not_exist(tmp_path):
    place = bucket.Bucket(support.URL("memory://b/s.zarr"))
    # Unlike S3, a file system reports an object that does not exist, as Google and Azure do.
    place._store = obstore.store.LocalStore(tmp_path)
    for key in "abc":
        (tmp_path / key).write_bytes(b"x")
    place.remove(["a", "lost", "b", "c"])
    assert list(tmp_path.iterdir()) == []


def test_an_analysis_on_a_cluster_opens_the_bucket_by_its_url(photographs, s3):
    import pickle

    sweep(photographs, URL)
    dataset = actstats.open_dataset(URL)
    kept = pickle.dumps(dataset)
    assert b"secret" not in kept
    assert float(pickle.loads(kept)["mean"].sum()) == float(dataset["mean"].sum())


def test_a_store_in_memory_is_that_of_this_process(photographs, whole):
    sweep(photographs, "memory://tests/s.zarr")
    xr.testing.assert_equal(
        actstats.open_dataset("memory://tests/s.zarr").drop_vars("provenance").load(),
        actstats.open_dataset(whole).drop_vars("provenance").load(),
    )
