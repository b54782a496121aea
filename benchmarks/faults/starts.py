"""Start many sweeps of one store at the same moment, and count those that succeed.

    python benchmarks/faults/starts.py > benchmarks/results/starts.jsonl
    python benchmarks/tables.py

Each process runs the command line with SqueezeNet on a few images, once all of them have imported what they need. A
start holds if the command ends with exit status 0 and prints no traceback; a round holds if all its starts do and
the store is complete, undamaged, equal to that of a single process, and has nothing left beside it. Failures go to
stderr. `--rounds 1 --processes 4` is a quick look.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
from click.testing import CliRunner
from PIL import Image

from actstats.store import Store
from actstats_cli.main import main

NETWORK = "--arch squeezenet1_1 --weights none --layers features.0,features.3.squeeze --metrics mean,top"
SWEEP = f"sweep {NETWORK} --device cpu --workers 0 --partition-size 2 --batch-size 2 --top-k 2"
IMAGES = 6
ANOTHER = [*SWEEP.split(), "--limit", "2"]
"""Another sweep, whose store is to be replaced."""


def also(words: list[str]) -> list[str]:
    """Return a joint sweep of two networks, into two stores."""
    return [*words, "--also", "--seed 1 --out second.zarr"]


def parts(words: list[str], number: int, processes: int) -> list[str]:
    """Return the share of one process."""
    return [*words, "--part", f"{number}/{processes}"]


KINDS: dict[str, Callable[[list[str], int, int], list[str]]] = {
    "the same command": lambda words, number, processes: words,
    "`--part I/N`": parts,
    "`--overwrite` of another sweep": lambda words, number, processes: [*words, "--overwrite"],
    "`--also`": lambda words, number, processes: also(words),
}
"""What the processes of a round run, by name."""


def start(words: list[str], barrier: Barrier, ends: multiprocessing.SimpleQueue[str]) -> None:
    """Run a command line once every process is ready, and report what went wrong, if anything."""
    import torch

    torch.set_num_threads(1)
    barrier.wait()
    result = CliRunner().invoke(main, words)
    failed = result.exit_code or "Traceback" in result.output
    ends.put(f"{result.output.strip()[-300:]} {result.exception!r}" if failed else "")
    sys.stdout.flush()
    os._exit(0)


def contents(store: Path) -> dict[str, int]:
    """Return a checksum of each object, except those that hold dates and times."""
    return {
        str(path.relative_to(store)): zlib.crc32(path.read_bytes())
        for path in store.rglob("*")
        if path.is_file() and path.name != "manifest.json" and path.parent.name != "provenance"
        and path != store / "zarr.json"
    }  # fmt: skip


def one_round(kind: str, processes: int, expected: dict[str, int]) -> list[str]:
    """Start the processes on a new store in the working directory; return what went wrong."""
    store = Path("s.zarr")
    if "overwrite" in kind:
        CliRunner().invoke(main, [*ANOTHER, "--data", "images", "--out", str(store)])
    before = {path.name for path in Path.cwd().iterdir()}
    context = multiprocessing.get_context("fork")
    barrier, ends = context.Barrier(processes), context.SimpleQueue()
    running = [
        context.Process(
            target=start,
            args=(
                KINDS[kind]([*SWEEP.split(), "--data", "images", "--out", str(store)], number, processes),
                barrier, ends,
            ),
        )
        for number in range(processes)
    ]  # fmt: skip
    for process in running:
        process.start()
    failed = [end for end in (ends.get() for _ in running) if end]
    for process in running:
        process.join()
    left = {path.name for path in Path.cwd().iterdir()} - before - {"s.zarr", "second.zarr"}
    failed += [f"{name} is left" for name in left]
    found = Store.open(store)
    if not found.completed.all() or list(found.damage()) or contents(store) != expected:
        failed.append("the store is not that of a single process")
    shutil.rmtree(store)
    shutil.rmtree("second.zarr", ignore_errors=True)
    return failed


def measure() -> None:
    """Run all rounds, and print a JSON object per line with the trials of each kind."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--processes", type=int, default=16)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("images").mkdir()
        rng = np.random.default_rng(0)
        for index in range(IMAGES):
            Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(f"images/{index}.png")
        alone = [*SWEEP.split(), "--data", "images", "--out", "alone.zarr"]
        if CliRunner().invoke(main, alone, catch_exceptions=False).exit_code:
            raise SystemExit("a single process fails")
        expected = contents(Path("alone.zarr"))
        for kind in arguments.kinds:
            starts = rounds = 0
            for number in range(arguments.rounds):
                failed = one_round(kind, arguments.processes, expected)
                rounds += not failed
                starts += arguments.processes - min(len(failed), arguments.processes)
                for line in failed:
                    print(f"{kind}, round {number}: {line}", file=sys.stderr)
            row = {
                "what": kind,
                "tried": arguments.rounds * arguments.processes,
                "held": starts,
                "rounds": arguments.rounds,
                "rounds_held": rounds,
            }
            print(json.dumps(row), flush=True)
        os.chdir("/")


if __name__ == "__main__":
    measure()
