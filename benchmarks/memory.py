"""Measure peak memory and store size of a whole sweep over 500 and over 5,000 images.

    python benchmarks/memory.py --arch googlenet --images 500 5000

Runs the real command as a child process on generated JPEGs and prints a line of JSON for each number of images: the
peak resident set size reported by the kernel, seconds, and bytes on disk. Two partitions are in memory at a time (one
is computed, one is written), so each sweep must have at least two: hence the partition size of 250.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image


def make_photographs(folder: Path, count: int, distinct: int = 100) -> None:
    """Write `count` JPEGs of 500 x 375 pixels with smooth colours and texture, `distinct` of them different."""
    rng = np.random.default_rng(0)
    blobs = []
    for index in range(min(distinct, count)):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(
            (500, 375), Image.Resampling.BICUBIC
        )
        textured = np.clip(np.asarray(coarse, dtype=np.float32) + rng.normal(0, 15, (375, 500, 3)), 0, 255)
        path = folder / f"{index:06}.jpg"
        Image.fromarray(textured.astype(np.uint8)).save(path, quality=90)
        blobs.append(path.read_bytes())
    for index in range(len(blobs), count):
        (folder / f"{index:06}.jpg").write_bytes(blobs[index % len(blobs)])


# A small process starts the command: a process counts the peak of the one that started it as its own.
LAUNCH = """
import os, subprocess, sys, time
begun = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(time.perf_counter() - begun, usage.ru_maxrss, usage.ru_utime + usage.ru_stime, status)
"""


def measure(command: list[str]) -> tuple[float, int, float]:
    """Run a command; return its seconds, its peak resident set size in bytes, and its seconds of processor time."""
    launched = subprocess.run([sys.executable, "-c", LAUNCH, *command], stdout=subprocess.PIPE, check=True)
    seconds, peak, processor, status = map(float, launched.stdout.split())
    if status:
        sys.exit(f"{' '.join(command)} failed with status {status:.0f}")
    return seconds, int(peak) * (1 if sys.platform == "darwin" else 1024), processor


def measure_on_cluster(command: list[str], workers: int) -> tuple[float, int, list[int]]:
    """Run a command on a new cluster of processes with one thread each.

    Returns:
        Its seconds, and the peak resident set sizes in bytes of its own process and of those of the workers.
    """
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=workers, threads_per_worker=1, memory_limit=None, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        seconds, peak, _ = measure([*command, "--scheduler", cluster.scheduler_address])
        peaks = client.run(peak_of_this_process)
    return seconds, peak, list(peaks.values())


def peak_of_this_process() -> int:
    """Return the peak resident set size so far in bytes, on Linux without that of the process that began it."""
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", default="googlenet")
    parser.add_argument("--images", type=int, nargs="+", default=[500, 5000])
    parser.add_argument("--partition-size", type=int, default=250)
    arguments = parser.parse_args()
    peaks = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "images")
        folder.mkdir()
        make_photographs(folder, max(arguments.images))
        for images in arguments.images:
            store = Path(scratch, f"{images}.zarr")
            seconds, peak, _ = measure(
                [
                    "actstats", "sweep", "--arch", arguments.arch, "--weights", "none", "--data", str(folder),
                    "--out", str(store), "--limit", str(images), "--partition-size", str(arguments.partition_size),
                ]
            )  # fmt: skip
            size = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
            peaks.append(peak)
            print(
                json.dumps(
                    {
                        "arch": arguments.arch,
                        "images": images,
                        "partition_size": arguments.partition_size,
                        "peak_mib": round(peak / 2**20, 1),
                        "seconds": round(seconds, 1),
                        "store_bytes_an_image": round(size / images),
                    }
                ),
                flush=True,
            )
    print(json.dumps({"peak_ratio": round(peaks[-1] / peaks[0], 3)}))


if __name__ == "__main__":
    main()
