"""What a worker of a dask cluster runs: it opens network and images once, and computes partitions.

The client names its functions in pickles that workers open, and returns are opened by the client; the scheduler needs
neither.
"""

from __future__ import annotations

import os
import pickle
import socket
import threading
import weakref
import zlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from actstats.errors import ActstatsError, StrictError, one_line
from actstats.store import Store
from actstats.store import manifest as manifests
from actstats.support import URL
from actstats.sweeping.scheduler import IN_FLIGHT
from actstats.sweeping.settings import Execution

if TYPE_CHECKING:
    from actstats.data import Source
    from actstats.sweeping.progress import Outcome
    from actstats.sweeping.run import Job


class Portable(Protocol):
    """The part of `SweepPlan` that workers use. Plans are pickled as references to network and images."""

    manifest: manifests.Manifest
    store: Path | URL

    def images(self) -> Source:
        """Return the open images."""
        ...

    def job(self, *, beside: Job | None = None, source: Source | None = None) -> Job:
        """Return what a process needs to compute partitions, with the network of `beside` and the images `source`."""
        ...


@dataclass(frozen=True)
class Task:
    """What a worker needs to know about the sweeps of a pass, for any partition."""

    plans: bytes
    """Compressed pickle of the plans, a few kB each; also the key of `_Opened`."""
    clean: Sequence[int | None]
    """For each plan of changed images, the number of the plan of the clean ones, and None for the others."""
    topic: str
    """Topic of the events by which workers announce their partitions."""
    workers: int | None
    strict: bool


@dataclass(frozen=True)
class PartitionOutcome:
    """Summary of a partition, returned by its worker; its mappings are keyed by the number of a plan."""

    worker: str
    images: int = 0
    seconds: float = 0.0
    waiting: float = 0.0
    failures: Mapping[int, Mapping[str, str]] = field(default_factory=dict)
    errors: Mapping[int, str] = field(default_factory=dict)
    """The error of each sweep that did not complete the partition."""
    strict: bool = False
    unavailable: int = 0


@dataclass(frozen=True)
class _Opened:
    """Networks and images that a worker has opened for the plans of a pass."""

    key: bytes
    plans: Sequence[Portable]
    jobs: Sequence[Job]
    slots: threading.BoundedSemaphore = field(default_factory=lambda: threading.BoundedSemaphore(IN_FLIGHT))

    @property
    def on_gpu(self) -> bool:
        """Whether all networks are on a GPU."""
        return all(job.layout.device.type == "cuda" for job in self.jobs)


_OPENED: Final[weakref.WeakKeyDictionary[Any, _Opened]] = weakref.WeakKeyDictionary()
"""The last plans that each worker of this process has opened."""
_OPENING: Final = threading.Lock()


def _opened(task: Task) -> _Opened:
    """Return the networks and images of the plans, opened once per worker."""
    import distributed

    worker = distributed.get_worker()
    with _OPENING:
        opened = _OPENED.get(worker)
        if opened is None or opened.key != task.plans:
            _OPENED.pop(worker, None)  # free its memory first
            # Where threads have arenas of their own, `memory_reused` has no effect on large blocks, and glibc maps
            # each anew. Torch reads this at its first allocation: clearing huge pages takes less time.
            os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
            plans: list[Portable] = pickle.loads(zlib.decompress(task.plans))
            for plan in plans:
                if difference := manifests.other_version(plan.manifest.versions):
                    name, here, planned = difference
                    raise ActstatsError(
                        f"it has {name} {here}, but the client has {planned}; install the same version"
                    )
            from actstats.data.dataset import first_readable

            source = plans[0].images()
            first_readable(source)
            jobs: dict[int, Job] = {}
            for number in in_order(task.clean):
                clean = task.clean[number]
                beside = None if clean is None else jobs[clean]
                jobs[number] = plans[number].job(beside=beside, source=source)
                jobs[number].loaded.model.eval()
            opened = _Opened(task.plans, plans, [jobs[number] for number in range(len(plans))])
            _OPENED[worker] = opened
    if not opened.on_gpu:
        import torch

        # Dask starts workers with one OpenMP thread, regardless of their number of cores.
        torch.set_num_threads(_cores(worker))
    return opened


def in_order(clean: Sequence[int | None]) -> list[int]:
    """Return the numbers of the sweeps of a pass, each of clean images directly before those compared with it."""

    def place(number: int) -> tuple[int, bool]:
        paired = clean[number]
        return (number, False) if paired is None else (paired, True)

    return sorted(range(len(clean)), key=place)


def _cores(worker: Any) -> int:
    """Return the number of cores that a worker computes with: its resource CORES, or else its number of threads."""
    return int(worker.state.total_resources.get("CORES", worker.state.nthreads))


@dataclass(frozen=True)
class Readiness:
    """Whether a worker can compute partitions."""

    machine: str = ""
    """Device, processor and threads: on equal ones, a partition has equal bytes."""
    reason: str | None = None
    """Why it cannot, in one line."""


def prepare(task: Task, stored: Mapping[int, manifests.Manifest]) -> Readiness:
    """Open networks, images and stores on a worker; `stored` has the manifest of each store."""
    try:
        opened = _opened(task)
        from actstats.sweeping.run import provenance

        for job in opened.jobs:
            with job.turn:
                job.compile(_execution(task))
        for number, manifest in stored.items():
            store = Store.open(opened.plans[number].store, mode="r+")
            if store.manifest != manifest:
                raise ActstatsError(
                    f"the store at {store.path} is not that of the client; mount the same storage"
                )
            if isinstance(store.path, Path) and not os.access(store.path, os.W_OK):
                raise ActstatsError(f"no permission to write to {store.path}")
        return Readiness(machine=provenance(opened.jobs[0], 0)["device"])
    except Exception as error:
        return Readiness(reason=_message(error))


def _message(error: Exception) -> str:
    """Return a message about an error on this worker."""
    what = str(error) if isinstance(error, ActstatsError) else f"{type(error).__name__}: {one_line(error)}"
    return f"{what} (on {socket.gethostname()})"


def _execution(task: Task, workers: int | None = None) -> Execution:
    """Return the execution options of a worker; its notes are dropped, as the provenance holds the same facts."""
    return Execution(workers=workers, strict=task.strict, on_note=lambda _: None)


class _SharedStore(Store):
    """A store whose partitions several workers may compute: the first to finish one writes it."""

    def write(self, partition: int, *results: Any, **also: Any) -> None:
        """Write a partition, unless another worker has completed it meanwhile."""
        if not self.completed[partition]:
            super().write(partition, *results, **also)


def _cause(task: Task, outcomes: Mapping[int, Outcome], number: int) -> ActstatsError | None:
    """Return the error of a sweep, which is that of the clean images if they could not be computed."""
    clean = task.clean[number]
    error = outcomes[number].error
    return error if error is None or clean is None else outcomes[clean].error or error


def compute(task: Task, index: int, wanted: Mapping[int, bool]) -> PartitionOutcome:
    """Compute one partition of several sweeps in one pass, and write it to their stores.

    `wanted` says for the number of each sweep whether to compute the partition also if it is complete.
    """
    import distributed

    worker = distributed.get_worker()
    try:
        opened = _opened(task)
        from actstats.sweeping.run import JointSweep, run_together

        stores = {
            number: (Store if again else _SharedStore).open(opened.plans[number].store, mode="r+")
            for number, again in wanted.items()
        }
        # Others are complete: by a worker considered lost, or for another client.
        todo = [number for number, store in stores.items() if wanted[number] or not store.completed[index]]
        if not todo:
            return PartitionOutcome(worker.address)
        compared = {clean for number in todo if (clean := task.clean[number]) is not None}
        for number in compared - stores.keys():
            stores[number] = Store.open(opened.plans[number].store, mode="r+")
        members = {
            number: JointSweep(
                opened.jobs[number], stores[number], [index] if number in todo else [], task.clean[number]
            )
            for number in in_order(task.clean)
            if number in compared.union(todo)
        }
        threads = task.workers if task.workers is not None or opened.on_gpu else _cores(worker)
        with opened.slots, ExitStack() as using:
            worker.log_event(task.topic, {"worker": worker.address, "partition": index})
            for store in stores.values():
                using.callback(store.close)
                store.use()
            progress, outcomes = run_together(members, _execution(task, workers=threads))
    except StrictError as error:
        return PartitionOutcome(worker.address, errors=dict.fromkeys(wanted, str(error)), strict=True)
    except Exception as error:
        return PartitionOutcome(worker.address, errors=dict.fromkeys(wanted, _message(error)))
    return PartitionOutcome(
        worker.address,
        progress.done,
        progress.seconds,
        progress.waiting,
        {number: outcome.failures for number, outcome in outcomes.items()},
        {number: _message(cause) for number in todo if (cause := _cause(task, outcomes, number)) is not None},
        unavailable=progress.unavailable,
    )
