"""Load batches of preprocessed images in order, decoding ahead in threads."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Final, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from actstats.data.dataset import DatasetSource, item_of
from actstats.data.image import OK, ImageError, refuse_large_resized
from actstats.data.jpeg import size_of
from actstats.data.on_device import DeviceDecoder
from actstats.data.patience import MachineError, Patience
from actstats.data.preprocessing import Preprocessing
from actstats.data.source import EncodedSource, Source
from actstats.data.transform import Transform
from actstats.errors import ActstatsError, reason_of

_BATCHES_AHEAD: Final = 2

_Image = NDArray[np.uint8] | Image.Image
T = TypeVar("T")

Distort = Callable[[NDArray[np.uint8], int, tuple[int, int]], NDArray[np.float32]]
"""Function of pixels (uint8 [H, W, 3]), image index and original (width, height) that returns f32 in [0, 1]."""


@dataclass(frozen=True)
class Batch:
    """The images [start, stop) of a source that could be read.

    `pixels` is uint8 [n_ok, H, W, 3], or f32 in [0, 1] if images are distorted, or [n_ok, C, H, W] as returned by a
    `Transform`, on the CPU or the decoder's device. `position`, int64 [n_ok], is the offset of each of them from
    `start`. `status`, int8 [stop - start], is OK, MISSING, UNREADABLE or REFUSED for each image. `messages` has one
    line for each image that is not OK, by its index in the source. `unavailable` are the indices of those that the
    machine or the network failed to read. `moved`, f32 [n_ok], is the l2 distance over which an attack moved each
    readable image, if there was one.
    """

    start: int
    stop: int
    pixels: Tensor
    position: NDArray[np.int64]
    status: NDArray[np.int8]
    messages: dict[int, str]
    unavailable: frozenset[int] = frozenset()
    moved: Tensor | None = None


@dataclass(frozen=True)
class View:
    """The processing of each image for one batch.

    `distort` is applied to the cropped image, and may raise `ImageError`. With a `decoder`, which cannot be combined
    with `distort`, the images that it accepts are only read; it decodes them when their batch is requested. `pin`
    stores the pixels in page-locked memory.
    """

    preprocessing: Preprocessing | Transform
    distort: Distort | None = None
    decoder: DeviceDecoder | None = None
    pin: bool = False


def batches(
    source: Source,
    preprocessing: Preprocessing | Transform,
    ranges: Iterable[tuple[int, int]],
    *,
    workers: int | None,
    pin: bool = False,
    distort: Distort | None = None,
    decoder: DeviceDecoder | None = None,
) -> Generator[Batch, None, None]:
    """Yield one `Batch` for each (start, stop) in `ranges`; for the arguments, see `View` and `joint_batches`."""
    view = View(preprocessing, distort, decoder, pin)
    return _only(joint_batches(source, [view], ranges, workers=workers))


def _only(joint: Generator[list[Batch], None, None]) -> Generator[Batch, None, None]:
    with closing(joint):
        for [batch] in joint:
            yield batch
            del batch


def joint_batches(
    source: Source, views: Sequence[View], ranges: Iterable[tuple[int, int]], *, workers: int | None
) -> Generator[list[Batch], None, None]:
    """Yield a list of one `Batch` per view for each (start, stop) in `ranges`, in order, decoding each image once.

    `workers` threads decode and distort up to two batches ahead, or more if threads would otherwise be idle. None
    uses `default_workers()` threads, or the worker processes of a DataLoader; 0 decodes in the caller's thread.
    Closing the iterator stops the threads. Images that the machine fails to read are tried again, see `Patience`.
    Exceptions in a thread, other than `ImageError`, are raised here.
    """
    if workers is not None and workers < 0:
        raise ActstatsError(f"`workers=` must be 0 or more, not {workers}")
    assert not any(view.distort and view.decoder for view in views)
    # Not a generator itself, so that the arguments are checked when it is called.
    patience = Patience()
    assemble = partial(_Assemblies, source, views, patience)
    if workers is None and isinstance(source, DatasetSource) and source.loader is not None:
        return _decoded_by_processes(assemble, ranges, source, views, source.loader, patience)
    workers = default_workers() if workers is None else workers
    if workers == 0:
        return _decoded_here(assemble, ranges)
    return _decoded_ahead(assemble, ranges, workers, patience)


def default_workers() -> int:
    """Return the default number of decoding threads: one per core, at most 8."""
    return min(8, os.cpu_count() or 1)


def split(start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield consecutive ranges of `size` that cover [start, stop). The last one may be shorter.

    >>> list(split(0, 5, 2))
    [(0, 2), (2, 4), (4, 5)]
    """
    for first in range(start, stop, size):
        yield first, min(first + size, stop)


@dataclass(frozen=True)
class _Reader:
    """Reads and preprocesses the image with a given index."""

    source: Source
    preprocessing: Preprocessing | Transform
    distort: Distort | None

    def __call__(
        self, index: int, patience: Patience, decoded: Callable[[], _Image] | None = None
    ) -> NDArray[Any]:
        """Return the pixels of image `index`, decoded by calling `decoded` if given; raises `ImageError`."""
        if isinstance(self.preprocessing, Transform):
            return self.preprocessing.pixels(patience(partial(item_of, self.source, index)))
        decoded = decoded or _Once(partial(patience, partial(_decoded, self.source, index)))
        return self.pixels(index, patience, decoded())

    def pixels(self, index: int, patience: Patience, image: _Image) -> NDArray[Any]:
        """Return the pixels of `image`, whose index is `index`; raises `ImageError`."""
        assert isinstance(self.preprocessing, Preprocessing)
        size = size_of(image)
        refuse_large_resized(*self.preprocessing.resized(size))
        pixels = self.preprocessing.pixels(image)
        # Distortions may read files too, such as masks.
        return pixels if self.distort is None else patience(partial(self.distort, pixels, index, size))


def _decoded(source: Source, index: int) -> _Image:
    """Return image `index` in the form that is faster to decode; raises `ImageError`."""
    return source.decoded(index) if isinstance(source, EncodedSource) else source.image(index)


class _Once(Generic[T]):
    """Calls a function at the first call, and returns its result, or raises its `ImageError`, at every call."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._result: T | None = None
        self._error: ImageError | None = None

    def __call__(self) -> T:
        if self._error is not None:
            raise self._error
        if self._result is None:
            try:
                self._result = self._function()
            except ImageError as error:
                self._error = error
                raise
        return self._result


class _Assemblies:
    """Batches under construction, one for each view of the same images."""

    def __init__(
        self, source: Source, views: Sequence[View], patience: Patience, start: int, stop: int
    ) -> None:
        self._source, self._patience = source, patience
        self.views = [_Assembly(source, view, patience, start, stop) for view in views]

    def fill(self, index: int) -> None:
        """Store image `index` in each batch. Thread-safe for different images."""
        decoded = _Once(partial(self._patience, partial(_decoded, self._source, index)))
        for view in self.views:
            view.fill(index, decoded)

    def finish(self) -> list[Batch]:
        """Return the batches, with the readable images made contiguous."""
        return [view.finish() for view in self.views]


class _Assembly:
    """A batch under construction, with a place and a status for each image."""

    def __init__(self, source: Source, view: View, patience: Patience, start: int, stop: int) -> None:
        self._reader, self._decoder = _Reader(source, view.preprocessing, view.distort), view.decoder
        self._patience = patience
        self.start, self.stop = start, stop
        self._pixels = view.preprocessing.empty(stop - start, pin=view.pin)
        if view.distort is not None:
            self._pixels = torch.empty(self._pixels.shape, dtype=torch.float32, pin_memory=view.pin)
        self._rows = self._pixels.numpy()
        self._status = np.full(stop - start, OK, dtype=np.int8)
        self._errors: dict[int, ImageError] = {}
        self._encoded: dict[int, Tensor] = {}

    def fill(self, index: int, decoded: Callable[[], _Image]) -> None:
        """Store image `index`, which `decoded` returns, or read it for the decoder."""
        try:
            if self._decoder is None:
                self.put(index, self._reader(index, self._patience, decoded))
                return
            found = self._patience(partial(self._decoder.take, index))
            if isinstance(found, Tensor):
                self._encoded[index - self.start] = found
            else:
                self.put(index, self._reader.pixels(index, self._patience, found))
        except ImageError as error:
            self.fail(index, error)

    def put(self, index: int, pixels: NDArray[Any]) -> None:
        """Store the pixels of image `index`."""
        self._rows[index - self.start] = pixels

    def fail(self, index: int, error: ImageError) -> None:
        """Record that image `index` cannot be read."""
        self._status[index - self.start] = error.status
        self._errors[index] = error

    def finish(self) -> Batch:
        """Return the batch, with the readable images made contiguous."""
        decoded = self._decode_on_device()
        position = np.flatnonzero(self._status == OK)
        rows = position.tolist()
        if self._decoder is None:
            for place, row in enumerate(rows):
                if place != row:
                    self._rows[place] = self._rows[row]
            pixels = self._pixels[: len(rows)]
        else:
            pixels = torch.empty_like(self._pixels[: len(rows)], device=self._decoder.device)
            for place, row in enumerate(rows):
                pixels[place].copy_(decoded.get(row, self._pixels[row]), non_blocking=True)
        messages = {index: error.message for index, error in sorted(self._errors.items())}
        unavailable = frozenset(i for i, error in self._errors.items() if isinstance(error, MachineError))
        return Batch(self.start, self.stop, pixels, position, self._status, messages, unavailable)

    def _decode_on_device(self) -> dict[int, Tensor]:
        """Return the pixels of the images left to the decoder. Images that it fails on are retried with Pillow."""
        if self._decoder is None or not self._encoded:
            return {}
        decoded: dict[int, Tensor] = {}
        found = self._decoder.decode(list(self._encoded.values()))
        for place, pixels in zip(self._encoded, found, strict=True):
            if pixels is not None:
                decoded[place] = pixels
                continue
            index = self.start + place
            try:
                self.put(index, self._reader(index, self._patience))
            except ImageError as error:
                self.fail(index, error)
        return decoded


def _decoded_here(
    assemble: Callable[[int, int], _Assemblies], ranges: Iterable[tuple[int, int]]
) -> Generator[list[Batch], None, None]:
    for start, stop in ranges:
        made = assemble(start, stop)
        for index in range(start, stop):
            made.fill(index)
        yield made.finish()


@dataclass(frozen=True)
class _Rows:
    """Dataset of a DataLoader: the pixels of each image for each view, or the error."""

    readers: Sequence[_Reader]

    def __getitem__(self, index: int) -> list[NDArray[Any] | ImageError | ActstatsError]:
        patience = _patience_here()
        decoded = _Once(partial(patience, partial(_decoded, self.readers[0].source, index)))
        return [self._row(reader, index, patience, decoded) for reader in self.readers]

    def _row(
        self, reader: _Reader, index: int, patience: Patience, decoded: Callable[[], _Image]
    ) -> NDArray[Any] | ImageError | ActstatsError:
        try:
            return reader(index, patience, decoded)
        # Without causes and tracebacks, which cannot always be pickled.
        except ImageError as error:
            return type(error)(error.status, error.message)
        except ActstatsError as error:
            return ActstatsError(str(error))


@cache
def _patience_here() -> Patience:
    """Return the backoff of this worker process."""
    return Patience()


def _stacked(images: list[Any]) -> list[tuple[Tensor | None, dict[int, ImageError | ActstatsError]]]:
    """Return for each view the stacked pixels of the readable images, and the errors of the others by position."""
    found = []
    for rows in zip(*images, strict=True):
        read = [row for row in rows if isinstance(row, np.ndarray)]
        errors = {place: row for place, row in enumerate(rows) if not isinstance(row, np.ndarray)}
        found.append((torch.from_numpy(np.stack(read)) if read else None, errors))
    return found


def _decoded_by_processes(
    assemble: Callable[[int, int], _Assemblies],
    ranges: Iterable[tuple[int, int]],
    source: DatasetSource,
    views: Sequence[View],
    loader: DataLoader[Any],
    patience: Patience,
) -> Generator[list[Batch], None, None]:
    """Yield batches read by worker processes, whose number and start method are those of `loader`.

    Processes that are not forked receive what they need by pickle. What cannot be pickled is read by threads instead.
    """
    ranges = list(ranges)
    shared = source.for_processes()
    parallel: DataLoader[Any] = DataLoader(
        _Rows([_Reader(shared, view.preprocessing, view.distort) for view in views]),  # type: ignore[arg-type]
        batch_sampler=[list(range(*bounds)) for bounds in ranges],
        collate_fn=_stacked,
        num_workers=loader.num_workers,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        prefetch_factor=loader.prefetch_factor,
        timeout=loader.timeout,
    )
    method = (loader.multiprocessing_context or multiprocessing).get_start_method()
    importable = (
        ""
        if method == "fork"
        else "define functions and classes at the top of a module, put the code of a script under "
        "`if __name__ == '__main__':`, or "
    )
    try:
        with warnings.catch_warnings():
            # The warning below says what happens then.
            warnings.filterwarnings("ignore", message="Got pickle error")
            results = iter(parallel)
    except (pickle.PicklingError, AttributeError, TypeError) as refused:
        if method == "fork":
            raise
        warnings.warn(
            f"reading without the DataLoader's worker processes, which start by {method}: {reason_of(refused)}; "
            f"{importable}use multiprocessing_context='fork'",
            stacklevel=2,
        )
        yield from _decoded_ahead(assemble, ranges, default_workers(), patience)
        return
    for start, stop in ranges:
        try:
            found = next(results)
        except RuntimeError as ended:
            if "DataLoader worker" not in str(ended):
                raise
            raise ActstatsError(
                f"the DataLoader's worker processes, which start by {method}, ended: {reason_of(ended)}; "
                f"{importable}use num_workers=0"
            ) from ended
        made = assemble(start, stop)
        for assembly, (pixels, errors) in zip(made.views, found, strict=True):
            rows = iter([] if pixels is None else pixels.numpy())
            for place in range(stop - start):
                if place not in errors:
                    assembly.put(start + place, next(rows))
                    continue
                error = errors[place]
                if isinstance(error, ActstatsError):
                    raise error
                assembly.fail(start + place, error)
        yield made.finish()


def _decoded_ahead(
    assemble: Callable[[int, int], _Assemblies],
    ranges: Iterable[tuple[int, int]],
    workers: int,
    patience: Patience,
) -> Generator[list[Batch], None, None]:
    executor = ThreadPoolExecutor(workers, thread_name_prefix="actstats-decode")
    queue: deque[tuple[_Assemblies, list[Future[None]]]] = deque()
    upcoming = iter(ranges)
    try:
        while True:
            while len(queue) <= _BATCHES_AHEAD or sum(len(futures) for _, futures in queue) < 2 * workers:
                bounds = next(upcoming, None)
                if bounds is None:
                    break
                made = assemble(*bounds)
                queue.append((made, [executor.submit(made.fill, index) for index in range(*bounds)]))
            if not queue:
                return
            made, futures = queue.popleft()
            for future in futures:
                future.result()
            yield made.finish()
            del made, futures  # Only the consumer keeps the pixels alive.
    finally:
        patience.stop()
        executor.shutdown(wait=True, cancel_futures=True)
