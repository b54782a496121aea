"""Measure time and peak memory of analyses of a large store, each in its own process.

    python benchmarks/make_store.py /tmp/s.zarr
    python benchmarks/make_store.py /tmp/r.zarr --roughness 0.7 --seed 1
    python benchmarks/analyses.py /tmp/s.zarr /tmp/r.zarr --workers 0 1 2 > benchmarks/results/analyses.jsonl
    python benchmarks/tables.py

Runs the real commands and prints a line of JSON for each: seconds from start to exit, and the peak resident set size
reported by the kernel. `--drop-cache` asks the kernel to drop the store's files from its cache, so that every byte is
read from the disk. `--workers 0 1 2` runs each command by itself, and on dask clusters of one and of two processes
with one thread.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from memory import measure, measure_on_cluster
from peers import machine

from actstats.store import Store


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("standard", type=Path)
    parser.add_argument("robust", type=Path)
    parser.add_argument("--only", nargs="*", help="names of commands as printed")
    parser.add_argument("--drop-cache", action="store_true")
    parser.add_argument("--workers", type=int, nargs="+", default=[0], help="sizes of dask clusters; 0: none")
    arguments = parser.parse_args()
    s, r = str(arguments.standard), str(arguments.robust)
    images = Store.open(s).images
    commands = {
        **{name: ["analyze", name, s] for name in ("smoothness", "spectrum", "selectivity", "quantiles")},
        "smoothness, two stores": ["analyze", "smoothness", s, r],
        "selectivity, two stores": ["analyze", "selectivity", s, r],
        "compare": ["compare", s, r],
    }
    for name, command in commands.items():
        if arguments.only and name not in arguments.only:
            continue
        for workers in arguments.workers:
            if arguments.drop_cache:
                forget(arguments.standard, arguments.robust)
            whole = ["actstats", *command, "--json"]
            seconds, peak, *_ = measure_on_cluster(whole, workers) if workers else measure(whole)
            found = {"seconds": round(seconds, 1), "peak_mib": round(peak / 2**20)}
            what = {"analysis": name, "images": images, "workers": workers}
            print(json.dumps({**what, **found, **machine()}), flush=True)


def forget(*stores: Path) -> None:
    """Ask the kernel to drop the stores' files from its cache."""
    for path in (path for store in stores for path in store.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()
