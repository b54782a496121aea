"""Sweep on a dask cluster: each partition is a task of `dask.distributed`.

The client gives each worker about two partitions at a time. A worker opens networks and images once, computes each
partition with `run_together`, for all sweeps of the pass whose stores lack it, writes it to the stores itself and
returns a short summary. What is complete is recorded in the stores only, so after any failure the same command
resumes the sweep:

    with connect("tcp://host:8786") as client:
        plan.run(client=client)

A partition whose worker is silent or very slow is computed a second time elsewhere, once there is nothing else to do;
the first to finish writes it.
"""

from __future__ import annotations

import math
import pickle
import time
import uuid
import zlib
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from actstats.errors import ActstatsError, StrictError, one_line
from actstats.passes.images import Progress
from actstats.support import require_package
from actstats.sweeping.progress import Outcome, Run
from actstats.sweeping.run import unpaired_error
from actstats.sweeping.scheduler import IN_FLIGHT, address_of, patience, require_scheduler
from actstats.sweeping.settings import Execution
from actstats.sweeping.tasks import PartitionOutcome, Portable, Readiness, Task, compute, prepare
from actstats.sweeping.workers import DEATHS, TICK, Workers

if TYPE_CHECKING:
    from distributed import Future

    from actstats.store.manifest import Manifest

TRIES: Final = 3
"""Errors after which a partition is set aside, and failures in a row after which a worker is excluded."""
HOPELESS: Final = 5
"""Partitions of a sweep set aside in a row, with none completed in between, after which it stops."""
_SLOW: Final = 2
"""A partition that takes this many times as long as any before it is computed a second time."""


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
    workers = Workers(execution)
    with workers.watched():
        gpus = any(workers.wait().values())
    if device == "cuda" and not gpus:
        raise _no_gpu(execution.client)
    return "cuda" if gpus else "cpu"


def _no_gpu(client: Any) -> ActstatsError:
    return ActstatsError(
        f"no worker of {address_of(client)} offers the resource GPU: start workers with --resources GPU=1, "
        "or use `device=cpu`"
    )


def cluster_of(
    plans: Sequence[Portable], clean: Sequence[int | None], execution: Execution
) -> Cluster | None:
    """Return the cluster of `execution.client`, whose workers are prepared, or None if there is no client.

    Raises:
        ActstatsError: as `Cluster` and `Cluster.prepare`.
    """
    if execution.client is None:
        return None
    cluster = Cluster(plans, clean, execution)
    cluster.prepare()
    return cluster


class Cluster:
    """Computes plans over the same images on the workers of a dask cluster."""

    def __init__(self, plans: Sequence[Portable], clean: Sequence[int | None], execution: Execution) -> None:
        """Use the cluster of `execution.client`.

        `clean` has the number of the plan of the clean images for each plan that is compared with one, or None.

        Raises:
            ActstatsError: another process cannot open a network, the images or a metric.
        """
        require_package("distributed", "a cluster")
        self._task = Task(
            zlib.compress(pickle.dumps(list(plans))),
            tuple(clean),
            topic=f"actstats-{uuid.uuid4().hex}",
            workers=execution.workers,
            strict=execution.strict,
        )
        self._client: Any = execution.client
        self._gpu = any(plan.manifest.device == "cuda" for plan in plans)
        self._workers = Workers(execution)
        self._stored: dict[int, Manifest] = {}
        self._ready: dict[str, str] = {}
        """The machine of each worker that can compute partitions."""
        self._refused: dict[str, str] = {}
        self._preparing: dict[Future, str] = {}
        self._computing: dict[str, set[int]] = defaultdict(set)

    def prepare(self) -> None:
        """Make every worker open networks and images, before a store is created; wait for a worker if there is none.

        Raises:
            ActstatsError: a worker is unsuitable: it has other package versions, no access to the images, or no GPU;
                or workers die again and again.
        """
        self._watched(lambda: self._have_all_prepared({}))

    def run_partitions(
        self, runs: Mapping[int, Run], on_progress: Callable[[Progress], None] | None = None
    ) -> tuple[Progress, dict[int, Outcome]]:
        """Compute the partitions of `runs`, by the numbers of their plans, those in `retried` even if complete.

        One task computes a partition for all stores that lack it. `on_progress` is called after each partition. An
        error stops one sweep, and those compared with it.

        Returns:
            The progress, and the outcome of each sweep, by the numbers of the plans.

        Raises:
            ActstatsError: any error that concerns all sweeps, in one line. Completed partitions are kept.
            KeyboardInterrupt: on Ctrl-C. Workers may still complete the partitions that they are computing.
        """
        run = _Run(runs, on_progress)

        def compute_all() -> None:
            self._have_all_prepared({number: one.store.manifest for number, one in runs.items()})
            run.begun = time.monotonic()
            self._client.subscribe_topic(self._task.topic, self._note_begun)
            while run.waiting or run.flying:
                self._look(run)
                self._top_up(run)
                for future in self._settled(run.flying):
                    self._take(run, future)
                self._take_prepared()

        self._watched(compute_all, run.flying)
        for outcome in run.outcomes.values():
            outcome.aside = dict(sorted(outcome.aside.items()))
        return self._progress(run), run.outcomes

    def _watched(self, work: Callable[[], None], flying: Mapping[Future, Any] | None = None) -> None:
        """Do `work` while the scheduler reports deaths; afterwards cancel the tasks that are left."""
        with self._workers.watched():
            try:
                work()
            finally:
                if self._client.status == "running":
                    with suppress(Exception):
                        self._client.cancel([*(flying or ()), *self._preparing])

    # Workers.

    def _have_all_prepared(self, stored: Mapping[int, Manifest]) -> None:
        """Prepare all workers; raise an error if one is unsuitable, or if they die again and again."""
        self._ready, self._stored = {}, dict(stored)
        while not self._ready:
            self._workers.wait()
            self._prepare_new()
            if not self._preparing and not self._refused:
                raise _no_gpu(self._client)
            while self._preparing and not self._workers.silent.issuperset(self._preparing.values()):
                self._settled(self._preparing)
                self._take_prepared()
                self._workers.look()
                self._bury(None)
            for name, reason in self._refused.items():
                more = f"; nor can {len(self._refused) - 1} more" if len(self._refused) > 1 else ""
                raise ActstatsError(f"worker {name} cannot run this sweep: {reason}{more}")
            self._bury(None)
            if not self._ready and self._preparing:
                time.sleep(TICK)

    def _prepare_new(self) -> None:
        known = self._ready.keys() | self._refused.keys() | set(self._preparing.values())
        for name, gpu in self._workers.gpus.items():
            if name not in known and (gpu or not self._gpu):
                call = pickle.dumps(_Call(prepare, self._task, self._stored))
                future = self._client.submit(
                    pickle.loads, call, workers=[name], pure=False, key=_key("prepare")
                )
                self._preparing[future] = name

    def _take_prepared(self) -> None:
        for future, name in list(self._preparing.items()):
            if name not in self._workers.gpus:
                del self._preparing[future]
            elif future.status != "pending":
                del self._preparing[future]
                result = _result(future)
                if not isinstance(result, Readiness):
                    result = Readiness(reason=None if isinstance(result, _LostError) else str(result))
                if result.reason is not None:
                    self._refused[name] = result.reason
                elif result.machine:
                    self._ready[name] = result.machine

    def _bury(self, run: _Run | None) -> None:
        """Count the workers that have died, and the partitions that they were computing.

        Raises:
            ActstatsError: `DEATHS` workers have died in a row.
        """
        for name in self._workers.dead():
            for index in list(self._computing.pop(name, ())):
                if run is not None and run.is_open(index):
                    self._note_death(run, index, name)
        self._workers.require_hope()

    def _look(self, run: _Run) -> None:
        """Check, at most once per tick, which workers joined or left, and requeue the partitions of the latter."""
        require_scheduler(self._client)
        if time.monotonic() - run.looked < TICK:
            return
        refused = set(self._refused)
        for name in self._workers.look():
            self._ready.pop(name, None)
            self._refused.pop(name, None)
        self._bury(run)
        self._prepare_new()
        self._take_prepared()
        for name in self._refused.keys() - refused:
            self._workers.note(f"excluding worker {name}: {self._refused[name]}")
        for future, flight in list(run.flying.items()):
            if flight.worker not in self._workers.gpus:
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
            error = f"{DEATHS} workers died while computing it, the last one was {name}"
            self._set_aside(run, index, dict.fromkeys(run.lacking[index], error))

    def _abandon(self, run: _Run, index: int) -> None:
        """Cancel the tasks of a partition, which no sweep lacks any more, or which is set aside."""
        if tasks := run.close(index):
            self._client.cancel(tasks)
        for computing in list(self._computing.values()):  # dask's thread may add a worker meanwhile
            computing.discard(index)

    # Partitions.

    def _top_up(self, run: _Run) -> None:
        """Give partitions to the workers that have room: those that wait, then those that are overdue."""
        loads = Counter(flight.worker for flight in run.flying.values())
        usable = self._ready.keys() - self._workers.silent
        for index in list(run.waiting):
            if all(loads[name] >= IN_FLIGHT for name in usable):
                return
            able = usable - run.failed_at[index] or usable
            if name := _least_busy(able, loads):
                run.waiting.remove(index)
                self._submit(run, index, name)
                loads[name] += 1
        if run.waiting:
            return
        for index, worker in run.overdue(self._workers.silent):
            equal = {name for name in usable if self._ready[name] == self._ready.get(worker)}
            # On another machine the last bits may differ, so that two that write at once would mix theirs.
            able = equal if equal or worker not in self._workers.silent else usable
            if name := _least_busy(able - {worker}, loads):
                self._submit(run, index, name)
                loads[name] += 1

    def _submit(self, run: _Run, index: int, name: str) -> None:
        future = self._client.submit(
            pickle.loads,
            pickle.dumps(_Call(compute, self._task, index, run.lacking[index].copy())),
            workers=[name],
            # The partitions in flight on a worker take turns on its GPU.
            resources={"GPU": 1 / IN_FLIGHT} if self._gpu else None,
            pure=False,
            key=_key(f"partition-{index}"),
        )
        run.flying[future] = _Flight(index, name)

    def _settled(self, futures: Mapping[Future, Any]) -> list[Future]:
        """Wait at most one tick, and return the futures that are no longer pending."""
        if not futures:
            time.sleep(TICK / 10)
            return []
        import distributed

        with (
            suppress(distributed.TimeoutError, TimeoutError, distributed.CancelledError),
            self._client.as_current(),
        ):
            distributed.wait(list(futures), timeout=TICK, return_when="FIRST_COMPLETED")
        return [future for future in futures if future.status != "pending"]

    def _take(self, run: _Run, future: Future) -> None:
        """Process the result of a partition that is no longer pending."""
        if future not in run.flying:  # another worker was faster
            return
        flight = run.flying[future]
        outcome = _result(future)
        if isinstance(outcome, PartitionOutcome):
            self._computing[outcome.worker].discard(flight.index)
            if outcome.strict:
                raise StrictError(next(iter(outcome.errors.values())))
            if run.take(flight, outcome):
                self._workers.generations.reset()
            if not run.lacking[flight.index]:
                self._abandon(run, flight.index)
                run.count(flight)
                if run.on_progress is not None:
                    run.on_progress(self._progress(run))
            else:
                self._note_failure(run, future, outcome.errors, outcome.worker)
        elif isinstance(outcome, _LostError):
            # Deaths are counted in `_note_death`. A worker that fell silent after its task has written the partition.
            require_scheduler(self._client)
            run.again_later(future)
        else:
            errors = dict.fromkeys(run.lacking[flight.index], str(outcome))
            self._note_failure(run, future, errors, None)

    def _note_failure(self, run: _Run, future: Future, errors: Mapping[int, str], name: str | None) -> None:
        index = run.again_later(future)
        run.errors[index] += 1
        if name is not None:
            run.failed_at[index].add(name)
            run.streaks[name].add(index)
            if len(run.streaks[name]) >= TRIES and len(self._ready) > 1 and name in self._ready:
                del self._ready[name]
                self._refused[name] = error = next(iter(errors.values()))
                self._workers.note(
                    f"excluding worker {name} after {TRIES} failed partitions in a row: {error}"
                )
        if run.errors[index] >= TRIES:
            self._set_aside(run, index, errors)

    def _set_aside(self, run: _Run, index: int, errors: Mapping[int, str]) -> None:
        """Give a partition up for the sweeps that lack it."""
        self._abandon(run, index)
        self._workers.generations.reset()  # its deaths are accounted for
        for number in list(run.lacking[index]):
            error, store = errors[number], run.runs[number].store.path
            run.lacking[index].pop(number, None)
            run.outcomes[number].aside[index] = error
            run.hopeless[number] += 1
            if run.hopeless[number] >= HOPELESS:
                self._stop(
                    run,
                    number,
                    ActstatsError(
                        f"{HOPELESS} partitions in a row failed repeatedly, the last one, {index}, with: {error}; "
                        "completed partitions are kept: rerun the same command to resume"
                    ),
                )
            else:
                which = f"partition {index} of {store}" if len(run.runs) > 1 else f"partition {index}"
                self._workers.note(f"setting {which} aside: {error}")

    def _stop(self, run: _Run, number: int, error: ActstatsError) -> None:
        """Compute no more partitions of a sweep, nor of those compared with it."""
        run.outcomes[number].error = run.outcomes[number].error or error
        for index, lacking in run.lacking.items():
            if lacking.pop(number, None) is not None and not lacking:
                self._abandon(run, index)
        for other in run.runs:
            if self._task.clean[other] == number:
                self._stop(run, other, unpaired_error(run.runs[other].store.path))

    def _progress(self, run: _Run) -> Progress:
        seconds = time.monotonic() - run.begun
        busy = sum(took for _, took in run.rates.values())
        rates = {name: run.rates.get(name, (0, 0.0)) for name in sorted(self._ready)}
        return Progress(
            done=run.done,
            total=run.total,
            failed=len(set().union(*(outcome.failures for outcome in run.outcomes.values()))),
            seconds=seconds,
            waiting=seconds * run.waited / busy if busy else 0.0,
            workers={name: images / took if took else 0.0 for name, (images, took) in rates.items()},
            unavailable=run.unavailable,
        )


@dataclass(frozen=True)
class _Flight:
    """A task that computes a partition on a worker."""

    index: int
    worker: str
    begun: float = field(default_factory=time.monotonic)


@dataclass
class _Run:
    """State of a run: partitions that are waiting, in flight or failed."""

    runs: Mapping[int, Run]
    """The run of each sweep, by the number of its plan."""
    on_progress: Callable[[Progress], None] | None = None
    flying: dict[Future, _Flight] = field(default_factory=dict)
    done: int = 0
    unavailable: int = 0
    errors: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    deaths: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    failed_at: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))
    streaks: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    """Partitions that failed on each worker since its last success."""
    hopeless: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    """Partitions of each sweep that were set aside in a row."""
    alone: bool = False
    rates: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Number of images and seconds of each worker."""
    waited: float = 0.0
    begun: float = field(default_factory=time.monotonic)
    looked: float = 0.0
    slowest: float = 0.0
    """Seconds that the slowest complete partition was in flight."""

    def __post_init__(self) -> None:
        self.outcomes = {number: Outcome() for number in self.runs}
        self.lacking: dict[int, dict[int, bool]] = defaultdict(dict)
        """For each partition the numbers of the sweeps to compute it for, and whether also if it is complete."""
        for number, one in self.runs.items():
            for index in one.todo:
                self.lacking[index][number] = index in one.retried
        self.waiting = deque(sorted(self.lacking))
        self.again = {index for index, lacking in self.lacking.items() if any(lacking.values())}
        self.total = sum(map(self._images, self.waiting))

    def _images(self, index: int) -> int:
        """Return the number of images of a partition."""
        start, stop = next(iter(self.runs.values())).store.bounds(index)
        return stop - start

    def is_open(self, index: int) -> bool:
        """Whether a partition is waiting or in flight."""
        return index in self.waiting or any(flight.index == index for flight in self.flying.values())

    def overdue(self, silent: set[str]) -> list[tuple[int, str]]:
        """Return the partitions to compute a second time, each with its worker, which is silent or very slow.

        A complete partition that is computed again is not among them, as both workers would replace it.
        """
        limit = max(patience(), _SLOW * self.slowest) if self.slowest else math.inf
        flights = Counter(flight.index for flight in self.flying.values())
        now = time.monotonic()
        return [
            (flight.index, flight.worker)
            for flight in self.flying.values()
            if flights[flight.index] == 1
            and (flight.worker in silent or (now - flight.begun > limit and flight.index not in self.again))
        ]

    def again_later(self, future: Future) -> int:
        """Move the partition of `future` back to the waiting ones, unless another task computes it, and return it."""
        index = self.flying.pop(future).index
        if not self.is_open(index):
            self.waiting.append(index)
        return index

    def close(self, index: int) -> list[Future]:
        """Forget a partition, and return the tasks that compute it."""
        futures = [future for future, flight in self.flying.items() if flight.index == index]
        for future in futures:
            del self.flying[future]
        with suppress(ValueError):
            self.waiting.remove(index)
        return futures

    def take(self, flight: _Flight, outcome: PartitionOutcome) -> bool:
        """Record the outcome of a task, and return whether it completed the partition for a sweep."""
        lacking = self.lacking[flight.index]
        complete = lacking.keys() - outcome.errors.keys()
        if complete:
            images, took = self.rates.get(outcome.worker, (0, 0.0))
            self.rates[outcome.worker] = images + outcome.images, took + outcome.seconds
            self.waited += outcome.waiting
            self.streaks[outcome.worker].clear()
        for number in complete:
            del lacking[number]
            self.hopeless[number] = 0
        for number, failures in outcome.failures.items():
            self.outcomes[number].failures |= failures
        if not lacking:
            self.unavailable += outcome.unavailable
        return bool(complete)

    def count(self, flight: _Flight) -> None:
        """Count a complete partition."""
        self.done += self._images(flight.index)
        self.slowest = max(self.slowest, time.monotonic() - flight.begun)


def _least_busy(names: set[str], loads: Counter[str]) -> str | None:
    """Return the worker with the fewest partitions, or None if each has as many as it should."""
    free = [name for name in sorted(names) if loads[name] < IN_FLIGHT]
    return min(free, key=loads.__getitem__, default=None)


def _key(name: str) -> str:
    """Return a unique task key; dask's dashboard shows the part before the first number."""
    return f"actstats-{name}-{uuid.uuid4().hex}"


class _Call:
    """A call that unpickling makes, so that a worker that lacks a package fails in its task, and not before.

    A function of a package that is missing would end the connection of the worker, or of the scheduler.
    """

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


class _LostError(Exception):
    """The result of a task is lost, with its worker or its connection."""


def _result(future: Future) -> Any:
    """Return the result of a task, or the exception that it raised."""
    import distributed

    try:
        return future.result(timeout=patience())
    except (OSError, distributed.CancelledError, distributed.scheduler.KilledWorker) as error:
        return _LostError(one_line(error))
    except Exception as error:
        # Tasks return what they raise themselves, so it could not be unpickled.
        return ActstatsError(
            f"{type(error).__name__}: {one_line(error, 200)}; install the same packages on the workers as on the "
            "client, including this version of actstats"
        )
