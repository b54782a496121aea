"""Measure the cost of durability and checksums for a sweep.

    python benchmarks/durability.py [FOLDER] > benchmarks/results/durability.jsonl
    python benchmarks/tables.py

One partition of GoogLeNet's statistics (7,280 units, 256 images of random numbers) is written repeatedly to a store
in FOLDER: with neither, with checksums, and with checksums and `fsync`, as actstats does, in turn. Then a whole sweep
of GoogLeNet over the demo photographs is run in the same three ways. Prints one line of JSON for each, with the
median time, its ratio to the time with neither, and the machine.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import zarr
from peers import machine
from zarr.codecs import Crc32cCodec

import actstats
from actstats.store import Store, files

IMAGES = 256
SWEPT = 64
WAYS = ("neither", "checksums", "checksums and fsync")


@contextmanager
def written(way: str) -> Iterator[None]:
    """Return a context in which stores are written in one of the three ways."""
    create = zarr.Group.create_array

    def without_checksums(group: zarr.Group, name: str, *, compressors: Any, **options: Any) -> Any:
        kept = [codec for codec in compressors if not isinstance(codec, Crc32cCodec)]
        kept = compressors if name == "status" else kept  # which is read without Zarr
        return create(group, name, compressors=kept, **options)

    with (
        mock.patch.object(zarr.Group, "create_array", without_checksums if way == "neither" else create),
        mock.patch.object(files, "sync", files.sync if way.endswith("fsync") else lambda path: None),
    ):
        yield


def compare(what: str, rounds: int, run: Callable[[str, int], None]) -> None:
    """Time `run(way, round)` in turn, and print the medians."""
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(rounds):
        for way in WAYS:
            with written(way):
                begun = time.perf_counter()
                run(way, number)
                seconds[way].append(time.perf_counter() - begun)
    base = statistics.median(seconds["neither"])
    for way in WAYS:
        median = statistics.median(seconds[way])
        print(json.dumps({"what": what, "way": way, "seconds": median, "ratio": median / base, **machine()}))


def main(folder: Path) -> None:
    plan = actstats.plan(
        "googlenet",
        "demo",
        folder / "plan.zarr",
        weights="none",
        device="cpu",
        limit=IMAGES,
        partition_size=IMAGES,
    )
    rng, schema, source = np.random.default_rng(0), plan.schema, plan.images()
    arrays = {
        output.name: rng.random(
            [IMAGES if n == "image" else schema.lengths[n] for n in output.dims if n != "partition"]
        ).astype(output.dtype)
        for output in schema.outputs
    }
    stores: dict[str, Store] = {}

    def partition(way: str, number: int) -> None:
        if way not in stores:
            stores[way] = Store.open_or_create(
                folder / f"{way}.zarr", plan.manifest.json, schema, source.paths, source.labels
            )
        stores[way].write(0, arrays, np.zeros(IMAGES, np.int8))

    for way in WAYS:  # made before they are timed
        with written(way):
            partition(way, 0)
    compare(f"one partition of {sum(a.nbytes for a in arrays.values()) / 1e6:.0f} MB", 9, partition)

    few = actstats.plan(
        "googlenet",
        "demo",
        folder / "few.zarr",
        weights="none",
        device="cpu",
        limit=SWEPT,
        partition_size=SWEPT,
    )

    def sweep(way: str, number: int) -> None:
        few.store = folder / f"{way}-{number}.zarr"
        few.run()

    compare(f"a sweep of {SWEPT} images", 3, sweep)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as made:
        main(Path(made))
