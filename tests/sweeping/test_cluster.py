"""A sweep on a dask cluster: the bytes of one process, whatever joins, leaves, fails or dies."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image

import actstats
from actstats.errors import ActstatsError
from actstats.store import Store
from actstats.store.description import describe
from actstats.sweeping.scheduler import connect
from tests.cli.conftest import COMMAND
from tests.cluster import FACTORY, SWEEP, command, live_cluster, make_images, start_command, trial
from tests.conftest import SmallNet, files_of
from tests.s3 import BUCKET, network
from tests.seeds import SEED

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Fourteen photographs, the eighth black, and the store of one process on one thread."""
    folder = tmp_path_factory.mktemp("cluster")
    make_images(folder / "photographs", 14)
    Image.new("RGB", (40, 40)).save(folder / "photographs" / "dog" / "007.png")
    assert command(f"{SWEEP} --data photographs --out whole.zarr", folder) == 0
    return folder


def test_a_cluster_gives_the_bytes_of_one_process_and_records_where(folder, cluster):
    line = f"{SWEEP} --data photographs --out s.zarr --scheduler {cluster.address} --json"
    assert command(line, folder) == 0
    found = json.loads((folder / "out").read_text())
    assert files_of(folder / "s.zarr") == files_of(folder / "whole.zarr")
    assert (found["complete"], found["run"]["images"], found["run"]["partitions"]) == (True, 14, 7)
    assert len(found["run"]["workers"]) == 2
    assert all(rate > 0 for rate in found["run"]["workers"].values())
    (machine,) = found["computed_on"]
    assert machine.startswith("cpu: ")
    assert "threads 1" in machine
    last = (folder / "err").read_text().splitlines()[-1]
    assert last.startswith("14 of 14 images (100%), ")
    assert ", 2 workers, " in last
    records = Store.open(folder / "s.zarr").provenance()
    assert len(records) == 7
    assert all(record.keys() >= {"host", "device", "seconds", "versions"} for record in records)

    assert command(line, folder) == 0
    assert json.loads((folder / "out").read_text())["run"]["images"] == 0


def test_a_plan_runs_on_a_client_and_resumes_what_another_machine_began(folder, cluster, tmp_path):
    plan = actstats.plan(
        FACTORY,
        folder / "photographs",
        tmp_path / "s.zarr",
        batch_size=1,
        partition_size=2,
        top_k=3,
        device="cpu",
    )
    plan.run(part=(0, 2))
    with distributed.Client(cluster.address, set_as_default=False) as client:
        summary = plan.run(client=client, workers=1)
    assert (summary.complete, summary.partitions, summary.progress.done) == (True, 3, 6)
    # This process has as many threads as cores, the workers have one.
    assert len(summary.computed_on) == (1 if os.cpu_count() == 1 else 2)
    assert describe(tmp_path / "s.zarr").computed_on == summary.computed_on


def test_workers_join_and_leave_in_mid_sweep(folder, tmp_path):
    with live_cluster(folder) as cluster:
        cluster.add(1, SLOWLY="0.05")
        seen = []

        def change(progress):
            seen.append(set(progress.workers))
            if len(seen) == 1:
                cluster.add(1, SLOWLY="0.05")
            elif len(seen[-1]) == 2 and cluster.workers[0].is_alive():
                (first,) = seen[0]
                client.retire_workers([first])

        with distributed.Client(cluster.address, set_as_default=False) as client:
            summary = actstats.sweep(
                FACTORY, make_images(tmp_path / "photographs", 120), tmp_path / "s.zarr",
                batch_size=1, partition_size=2, device="cpu", client=client, on_progress=change,
            )  # fmt: skip
    assert summary.complete
    assert len(seen[0]) == 1
    assert {len(workers) for workers in seen} == {1, 2}
    assert seen[-1].isdisjoint(seen[0])


def test_a_partition_that_fails_is_set_aside_and_the_rest_is_finished(folder, tmp_path):
    with live_cluster(folder) as cluster:
        cluster.add(2, DARK="raise")
        line = f"{SWEEP} --data {folder / 'photographs'} --out s.zarr --scheduler {cluster.address}"
        assert command(line, tmp_path) == 1
        said = (tmp_path / "err").read_text().splitlines()
        assert said[-1].startswith("actstats: error: 1 partition failed repeatedly: ")
        assert "ValueError: it is too dark" in said[-1]
        assert Store.open(tmp_path / "s.zarr").completed.sum() == 6
        while cluster.workers:
            cluster.kill(0)
        cluster.add(1)
        assert command(line, tmp_path) == 0
    assert files_of(tmp_path / "s.zarr") == files_of(folder / "whole.zarr")


def test_a_partition_that_kills_its_workers_is_set_aside(folder, tmp_path):
    with live_cluster(folder) as cluster:
        cluster.add(2, DARK="die")
        line = f"{SWEEP} --data {folder / 'photographs'} --out s.zarr --scheduler {cluster.address}"
        process = start_command(line, tmp_path)
        died = 0
        while process.exitcode is None:
            process.join(0.2)
            died += cluster.replace_the_dead(DARK="die")
    assert process.exitcode == 1
    last = (tmp_path / "err").read_text().splitlines()[-1]
    assert "5 workers died while computing it" in last
    assert died >= 5
    assert Store.open(tmp_path / "s.zarr").completed.sum() >= 5


@pytest.mark.once
def test_ctrl_c_keeps_what_is_complete(folder, tmp_path):
    with live_cluster(folder) as cluster:
        cluster.add(2, SLOWLY="0.2")
        line = f"{SWEEP} --data {folder / 'photographs'} --out s.zarr --scheduler {cluster.address}"
        process = start_command(line, tmp_path)
        while not list((tmp_path / "s.zarr" / "completed").glob("c.*")):
            assert process.exitcode is None
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGINT)
        process.join()
        assert process.exitcode == 130
        last = (tmp_path / "err").read_text().splitlines()[-1]
        assert last.startswith("actstats: stopped; ")
        assert last.endswith("of 7 partitions complete in s.zarr; rerun the same command to resume")
        # Other workers need not wait for those that still compute.
        cluster.add(1)
        assert command(line, tmp_path) == 0
    assert files_of(tmp_path / "s.zarr") == files_of(folder / "whole.zarr")


@pytest.mark.once
def test_killed_workers_and_a_killed_scheduler_change_no_byte(tmp_path):
    trial(tmp_path, SEED, workers=2, partitions=12, every=(0.6, 1.5), say=print)


def test_a_cluster_of_this_machine_ends_with_the_command(folder, tmp_path):
    line = f"{SWEEP} --data {folder / 'photographs'} --out s.zarr --scheduler local:1 --limit 8"
    assert command(line, tmp_path) == 0
    assert "8 images in " in (tmp_path / "out").read_text()
    assert Store.open(tmp_path / "s.zarr").completed.all()


@pytest.mark.once
def test_ctrl_c_in_a_terminal_ends_a_cluster_of_this_machine_with_one_line(folder, tmp_path):
    line = f"{SWEEP} --data {folder / 'photographs'} --out s.zarr --scheduler local:1"
    process = subprocess.Popen(
        [*COMMAND, *line.split()],
        cwd=tmp_path,
        env={**os.environ, "SLOWLY": "0.3", "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # also a new process group, which a terminal would send the signal to
    )
    while not list((tmp_path / "s.zarr" / "completed").glob("c.*")):
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("actstats: stopped; ")


def test_a_cluster_of_this_machine_is_quiet_beside_another_one(recwarn):
    with socket.socket() as other:
        with suppress(OSError):  # it is taken already
            other.bind(("127.0.0.1", 8787))
            other.listen()
        with connect("local:1", "cpu"):
            pass
    assert not [str(found.message) for found in recwarn if "8787" in str(found.message)]


def refused(tmp_path: Path, line: str) -> str:
    """The one line with which a command is refused that leaves nothing behind."""
    assert command(line, tmp_path) == 1
    (said,) = (tmp_path / "err").read_text().splitlines()
    assert (tmp_path / "out").read_text() == ""
    return said


def test_no_scheduler_and_no_gpu_are_one_line(folder, cluster, tmp_path):
    sweep = f"{SWEEP} --data {folder / 'photographs'} --out s.zarr"
    assert "no dask scheduler answers at tcp://127.0.0.1:1: " in refused(
        tmp_path, f"{sweep} --scheduler tcp://127.0.0.1:1"
    )
    assert "no dask scheduler answers at nowhere: " in refused(tmp_path, f"{sweep} --scheduler nowhere")
    assert "invalid scheduler 'local:many'; give local or local:CORES" in refused(
        tmp_path, f"{sweep} --scheduler local:many"
    )
    said = refused(
        tmp_path, f"{sweep} --device cuda --scheduler {cluster.address}".replace("--device cpu", "")
    )
    assert "offers the resource GPU: start workers with --resources GPU=1, or use --device cpu" in said
    assert not (tmp_path / "s.zarr").exists()


@pytest.mark.linux  # /proc/self/cwd is another path in each process
def test_workers_that_do_not_see_the_images_are_named_before_anything_is_computed(folder, tmp_path):
    there, here = tmp_path / "there", tmp_path / "here"
    there.mkdir()
    here.mkdir()
    (here / "photographs").symlink_to(folder / "photographs")
    with live_cluster(there) as cluster:
        cluster.add(1)
        cluster.wait()
        images = f"{SWEEP} --data /proc/self/cwd/photographs --out s.zarr --scheduler {cluster.address}"
        said = refused(here, images)
        assert "cannot run this sweep: no such folder or tar file: /proc/self/cwd/photographs" in said
        assert not (here / "s.zarr").exists()


def test_workers_that_do_not_see_the_store_are_named_before_anything_is_computed(folder, s3):
    store = f"s3://{BUCKET}/s.zarr"
    common = {name: os.environ[name] for name in os.environ if name.startswith("AWS_")}
    with (
        network(0) as another,
        live_cluster(folder) as cluster,
        distributed.Client(cluster.address, set_as_default=False) as client,
    ):
        cluster.add(1, **{**common, "AWS_ENDPOINT_URL": another.url})
        with pytest.raises(
            ActstatsError, match=f"cannot run this sweep: bucket s3://{BUCKET} does not exist"
        ):
            actstats.sweep(
                FACTORY,
                folder / "photographs",
                store,
                batch_size=1,
                partition_size=2,
                device="cpu",
                client=client,
            )
    assert not Store.open(store).completed.any()


def test_workers_with_other_versions_are_named(folder, tmp_path):
    other = tmp_path / "other" / "torch-1.0.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 1.0\n")
    with live_cluster(folder) as cluster:
        cluster.add(1, FIRST_ON_PATH=str(other.parent))
        cluster.wait()
        said = refused(
            tmp_path, f"{SWEEP} --data {folder / 'photographs'} --out s.zarr --scheduler {cluster.address}"
        )
    assert "cannot run this sweep: it has torch 1.0, but the client has 2." in said
    assert "install the same version" in said
    assert not (tmp_path / "s.zarr").exists()


def test_a_network_that_others_cannot_find_is_refused(folder, cluster, tmp_path):
    from actstats.data.preprocessing import Preprocessing

    with (
        distributed.Client(cluster.address, set_as_default=False) as client,
        pytest.raises(ActstatsError, match="another process cannot create the network from a SmallNet"),
    ):
        actstats.sweep(
            SmallNet(), folder / "photographs", tmp_path / "s.zarr", device="cpu", client=client,
            preprocessing=Preprocessing.imagenet(size=32, resize=36),
        )  # fmt: skip
    assert not (tmp_path / "s.zarr").exists()
