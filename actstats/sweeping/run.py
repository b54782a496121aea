"""Running a sweep: partitions of images through the network, every unit's statistics into the store.

`Job` holds what a process needs to compute partitions: the network on its device, the images, the buffers' layout.
`run_partitions` is the only code that computes them.

images -> Feed -> forward pass, one hook per layer -> fused kernel -> partition's buffers -> writer thread -> store
"""

from __future__ import annotations

import platform
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

import torch
from torch import Tensor

from actstats.data import Source
from actstats.data.loader import split
from actstats.distort import Chain
from actstats.errors import ActstatsError
from actstats.layers import watch
from actstats.models import Loaded
from actstats.store import Store
from actstats.store.manifest import versions
from actstats.sweeping.batches import Feed
from actstats.sweeping.buffers import Buffers, Partition, PartitionLayout, PartitionResult, reason_of
from actstats.sweeping.device import in_eval_mode, out_of_memory_explained
from actstats.sweeping.progress import Progress
from actstats.sweeping.settings import Execution, Settings

_AMP: Final = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Job:
    """A sweep on one process: the network on its device, the open images, and what is computed."""

    loaded: Loaded
    source: Source
    layout: PartitionLayout
    settings: Settings
    chain: Chain | None = None


def run_partitions(
    job: Job, store: Store, indices: Sequence[int], execution: Execution
) -> tuple[Progress, dict[str, str]]:
    """Compute the partitions `indices` and write each to `store` as it is complete.

    Returns:
        How far the run got, and the reason by path of each image that could not be read.

    Raises:
        ActstatsError: anything that the user can mend, in one line. Completed partitions are kept.
        KeyboardInterrupt: on Ctrl-C, after the partition that is being written is complete.
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
    # One set is filled while the writer has the other; it gives that back before the one after next begins.
    buffers = [Buffers(layout) for _ in indices[:2]]
    with (
        out_of_memory_explained(settings.batch_size),
        in_eval_mode(job.loaded.model),
        Writer(store) as writer,
        _Forward(job) as forward,
        closing(iter(feed)) as batches,
    ):
        for batch, images in batches:
            partition = forward.partition
            if partition is None:
                buffers.reverse()
                partition = Partition(layout, buffers[0], batch.start // store.partition_size)
                forward.begin(partition)
            partition.status[batch.start - partition.start : batch.stop - partition.start] = batch.status
            if images is not None:
                partition.begin_batch(batch.position + batch.start)
                forward(images)
            if batch.stop == partition.stop:
                writer.put(partition.finish(), forward.provenance())
                forward.partition = None
            writer.check()
    return feed.progress, feed.failures


class _Forward:
    """Forward passes of a job's network whose layers' maps go to the current partition."""

    def __init__(self, job: Job) -> None:
        self._model, self._layout = job.loaded.model, job.layout
        amp = _AMP[job.settings.amp]
        self._autocast: AbstractContextManager[Any] = (
            nullcontext() if amp is None else torch.autocast(job.layout.device.type, dtype=amp)
        )
        self.partition: Partition | None = None
        self._listening = False
        self._begun = 0.0
        self._hooks = watch(self._model, job.layout.schema.layers, self._update)

    def begin(self, partition: Partition) -> None:
        """Fill this partition from now on."""
        self.partition, self._begun = partition, time.perf_counter()

    def __call__(self, images: Tensor) -> None:
        """Run the network on `images` f32 [n, 3, H, W]."""
        self._listening = True
        try:
            with torch.inference_mode(), self._autocast:
                self._model(images)
        except (ActstatsError, MemoryError, torch.OutOfMemoryError):
            raise
        except (Exception, SystemExit) as error:
            if "allocate memory" in str(error) or "not enough memory" in str(error):
                raise
            raise ActstatsError(
                f"the network fails on a batch of {len(images)} images: {reason_of(error)}"
            ) from error
        finally:
            self._listening = False

    def provenance(self) -> dict[str, Any]:
        """Return where, with what and how fast the current partition was computed."""
        return provenance(self._layout.device, time.perf_counter() - self._begun)

    def _update(self, layer: int, maps: Tensor) -> None:
        if self._listening:  # an attack runs the network as well
            assert self.partition is not None
            self.partition.update(layer, maps)

    def __enter__(self) -> _Forward:
        self._hooks.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.__exit__(kind, error, trace)


def provenance(device: torch.device, seconds: float) -> dict[str, Any]:
    """Return the record of one computed partition: host, device, versions, seconds; fit for JSON."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "host": socket.gethostname(),
        "device": f"{device.type}: {name}",
        "seconds": round(seconds, 3),
        "versions": versions(),
    }


class Writer:
    """Writes partitions in its own thread, one at a time; at most one more is kept, so memory stays bounded.

    Use it as a context manager: leaving it waits for the partition that is being written, also on Ctrl-C, so
    that work which is complete is kept. An error of the thread is raised in the caller's next call, or on
    leaving.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def put(self, result: PartitionResult, provenance: Mapping[str, Any]) -> None:
        """Begin to write a partition; wait first for the one before it.

        Raises:
            ActstatsError: the partition before it could not be written.
        """
        self._wait()
        self._thread = threading.Thread(target=self._write, args=(result, provenance), name="actstats-writer")
        self._thread.start()

    def check(self) -> None:
        """Raise the error that stopped the thread, if any; never waits."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _wait(self) -> None:
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
            self._wait()
        elif self._thread is not None:
            self._thread.join()


def measured_seconds(job: Job, images: int) -> float:
    """Return about how long the whole sweep of `images` images takes: from a few batches, after one that compiles.

    Raises:
        ActstatsError: as `run_partitions`.
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
    buffers = Buffers(job.layout)
    with (
        out_of_memory_explained(size),
        in_eval_mode(job.loaded.model),
        _Forward(job) as forward,
        closing(iter(feed)) as passes,
    ):
        forward.begin(Partition(job.layout, buffers, 0))
        assert forward.partition is not None
        begun = time.perf_counter()
        for batch, inputs in passes:
            if inputs is not None:
                forward.partition.begin_batch(batch.position + batch.start)
                forward(inputs)
            if job.layout.device.type == "cuda":
                torch.cuda.synchronize(job.layout.device)
            seconds.append((time.perf_counter() - begun) / (batch.stop - batch.start))
            begun = time.perf_counter()
    # The first batch compiles kernels and waits for the first images; with one batch there is nothing better.
    steady = seconds[1:] or seconds
    return images * sum(steady) / len(steady)


_MEASURED: Final = 5
"""Batches that `measured_seconds` runs, the first included."""
