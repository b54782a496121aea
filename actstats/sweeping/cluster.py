"""Sweep on a dask cluster: each partition is a task of `dask.distributed`.

The client keeps about two partitions per worker in flight. A worker opens network and images once, computes each
partition with `run_partitions`, writes it to the store itself and returns a short summary. What is complete is
recorded in the store only, so after any failure the same command resumes the sweep:

    with connect("tcp://host:8786") as client:
        plan.run(client=client)
"""

from __future__ import annotations

import copy
import logging
import os
import pickle
import socket
import threading
import time
import uuid
import weakref
import zlib
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from actstats.errors import ActstatsError, StrictError
from actstats.store import Store
from actstats.store import manifest as manifests
from actstats.support import URL, require_package
from actstats.sweeping.progress import Progress
from actstats.sweeping.settings import Execution

if TYPE_CHECKING:
    from distributed import Client, Future

    from actstats.data import Source
    from actstats.sweeping.run import Job

LOCAL: Final = "local"
"""Name of a cluster on this machine, used instead of an address."""
IN_FLIGHT: Final = 2
"""Partitions per worker: while one is computed, another reads its first images or is being written."""
TRIES: Final = 3
"""Errors after which a partition is set aside, and failures in a row after which a worker is excluded."""
DEATHS: Final = 5
"""Worker deaths after which a partition is set aside; more than `TRIES`, as most have other causes."""
HOPELESS: Final = 5
"""Partitions set aside in a row, with none completed in between, after which the sweep stops."""
_TICK: Final = 1.0
"""Seconds between checks of which workers are present."""
_CORES: Final = 4
"""Default number of cores per worker of a local cluster."""


class _Plan(Protocol):
    """The part of `SweepPlan` that workers use. Plans are pickled as references to network and images."""

    manifest: dict[str, Any]
    store: Path | URL

    def images(self) -> Source: ...

    def job(self) -> Job: ...


# Connecting.


@contextmanager
def connect(scheduler: str, device: str = "cpu") -> Iterator[Client]:
    """Yield a client of the dask scheduler at the address `scheduler`.

    "local" starts a cluster on this machine for the duration of the context, with one worker per GPU. Without GPUs,
    or if `device` is "cpu", it has one worker per four cores, or per two with "local:2".

    Raises:
        ActstatsError: no scheduler answers, the address is invalid, or `distributed` is not installed.
    """
    distributed = require_package("distributed", "a cluster")
    name, _, cores = scheduler.partition(":")
    if name != LOCAL:
        try:
            # As the default client, one that fails to connect would block later dask computations.
            client = distributed.Client(scheduler, timeout=10, set_as_default=False)
        except (OSError, ValueError, ImportError) as error:
            raise ActstatsError(f"no dask scheduler answers at {scheduler}: {error}") from error
        with client:
            yield client
        return
    if cores and not (cores.isdecimal() and int(cores)):
        raise ActstatsError(f"invalid scheduler {scheduler!r}; give local or local:CORES, such as local:4")
    with (
        _local_cluster(distributed, int(cores or _CORES), device) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        yield client


def _local_cluster(distributed: Any, cores: int, device: str) -> Any:
    """Return a cluster on this machine with one process per GPU, or per `cores` CPU cores."""
    import dask

    # Without an address, the scheduler's HTTP server would use port 8787, and warn if another cluster has it.
    served: dict[str, Any] = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    common = {**served, "memory_limit": None, "silence_logs": logging.CRITICAL}
    # A terminal sends Ctrl-C to workers, too. The client ends them; interrupted, they would print tracebacks.
    common["preload"] = ["import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"]
    workers = [
        {**common, "resources": {"GPU": 1}, "nthreads": IN_FLIGHT, "env": env} for env in _gpus(device)
    ]
    environment: dict[str, int] = {}
    if not workers:
        # With one arena, the activations in a worker's threads are in the memory that `memory_reused` keeps.
        environment = {"distributed.nanny.pre-spawn-environ.MALLOC_ARENA_MAX": 1}
        have = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        cores = min(cores, have)
        options = {**common, "nthreads": max(IN_FLIGHT, cores), "resources": {"CORES": cores}}
        workers = [options] * max(1, have // cores)
    with dask.config.set(environment):
        return distributed.SpecCluster(
            workers={i: {"cls": distributed.Nanny, "options": options} for i, options in enumerate(workers)},
            scheduler={
                "cls": distributed.Scheduler,
                "options": {**served, "port": 0, "dashboard": False},
            },
            silence_logs=logging.CRITICAL,
        )


def _gpus(device: str) -> list[dict[str, str]]:
    """Return, for each GPU of this machine, environment variables that hide the others."""
    if device == "cpu":
        return []
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    return [{"CUDA_VISIBLE_DEVICES": name} for name in names[: torch.cuda.device_count()]]


def device_of(execution: Execution, device: str) -> str:
    """Return the device of a cluster's workers, "cuda" or "cpu"; "auto" selects GPUs if any worker has one.

    Waits for the first worker.

    Raises:
        ActstatsError: `device` is "cuda", but no worker has a GPU, or it is not valid on a cluster.
    """
    if device == "cpu":
        return device
    if device not in ("auto", "cuda"):
        raise ActstatsError(
            f"device is {device!r}; on a cluster it must be auto, cpu or cuda, as each worker has one GPU"
        )
    gpus = any(_Workers(execution).wait().values())
    if device == "cuda" and not gpus:
        raise _no_gpu(execution.client)
    return "cuda" if gpus else "cpu"


def _no_gpu(client: Any) -> ActstatsError:
    return ActstatsError(
        f"no worker of {_address(client)} offers the resource GPU: start workers with --resources GPU=1, "
        "or use `device=cpu`"
    )


def _address(client: Any) -> str:
    return str(getattr(client.scheduler, "address", "the cluster"))


class _Workers:
    """Tracks the workers of a cluster, and whether each has a GPU."""

    def __init__(self, execution: Execution) -> None:
        self._client: Any = execution.client
        self._execution = execution
        self.gpus: dict[str, bool] = {}

    def look(self) -> set[str]:
        """Update the workers, and return those that have left since the last call.

        Raises:
            ActstatsError: the connection to the scheduler is lost.
        """
        self.require_scheduler()
        try:
            present = set(self._client.nthreads())
            gone = self.gpus.keys() - present
            if present - self.gpus.keys():
                told = self._client.scheduler_info(n_workers=-1)["workers"]
                self.gpus = {name: bool(told[name]["resources"].get("GPU")) for name in present & told.keys()}
            else:
                self.gpus = {name: gpu for name, gpu in self.gpus.items() if name in present}
        except OSError:
            raise self._lost() from None
        return set(gone)

    def wait(self) -> dict[str, bool]:
        """Wait for a first worker, and return all workers."""
        self.look()
        if not self.gpus:
            self.note(f"{_address(self._client)} has no workers; waiting for the first one")
        while not self.gpus:
            time.sleep(_TICK)
            self.look()
        return self.gpus

    def note(self, text: str) -> None:
        """Report `text` to the caller."""
        self._execution.note(text)

    def require_scheduler(self) -> None:
        """Raise `ActstatsError` if the connection to the scheduler is lost."""
        if self._client.status != "running":
            raise self._lost()

    def _lost(self) -> ActstatsError:
        return ActstatsError(
            f"lost the connection to the dask scheduler at {_address(self._client)}; completed partitions are kept: "
            "restart the scheduler and rerun the same command to resume"
        )


# Client.


class Cluster:
    """Computes a plan on the workers of a dask cluster."""

    def __init__(self, plan: _Plan, execution: Execution) -> None:
        """Use the cluster of `execution.client`.

        Raises:
            ActstatsError: another process cannot open the network, the images or a metric.
        """
        require_package("distributed", "a cluster")
        elsewhere = copy.copy(plan)
        if isinstance(elsewhere.store, Path):
            elsewhere.store = elsewhere.store.absolute()
        self._task = _Task(
            zlib.compress(pickle.dumps(elsewhere)),
            topic=f"actstats-{uuid.uuid4().hex}",
            workers=execution.workers,
            strict=execution.strict,
        )
        self._client: Any = execution.client
        self._gpu = plan.manifest["device"] == "cuda"
        self._workers = _Workers(execution)
        self._ready: set[str] = set()
        self._refused: dict[str, str] = {}
        self._preparing: dict[Future, str] = {}
        self._computing: dict[str, set[int]] = defaultdict(set)

    def prepare(self) -> None:
        """Make every worker open network and images, before a store is created; wait for a worker if there is none.

        Raises:
            ActstatsError: a worker is unsuitable: it has other package versions, no access to the images, or no GPU.
        """
        self._workers.wait()
        self._have_all_prepared(None)

    def run_partitions(
        self,
        store: Store,
        indices: Sequence[int],
        again: Sequence[int] = (),
        on_progress: Callable[[Progress], None] | None = None,
    ) -> tuple[Progress, dict[str, str], dict[int, str]]:
        """Compute the partitions `indices`, those in `again` even if they are complete.

        `on_progress` is called after each partition.

        Returns:
            The progress of the run, a dict from the path of each unreadable image to the reason, and a dict from the
            index of each partition that was set aside to its error.

        Raises:
            ActstatsError: any error that the user can fix, in one line. Completed partitions are kept.
            KeyboardInterrupt: on Ctrl-C. Workers may still complete the partitions that they are computing.
        """
        self._have_all_prepared(store.manifest)
        total = sum(stop - start for start, stop in map(store.bounds, indices))
        run = _Run(store, deque(indices), frozenset(again), total, on_progress)
        self._client.subscribe_topic(self._task.topic, self._note_begun)
        try:
            while run.waiting or run.flying:
                self._look(run)
                self._top_up(run)
                for future in self._settled(run.flying):
                    self._take(run, future)
                self._take_prepared()
        finally:
            if self._client.status == "running":
                with suppress(Exception):
                    self._client.unsubscribe_topic(self._task.topic)
                    self._client.cancel([*run.flying, *self._preparing])
        return self._progress(run), run.failures, dict(sorted(run.aside.items()))

    # Workers.

    def _have_all_prepared(self, manifest: Mapping[str, Any] | None) -> None:
        """Prepare all workers; raise an error if one is unsuitable."""
        self._ready, self._manifest = set(), manifest
        while not self._ready:
            self._workers.wait()
            self._prepare_new()
            if not self._preparing and not self._refused:
                raise _no_gpu(self._client)
            while self._preparing:
                for _ in self._settled(self._preparing):
                    pass
                self._take_prepared()
                self._workers.look()
            for name, reason in self._refused.items():
                more = f"; nor can {len(self._refused) - 1} more" if len(self._refused) > 1 else ""
                raise ActstatsError(f"worker {name} cannot run this sweep: {reason}{more}")

    def _prepare_new(self) -> None:
        known = self._ready | self._refused.keys() | set(self._preparing.values())
        for name, gpu in self._workers.gpus.items():
            if name not in known and (gpu or not self._gpu):
                future = self._client.submit(
                    _prepare, self._task, self._manifest, workers=[name], pure=False, key=_key("prepare")
                )
                self._preparing[future] = name

    def _take_prepared(self) -> None:
        for future, name in list(self._preparing.items()):
            if name not in self._workers.gpus:
                del self._preparing[future]
            elif future.status != "pending":
                del self._preparing[future]
                reason = _result(future)
                if reason is None:
                    self._ready.add(name)
                else:
                    self._refused[name] = str(reason)

    def _look(self, run: _Run) -> None:
        """Check, at most once per tick, which workers joined or left, and requeue the partitions of the latter."""
        self._workers.require_scheduler()
        if time.monotonic() - run.looked < _TICK:
            return
        refused = set(self._refused)
        for name in self._workers.look():
            self._ready.discard(name)
            self._refused.pop(name, None)
            for index in self._computing.pop(name, set()):
                self._note_death(run, index, name)
        self._prepare_new()
        self._take_prepared()
        for name in self._refused.keys() - refused:
            self._workers.note(f"excluding worker {name}: {self._refused[name]}")
        for future, (_, where) in list(run.flying.items()):
            if where.isdisjoint(self._workers.gpus):  # it could only run on workers that have left
                self._client.cancel([future])
                run.again_later(future)
        if not self._ready and not self._preparing:
            if self._refused:
                raise ActstatsError(
                    f"no usable worker is left: {next(iter(self._refused.values()))}; completed partitions "
                    "are kept: rerun the same command to resume"
                )
            if not run.alone:
                self._workers.note("no workers left; waiting for one to join")
        run.alone = not self._ready and not self._preparing
        run.looked = time.monotonic()

    def _note_begun(self, event: tuple[float, Mapping[str, Any]]) -> None:
        """Record which worker computes which partition; called in dask's event loop thread."""
        self._computing[event[1]["worker"]].add(event[1]["partition"])

    def _note_death(self, run: _Run, index: int, name: str) -> None:
        run.deaths[index] += 1
        if run.deaths[index] >= DEATHS:
            for future in [future for future, (flying, _) in run.flying.items() if flying == index]:
                self._client.cancel([future])
                del run.flying[future]
                self._set_aside(
                    run, index, f"{DEATHS} workers died while computing it, the last one was {name}"
                )

    # Partitions.

    def _top_up(self, run: _Run) -> None:
        while run.waiting and len(run.flying) < IN_FLIGHT * len(self._ready):
            index = run.waiting.popleft()
            where = self._ready - run.failed_at[index] or self._ready
            future = self._client.submit(
                _compute,
                self._task,
                index,
                index in run.again,
                workers=sorted(where),
                # The partitions in flight on a worker take turns on its GPU.
                resources={"GPU": 1 / IN_FLIGHT} if self._gpu else None,
                pure=False,
                key=_key(f"partition-{index}"),
            )
            run.flying[future] = index, frozenset(where)

    def _settled(self, futures: Mapping[Future, Any]) -> list[Future]:
        """Wait at most one tick, and return the futures that are no longer pending."""
        if not futures:
            time.sleep(_TICK / 10)
            return []
        import distributed

        with (
            suppress(distributed.TimeoutError, TimeoutError, distributed.CancelledError),
            self._client.as_current(),
        ):
            distributed.wait(list(futures), timeout=_TICK, return_when="FIRST_COMPLETED")
        return [future for future in futures if future.status != "pending"]

    def _take(self, run: _Run, future: Future) -> None:
        """Process the result of a partition that is no longer pending."""
        import distributed

        index = run.flying[future][0]
        found = _result(future)
        if isinstance(found, _Outcome):
            self._computing[found.worker].discard(index)
            if found.strict:
                raise StrictError(found.error)
            if found.error is None:
                del run.flying[future]
                run.take(index, found)
                if run.on_progress is not None:
                    run.on_progress(self._progress(run))
            else:
                self._note_failure(run, future, found.error, found.worker)
        elif future.status == "cancelled" or isinstance(found, distributed.scheduler.KilledWorker):
            self._workers.require_scheduler()
            run.again_later(future)  # deaths are counted in `_note_death`
        else:
            self._note_failure(run, future, str(found), None)

    def _note_failure(self, run: _Run, future: Future, error: str, name: str | None) -> None:
        index = run.again_later(future)
        run.errors[index] += 1
        if name is not None:
            run.failed_at[index].add(name)
            run.streaks[name].add(index)
            if len(run.streaks[name]) >= TRIES and len(self._ready) > 1 and name in self._ready:
                self._ready.discard(name)
                self._refused[name] = error
                self._workers.note(
                    f"excluding worker {name} after {TRIES} failed partitions in a row: {error}"
                )
        if run.errors[index] >= TRIES:
            run.waiting.remove(index)
            self._set_aside(run, index, error)

    def _set_aside(self, run: _Run, index: int, error: str) -> None:
        run.aside[index] = error
        run.hopeless += 1
        if run.hopeless >= HOPELESS:
            raise ActstatsError(
                f"{HOPELESS} partitions in a row failed repeatedly, the last one, {index}, with: {error}; completed "
                "partitions are kept: rerun the same command to resume"
            )
        self._workers.note(f"setting partition {index} aside: {error}")

    def _progress(self, run: _Run) -> Progress:
        seconds = time.monotonic() - run.begun
        busy = sum(took for _, took in run.rates.values())
        rates = {name: run.rates.get(name, (0, 0.0)) for name in sorted(self._ready)}
        return Progress(
            done=run.done,
            total=run.total,
            failed=len(run.failures),
            seconds=seconds,
            waiting=seconds * run.waited / busy if busy else 0.0,
            workers={name: images / took if took else 0.0 for name, (images, took) in rates.items()},
            unavailable=run.unavailable,
        )


@dataclass
class _Run:
    """State of a run: partitions that are waiting, in flight or failed."""

    store: Store
    waiting: deque[int]
    again: frozenset[int]
    total: int
    on_progress: Callable[[Progress], None] | None = None
    flying: dict[Future, tuple[int, frozenset[str]]] = field(default_factory=dict)
    """Partition and allowed workers of each task in flight."""
    done: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    unavailable: int = 0
    aside: dict[int, str] = field(default_factory=dict)
    errors: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    deaths: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    failed_at: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))
    streaks: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    """Partitions that failed on each worker since its last success."""
    hopeless: int = 0
    alone: bool = False
    rates: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Number of images and seconds of each worker."""
    waited: float = 0.0
    begun: float = field(default_factory=time.monotonic)
    looked: float = 0.0

    def again_later(self, future: Future) -> int:
        """Move the partition of `future` back to the waiting ones, and return its index."""
        index, _ = self.flying.pop(future)
        self.waiting.append(index)
        return index

    def take(self, index: int, outcome: _Outcome) -> None:
        """Record the outcome of a complete partition."""
        start, stop = self.store.bounds(index)
        images, took = self.rates.get(outcome.worker, (0, 0.0))
        self.rates[outcome.worker] = images + outcome.images, took + outcome.seconds
        self.waited += outcome.waiting
        self.done += stop - start
        self.failures |= outcome.failures
        self.unavailable += outcome.unavailable
        self.streaks[outcome.worker].clear()
        self.hopeless = 0


def _key(name: str) -> str:
    """Return a unique task key; dask's dashboard shows the part before the first number."""
    return f"actstats-{name}-{uuid.uuid4().hex}"


def _result(future: Future) -> Any:
    """Return the result of a task, or the exception that it raised."""
    try:
        return future.result(timeout=30)
    except ModuleNotFoundError as error:
        return ActstatsError(
            f"{error}; install the same packages on the workers as on the client, including this version of actstats"
        )
    except Exception as error:
        return error


# Workers.


@dataclass(frozen=True)
class _Task:
    """What a worker needs to know about a sweep, for any partition."""

    plan: bytes
    """Compressed pickle of the plan, a few kB; also the key of `_Opened`."""
    topic: str
    """Topic of the events by which workers announce their partitions."""
    workers: int | None
    strict: bool


@dataclass(frozen=True)
class _Outcome:
    """Summary of a partition, returned by its worker."""

    worker: str
    images: int = 0
    seconds: float = 0.0
    waiting: float = 0.0
    failures: Mapping[str, str] = field(default_factory=dict)
    error: str | None = None
    strict: bool = False
    unavailable: int = 0


@dataclass(frozen=True)
class _Opened:
    """Network and images that a worker has opened for a plan."""

    key: bytes
    plan: _Plan
    job: Job
    slots: threading.BoundedSemaphore = field(default_factory=lambda: threading.BoundedSemaphore(IN_FLIGHT))


_OPENED: Final[weakref.WeakKeyDictionary[Any, _Opened]] = weakref.WeakKeyDictionary()
"""The last plan that each worker of this process has opened."""
_OPENING: Final = threading.Lock()


def _opened(task: _Task) -> _Opened:
    """Return the network and images of a plan, opened once per worker."""
    import distributed

    worker = distributed.get_worker()
    with _OPENING:
        found = _OPENED.get(worker)
        if found is None or found.key != task.plan:
            _OPENED.pop(worker, None)  # free its memory first
            # Where threads have arenas of their own, `memory_reused` has no effect on large blocks, and glibc maps
            # each anew. Torch reads this at its first allocation: clearing huge pages takes less time.
            os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
            plan: _Plan = pickle.loads(zlib.decompress(task.plan))
            _refuse_other_versions(plan.manifest["versions"])
            from actstats.data.dataset import first_readable

            first_readable(plan.images())
            job = plan.job()
            job.loaded.model.eval()
            found = _OPENED[worker] = _Opened(task.plan, plan, job)
    if found.job.layout.device.type == "cpu":
        import torch

        # Dask starts workers with one OpenMP thread, regardless of their number of cores.
        torch.set_num_threads(_cores(worker))
    return found


def _cores(worker: Any) -> int:
    """Return the number of cores that a worker computes with: its resource CORES, or else its number of threads."""
    return int(worker.state.total_resources.get("CORES", worker.state.nthreads))


def _refuse_other_versions(planned: Mapping[str, str]) -> None:
    """Raise `ActstatsError` if packages that affect results have other versions than on the client."""
    here = manifests.versions()
    both = [name for name in planned if name in here]  # a client without a GPU may lack triton
    for name in both:
        there, found = planned[name].partition("+")[0], here[name].partition("+")[0]
        if manifests.differences({"versions": {name: there}}, {"versions": {name: found}}):
            raise ActstatsError(
                f"it has {name} {here[name]}, but the client has {planned[name]}; install the same version"
            )


def _prepare(task: _Task, manifest: Mapping[str, Any] | None) -> str | None:
    """Open network, images and store on a worker; return None, or the reason for a failure in one line."""
    try:
        opened = _opened(task)
        with opened.job.turn:
            opened.job.compile(_execution(task))
        if manifest is not None:
            found = Store.open(opened.plan.store, mode="r+")
            if found.manifest != manifest:
                raise ActstatsError(
                    f"the store at {found.path} is not that of the client; mount the same storage"
                )
            if isinstance(found.path, Path) and not os.access(found.path, os.W_OK):
                raise ActstatsError(f"no permission to write to {found.path}")
    except Exception as error:
        return _told(error)
    return None


def _told(error: Exception) -> str:
    """Return a message about an error on this worker."""
    what = str(error) if isinstance(error, ActstatsError) else f"{type(error).__name__}: {error}"
    return f"{what} (on {socket.gethostname()})"


def _execution(task: _Task, workers: int | None = None) -> Execution:
    """Return the execution options of a worker; its notes are dropped, as the provenance holds the same facts."""
    return Execution(workers=workers, strict=task.strict, on_note=lambda _: None)


def _compute(task: _Task, index: int, again: bool) -> _Outcome:
    """Compute one partition and write it to the store."""
    import distributed

    worker = distributed.get_worker()
    try:
        opened = _opened(task)
        from actstats.sweeping.run import run_partitions

        store = Store.open(opened.plan.store, mode="r+")
        if store.completed[index] and not again:  # by a worker considered lost, or for another client
            return _Outcome(worker.address)
        on_gpu = opened.job.layout.device.type == "cuda"
        threads = task.workers if task.workers is not None or on_gpu else _cores(worker)
        with opened.slots:
            worker.log_event(task.topic, {"worker": worker.address, "partition": index})
            store.use()
            try:
                progress, failures = run_partitions(
                    opened.job, store, [index], _execution(task, workers=threads)
                )
            finally:
                store.close()
    except StrictError as error:
        return _Outcome(worker.address, error=str(error), strict=True)
    except Exception as error:
        return _Outcome(worker.address, error=_told(error))
    return _Outcome(
        worker.address,
        progress.done,
        progress.seconds,
        progress.waiting,
        failures,
        unavailable=progress.unavailable,
    )
