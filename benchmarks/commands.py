"""Time whole commands from start to exit: a sweep against a plain loop, and one pass against two sweeps.

    python benchmarks/commands.py photographs/ --json benchmarks/results/commands.json
    python benchmarks/tables.py

The plain loop is the script that a user would write without actstats: a DataLoader with as many workers and the eager
forward pass in channels_last memory, without statistics. Two networks in one pass (`--also`) are compared with two
commands at 64 pixels (the embedded pair) and at 224, and so are clean and noisy images (`--changed`), whose maps are
compared besides. The commands of a comparison alternate, after a first round that
is not counted. The images have to be JPEGs in folders of classes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memory import measure
from peers import keep, machine

LOOP = """
import sys, torch, torchvision
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import ImageFolder

folder, arch, limit, workers = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
images = ImageFolder(folder, torchvision.models.get_model_weights(arch).DEFAULT.transforms())
images = Subset(images, range(min(limit, len(images))))
options = {"init_weights": False} if arch == "googlenet" else {}  # that would take longer than the loop
model = torchvision.models.get_model(arch, **options).eval().to(memory_format=torch.channels_last)
with torch.inference_mode():
    for batch, _ in DataLoader(images, batch_size=32, num_workers=workers):
        model(batch.to(memory_format=torch.channels_last))
"""

Way = tuple[str, list[list[str]]]
"""What is run, in words, and its commands; {folder} is a folder of their own."""


def comparisons(data: Path, arch: str, limit: int) -> list[tuple[Way, Way]]:
    """Return pairs of a way and what it is compared with."""
    images = ["--data", str(data), "--limit", str(limit)]
    workers = min(8, os.cpu_count() or 1)
    script = [sys.executable, "-c", LOOP, str(data), arch, str(limit), str(workers)]
    plain = f"a DataLoader and eager {arch}, no statistics", [script]
    found = []
    for options in ([], ["--compile", "on"]):
        swept = sweep("--arch", arch, "--weights", "none", *images, *options)
        found.append(((f"sweep of {arch}{' (--compile on)' if options else ''}", [swept]), plain))
    pairs = {
        64: (["--weights", "demo"], ["--weights", "demo", "--robust"]),
        224: (["--weights", "none"], ["--weights", "none", "--seed", "1"]),
    }
    for side, (one, two) in pairs.items():
        common = ["--arch", "googlenet", *images]
        together = sweep(*common, *one, "--also", " ".join([*two, "--out", "{folder}/also.zarr"]))
        apart = [sweep(*common, *one), sweep(*common, *two)]
        found.append(((f"two GoogLeNets in one pass, {side} pixels", [together]), ("two sweeps", apart)))
        changed = sweep(*common, *one, "--changed", "noise:0.1={folder}/noisy.zarr")
        apart = [sweep(*common, *one), sweep(*common, *one, "--distort", "noise:0.1")]
        found.append(
            ((f"clean and noisy images in one pass, {side} pixels", [changed]), ("two sweeps", apart))
        )
    return found


def sweep(*options: str) -> list[str]:
    """Return the command of a sweep."""
    return ["actstats", "sweep", *options, "--out", "{folder}/s.zarr"]


def compare(way: Way, base: Way, rounds: int) -> dict[str, Any]:
    """Run two ways in turn; return their median times and the ratios of times and of CPU times."""
    taken = [(run(way[1]), run(base[1])) for _ in range(rounds + 1)][1:]
    ratios, cpu_ratios = ([one[kind] / two[kind] for one, two in taken] for kind in (0, 1))
    return {
        "way": way[0],
        "base": base[0],
        "ratio": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
        "cpu_ratio": statistics.median(cpu_ratios),
        "seconds": statistics.median(one[0] for one, _ in taken),
        "base_seconds": statistics.median(two[0] for _, two in taken),
    }


def run(commands: Sequence[Sequence[str]]) -> tuple[float, float]:
    """Run commands one after the other; return their seconds and CPU seconds."""
    seconds = busy = 0.0
    for command in commands:
        with tempfile.TemporaryDirectory() as folder:
            took, _, spent = measure([word.replace("{folder}", folder) for word in command])
        seconds, busy = seconds + took, busy + spent
    return seconds, busy


def main() -> None:
    """Run all comparisons."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--arch", default="googlenet")
    parser.add_argument("--limit", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    results: dict[str, Any] = {
        "images": given.limit,
        "rounds": given.rounds,
        **machine(),
        "comparisons": [],
    }
    for way, base in comparisons(given.data, given.arch, given.limit):
        found = compare(way, base, given.rounds)
        print(json.dumps(found), flush=True)
        results["comparisons"].append(found)
        keep(results, given.json)


if __name__ == "__main__":
    main()
