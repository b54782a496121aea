"""Run a sweep: compute the statistics of all units, partition by partition, and write them to the store.

`Job` holds what a process needs to compute partitions: the network on its device, the images and the layout of the
buffers. `run_partitions` computes them.

images -> Feed -> forward pass, one hook per layer -> fused kernel -> partition's buffers -> writer thread -> store
"""

from __future__ import annotations

import platform
import re
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import torch
from torch import Tensor

from actstats.data import Batch, Source
from actstats.data.loader import split
from actstats.distort import Chain
from actstats.errors import ActstatsError
from actstats.layers.passes import ready
from actstats.models import Loaded
from actstats.store import Store
from actstats.store.manifest import versions
from actstats.sweeping.batches import Feed
from actstats.sweeping.buffers import Buffers, Partition, PartitionLayout, PartitionResult
from actstats.sweeping.device import memory_for, refuse_uncompilable
from actstats.sweeping.forward import Network
from actstats.sweeping.progress import Progress
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
    chain: Chain | None = None
    channels_last: bool = True
    turn: threading.Lock = field(default_factory=threading.Lock)

    def ready(self) -> AbstractContextManager[None]:
        """Have the network on its device in eval mode, in the memory format of the sweep, and leave it as it was."""
        return ready(self.loaded.model, self.layout.device, channels_last=self.channels_last)

    @cached_property
    def network(self) -> Network:
        """The network that runs the forward passes, eagerly until `compile` is called."""
        layers, amp = self.layout.schema.layers, self.settings.amp
        return Network(self.loaded.model, layers, self.layout.device, amp, self.channels_last)

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
    settings, layout = job.settings, job.layout
    ranges = [r for index in indices for r in split(*store.bounds(index), settings.batch_size)]
    feed = Feed(
        job.loaded,
        job.source,
        layout.device,
        ranges,
        chain=job.chain,
        decode=settings.decode,
        workers=execution.workers,
        strict=execution.strict,
        on_progress=execution.on_progress,
    )
    with (
        memory_for(settings.batch_size),
        Writer(store) as writer,
        closing(iter(feed)) as batches,
    ):
        # The lock covers neither reading the first images, unless they are distorted by the network itself, nor
        # writing the last partition.
        first = () if job.chain else (next(batches),)
        asked = time.perf_counter()
        with job.turn, job.ready():
            job.compile(execution)
            filling = Filling(job, writer, indices)
            feed.leave_out(time.perf_counter() - asked)
            for batch, images in chain(first, batches):
                filling.take(batch, images)
    return feed.progress, feed.failures


class Filling:
    """Fills the partitions of a job batch by batch, and hands each to the writer when it is full."""

    def __init__(self, job: Job, writer: Writer, indices: Sequence[int]) -> None:
        """Prepare to fill the partitions `indices`."""
        self._job, self._writer, self._indices = job, writer, frozenset(indices)
        # One set is filled while the writer reads the other, which is free again before the next partition begins.
        self._buffers = [Buffers(job.layout) for _ in indices[:2]]
        self._partition: Partition | None = None
        self._begun = 0.0
        self._moved: list[Tensor] = []

    def take(self, batch: Batch, images: Tensor | None) -> None:
        """Run the network on the next batch; batches of partitions that are not to be filled are skipped.

        Raises:
            ActstatsError: the network or a metric fails, or the previous partition could not be written.
        """
        layout = self._job.layout
        index = batch.start // layout.schema.partition_size
        if index not in self._indices:
            return
        partition = self._partition
        if partition is None:
            self._buffers.reverse()
            partition = self._partition = Partition(layout, self._buffers[0], index)
            self._begun = time.perf_counter()
            self._moved.clear()
        partition.status[batch.start - partition.start : batch.stop - partition.start] = batch.status
        if images is not None:
            partition.begin_batch(batch.position + batch.start)
            self._job.network(images, partition.update)
        if batch.moved is not None:
            self._moved.append(batch.moved)
        if batch.stop == partition.stop:
            result, seconds = partition.finish(), time.perf_counter() - self._begun
            self._writer.put(result, provenance(self._job, seconds) | self._attack())
            self._partition = None
        self._writer.check()

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
        told = re.search(r"^model name\s*: *(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        told = None
    return told[1] if told else platform.machine()


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
    feed = Feed(
        job.loaded,
        job.source,
        job.layout.device,
        split(0, min(batches * size, images, job.layout.schema.partition_size), size),
        chain=job.chain,
        decode=job.settings.decode,
    )
    partition = Partition(job.layout, Buffers(job.layout), 0)
    with memory_for(size), job.ready():
        compiling = job.compile(Execution())
        with closing(iter(feed)) as passes:
            begun = time.perf_counter()
            for batch, inputs in passes:
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
