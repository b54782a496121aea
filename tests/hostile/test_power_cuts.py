"""Power cuts at every step of a sweep: afterwards, the same command ends with the bytes of an uninterrupted sweep.

    ACTSTATS_ALL_CUTS=1 pytest tests/hostile/test_power_cuts.py -n 0 -rP

goes on from every state that a cut leaves, which takes minutes, and prints how often the power was cut and how many
different states of the disk that left. Without the variable it goes on from every eighth, others in each run:
ACTSTATS_SEED repeats one.
"""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest
import torch
import zarr
from torch import nn

import actstats
from actstats.data.preprocessing import Preprocessing
from tests.conftest import files_of, photograph
from tests.hostile.disk import Disk, lay_out

METRICS = ("mean", "histogram", "top")
"""Few, of each kind that a store has: the objects of other variables are written in the same way."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for index in range(5):
        photograph(index, (24, 20)).save(folder / f"{index}.png")
    return folder


def plan(images: Path, store: Path, **settings: int) -> actstats.SweepPlan:
    """A sweep of three partitions."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
    network(torch.zeros(1, 3, 16, 16))
    return actstats.plan(
        network, images, store, preprocessing=Preprocessing.imagenet(size=16, resize=16), device="cpu",
        layers="0", metrics=METRICS, top_k=2, partition_size=2, **{"batch_size": 2, **settings},
    )  # fmt: skip


def before_overwriting(images: Path, store: Path) -> None:
    """The complete store of another sweep is in the way."""
    plan(images, store, batch_size=1).run(workers=0)


def before_repairing(images: Path, store: Path) -> None:
    """One partition of the store is damaged."""
    plan(images, store).run(workers=0)
    damaged = store / "mean" / "c.1.0"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")


PREPARED = {"create": None, "overwrite": before_overwriting, "repair": before_repairing}


@pytest.mark.parametrize("what", PREPARED)
def test_after_a_power_cut_at_any_step_the_same_command_ends_with_the_same_bytes(
    what: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "disk"
    store = folder / "s.zarr"
    sweep = plan(images, store)
    options = {"workers": 0} if what == "create" else {"workers": 0, what: True}
    folder.mkdir()
    if prepare := PREPARED[what]:
        prepare(images, store)
    seed = int(os.environ.get("ACTSTATS_SEED", random.SystemRandom().randrange(2**32)))
    disk = Disk(folder, seed)
    with disk.record(), zarr.config.set({"threading.max_workers": 1, "async.concurrency": 1}):
        sweep.run(**options)
    whole, manifest = files_of(store), (store / "zarr.json").read_bytes()

    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # what is written from here on is not cut
    tried = disk.states if os.environ.get("ACTSTATS_ALL_CUTS") else disk.states[seed % 8 :: 8]
    print(f"{what}: {disk.cuts} power cuts left {len(disk.states)} states; ACTSTATS_SEED={seed}")
    for cut, tree in tried:
        shutil.rmtree(folder)
        lay_out(tree, folder)
        summary = sweep.run(**options)
        assert summary.complete, f"cut {cut} of {disk.cuts}"
        assert files_of(store) == whole, f"cut {cut} of {disk.cuts}"
        assert (store / "zarr.json").read_bytes() == manifest or what == "repair", f"cut {cut} of {disk.cuts}"
        assert [path.name for path in folder.iterdir()] == ["s.zarr"], f"cut {cut} of {disk.cuts}"
    assert disk.cuts > 50
