"""Run a sweep: compute the statistics of all units, partition by partition, and write them to the store.

`Job` holds what a process needs to compute partitions: the network on its device, the images and the layout of the
buffers. `run_partitions` computes those of one sweep, `run_together` those of several in one pass.

images -> Feed -> forward pass, one hook per layer -> fused kernel -> partition's buffers -> writer thread -> store
"""

from __future__ import annotations

import platform
import re
import socket
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from actstats.data import Batch, Source
from actstats.data.image import OK
from actstats.data.loader import split
from actstats.distort import Chain
from actstats.errors import ActstatsError
from actstats.layers.passes import ready
from actstats.models import Loaded
from actstats.passes.device import memory_for, out_of_memory_explained, refuse_uncompilable
from actstats.passes.images import Feed, Group, Pipeline, Progress
from actstats.passes.network import Network
from actstats.store import Store
from actstats.store.manifest import versions
from actstats.support import URL
from actstats.sweeping.buffers import Buffers, KeptMaps, Partition, PartitionLayout, PartitionResult
from actstats.sweeping.progress import Outcome
from actstats.sweeping.settings import Execution, Settings

_UNMOVED: Final = 0.01
"""An image that an attack moved by less than this share of its epsilon counts as not moved."""


@dataclass(frozen=True)
class Job:
    """A sweep in one process: the network on its device, the open images, and the statistics to compute.

    Several threads may compute partitions of one job. The lock `turn` gives the network to one of them at a time;
    they read images and write results concurrently.
    """

    loaded: Loaded
    source: Source
    layout: PartitionLayout
    settings: Settings
    network: Network
    """Runs the forward passes, eagerly until `compile` is called. Sweeps of clean and changed images share it."""
    chain: Chain | None = None
    channels_last: bool = True
    turn: threading.Lock = field(default_factory=threading.Lock)

    @property
    def pipeline(self) -> Pipeline:
        """How the network's input is made from the images."""
        return Pipeline(self.loaded, self.layout.device, self.chain, self.settings.decode)

    def ready(self) -> AbstractContextManager[None]:
        """Have the network on its device in eval mode, in the memory format of the sweep, and leave it as it was."""
        return ready(self.loaded.model, self.layout.device, channels_last=self.channels_last)

    def compile(self, execution: Execution) -> float:
        """Compile the network once if the settings ask for it, report the outcome, and return the seconds it took.

        Raises:
            ActstatsError: this machine has no compiler, or the network cannot be compiled and execution is strict.
        """
        if not self.settings.compile or self.network.compiled:
            return 0.0
        refuse_uncompilable(self.layout.device.type)
        begun = time.perf_counter()
        example = self.loaded.preprocessing.example(self.settings.batch_size, self.layout.device)
        try:
            self.network.compile(example)
        except ActstatsError as error:
            if execution.strict:
                raise
            execution.note(f"{error}; running it eagerly")
            return 0.0
        seconds = time.perf_counter() - begun
        execution.note(f"compiled the network in {seconds:.0f} s")
        return seconds


@dataclass(frozen=True)
class JointSweep:
    """One of the sweeps of a pass: its job, its store, and the partitions to compute.

    `clean` is None, or the number of the member, before this one, with whose maps those of this one are compared.
    """

    job: Job
    store: Store
    indices: Sequence[int]
    clean: int | None = None


def run_partitions(
    job: Job, store: Store, indices: Sequence[int], execution: Execution
) -> tuple[Progress, dict[str, str]]:
    """Compute the partitions `indices` and write each to `store` once it is complete.

    Returns:
        The progress of the run, and a dict from the path of each unreadable image to the reason.

    Raises:
        ActstatsError: any error that the user can fix, in one line. Completed partitions are kept.
        KeyboardInterrupt: on Ctrl-C, once the partition being written is complete.
    """
    progress, outcomes = run_together({0: JointSweep(job, store, indices)}, execution)
    if outcomes[0].error is not None:
        raise outcomes[0].error
    return progress, outcomes[0].failures


def run_together(
    members: Mapping[int, JointSweep], execution: Execution
) -> tuple[Progress, dict[int, Outcome]]:
    """Compute partitions of several sweeps of the same images in one pass, decoding each image once.

    The networks run one after the other on each batch. An error stops one sweep, and those compared with it.

    Returns:
        The progress of the run, and the outcome of each sweep, by the numbers of the members.

    Raises:
        ActstatsError: any error that concerns all sweeps, in one line. Completed partitions are kept.
        KeyboardInterrupt: on Ctrl-C, once the partitions being written are complete.
    """
    some = next(iter(members.values()))
    size = some.job.settings.batch_size
    todo = sorted(set().union(*(member.indices for member in members.values())))
    feed = Feed(
        [member.job.pipeline for member in members.values()],
        some.job.source,
        [r for index in todo for r in split(*some.store.bounds(index), size)],
        groups=_groups(members),
        workers=execution.workers,
        strict=execution.strict,
        on_progress=execution.on_progress,
    )
    numbers = list(members)
    outcomes = {number: Outcome(failures) for number, failures in zip(numbers, feed.failures, strict=True)}
    with memory_for(size), ExitStack() as stack, closing(iter(feed)) as batches:
        writers = {number: stack.enter_context(Writer(m.store)) for number, m in members.items()}
        # The locks cover neither reading the first images, unless they are distorted by a network itself, nor
        # writing the last partitions.
        first = () if any(m.job.chain for m in members.values()) else (next(batches),)
        asked = time.perf_counter()
        with ExitStack() as running:
            fillings = _ready(members, writers, outcomes, running, execution)
            feed.idle += time.perf_counter() - asked
            for place, batch, images in chain(first, batches):
                number = numbers[place]
                outcome, clean = outcomes[number], members[number].clean
                if clean is not None and outcomes[clean].error is not None:
                    outcome.error = outcome.error or unpaired_error(members[number].store.path)
                if outcome.error is None:
                    with _noting(outcome, size):
                        fillings[number].take(batch, images)
                if all(outcome.error is not None for outcome in outcomes.values()):
                    break
                del batch, images  # free them before the next batch is created
            del fillings  # and the clean maps, before another thread keeps its own
        for number, writer in writers.items():
            with _noting(outcomes[number], size):
                writer.wait()
    return feed.progress, outcomes


@contextmanager
def _noting(outcome: Outcome, batch_size: int) -> Iterator[None]:
    """Keep an `ActstatsError` of the block as that of a sweep, instead of raising it."""
    try:
        with out_of_memory_explained(batch_size):
            yield
    except ActstatsError as error:
        outcome.error = outcome.error or error


def unpaired_error(store: Path | URL) -> ActstatsError:
    """Return the error of a sweep of changed images without the clean maps."""
    return ActstatsError(f"{store} was not completed, because the sweep of the clean images failed")


def _ready(
    members: Mapping[int, JointSweep],
    writers: Mapping[int, Writer],
    outcomes: Mapping[int, Outcome],
    stack: ExitStack,
    execution: Execution,
) -> dict[int, Filling]:
    """Have all networks ready until `stack` closes, and return what fills the partitions of each member."""
    fillings: dict[int, Filling] = {}
    kept = {m.clean: KeptMaps() for m in members.values() if m.clean is not None}
    for turn in dict.fromkeys(m.job.turn for m in members.values()):
        stack.enter_context(turn)
    for number, member in members.items():
        with _noting(outcomes[number], member.job.settings.batch_size):
            if member.clean is None:
                stack.enter_context(member.job.ready())
                member.job.compile(execution)
            fillings[number] = Filling(
                member.job,
                writers[number],
                member.indices,
                clean=None if member.clean is None else kept[member.clean],
                kept=kept.get(number),
                kept_in=set().union(*(m.indices for m in members.values() if m.clean == number)),
            )
    return fillings


def _groups(members: Mapping[int, JointSweep]) -> list[Group]:
    """Return the members that are compared with each other, with the images that are missing in their stores."""
    groups = []
    for clean in dict.fromkeys(m.clean for m in members.values() if m.clean is not None):
        paired = {
            place: member
            for place, (number, member) in enumerate(members.items())
            if clean in (number, member.clean)
        }
        excluded = np.full(len(members[clean].job.source), OK, dtype=np.int8)
        todo = set().union(*(member.indices for member in paired.values()))
        for member in paired.values():
            if todo.issubset(member.indices):  # all its images are read again
                continue
            status = member.store.statuses()
            for index in member.indices:
                status[slice(*member.store.bounds(index))] = OK
            excluded = np.where((excluded == OK) & (status > OK), status, excluded)
        groups.append(Group(list(paired), excluded, "it could not be read when it was swept before"))
    return groups


class Filling:
    """Fills the partitions of a job batch by batch, and hands each to the writer when it is full."""

    def __init__(
        self,
        job: Job,
        writer: Writer,
        indices: Sequence[int],
        *,
        clean: KeptMaps | None = None,
        kept: KeptMaps | None = None,
        kept_in: Collection[int] = (),
    ) -> None:
        """Prepare to fill the partitions `indices`, comparing the maps with those of `clean`.

        The maps of the partitions `kept_in` are also copied to `kept`.
        """
        self._job, self._writer, self._indices = job, writer, frozenset(indices)
        self._clean, self._kept, self._kept_in = clean, kept, kept_in
        # One set is filled while the writer reads the other, which is free again before the next partition begins.
        self._buffers = [Buffers(job.layout) for _ in indices[:2]]
        self._partition: Partition | None = None
        self._begun = 0.0
        self._moved: list[Tensor] = []

    def take(self, batch: Batch, images: Tensor | None) -> None:
        """Run the network on the next batch, unless it is of a partition whose maps nobody needs.

        Raises:
            ActstatsError: the network or a metric fails, or the previous partition could not be written.
        """
        index = batch.start // self._job.layout.schema.partition_size
        kept = self._kept if index in self._kept_in else None
        if index not in self._indices:
            if kept is not None and images is not None:
                self._job.network(images, kept.keep)
            return
        partition = self._partition or self._begin(index)
        partition.status[batch.start - partition.start : batch.stop - partition.start] = batch.status
        if images is not None:

            def receive(layer: int, maps: Tensor) -> None:
                if kept is not None:
                    kept.keep(layer, maps)
                partition.update(layer, maps, None if self._clean is None else self._clean[layer])

            partition.begin_batch(batch.position + batch.start)
            self._job.network(images, receive)
        if batch.moved is not None:
            self._moved.append(batch.moved)
        if batch.stop == partition.stop:
            result, seconds = partition.finish(), time.perf_counter() - self._begun
            self._writer.put(result, provenance(self._job, seconds) | self._attack())
            self._partition = None
        self._writer.check()

    def _begin(self, index: int) -> Partition:
        self._buffers.reverse()
        self._partition = Partition(self._job.layout, self._buffers[0], index)
        self._begun = time.perf_counter()
        self._moved.clear()
        return self._partition

    def _attack(self) -> dict[str, Any]:
        """Return the entry of the provenance that says over what distance an attack moved the partition's images."""
        attack = self._job.chain.attack if self._job.chain else None
        if attack is None or not self._moved:
            return {}
        distances = torch.cat(self._moved)
        moved = {
            "images": len(distances),
            "distance": float(distances.mean()),
            "unmoved": int((distances < _UNMOVED * attack.epsilon).sum()),
        }
        return {"attack": moved}


def provenance(job: Job, seconds: float) -> dict[str, Any]:
    """Return the JSON-serializable provenance of one partition: host, device, `seconds` and versions."""
    device = job.layout.device
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:  # the number of threads can change the last bits of a convolution
        name = f"{_processor()}, threads {torch.get_num_threads()}"
    return {
        "host": socket.gethostname(),
        "device": f"{device.type}: {name}",
        "compiled": job.network.compiled,
        "seconds": round(seconds, 3),
        "versions": versions(),
    }


@cache
def _processor() -> str:
    """Return the processor model, or the machine type if the system does not report a model."""
    try:
        model = re.search(r"^model name\s*: *(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        model = None
    return model[1] if model else platform.machine()


class Writer:
    """Writes partitions in a thread of its own, one at a time, which bounds memory use.

    Use it as a context manager: on exit, also on Ctrl-C, it waits for the partition being written, so that finished
    work is kept. An error in the thread is raised by the caller's next call, or on exit.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def put(self, result: PartitionResult, provenance: Mapping[str, Any]) -> None:
        """Wait for the previous partition to be written, then start writing this one.

        Raises:
            ActstatsError: the previous partition could not be written.
        """
        self.wait()
        self._thread = threading.Thread(target=self._write, args=(result, provenance), name="actstats-writer")
        self._thread.start()

    def check(self) -> None:
        """Raise the error that stopped the thread, if any, without waiting."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def wait(self) -> None:
        """Wait until the current partition has been written.

        Raises:
            ActstatsError: a partition could not be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def _write(self, result: PartitionResult, provenance: Mapping[str, Any]) -> None:
        try:
            self._store.write(result.index, result.arrays(), result.status, provenance)
        except BaseException as error:  # raised again in the caller's thread
            self._error = error

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.wait()
        elif self._thread is not None:
            self._thread.join()


def measured_seconds(job: Job, images: int) -> float:
    """Estimate the duration of a sweep of `images` images, in seconds, by timing a few batches.

    The time to compile the network is included; the first batch, which warms up, is not extrapolated.

    Raises:
        ActstatsError: see `run_partitions`.
    """
    size = job.settings.batch_size
    batches = min(_MEASURED, -(-job.layout.schema.partition_size // size), -(-images // size))
    seconds = []
    timed = min(batches * size, images, job.layout.schema.partition_size)
    feed = Feed([job.pipeline], job.source, split(0, timed, size))
    partition = Partition(job.layout, Buffers(job.layout), 0)
    with memory_for(size), job.ready():
        compiling = job.compile(Execution())
        with closing(iter(feed)) as passes:
            begun = time.perf_counter()
            for _, batch, inputs in passes:
                if inputs is not None:
                    partition.begin_batch(batch.position + batch.start)
                    job.network(inputs, partition.update)
                if job.layout.device.type == "cuda":
                    torch.cuda.synchronize(job.layout.device)
                seconds.append((time.perf_counter() - begun) / (batch.stop - batch.start))
                begun = time.perf_counter()
    # The first batch compiles kernels and waits for the first images, so it counts only if it is the only one.
    steady = seconds[1:] or seconds
    return compiling + images * sum(steady) / len(steady)


_MEASURED: Final = 5
"""Number of batches that `measured_seconds` runs, including the first."""
