"""Feed images to networks: the loop shared by sweeps and `actstats.probing`.

images -> decoding threads, distortions -> batch -> upload -> attack -> normalise -> the caller's forward pass
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actstats.data import Batch, Source
from actstats.data.image import OK
from actstats.data.loader import View, joint_batches
from actstats.data.on_device import DeviceDecoder
from actstats.data.preprocessing import Preprocessing, of_images
from actstats.data.source import Subset
from actstats.distort import Chain, Distorter
from actstats.errors import ActstatsError, StrictError
from actstats.models import Loaded
from actstats.passes.device import uploader


@dataclass(frozen=True)
class Progress:
    """Progress of a loop over images, passed to `on_progress` after every batch."""

    done: int
    """Number of images processed in this run, including unreadable ones."""
    total: int
    """Number of images to process in this run."""
    failed: int
    """Number of images that could not be read."""
    seconds: float
    """Seconds since the first batch was requested."""
    waiting: float
    """Seconds that the network spent waiting for images."""
    workers: Mapping[str, float] = field(default_factory=dict)
    """On a cluster, images per second of each active worker, by address; 0 before its first partition is complete.
    `waiting` is then a mean over the workers."""
    unavailable: int = 0
    """Number of images that the machine or the network failed to read; a rerun tries them again."""

    @property
    def rate(self) -> float:
        """Images per second."""
        return self.done / self.seconds if self.seconds else 0.0

    @property
    def remaining(self) -> float:
        """Estimated remaining time in seconds."""
        return (self.total - self.done) / self.rate if self.rate else float("inf")

    @property
    def waiting_share(self) -> float:
        """Fraction of the time that the network spent waiting for images."""
        return self.waiting / self.seconds if self.seconds else 0.0


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class Pipeline:
    """From the images of a source to the input of a network.

    Attributes:
        loaded: the network, which attacks need, and its preprocessing.
        device: device of the input.
        chain: distortions of the cropped images.
        decode: "pillow" or "device".
    """

    loaded: Loaded
    device: torch.device
    chain: Chain | None = None
    decode: str = "pillow"

    @property
    def pixels(self) -> tuple[object, ...]:
        """A key that is equal for pipelines with the same pixels, before attacks and normalization."""
        preprocessing = self.loaded.preprocessing
        how = preprocessing.geometry if isinstance(preprocessing, Preprocessing) else id(preprocessing)
        return how, tuple(self.chain.specs) if self.chain else (), self.decode, self.device

    def distorter(self, source: Source) -> Distorter | None:
        """Return what distorts the images of `source`, or None without distortions."""
        if not self.chain:
            return None
        images_of = of_images(self.loaded.preprocessing, "distorting images")
        # Random distortions are seeded by the index of the image in the swept source.
        numbers = source.indices if isinstance(source, Subset) else range(len(source))
        return Distorter(self.chain, source.paths, self.loaded.model, images_of, numbers)

    def view(self, source: Source, distorter: Distorter | None = None) -> View:
        """Return how the images of `source` are decoded.

        Raises:
            ActstatsError: images cannot be decoded on this device, or decoding there is combined with distortions.
        """
        preprocessing, pin = self.loaded.preprocessing, self.device.type == "cuda"
        if self.decode != "device":
            return View(preprocessing, None if distorter is None else distorter.image, pin=pin)
        if self.chain:
            raise ActstatsError("distortions run on the CPU; use `decode=pillow`, or omit the distortions")
        images_of = of_images(preprocessing, "decoding on the device")
        return View(preprocessing, decoder=DeviceDecoder(source, images_of, self.device), pin=pin)


@dataclass(frozen=True)
class Group:
    """Networks that only take images that are readable for all of them.

    Attributes:
        members: their indices among all pipelines.
        excluded: status of each image of the source, int8 [images]; those that are not OK are excluded too.
        reason: why these are excluded.
    """

    members: Sequence[int]
    excluded: NDArray[np.int8]
    reason: str


class Feed:
    """Batches of images, decoded once, for several networks. It can be iterated over only once.

    Yields the index of a pipeline, a `Batch`, and the network's input for the readable images of the batch,
    [n, C, H, W] on its device, or None if no image could be read. Each batch is yielded for every pipeline before the
    next one. Close the iterator to stop the decoding threads.

    Attributes:
        failures: for each pipeline, a dict from the path of each image that could not be read so far to the reason.
        progress: progress of the loop.
        idle: seconds that the caller spent on other work, excluded from the progress.
    """

    def __init__(
        self,
        pipelines: Sequence[Pipeline],
        source: Source,
        ranges: Iterable[tuple[int, int]],
        *,
        groups: Sequence[Group] = (),
        workers: int | None = None,
        strict: bool = False,
        on_progress: OnProgress | None = None,
    ) -> None:
        """Prepare one batch for each range [start, stop) of images in `ranges`.

        `workers` is the number of decoding threads (see `actstats.data.loader.joint_batches`). With `strict`, an
        unreadable image raises an error.

        Raises:
            ActstatsError: images cannot be decoded on this device, or decoding there is combined with distortions.
        """
        self._pipelines, self._source, self._groups = pipelines, source, groups
        self._strict, self._on_progress = strict, on_progress
        ranges = list(ranges)
        self._distorters = [pipeline.distorter(source) for pipeline in pipelines]
        # Networks with the same pixels share them; attacks are applied later, to each network's batch.
        views = {
            pipeline.pixels: pipeline.view(source, distorter)
            for pipeline, distorter in zip(pipelines, self._distorters, strict=True)
        }
        distinct = list(views)
        self._view_of = [distinct.index(pipeline.pixels) for pipeline in pipelines]
        self._loader = joint_batches(source, list(views.values()), ranges, workers=workers)
        self.failures: list[dict[str, str]] = [{} for _ in pipelines]
        self._unavailable: set[int] = set()
        self.idle = 0.0
        self.progress = Progress(0, sum(stop - start for start, stop in ranges), 0, 0.0, 0.0)

    def __iter__(self) -> Generator[tuple[int, Batch, Tensor | None], None, None]:
        uploads = [uploader(pipeline.device) for pipeline in self._pipelines]
        begun, waited = time.perf_counter(), 0.0
        with closing(self._loader):
            while True:
                asked = time.perf_counter()
                batches = next(self._loader, None)
                if batches is None:
                    return
                waited += time.perf_counter() - asked
                agreed = self._agreed([batches[view] for view in self._view_of])
                for number, upload in enumerate(uploads):
                    batch = agreed[number]
                    self._note_failures(number, batch)
                    yield number, *self._with_input(number, batch, upload)
                self.progress = Progress(
                    done=self.progress.done + batch.stop - batch.start,
                    total=self.progress.total,
                    failed=len(set().union(*self.failures)),
                    seconds=time.perf_counter() - begun - self.idle,
                    waiting=waited,
                    unavailable=len(self._unavailable),
                )
                del batch, agreed, batches
                if self._on_progress is not None:
                    self._on_progress(self.progress)

    def _agreed(self, batches: list[Batch]) -> list[Batch]:
        """Return the batch of each network, without the images that are unreadable for another one of its group."""
        for group in self._groups:
            own = [batches[number] for number in group.members]
            status = group.excluded[own[0].start : own[0].stop]
            messages = dict.fromkeys((np.flatnonzero(status != OK) + own[0].start).tolist(), group.reason)
            for batch in own:
                status = np.where(status == OK, batch.status, status)
                messages = {**batch.messages, **messages}
            for number in group.members:
                batches[number] = _without(batches[number], status, messages)
        return batches

    def _with_input(
        self, number: int, batch: Batch, upload: Callable[[Tensor], Tensor]
    ) -> tuple[Batch, Tensor | None]:
        if not len(batch.position):
            return batch, None
        distorter = self._distorters[number]
        pixels = upload(batch.pixels)
        if distorter is not None:
            with torch.inference_mode(False):  # an attack needs gradients
                pixels, moved = distorter.batch(pixels, (batch.position + batch.start).tolist())
            batch = replace(batch, moved=moved)
        # Not in inference mode: a network may keep what it makes of these images.
        with torch.no_grad():
            return batch, self._pipelines[number].loaded.preprocessing.normalize(pixels)

    def _note_failures(self, number: int, batch: Batch) -> None:
        self._unavailable |= batch.unavailable
        for index, message in batch.messages.items():
            path = self._source.paths[index]
            if self._strict:
                raise StrictError(
                    f"{path}: {message} (without `strict=True`, a sweep records unreadable images and continues)"
                )
            self.failures[number][path] = message


def _without(batch: Batch, status: NDArray[np.int8], messages: Mapping[int, str]) -> Batch:
    """Return a batch without the images that have a `status` other than OK, with the `messages` on them."""
    if np.array_equal(status, batch.status):
        return batch
    kept = np.flatnonzero(status[batch.position] == OK)
    return replace(
        batch,
        pixels=batch.pixels[torch.from_numpy(kept).to(batch.pixels.device)],
        position=batch.position[kept],
        status=np.where(batch.status == OK, status, batch.status),
        messages=dict(sorted({**messages, **batch.messages}.items())),
    )
