"""Compare tools for computing statistics of every unit of a network, relative to the bare forward pass.

    pip install h5py
    git clone https://github.com/davidbau/baukit            # not on PyPI
    PYTHONPATH=baukit python benchmarks/peers.py --json benchmarks/results/peers.json
    python benchmarks/tables.py

Each way runs in its own process. Every round times the bare eager forward pass of a batch and then the way on the
same batch, so that a ratio compares measurements taken right after each other. The reported ratio is that of the
minimum times, with the lowest and the highest ratio of a round. The ratio of CPU seconds, over all threads, depends
less on other load on the machine. If the package of a way is not installed, the way is named and skipped.

A sweep reuses the memory of activations from batch to batch (`memory_reused`), so the ways of actstats do as well:
each round runs them twice and times the second. `bare_reusing` shows what this alone saves.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from memory import peak_of_this_process
from plain_torch import plain_moments, plain_statistics
from torch import Tensor

from actstats.layers import Layer, select_layers, watch
from actstats.layers.passes import to_channels_last
from actstats.metrics import DEFAULT, resolve_metrics
from actstats.models import Loaded, load_model
from actstats.passes.device import memory_reused
from actstats.passes.network import Network
from actstats.store import Schema
from actstats.sweeping.buffers import Buffers, Partition, PartitionLayout

PARTITION = 1024


class Bench:
    """A network, a batch, and what a way reports besides its time."""

    def __init__(self, arch: str, batch: int) -> None:
        self.loaded: Loaded = load_model(arch, "none")
        self.loaded.model.eval()
        to_channels_last(self.loaded.model)
        images = torch.rand(batch, *self.loaded.preprocessing.shape)
        self.images = images.contiguous(memory_format=torch.channels_last)
        self.layers: list[Layer] = select_layers(self.loaded.model, self.images[:2])
        self.disk = 0.0
        """Bytes on disk for each image."""
        self.reusing = False
        """Whether the way runs in `memory_reused`."""

    def bare(self) -> None:
        """Run the bare forward pass, the denominator of every ratio."""
        self.loaded.model(self.images)

    def hooked(self, callback: Callable[[int, Tensor], object]) -> None:
        """Run it with a hook on each layer."""
        with watch(self.loaded.model, self.layers, lambda layer, maps: (callback(layer, maps), None)[1]):
            self.loaded.model(self.images)


Round = Callable[[], object]


def bare_compiled(bench: Bench) -> Round:
    """No statistics, compiled with frozen weights."""
    graph = torch.compile(bench.loaded.model, dynamic=False, options={"freezing": True})
    return lambda: graph(bench.images)


def bare_reusing(bench: Bench) -> Round:
    """No statistics, with memory reused."""
    bench.reusing = True
    return bench.bare


def authors(bench: Bench) -> Round:
    """Total variation, of activations copied to NumPy, in a loop over maps."""
    found = []

    def total_variation(_: int, maps: Tensor) -> None:
        found.extend(
            np.abs(np.diff(one, axis=0)).sum() + np.abs(np.diff(one, axis=1)).sum()
            for image in maps.cpu().numpy()
            for one in image
        )

    def run() -> None:
        found.clear()
        bench.hooked(total_variation)

    return run


def hooks_moments(bench: Bench) -> Round:
    """Mean, variance, maximum, active share, total variation, in plain torch."""
    return lambda: bench.hooked(lambda _, maps: plain_moments(maps))


def hooks_everything(bench: Bench) -> Round:
    """Mean, variance, maximum, active share, total variation, histogram and spectrum, in plain torch."""
    return lambda: bench.hooked(lambda _, maps: plain_statistics(maps, spectrum_and_bins=True))


def _baukit(bench: Bench, *names: str) -> Round:
    from baukit import runningstats

    made = [[getattr(runningstats, name)() for name in names] for _ in bench.layers]

    def add(layer: int, maps: Tensor) -> None:
        values = maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])
        greatest = maps.amax((2, 3))
        for name, stat in zip(names, made[layer], strict=True):
            stat.add(greatest if name == "TopK" else values)

    return lambda: bench.hooked(add)


def baukit_variance(bench: Bench) -> Round:
    """Mean and variance over all positions, and top images, with baukit."""
    return _baukit(bench, "Variance", "TopK")


def baukit_quantile(bench: Bench) -> Round:
    """Mean, variance and quantiles over all positions, and top images, with baukit."""
    return _baukit(bench, "Variance", "TopK", "Quantile")


def hdf5(bench: Bench) -> Round:
    """All activations written to an HDF5 file; then mean, variance, maximum, active share, total variation of it."""
    import h5py

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "activations.h5")
            with h5py.File(path, "w") as file:
                bench.hooked(lambda layer, maps: file.create_dataset(str(layer), data=maps.numpy()))
            with h5py.File(path) as file:
                for layer in file:
                    plain_moments(torch.from_numpy(file[layer][...]))
            bench.disk = path.stat().st_size / len(bench.images)

    return run


def _actstats(bench: Bench, *, compiled: bool = False, amp: str = "off") -> Round:
    chosen = resolve_metrics(DEFAULT)
    schema = Schema.of(chosen, bench.layers, PARTITION, partition_size=PARTITION, top_k=16)
    layout = PartitionLayout(schema, chosen, torch.device("cpu"))
    buffers = Buffers(layout)
    network = Network(bench.loaded.model, bench.layers, layout.device, amp)
    if compiled:
        network.compile(bench.images)
    rows = np.arange(len(bench.images))
    bench.disk = schema.bytes() / PARTITION
    bench.reusing = True

    def run() -> None:
        partition = Partition(layout, buffers, 0)
        partition.begin_batch(rows)
        network(bench.images, partition.update)
        partition.finish()

    return run


def actstats_eager(bench: Bench) -> Round:
    """All statistics, with actstats."""
    return _actstats(bench)


def actstats_compiled(bench: Bench) -> Round:
    """All statistics, with actstats, compiled."""
    return _actstats(bench, compiled=True)


def actstats_bf16(bench: Bench) -> Round:
    """All statistics, with actstats, in bf16."""
    return _actstats(bench, amp="bf16")


def actstats_compiled_bf16(bench: Bench) -> Round:
    """All statistics, with actstats, compiled, in bf16."""
    return _actstats(bench, compiled=True, amp="bf16")


WAYS: dict[str, Callable[[Bench], Round]] = {
    way.__name__: way
    for way in (
        bare_reusing,
        bare_compiled,
        actstats_eager,
        actstats_compiled,
        actstats_bf16,
        actstats_compiled_bf16,
        hooks_moments,
        hooks_everything,
        baukit_variance,
        baukit_quantile,
        authors,
        hdf5,
    )
}


def timed(run: Round) -> tuple[float, float]:
    """Return the wall and the CPU seconds of one round."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def measure(way: str, arch: str, batch: int, rounds: int) -> dict[str, Any]:
    """Time a way in this process."""
    with torch.inference_mode():
        bench = Bench(arch, batch)
        begun = time.perf_counter()
        try:
            run = WAYS[way](bench)
        except ImportError as error:
            return {"way": way, "missing": str(error.name)}
        bench.bare()
        run()
        first = time.perf_counter() - begun
        pairs = []
        for _ in range(rounds):
            bare = timed(bench.bare)
            with memory_reused() if bench.reusing else contextlib.nullcontext():
                if bench.reusing:
                    run()  # the first batch of a sweep still needs new memory
                pairs.append((bare, timed(run)))
    ratios = [other[0] / bare[0] for bare, other in pairs]
    least = [[min(side[kind] for side in sides) for sides in zip(*pairs, strict=True)] for kind in (0, 1)]
    return {
        "way": way,
        "what": (WAYS[way].__doc__ or "").strip().rstrip("."),
        "ratio": least[0][1] / least[0][0],
        "lowest": min(ratios),
        "highest": max(ratios),
        "cpu_ratio": least[1][1] / least[1][0],
        "cpu_ratio_median": statistics.median(other[1] / bare[1] for bare, other in pairs),
        "bare_seconds": least[0][0],
        "first_seconds": first,
        "peak_mib": peak_of_this_process() / 2**20,
        "disk_bytes_an_image": bench.disk,
        "rounds": rounds,
    }


def in_processes(ways: list[str], options: list[str]) -> Iterator[dict[str, Any]]:
    """Measure each way in its own process."""
    for way in ways:
        command = [sys.executable, __file__, "--way", way, *options]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            print(f"{way} failed with status {done.returncode}", file=sys.stderr)
        else:
            yield json.loads(done.stdout.splitlines()[-1])


def processor() -> str:
    """Return the processor's name and its relevant vector instructions."""
    with contextlib.suppress(OSError):
        told = Path("/proc/cpuinfo").read_text()
        name = next(line.partition(": ")[2] for line in told.splitlines() if line.startswith("model name"))
        flags = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f" {flag}" in told]
        return f"{name} ({', '.join(flags)})"
    return platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """Return the processor, the number of threads, the version of torch and the date, for a file of results."""
    return {
        "threads": torch.get_num_threads(),
        "processor": processor(),
        "torch": torch.__version__,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def keep(results: dict[str, Any], file: Path | None) -> None:
    """Write results as JSON if a file is given, replacing it."""
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(results, indent=1) + "\n")


def main() -> None:
    """Measure; print the results or save them as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", default="googlenet")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--json", type=Path, help="file for the results, replaced if it exists")
    parser.add_argument(
        "--shared", action="store_true", help="record that other processes ran on the machine"
    )
    parser.add_argument("--way", choices=list(WAYS), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        print(json.dumps(measure(given.way, given.arch, given.batch, given.rounds)))
        return
    options = ["--arch", given.arch, "--batch", str(given.batch), "--rounds", str(given.rounds)]
    results: dict[str, Any] = {
        "arch": given.arch,
        "batch": given.batch,
        "shared": given.shared,
        **machine(),
        "ways": [],
    }
    for result in in_processes(given.ways, options):
        print(json.dumps(result), flush=True)
        results["ways"].append(result)
        keep(results, given.json)


if __name__ == "__main__":
    main()
