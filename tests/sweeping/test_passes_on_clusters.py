"""Several sweeps in one pass on a dask cluster: the bytes of one process, and only what a store lacks is computed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time

import pytest

import actstats
from actstats import Metric, Output
from actstats.store import Store
from tests.cluster import SWEEP, command, live_cluster, make_images, start_command
from tests.conftest import files_of
from tests.s3 import BUCKET

distributed = pytest.importorskip("distributed")

NAMES = ("clean", "noisy", "scrambled", "other")
BROKEN = 2
"""Index of the broken image, in the second of six partitions."""


class Failing(Metric):
    outputs = (Output("failing"),)

    def update(self, activation, state):
        raise ValueError("no number today")


def pass_into(folder, more=""):
    """The command that sweeps clean and changed images, and those of another sweep, in one pass."""
    changed = f"--changed noise:0.1={folder}/noisy.zarr --changed scramble:4={folder}/scrambled.zarr"
    also = f"--also '--seed 1 --top-k 2 --out {folder}/other.zarr'"
    return f"{SWEEP} --data photographs --out {folder}/clean.zarr {changed} {also} {more}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve photographs, one broken, and the four stores of one process on one thread."""
    folder = tmp_path_factory.mktemp("passes")
    make_images(folder / "photographs", 12)
    image = folder / "photographs" / "cat" / "004.png"
    (folder / "readable.png").write_bytes(image.read_bytes())
    image.write_bytes(bytes(image.stat().st_size))
    assert command(pass_into("whole"), folder) == 0
    return folder


def metadata_of(store):
    document = json.loads((store / "zarr.json").read_bytes())
    attributes = document["attributes"]
    return {
        name: value for name, value in attributes.items() if name not in ("created", "machine", "checksum")
    }


def require_same(folder, name):
    """The four stores in a folder are those of one process, byte for byte."""
    for store in NAMES:
        found, expected = (folder / parent / f"{store}.zarr" for parent in (name, "whole"))
        assert files_of(found) == files_of(expected), store


def test_a_pass_on_a_cluster_gives_the_bytes_of_one_process(folder, cluster):
    assert command(pass_into("s", f"--scheduler {cluster.address} --json"), folder) == 0
    require_same(folder, "s")
    for store in NAMES:
        assert metadata_of(folder / "s" / f"{store}.zarr") == metadata_of(folder / "whole" / f"{store}.zarr")
        assert Store.open(folder / "s" / f"{store}.zarr").statuses()[BROKEN] > 0
    records = json.loads((folder / "out").read_text())["sweeps"]
    assert [(record["complete"], record["run"]["partitions"]) for record in records] == [(True, 6)] * 4
    assert [record["run"]["images"] for record in records] == [12] * 4  # of the pass, decoded once


def test_only_the_partitions_that_a_store_lacks_are_written(folder, cluster):
    """An image that could not be read when the clean images were swept stays excluded in the others."""
    shutil.copytree(folder / "whole", folder / "lacking")
    for name, partitions in {"noisy": [1, 4], "clean": [3], "other": [0, 4]}.items():
        Store.open(folder / "lacking" / f"{name}.zarr", mode="r+").discard(partitions)
    kept = {path: path.stat().st_mtime_ns for path in (folder / "lacking").rglob("completed/c.*")}
    broken = folder / "photographs" / "cat" / "004.png"
    bytes_before = broken.read_bytes()
    broken.write_bytes((folder / "readable.png").read_bytes())
    try:
        assert command(pass_into("lacking", f"--scheduler {cluster.address} --json"), folder) == 0
    finally:
        broken.write_bytes(bytes_before)
    require_same(folder, "lacking")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    records = json.loads((folder / "out").read_text())["sweeps"]
    assert [record["run"]["partitions"] for record in records] == [1, 2, 0, 2]


def test_parts_on_a_cluster_and_in_one_process_fill_the_same_stores(folder, cluster):
    assert command(pass_into("parts", "--part 0/2"), folder) == 0
    assert command(pass_into("parts", f"--part 1/2 --scheduler {cluster.address}"), folder) == 0
    require_same(folder, "parts")


def test_damaged_partitions_are_repaired_on_a_cluster(folder, cluster):
    shutil.copytree(folder / "whole", folder / "damaged")
    (folder / "damaged" / "noisy.zarr" / "map_change" / "c.1.0").write_bytes(b"x")
    (folder / "damaged" / "clean.zarr" / "mean" / "c.4.0").unlink()
    assert command(pass_into("damaged", f"--repair --scheduler {cluster.address}"), folder) == 0
    require_same(folder, "damaged")
    (folder / "damaged" / "scrambled.zarr" / "map_correlation" / "c.2.0").write_bytes(b"x")
    with distributed.Client(cluster.address, set_as_default=False) as client:
        summary = actstats.repair(
            folder / "damaged" / "scrambled.zarr", trust=True, client=client, data=folder / "photographs"
        )
    assert (summary.partitions, summary.complete) == (1, True)
    require_same(folder, "damaged")


def test_plans_in_files_run_on_a_cluster(folder, cluster):
    changed = "--changed noise:0.1=planned/noisy.zarr --changed scramble:4=planned/scrambled.zarr"
    plan = f"plan {SWEEP.removeprefix('sweep').replace('--workers 1', '')} --data photographs"
    assert command(f"{plan} --store planned/clean.zarr {changed} --out clean.json", folder) == 0
    assert command(f"{plan} --seed 1 --top-k 2 --store planned/other.zarr --out other.json", folder) == 0
    line = f"run clean.json other.json --scheduler {cluster.address}"
    assert command(line, folder) == 1
    assert "pass --trust" in (folder / "err").read_text().splitlines()[-1]
    assert not (folder / "planned").exists()
    assert command(f"{line} --trust", folder) == 0
    require_same(folder, "planned")


def test_where_one_sweep_fails_the_others_finish(folder, cluster):
    failing = f"--also '--metric {__name__}:Failing --out failing/failing.zarr'"
    assert command(pass_into("failing", f"{failing} --scheduler {cluster.address}"), folder) == 1
    last = (folder / "err").read_text().splitlines()[-1]
    assert "5 partitions in a row failed repeatedly" in last
    assert "no number today" in last
    require_same(folder, "failing")
    assert not Store.open(folder / "failing" / "failing.zarr").completed.any()


def started(folder, name, cluster, **options):
    """A pass into a folder, once the first partition of one of its stores is complete."""
    process = start_command(pass_into(name, f"--scheduler {cluster.address}"), folder, **options)
    while process.is_alive() and not list(folder.glob(f"{name}/noisy.zarr/completed/c.*")):
        time.sleep(0.02)
    assert process.is_alive()
    return process


def test_a_killed_worker_changes_no_byte(folder):
    with live_cluster(folder) as cluster:
        cluster.add(2, SLOWLY="0.05")
        process = started(folder, "killed", cluster)
        cluster.kill(0)
        process.join()
        assert process.exitcode == 0
    require_same(folder, "killed")


def test_a_frozen_worker_changes_no_byte(folder):
    with live_cluster(folder) as cluster:
        cluster.add(2, SLOWLY="0.1")
        process = started(folder, "frozen", cluster, patience=4)
        os.kill(cluster.workers[0].pid, signal.SIGSTOP)
        process.join()
        assert process.exitcode == 0
    require_same(folder, "frozen")


@pytest.mark.parametrize("stopped_by", ["Ctrl-C", "a killed scheduler"])
def test_a_stopped_pass_is_finished_by_the_same_command(stopped_by, folder, cluster):
    name = stopped_by.replace(" ", "-")
    with live_cluster(folder) as another:
        another.add(2, SLOWLY="0.1")
        process = started(folder, name, another)
        if stopped_by == "Ctrl-C":
            os.kill(process.pid, signal.SIGINT)
        else:
            another.kill_scheduler()
        process.join()
        assert process.exitcode == (130 if stopped_by == "Ctrl-C" else 1)
        *_, last = (folder / "err").read_text().splitlines()
        assert last.startswith("actstats: stopped; " if stopped_by == "Ctrl-C" else "actstats: error: lost ")
        assert "rerun the same command to resume" in last
        # Workers that still compute do not disturb.
        assert command(pass_into(name, f"--scheduler {cluster.address}"), folder) == 0
    require_same(folder, name)


def test_a_pass_on_a_cluster_into_a_bucket_has_the_same_bytes(folder, s3, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    with live_cluster(folder) as cluster:
        cluster.add(2, **environment)
        line = pass_into(f"s3://{BUCKET}/passes", f"--scheduler {cluster.address}")
        assert command(line, folder, **environment) == 0
    for name in NAMES:
        bucket = Store.open(f"s3://{BUCKET}/passes/{name}.zarr")
        expected = Store.open(folder / "whole" / f"{name}.zarr")
        assert bucket.completed.all()
        assert list(bucket.damage()) == []
        for array in expected.manifest.outputs:
            assert bucket.read(array, ...).tobytes() == expected.read(array, ...).tobytes()
