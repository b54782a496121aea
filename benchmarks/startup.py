"""Measure how long a sweep with mostly complete partitions takes to start: python benchmarks/startup.py.

The network is trivial and each partition has one image. For each number of partitions, all but the last are computed,
and the same sweep is started again to measure the time until its first image is done. Reading one unit of a wide
store is timed as well. Prints one line of JSON for each.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from PIL import Image
from torch import nn

import actstats
from actstats.store import Store

PARTITIONS = (50, 1_251, 5_000)


class Photographs:
    """Grey images of 8 x 8 pixels, made on demand."""

    kind = spec = "made"
    classes: tuple[str, ...] = ()
    fingerprint = "0"

    def __init__(self, images: int) -> None:
        self.paths = [f"{index}.png" for index in range(images)]
        self.labels = np.full(images, -1)

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, index: int) -> Image.Image:
        """Return a grey image."""
        return Image.new("RGB", (8, 8), "grey")


def started(partitions: int, folder: Path) -> float:
    """Return the seconds from the call to the first image of a sweep that has one partition left to do."""
    plan = actstats.plan(
        nn.Sequential(nn.Conv2d(3, 4, 3)),
        Photographs(partitions),
        folder / f"{partitions}.zarr",
        preprocessing=actstats.Preprocessing(resize=None, crop=8),
        metrics="mean",
        batch_size=1,
        partition_size=1,
        device="cpu",
    )
    schema, source = plan.schema, plan.images()
    store = Store.open_or_create(plan.store, plan.manifest.json, schema, source.paths, source.labels)
    store.place.flush = lambda: None  # type: ignore[method-assign]  # not needed here, and most of the time
    for partition in range(partitions - 1):
        store.write(partition, {"mean": np.zeros((1, 4), np.float32)}, np.zeros(1, np.int8))
    store.close()
    begun = time.perf_counter()
    seen: list[float] = []
    plan.run(on_progress=lambda _: seen.append(time.perf_counter() - begun), workers=0)
    return seen[0]


def one_unit(folder: Path) -> dict[str, float]:
    """Return the seconds to read one unit's means, and all, of 8,192 images by 7,168 units."""
    units, images, size = 7_168, 8_192, 1_024
    plan = actstats.plan(
        nn.Sequential(nn.Conv2d(3, units, 8)),
        Photographs(images),
        folder / "wide.zarr",
        preprocessing=actstats.Preprocessing(resize=None, crop=8),
        metrics="mean",
        layers="all",
        partition_size=size,
        device="cpu",
    )
    source = plan.images()
    store = Store.open_or_create(plan.store, plan.manifest.json, plan.schema, source.paths, source.labels)
    rng = np.random.default_rng(0)
    for partition in range(images // size):
        values = rng.standard_normal((size, units), dtype=np.float32)
        store.write(partition, {"mean": values}, np.zeros(size, np.int8))
    found = {}
    for name, dataset in (
        ("one unit", xr.open_zarr(plan.store)["mean"].isel(unit=[17])),
        ("all units", actstats.open_dataset(plan.store)["mean"]),
    ):
        begun = time.perf_counter()
        dataset.load()
        found[name] = round(time.perf_counter() - begun, 3)
    return found


def main() -> None:
    """Print the figures."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        started(2, Path(folder))  # compiles the kernels
        for partitions in PARTITIONS:
            print(
                json.dumps({"partitions": partitions, "seconds": round(started(partitions, Path(folder)), 3)})
            )
        print(json.dumps({"reading, seconds": one_unit(Path(folder))}))


if __name__ == "__main__":
    main()
