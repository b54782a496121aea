"""A dask cluster of real processes over TCP, and the trial in which they are killed."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import shlex
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tests.conftest import SmallNet, files_of, photograph

# A fork server that has everything imported: a process of its own for each worker, in milliseconds.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [
        "distributed", "torchvision", "torch._dynamo", "actstats_kernels.cpu.fused", "actstats.sweeping.run",
        "actstats.sweeping.cluster", "actstats.sweeping.tasks",
        "actstats.data.opening", "actstats.store.description", "actstats_cli.main",
        "actstats_cli.sweep", "tests.conftest",
    ]
)  # fmt: skip
FACTORY = f"{__name__}:fragile_net"
SWEEP = f"sweep --arch {FACTORY} --batch-size 1 --partition-size 2 --top-k 3 --device cpu --workers 1"


class FragileNet(SmallNet):
    """Takes its time where SLOWLY is set, and where DARK is, fails ("raise") or dies ("die") at a black image.

    Where BORN_TO_DIE is set, it kills its process before it sees any image.
    """

    def __init__(self) -> None:
        super().__init__()
        if "BORN_TO_DIE" in os.environ:
            os.kill(os.getpid(), signal.SIGKILL)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(float(os.environ.get("SLOWLY", 0)))
        if (x.flatten(2).std(-1) == 0).any() and (fate := os.environ.get("DARK")):
            if fate == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("it is too dark")
        return super().forward(x)


def fragile_net() -> tuple[torch.nn.Module, Any]:
    from actstats.data.preprocessing import Preprocessing

    return FragileNet(), Preprocessing.imagenet(size=32, resize=36)


def command(line: str, folder: Path, **options: Any) -> int:
    """Run `actstats` in a process of its own, on one thread; return its exit status, and leave `out` and `err`."""
    process = start_command(line, folder, **options)
    process.join()
    return process.exitcode


def start_command(line: str, folder: Path, patience: float | None = None, **environment: str) -> Any:
    """Start `actstats`; `patience` is that of dask's configuration."""
    process = PROCESSES.Process(target=_command, args=(line, folder, patience, environment))
    process.start()
    return process


def _command(line: str, folder: Path, patience: float | None, environment: dict[str, str]) -> None:
    import dask

    os.environ.update(environment)
    if patience is not None:
        os.environ["DASK_ACTSTATS__PATIENCE"] = str(patience)
    dask.config.refresh()
    os.chdir(folder)
    for name, descriptor in (("out", 1), ("err", 2)):
        with Path(name).open("wb") as file:
            os.dup2(file.fileno(), descriptor)
    torch.set_num_threads(1)
    from actstats_cli.main import main

    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["actstats", *shlex.split(line)]
    main()


def _serve_scheduler(port: int, options: dict[str, Any]) -> None:
    from distributed import Scheduler

    async def serve() -> None:
        async with Scheduler(
            **{"port": port, "dashboard": False, "host": "127.0.0.1", **options}
        ) as scheduler:
            await scheduler.finished()

    asyncio.run(serve())


def _serve_worker(address: str, folder: Path, environment: dict[str, str], options: dict[str, Any]) -> None:
    os.environ.update(environment)
    os.chdir(folder)
    if path := environment.get("FIRST_ON_PATH"):
        sys.path.insert(0, path)
    if "WITHOUT_ACTSTATS" in environment:
        for name in [name for name in sys.modules if name.partition(".")[0] == "actstats"]:
            del sys.modules[name]
        sys.modules["actstats"] = None  # type: ignore[assignment] # so it cannot be imported
    from distributed import Worker

    async def serve() -> None:
        async with Worker(address, **{"nthreads": 1, "memory_limit": None, **options}) as worker:
            if "FLEETING" in environment:
                os._exit(1)
            await worker.finished()

    asyncio.run(serve())


class LiveCluster:
    """A scheduler and workers, each a process on loopback."""

    def __init__(self, folder: Path, security: Any = None, **options: Any) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.address = f"{'tls' if security else 'tcp'}://127.0.0.1:{self._port}"
        self._security = {"security": security} if security else {}
        self._options = {**self._security, **options}
        self._folder = folder
        self.workers: list[Any] = []
        self.scheduler: Any = None
        self.start_scheduler()

    def start_scheduler(self) -> None:
        self.scheduler = PROCESSES.Process(target=_serve_scheduler, args=(self._port, self._options))
        self.scheduler.start()

    def add(
        self, number: int = 1, *, folder: Path | None = None, options: Any = None, **environment: str
    ) -> None:
        """Start workers; what they are is not waited for."""
        for _ in range(number):
            arguments = (
                self.address,
                folder or self._folder,
                environment,
                {**self._security, **(options or {})},
            )
            process = PROCESSES.Process(target=_serve_worker, args=arguments)
            process.start()
            self.workers.append(process)

    def wait(self) -> None:
        """Return once all workers that were started have joined."""
        import distributed

        with distributed.Client(self.address, set_as_default=False, **self._security) as client:
            client.wait_for_workers(len(self.workers), timeout=120)

    def kill(self, index: int) -> None:
        """SIGKILL a worker and forget it."""
        process = self.workers.pop(index)
        process.kill()
        process.join()

    def kill_scheduler(self) -> None:
        self.scheduler.kill()
        self.scheduler.join()

    def replace_the_dead(self, **environment: str) -> int:
        """Start a worker for each that has died; return how many those were."""
        alive = [process for process in self.workers if process.is_alive()]
        dead, self.workers = len(self.workers) - len(alive), alive
        self.add(dead, **environment)
        return dead

    def close(self) -> None:
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.join()


@contextmanager
def live_cluster(folder: Path, security: Any = None, **options: Any) -> Iterator[LiveCluster]:
    """A cluster with a scheduler of these `options`, encrypted if there is a `security`."""
    cluster = LiveCluster(folder, security, **options)
    try:
        yield cluster
    finally:
        cluster.close()


def make_images(folder: Path, number: int) -> Path:
    """A folder of images that differ."""
    for index in range(number):
        path = folder / ("cat", "dog")[index % 2] / f"{index:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph(index, (40, 40)).save(path)
    return folder


def trial(
    folder: Path,
    seed: int,
    *,
    workers: int,
    partitions: int,
    every: tuple[float, float],
    say: Callable[[str], Any],
) -> None:
    """Sweep on a cluster while its workers are killed and replaced, and once the scheduler; fail unless the store is
    the one of an undisturbed process.

    `every`: seconds between two kills, drawn between these.
    """
    draw = random.Random(seed)
    make_images(folder / "photographs", 2 * partitions)
    sweep = f"{SWEEP} --data {folder / 'photographs'}"
    if not (folder / "whole.zarr").exists():
        assert command(f"{sweep} --out whole.zarr", folder) == 0
    slowly = {"SLOWLY": "0.1"}
    killed = times = before = 0
    with live_cluster(folder) as cluster:
        cluster.add(workers, **slowly)
        on_cluster = f"{sweep} --out killed.zarr --scheduler {cluster.address}"
        process = start_command(on_cluster, folder)
        scheduler_dies = partitions * draw.uniform(0.2, 0.8)
        while True:
            process.join(draw.uniform(*every))
            if process.exitcode is not None:
                times += 1
                if process.exitcode == 0:
                    break
                say(f"the command ended with: {(folder / 'err').read_text().splitlines()[-1]}")
                assert times < 50, "it never ends well"
                process = start_command(on_cluster, folder)
            complete = len(list((folder / "killed.zarr" / "completed").glob("c.*")))
            if scheduler_dies and complete >= scheduler_dies:
                say(f"the scheduler dies at {complete} of {partitions} partitions")
                scheduler_dies = 0
                cluster.kill_scheduler()
                cluster.start_scheduler()
            elif complete > before:  # on a slow machine a new worker needs its time
                before = complete
                cluster.kill(draw.randrange(len(cluster.workers)))
                cluster.add(1, **slowly)
                killed += 1
            cluster.replace_the_dead(**slowly)
    assert files_of(folder / "killed.zarr") == files_of(folder / "whole.zarr")
    say(f"{killed} workers killed, the command run {times} times, every byte equal")
