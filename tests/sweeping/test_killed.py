"""What a sweep leaves behind when its process is killed, its disk is full, or its memory runs out."""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import signal
import time
from pathlib import Path

import pytest

from actstats.data.preprocessing import Preprocessing
from actstats.errors import ActstatsError
from tests.conftest import SmallNet, files_of

# A fork server that has torch imported: a process of its own for each sweep, in milliseconds.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["actstats.sweeping.run", "tests.conftest"])


def sweep_slowly(images: Path, store: Path, size: int = 32) -> None:
    """Seven partitions of two images."""
    import actstats

    actstats.sweep(
        SmallNet(), images, store, preprocessing=Preprocessing.imagenet(size=size, resize=size), device="cpu",
        batch_size=1, partition_size=2, top_k=3, workers=1, on_progress=lambda _: time.sleep(0.05),
    )  # fmt: skip


def sweep_within(limit: int, amount: int, images: Path, store: Path, size: int, said: Path) -> None:
    """Sweep under a resource limit, and write down what error it ends with."""
    if limit == resource.RLIMIT_AS:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        amount += pages * resource.getpagesize()
    resource.setrlimit(limit, (amount, amount))
    try:
        sweep_slowly(images, store, size)
    except ActstatsError as error:
        said.write_text(str(error))


def test_a_sweep_killed_at_five_moments_ends_as_one_that_was_not(photographs, tmp_path):
    begun = time.perf_counter()
    sweep_slowly(photographs, tmp_path / "whole.zarr")
    duration = time.perf_counter() - begun
    seed = int(os.environ.get("ACTSTATS_SEED", random.SystemRandom().randrange(2**32)))
    print(f"moments drawn from ACTSTATS_SEED={seed}")  # shown where the test fails
    moments = random.Random(seed)
    for _ in range(5):
        process = PROCESSES.Process(target=sweep_slowly, args=(photographs, tmp_path / "killed.zarr"))
        process.start()
        process.join(moments.uniform(0.1, 0.6) * duration)
        process.kill()
        process.join()
        assert process.exitcode in (-signal.SIGKILL, 0)  # 0: it had little left to do
    sweep_slowly(photographs, tmp_path / "killed.zarr")
    assert files_of(tmp_path / "killed.zarr") == files_of(tmp_path / "whole.zarr")


def test_a_full_disk_is_named_and_the_sweep_goes_on_when_there_is_room(photographs, tmp_path):
    sweep_slowly(photographs, tmp_path / "whole.zarr")
    largest = max(path.stat().st_size for path in (tmp_path / "whole.zarr").glob("*/c.*.0*"))
    said = tmp_path / "said"
    # A limit on the size of a file fails as a disk without room does, and needs no disk to fill.
    process = PROCESSES.Process(
        target=sweep_within,
        args=(resource.RLIMIT_FSIZE, largest - 1, photographs, tmp_path / "s.zarr", 32, said),
    )
    process.start()
    process.join()
    assert process.exitcode == 0
    assert "no room to write" in said.read_text()
    assert "rerun the same command to resume" in said.read_text()
    sweep_slowly(photographs, tmp_path / "s.zarr")
    assert files_of(tmp_path / "s.zarr") == files_of(tmp_path / "whole.zarr")


@pytest.mark.linux  # reads the size of the process from /proc
def test_a_batch_too_large_for_memory_says_which_option_to_lower(photographs, tmp_path):
    said = tmp_path / "said"
    process = PROCESSES.Process(
        target=sweep_within,
        args=(resource.RLIMIT_AS, 2**28, photographs, tmp_path / "s.zarr", 6000, said),
    )
    process.start()
    process.join()
    assert process.exitcode == 0
    assert "out of memory with `batch_size=1`" in said.read_text()
