"""Sweep on a dask cluster on this machine: kill its workers, and measure the overhead of the cluster.

    python benchmarks/cluster.py trial --repetitions 20       # 4 workers, 40 partitions, SIGKILL every few seconds
    python benchmarks/cluster.py overhead                     # milliseconds per partition besides computation
    python benchmarks/cluster.py scheduler                    # 64 workers, 1,251 partitions: CPU of the scheduler
    python benchmarks/cluster.py speed --data photographs/    # two workers of one core against one process of two

Each prints lines of JSON, which `benchmarks/tables.py` reads from benchmarks/results/cluster.jsonl. `trial` fails if
a store differs from that of an undisturbed process in any byte; use the seed that it prints to repeat the same kills.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # the same cluster of processes as in the tests

from peers import machine

from tests.cluster import FACTORY, PROCESSES, live_cluster, make_images, trial


def main() -> None:
    """Run the chosen benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    kinds = parser.add_subparsers(dest="what", required=True)
    trials = kinds.add_parser("trial")
    trials.add_argument("--repetitions", type=int, default=20)
    trials.add_argument("--workers", type=int, default=4)
    trials.add_argument("--partitions", type=int, default=40)
    trials.add_argument(
        "--every", type=float, nargs=2, default=(1.0, 3.0), metavar="S", help="seconds between kills"
    )
    trials.add_argument("--seed", type=int, default=None)
    overheads = kinds.add_parser("overhead")
    overheads.add_argument("--partitions", type=int, default=100)
    schedulers = kinds.add_parser("scheduler")
    schedulers.add_argument("--workers", type=int, default=64)
    schedulers.add_argument("--partitions", type=int, default=1251)
    schedulers.add_argument("--seconds", type=float, default=1.0, help="duration of a partition")
    speeds = kinds.add_parser("speed")
    speeds.add_argument("--data", required=True)
    speeds.add_argument("--arch", default="googlenet")
    speeds.add_argument("--limit", type=int, default=1500)
    speeds.add_argument("--rounds", type=int, default=2)
    given = vars(parser.parse_args())
    {"trial": trials_of, "overhead": overhead, "scheduler": scheduler, "speed": speed}[given.pop("what")](
        **given
    )


def tell(what: str, **found: Any) -> None:
    """Print a result as a line of JSON, with the machine."""
    print(json.dumps({"what": what, **found, **machine()}), flush=True)


def trials_of(
    repetitions: int, workers: int, partitions: int, every: tuple[float, float], seed: int | None
) -> None:
    """Kill workers, and once the scheduler, in repeated trials."""
    first = seed if seed is not None else random.SystemRandom().randrange(2**32)
    with tempfile.TemporaryDirectory() as name:
        for number in range(repetitions):
            folder = Path(name)
            shutil.rmtree(folder / "killed.zarr", ignore_errors=True)
            begun = time.perf_counter()
            said: list[str] = []
            trial(
                folder,
                first + number,
                workers=workers,
                partitions=partitions,
                every=tuple(every),
                say=said.append,
            )
            found = {
                "repetition": number,
                "seed": first + number,
                "seconds": round(time.perf_counter() - begun, 1),
                "said": said,
            }
            tell("trial", **found)


def overhead(partitions: int) -> None:
    """Sweep many tiny partitions in this process and on one worker, and print the difference per partition."""
    import distributed
    import torch

    import actstats

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, live_cluster(Path(name)) as cluster:
        cluster.add(1)
        images = make_images(Path(name) / "photographs", partitions)
        client = distributed.Client(cluster.address, set_as_default=False)
        taken: dict[str, float] = {}
        with client:
            for where, run in (
                ("warm-up", {}),
                ("alone", {}),
                ("warm-up", {"client": client}),
                ("cluster", {"client": client}),
            ):
                plan = actstats.plan(
                    FACTORY, images, Path(name) / f"{len(taken)}-{where}.zarr",
                    batch_size=1, partition_size=1, device="cpu",
                    limit=min(3, partitions) if where == "warm-up" else None,
                )  # fmt: skip
                taken[where] = plan.run(workers=1, overwrite=True, **run).progress.seconds
    each = {where: 1000 * taken[where] / partitions for where in ("alone", "cluster")}
    tell(
        "overhead",
        ms_alone=each["alone"],
        ms_cluster=each["cluster"],
        ms_overhead=each["cluster"] - each["alone"],
    )


def scheduler(workers: int, partitions: int, seconds: float) -> None:
    """Let many workers wait instead of computing, and print the scheduler's CPU time per partition."""
    import distributed

    import actstats
    from actstats.store import Store
    from actstats.sweeping import cluster as module
    from actstats.sweeping.progress import Run
    from actstats.sweeping.settings import Execution

    with tempfile.TemporaryDirectory() as name, live_cluster(Path(name)) as cluster:
        images = make_images(Path(name) / "photographs", 8)
        plan = actstats.plan(
            FACTORY, images, Path(name) / "s.zarr", batch_size=1, partition_size=1, device="cpu"
        )
        # Workers share a process, as the network costs nothing; the scheduler has its own.
        crowd = PROCESSES.Process(target=_crowd, args=(cluster.address, workers, seconds))
        crowd.start()
        with distributed.Client(cluster.address, set_as_default=False) as client:
            client.wait_for_workers(workers)
            module.prepare, module.compute = _prepare_nothing, _compute_nothing
            store = Store.open_or_create(
                plan.store, plan.manifest.json, plan.schema, plan.images().paths, plan.images().labels
            )
            data = dataclasses.replace(store.manifest.data, images=partitions)
            store.manifest = dataclasses.replace(store.manifest, data=data)
            swept = module.Cluster([plan], [None], Execution(client=client))
            swept.prepare()
            before, begun = _cpu_of(cluster.scheduler.pid), time.perf_counter()
            own = time.process_time()
            swept.run_partitions({0: Run(store, plan.schema, list(range(partitions)), max_failed=0.5)})
            taken = time.perf_counter() - begun
            used = _cpu_of(cluster.scheduler.pid) - before
            own = time.process_time() - own
        crowd.kill()
        crowd.join()
    ideal = partitions * seconds / workers
    tell(
        "scheduler", workers=workers, partitions=partitions, seconds=taken, seconds_ideal=ideal,
        scheduler_ms=1000 * used / partitions, client_ms=1000 * own / partitions,
        scheduler_cores=used / taken, scheduler_cores_at_ideal_speed=used / ideal,
    )  # fmt: skip


def _prepare_nothing(task: Any, stored: Any) -> Any:
    from actstats.sweeping.tasks import Readiness

    return Readiness(machine="any")


def _compute_nothing(task: Any, index: int, wanted: Any) -> Any:
    import distributed

    from actstats.sweeping.tasks import PartitionOutcome

    worker = distributed.get_worker()
    worker.log_event(task.topic, {"worker": worker.address, "partition": index})
    seconds = float(os.environ["SECONDS"])
    time.sleep(seconds)
    return PartitionOutcome(worker.address, 1, seconds)


def _crowd(address: str, number: int, seconds: float) -> None:
    from distributed import Worker

    os.environ["SECONDS"] = str(seconds)

    async def serve() -> None:
        workers = [await Worker(address, nthreads=1, memory_limit=None) for _ in range(number)]
        await asyncio.gather(*(worker.finished() for worker in workers))

    asyncio.run(serve())


def _cpu_of(process: int) -> float:
    """Return the CPU time that a process has used, in seconds."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def speed(data: str, arch: str, limit: int, rounds: int) -> None:
    """Time one process with two cores and two workers with one core alternately, excluding their start."""
    command = [
        "actstats", "sweep", "--arch", arch, "--weights", "none", "--data", data, "--limit", str(limit),
        "--partition-size", "32", "--device", "cpu", "--json", "--out",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        for number in range(rounds):
            found: dict[str, Any] = {"round": number, "images": limit}
            for where, options in (("process", []), ("workers", ["--scheduler", "local:1"])):
                before = resource.getrusage(resource.RUSAGE_CHILDREN)
                done = subprocess.run(
                    [*command, f"{name}/{number}-{where}.zarr", *options], capture_output=True, check=True
                )
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                found[where] = json.loads(done.stdout)["run"]["seconds"]
                found[f"{where}_cpu"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            tell("speed", **found, ratio=found["workers"] / found["process"])


if __name__ == "__main__":
    main()
