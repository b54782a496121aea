"""Batches of preprocessed images, decoded ahead on threads and handed over in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actstats.data.image import OK, ImageError, refuse_large
from actstats.data.source import Source
from actstats.errors import ActstatsError
from actstats.preprocess import Preprocessing

_BATCHES_AHEAD: Final = 2


@dataclass(frozen=True)
class Batch:
    """Images [start, stop) of a source, those that could be read.

    `pixels` is uint8 [n_ok, H, W, 3]; `position`, int64 [n_ok], says which of the stop - start images they
    are; `status`, int8 [stop - start], is OK, MISSING, UNREADABLE or REFUSED for each; `messages` has one
    line for each image that is not OK, by its index in the source.
    """

    start: int
    stop: int
    pixels: Tensor
    position: NDArray[np.int64]
    status: NDArray[np.int8]
    messages: dict[int, str]


def batches(
    source: Source,
    preprocessing: Preprocessing,
    ranges: Iterable[tuple[int, int]],
    *,
    workers: int,
    pin: bool = False,
) -> Generator[Batch, None, None]:
    """Yield one `Batch` for each (start, stop) of `ranges`, in order.

    `workers` threads decode up to two batches ahead, and more only where that many would leave threads
    idle; with 0 the caller's thread does it. `pin` puts the pixels into page-locked memory. Closing the
    iterator stops the threads. An exception other than `ImageError` in a thread is raised here.
    """
    if workers < 0:
        raise ActstatsError(f"the number of workers must be 0 or more, not {workers}")
    # Not a generator itself, so that the arguments are checked at the call.
    if workers == 0:
        return _decoded_here(source, preprocessing, ranges, pin)
    return _decoded_ahead(source, preprocessing, ranges, workers, pin)


class _Assembly:
    """A batch in the making: a place for each image, and what became of it."""

    def __init__(
        self, source: Source, preprocessing: Preprocessing, start: int, stop: int, pin: bool
    ) -> None:
        _, height, width = preprocessing.shape
        self._source, self._preprocessing = source, preprocessing
        self.start, self.stop = start, stop
        self._pixels = torch.empty(stop - start, height, width, 3, dtype=torch.uint8, pin_memory=pin)
        self._rows = self._pixels.numpy()
        self._status = np.full(stop - start, OK, dtype=np.int8)
        self._messages: dict[int, str] = {}

    def fill(self, index: int) -> None:
        """Decode image `index` into its place; threads may fill several at once."""
        try:
            image = self._source.image(index)
            refuse_large(*self._preprocessing.resized(image.size), what="long, thin image, once resized,")
            self._rows[index - self.start] = self._preprocessing.pixels(image)
        except ImageError as error:
            self._status[index - self.start] = error.status
            self._messages[index] = error.message

    def finish(self) -> Batch:
        """Return the batch, its readable images moved together."""
        position = np.flatnonzero(self._status == OK)
        for place, row in enumerate(position):
            if place != row:
                self._rows[place] = self._rows[row]
        messages = dict(sorted(self._messages.items()))
        pixels = self._pixels[: len(position)]
        return Batch(self.start, self.stop, pixels, position, self._status, messages)


def _decoded_here(
    source: Source, preprocessing: Preprocessing, ranges: Iterable[tuple[int, int]], pin: bool
) -> Generator[Batch, None, None]:
    for start, stop in ranges:
        assembly = _Assembly(source, preprocessing, start, stop, pin)
        for index in range(start, stop):
            assembly.fill(index)
        yield assembly.finish()


def _decoded_ahead(
    source: Source, preprocessing: Preprocessing, ranges: Iterable[tuple[int, int]], workers: int, pin: bool
) -> Generator[Batch, None, None]:
    executor = ThreadPoolExecutor(workers, thread_name_prefix="actstats-decode")
    queue: deque[tuple[_Assembly, list[Future[None]]]] = deque()
    upcoming = iter(ranges)
    try:
        while True:
            while len(queue) <= _BATCHES_AHEAD or sum(len(futures) for _, futures in queue) < 2 * workers:
                bounds = next(upcoming, None)
                if bounds is None:
                    break
                assembly = _Assembly(source, preprocessing, *bounds, pin)
                queue.append((assembly, [executor.submit(assembly.fill, index) for index in range(*bounds)]))
            if not queue:
                return
            assembly, futures = queue.popleft()
            for future in futures:
                future.result()
            yield assembly.finish()
            del assembly, futures  # The consumer alone decides how long the pixels live.
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
