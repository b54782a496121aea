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
from collections.abc import Mapping
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
    from actstats.sweeping.run import Job


class Portable(Protocol):
    """The part of `SweepPlan` that workers use. Plans are pickled as references to network and images."""

    manifest: manifests.Manifest
    store: Path | URL

    def images(self) -> Source:
        """Return the open images."""
        ...

    def job(self) -> Job:
        """Return what a process needs to compute partitions."""
        ...


@dataclass(frozen=True)
class Task:
    """What a worker needs to know about a sweep, for any partition."""

    plan: bytes
    """Compressed pickle of the plan, a few kB; also the key of `_Opened`."""
    topic: str
    """Topic of the events by which workers announce their partitions."""
    workers: int | None
    strict: bool


@dataclass(frozen=True)
class PartitionOutcome:
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
    plan: Portable
    job: Job
    slots: threading.BoundedSemaphore = field(default_factory=lambda: threading.BoundedSemaphore(IN_FLIGHT))


_OPENED: Final[weakref.WeakKeyDictionary[Any, _Opened]] = weakref.WeakKeyDictionary()
"""The last plan that each worker of this process has opened."""
_OPENING: Final = threading.Lock()


def _opened(task: Task) -> _Opened:
    """Return the network and images of a plan, opened once per worker."""
    import distributed

    worker = distributed.get_worker()
    with _OPENING:
        opened = _OPENED.get(worker)
        if opened is None or opened.key != task.plan:
            _OPENED.pop(worker, None)  # free its memory first
            # Where threads have arenas of their own, `memory_reused` has no effect on large blocks, and glibc maps
            # each anew. Torch reads this at its first allocation: clearing huge pages takes less time.
            os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
            plan: Portable = pickle.loads(zlib.decompress(task.plan))
            _refuse_other_versions(plan.manifest.versions)
            from actstats.data.dataset import first_readable

            first_readable(plan.images())
            job = plan.job()
            job.loaded.model.eval()
            opened = _OPENED[worker] = _Opened(task.plan, plan, job)
    if opened.job.layout.device.type == "cpu":
        import torch

        # Dask starts workers with one OpenMP thread, regardless of their number of cores.
        torch.set_num_threads(_cores(worker))
    return opened


def _cores(worker: Any) -> int:
    """Return the number of cores that a worker computes with: its resource CORES, or else its number of threads."""
    return int(worker.state.total_resources.get("CORES", worker.state.nthreads))


def _refuse_other_versions(planned: Mapping[str, str]) -> None:
    """Raise `ActstatsError` if packages that affect results have other versions than on the client."""
    here = manifests.versions()
    both = [name for name in planned if name in here]  # a client without a GPU may lack triton
    for name in both:
        there, own = planned[name].partition("+")[0], here[name].partition("+")[0]
        if manifests.differences({"versions": {name: there}}, {"versions": {name: own}}):
            raise ActstatsError(
                f"it has {name} {here[name]}, but the client has {planned[name]}; install the same version"
            )


@dataclass(frozen=True)
class Readiness:
    """Whether a worker can compute partitions."""

    machine: str = ""
    """Device, processor and threads: on equal ones, a partition has equal bytes."""
    reason: str | None = None
    """Why it cannot, in one line."""


def prepare(task: Task, manifest: Mapping[str, Any] | None) -> Readiness:
    """Open network, images and store on a worker."""
    try:
        opened = _opened(task)
        from actstats.sweeping.run import provenance

        with opened.job.turn:
            opened.job.compile(_execution(task))
        if manifest is not None:
            store = Store.open(opened.plan.store, mode="r+")
            if store.manifest != manifest:
                raise ActstatsError(
                    f"the store at {store.path} is not that of the client; mount the same storage"
                )
            if isinstance(store.path, Path) and not os.access(store.path, os.W_OK):
                raise ActstatsError(f"no permission to write to {store.path}")
        return Readiness(machine=provenance(opened.job, 0)["device"])
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


def compute(task: Task, index: int, again: bool) -> PartitionOutcome:
    """Compute one partition and write it to the store, `again` also if it is complete."""
    import distributed

    worker = distributed.get_worker()
    try:
        opened = _opened(task)
        from actstats.sweeping.run import run_partitions

        store = (Store if again else _SharedStore).open(opened.plan.store, mode="r+")
        if store.completed[index] and not again:  # by a worker considered lost, or for another client
            return PartitionOutcome(worker.address)
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
        return PartitionOutcome(worker.address, error=str(error), strict=True)
    except Exception as error:
        return PartitionOutcome(worker.address, error=_message(error))
    return PartitionOutcome(
        worker.address,
        progress.done,
        progress.seconds,
        progress.waiting,
        failures,
        unavailable=progress.unavailable,
    )
