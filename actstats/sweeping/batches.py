"""Feed images to networks: the loop shared by sweeps and `actstats.probing`.

images -> decoding threads, distortions -> batch -> upload -> attack -> normalise -> the caller's forward pass
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

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
from actstats.sweeping.device import uploader
from actstats.sweeping.progress import Progress

OnProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class Wanted:
    """The input that a network needs.

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


@dataclass(frozen=True)
class Group:
    """Networks that only take images that are readable for all of them.

    Attributes:
        members: their indices among all `Wanted`.
        excluded: status of each image of the source, int8 [images]; those that are not OK are excluded too.
        reason: why these are excluded.
    """

    members: Sequence[int]
    excluded: NDArray[np.int8]
    reason: str


def _pixels_of(wanted: Wanted) -> tuple[object, ...]:
    """Return a key that is equal for networks with the same pixels, before normalisation, on the same device."""
    preprocessing = wanted.loaded.preprocessing
    how = preprocessing.geometry if isinstance(preprocessing, Preprocessing) else id(preprocessing)
    return how, tuple(wanted.chain.specs) if wanted.chain else (), wanted.decode, wanted.device


class JointFeed:
    """Batches of images, decoded once, for several networks. It can be iterated over only once.

    Yields the index of a `Wanted`, a `Batch`, and the input of that network for the readable images of the batch,
    [n, C, H, W] on its device, or None if no image could be read. Each batch is yielded for every `Wanted` before the
    next one. Close the iterator to stop the decoding threads.

    Attributes:
        failures: for each `Wanted`, a dict from the path of each image that could not be read so far to the reason.
        progress: progress of the loop.
        idle: seconds that the caller spent on other work, excluded from the progress.
    """

    def __init__(
        self,
        wanted: Sequence[Wanted],
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
        self._wanted, self._source, self._groups = wanted, source, groups
        self._strict, self._on_progress = strict, on_progress
        ranges = list(ranges)
        self._distorters = [self._distorter(w) for w in wanted]
        views = [self._view(w, distorter) for w, distorter in zip(wanted, self._distorters, strict=True)]
        # Networks with the same pixels share them; attacks are applied later, to each network's batch.
        keys = [_pixels_of(w) for w in wanted]
        distinct = list(dict.fromkeys(keys))
        self._view_of = [distinct.index(key) for key in keys]
        self._loader = joint_batches(
            source, [views[keys.index(key)] for key in distinct], ranges, workers=workers
        )
        self.failures: list[dict[str, str]] = [{} for _ in wanted]
        self._unavailable: set[int] = set()
        self.idle = 0.0
        self.progress = Progress(0, sum(stop - start for start, stop in ranges), 0, 0.0, 0.0)

    def __iter__(self) -> Generator[tuple[int, Batch, Tensor | None], None, None]:
        uploads = [uploader(w.device) for w in self._wanted]
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

    def _distorter(self, wanted: Wanted) -> Distorter | None:
        if not wanted.chain:
            return None
        images_of = of_images(wanted.loaded.preprocessing, "distorting images")
        source = self._source
        # Random distortions are seeded by the index of the image in the swept source.
        numbers = source.indices if isinstance(source, Subset) else range(len(source))
        return Distorter(wanted.chain, source.paths, wanted.loaded.model, images_of, numbers)

    def _view(self, wanted: Wanted, distorter: Distorter | None) -> View:
        preprocessing, device = wanted.loaded.preprocessing, wanted.device
        if wanted.decode == "device":
            if distorter is not None:
                raise ActstatsError(
                    "distortions run on the CPU; use `decode=pillow`, or omit the distortions"
                )
            images_of = of_images(preprocessing, "decoding on the device")
            decoder = DeviceDecoder(self._source, images_of, device)
            return View(preprocessing, decoder=decoder, pin=device.type == "cuda")
        distort = None if distorter is None else distorter.image
        return View(preprocessing, distort, pin=device.type == "cuda")

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
            return batch, self._wanted[number].loaded.preprocessing.normalize(pixels)

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


class Feed:
    """A `JointFeed` for one network: yields each `Batch` and the network's input, or None.

    Attributes:
        failures: dict from the path of each image that could not be read so far to the reason.
    """

    def __init__(
        self,
        loaded: Loaded,
        source: Source,
        device: torch.device,
        ranges: Iterable[tuple[int, int]],
        *,
        chain: Chain | None = None,
        decode: str = "pillow",
        workers: int | None = None,
        strict: bool = False,
        on_progress: OnProgress | None = None,
    ) -> None:
        """Prepare the batches; see `Wanted` and `JointFeed` for arguments and errors."""
        wanted = Wanted(loaded, device, chain, decode)
        self._joint = JointFeed(
            [wanted], source, ranges, workers=workers, strict=strict, on_progress=on_progress
        )
        self.failures = self._joint.failures[0]

    @property
    def progress(self) -> Progress:
        """Progress of the loop."""
        return self._joint.progress

    def leave_out(self, seconds: float) -> None:
        """Exclude `seconds` that the caller spent on other work from the progress."""
        self._joint.idle += seconds

    def __iter__(self) -> Generator[tuple[Batch, Tensor | None], None, None]:
        with closing(iter(self._joint)) as passes:
            for _, batch, images in passes:
                yield batch, images
                del batch, images  # free them before the next batch is created
