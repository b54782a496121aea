"""Processes that start on one store at the same moment, what killed ones leave, and file systems without locks."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import actstats
from actstats.data.preprocessing import Preprocessing
from actstats.errors import ActstatsError, ManifestMismatchError
from actstats.store import Store
from actstats.store.creation import objects_of
from tests.conftest import SmallNet, files_of
from tests.s3 import BUCKET, refused_after

SMALL = Preprocessing.imagenet(size=32, resize=36)
URL = f"s3://{BUCKET}/s.zarr"
STARTS = 8


def plan(images: Path, store: str | Path, **options) -> actstats.SweepPlan:
    settings = {"batch_size": 4, "partition_size": 5, "metrics": ["mean", "histogram"], "device": "cpu"}
    return actstats.plan(SmallNet(), images, store, preprocessing=SMALL, **{**settings, **options})


def enter(sweep: actstats.SweepPlan, **options) -> None:
    """Create or open the store of a sweep, and close it."""
    source = sweep.images()
    Store.open_or_create(
        sweep.store, sweep.manifest.json, sweep.schema, source.paths, source.labels, **options
    ).close()


def together(start: Callable[[], None], count: int = STARTS) -> list[str]:
    """Call `start` in `count` processes at the same moment; return how each of them ended."""
    context = multiprocessing.get_context("fork")
    barrier, ends = context.Barrier(count), context.Queue()

    def run() -> None:
        barrier.wait()
        try:
            start()
            ends.put("ok")
        except BaseException as error:
            ends.put(f"{type(error).__name__}: {error}")

    processes = [context.Process(target=run) for _ in range(count)]
    for process in processes:
        process.start()
    found = [ends.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    return found


@pytest.fixture(scope="module")
def empty(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new store without partitions."""
    path = tmp_path_factory.mktemp("empty") / "s.zarr"
    enter(plan(photographs, path))
    return path


@pytest.mark.parametrize("disk", ["fast", "slow"])
def test_processes_that_start_together_share_one_new_store(disk, photographs, empty, tmp_path, monkeypatch):
    if disk == "slow":
        mkdir, rename = Path.mkdir, Path.rename

        def slow_mkdir(path: Path, *arguments, **options) -> None:
            mkdir(path, *arguments, **options)
            time.sleep(0.02)

        def slow_rename(path: Path, target: Path) -> Path:
            time.sleep(0.02)
            return rename(path, target)

        monkeypatch.setattr(Path, "mkdir", slow_mkdir)
        monkeypatch.setattr(Path, "rename", slow_rename)
    for name in ("a.zarr", "b.zarr"):
        sweep = plan(photographs, tmp_path / "new" / name)
        assert together(lambda sweep=sweep: enter(sweep)) == ["ok"] * STARTS
        assert files_of(tmp_path / "new" / name) == files_of(empty)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["a.zarr", "b.zarr"]


@pytest.mark.parametrize("locks", [True, False])
def test_of_processes_that_overwrite_together_one_replaces_the_store(
    locks, photographs, empty, tmp_path, monkeypatch
):
    if not locks:
        monkeypatch.setattr(fcntl, "flock", flock_fails)
    enter(plan(photographs, tmp_path / "s.zarr", batch_size=3))
    sweep = plan(photographs, tmp_path / "s.zarr")
    with pytest.raises(ManifestMismatchError):
        enter(sweep)
    assert together(lambda: enter(sweep, overwrite=True)) == ["ok"] * STARTS
    assert files_of(tmp_path / "s.zarr") == files_of(empty)
    assert [path.name for path in tmp_path.iterdir()] == ["s.zarr"]


def test_processes_that_compute_the_same_partitions_do_not_disturb_each_other(photographs, tmp_path):
    sweep = plan(photographs, tmp_path / "s.zarr")
    sweep.run(workers=0)
    whole = files_of(tmp_path / "s.zarr")
    store = Store.open(tmp_path / "s.zarr", mode="r+")
    statuses = store.statuses()
    arrays = [
        {name: store.read(name, store._where(name, p)) for name in store.manifest.outputs}
        for p in range(store.partitions)
    ]

    def write_all() -> None:
        mine = Store.open(tmp_path / "s.zarr", mode="r+")
        for _ in range(3):
            assert mine.missing_objects() == []
            for p in range(store.partitions):
                mine.write(p, arrays[p], statuses[slice(*store.bounds(p))])

    assert together(write_all, 6) == ["ok"] * 6
    assert files_of(tmp_path / "s.zarr") == whole
    assert Store.open(tmp_path / "s.zarr").completed.all()


def test_objects_that_another_process_removes_are_not_listed(photographs, tmp_path, monkeypatch):
    sweep = plan(photographs, tmp_path / "s.zarr")
    sweep.run(workers=0)
    store = Store.open(tmp_path / "s.zarr")
    scandir = os.scandir

    class Listed(list):
        def __enter__(self) -> Listed:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    def listed(folder: str) -> Listed:
        found = Listed(scandir(folder))
        for entry in found:
            if entry.name in ("c.0", "c.1"):
                Path(entry.path).unlink()
        return found

    monkeypatch.setattr(os, "scandir", listed)
    assert store.completed.tolist() == [False, False, *[True] * (store.partitions - 2)]


def flock_fails(descriptor: int, kind: int) -> None:
    """Lock nothing, as on Lustre mounted without `flock`."""
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def flock_succeeds(descriptor: int, kind: int) -> None:
    """Lock nothing and succeed, as where locks hold within one node only."""


LOCKS = {"real": fcntl.flock, "failing": flock_fails, "of one node": flock_succeeds}

WRITING = """
import os, sys
from pathlib import Path
from actstats.store.files import DurableStore, new_folder_beside
from zarr.core.buffer import default_buffer_prototype

def replace_late(path, target):
    print("writing", flush=True)
    sys.stdin.read()
    os.replace(path, target)

Path.replace = replace_late
path = Path(sys.argv[1])
if sys.argv[2] == "object":
    DurableStore(path).set_sync("other", default_buffer_prototype().buffer.from_bytes(b"data"))
else:
    with new_folder_beside(path) as folder:
        (folder / "file").write_text("")
        (folder / "file").replace(folder / "renamed")
"""


@contextmanager
def writing(path: Path, what: str) -> Iterator[subprocess.Popen[str]]:
    """Another process, while it is writing an object of the store at `path` or creating a store beside it."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITING, str(path), what],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        yield process


@pytest.mark.parametrize("what", ["object", "store"])
@pytest.mark.parametrize("locks", LOCKS)
def test_only_what_killed_processes_left_is_removed(locks, what, photographs, empty, tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", LOCKS[locks])
    path = tmp_path / "s.zarr"
    sweep = plan(photographs, path)
    enter(sweep)

    def left() -> list[Path]:
        return [p for p in (*tmp_path.iterdir(), *path.iterdir()) if p.name.startswith(".")]

    with writing(path, what) as process:
        before = left()
        assert len(before) == 1
        enter(sweep)
        assert left() == before
        process.communicate()
        assert process.returncode == 0
    assert left() == []
    with writing(path, what) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(left()) == 1
    enter(sweep)
    assert left() == []


@pytest.mark.parametrize("locks", LOCKS)
def test_what_another_machine_or_an_unknown_process_left_is_kept_without_locks(
    locks, photographs, tmp_path, monkeypatch
):
    sweep = plan(photographs, tmp_path / "s.zarr")
    enter(sweep)
    foreign, unknown, removed = (
        f".s.zarr.{mark}" for mark in ("0123abcd-1-0123abcd-0123abcd", "0123abcd", "removed-0123abcd")
    )
    for name in (foreign, unknown, removed):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(fcntl, "flock", LOCKS[locks])
    enter(sweep)
    kept = {foreign} if locks == "real" else {foreign, unknown}
    assert {path.name for path in tmp_path.iterdir()} == {"s.zarr", *kept}


def test_a_symbolic_link_keeps_pointing_to_the_store_that_is_replaced(photographs, empty, tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (tmp_path / "folder").symlink_to(scratch)
    (tmp_path / "link.zarr").symlink_to("folder/s.zarr")  # a link through a link, to a store to be created
    enter(plan(photographs, tmp_path / "link.zarr", batch_size=3))
    for location in (tmp_path / "link.zarr", tmp_path / "folder" / "s.zarr"):
        enter(plan(photographs, location, batch_size=2), overwrite=True)
        enter(plan(photographs, location), overwrite=True)
        assert (tmp_path / "link.zarr").readlink() == Path("folder/s.zarr")
        assert (tmp_path / "folder").readlink() == scratch
        assert files_of(scratch / "s.zarr") == files_of(empty)
    assert [path.name for path in scratch.iterdir()] == ["s.zarr"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "link.zarr", "scratch"]
    (tmp_path / "loop.zarr").symlink_to("loop.zarr")
    with pytest.raises(ActstatsError, match=r"loop\.zarr"):
        enter(plan(photographs, tmp_path / "loop.zarr"))


def test_a_rename_that_succeeded_but_was_reported_as_failed_creates_the_store(
    photographs, empty, tmp_path, monkeypatch
):
    rename = Path.rename

    def repeated(path: Path, target: Path) -> Path:
        """As NFS does when the answer to the first request was lost."""
        rename(path, target)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", repeated)
    enter(plan(photographs, tmp_path / "s.zarr"))
    assert files_of(tmp_path / "s.zarr") == files_of(empty)


def test_a_stale_handle_of_a_folder_that_was_replaced_is_looked_up_again(photographs, tmp_path, monkeypatch):
    sweep = plan(photographs, tmp_path / "s.zarr")
    enter(sweep)
    opened, failures = os.open, iter([errno.ESTALE, errno.ENOENT])

    def stale(path: str, *arguments, **options) -> int:
        """As NFS does when another client has renamed the folder."""
        if Path(path).name == "s.zarr" and (number := next(failures, None)):
            raise OSError(number, os.strerror(number))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(os, "open", stale)
    enter(sweep)
    assert next(failures, None) is None


@pytest.mark.parametrize("read", [Store.open, Store.find, actstats.open_dataset, actstats.repair])
def test_a_path_that_is_too_long_is_one_line(read, tmp_path):
    with pytest.raises(ActstatsError, match=r"cannot open .*: File name too long"):
        read(tmp_path / ("s" * 300))


@pytest.mark.linux
def test_a_folder_that_cannot_be_written_is_reported_and_an_existing_store_in_it_resumed(
    photographs, tmp_path
):
    enter(plan(photographs, tmp_path / "folder" / "s.zarr"))
    program = """
import ctypes, importlib, sys
from pathlib import Path
import pytest
from actstats.errors import ActstatsError

starting = importlib.import_module("tests.store.test_starting")
enter, plan = starting.enter, starting.plan

# Without capabilities, root is refused like other users.
assert ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()) == 0
photographs, folder = map(Path, sys.argv[1:])
folder.chmod(0o500)
enter(plan(photographs, folder / "s.zarr"))
with pytest.raises(ActstatsError, match="Permission denied"):
    enter(plan(photographs, folder / "new.zarr"))
with pytest.raises(ActstatsError, match="Permission denied"):
    enter(plan(photographs, folder / "s.zarr", batch_size=3), overwrite=True)
folder.chmod(0o300)  # it may be written, but not listed
enter(plan(photographs, folder / "s.zarr", batch_size=3), overwrite=True)
enter(plan(photographs, folder / "new.zarr"))
"""
    try:
        ran = subprocess.run(
            [sys.executable, "-c", program, str(photographs), str(tmp_path / "folder")],
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        (tmp_path / "folder").chmod(0o700)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize(
    ("share", "then"), [(0, {}), (0.5, {}), (1, {}), (0, {"overwrite": True}), (0.5, {"repair": True})]
)
def test_a_bucket_store_whose_creation_stopped_at_any_request_is_finished(share, then, photographs, s3):
    none = s3.fault
    other = plan(photographs, URL, batch_size=3 if "overwrite" in then else 4)
    objects = len(objects_of(other.manifest.json, other.schema, other.images().paths, other.images().labels))
    s3.fault = refused_after(max(1, round(share * (objects - 1))))
    with pytest.raises(ActstatsError):
        enter(other)
    s3.fault = none
    with pytest.raises(ActstatsError, match="creation was interrupted"):
        Store.open(URL)
    assert Store.find(URL) is None
    assert plan(photographs, URL).run(workers=0, **then).complete
    assert list(Store.open(URL).damage()) == []


def test_processes_that_overwrite_a_bucket_store_together_all_go_on(photographs, s3):
    enter(plan(photographs, URL, batch_size=3))
    program = (
        "import sys; from pathlib import Path; from tests.store.test_starting import enter, plan;"
        "sweep = plan(Path(sys.argv[1]), sys.argv[2]); sweep.schema; print('ready', flush=True);"
        "sys.stdin.readline(); enter(sweep, overwrite=True)"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(photographs), URL],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 3
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    ended = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0] * 3, ended
    assert list(Store.open(URL).damage()) == []
    enter(plan(photographs, URL))
