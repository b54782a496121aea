"""From images to a network's input: the one loop that sweeps and everything in `actstats.probing` share.

images -> decoding threads, distortions -> batch -> upload -> attack -> normalise -> the caller's forward pass
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor

from actstats.data import Batch, Source
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
    """What a network wants of the images.

    Attributes:
        loaded: the network, which an attack needs, and its preprocessing.
        device: where its input shall be.
        chain: what the cropped images are distorted by.
        decode: "pillow" or "device".
    """

    loaded: Loaded
    device: torch.device
    chain: Chain | None = None
    decode: str = "pillow"


def _pixels_of(wanted: Wanted) -> tuple[object, ...]:
    """Return what decides which pixels a network wants, before they are normalised, and where."""
    preprocessing = wanted.loaded.preprocessing
    how = preprocessing.geometry if isinstance(preprocessing, Preprocessing) else id(preprocessing)
    return how, tuple(wanted.chain.specs) if wanted.chain else (), wanted.decode, wanted.device


class JointFeed:
    """Batches of images, decoded once, on their way into several networks; iterate over it once.

    Each item is the number of a `Wanted`, a `Batch`, and that network's input for its readable images,
    [n, C, H, W] on its device, or None where none of them could be read. Batch by batch they come for each
    `Wanted` in turn. Whatever ends the loop, closing the iterator stops the decoding threads.

    Attributes:
        failures: for each `Wanted`, the reason by path, of the images that could not be read so far.
        progress: how far the loop is.
        idle: seconds that the caller spent on something else, to be left out of the progress.
    """

    def __init__(
        self,
        wanted: Sequence[Wanted],
        source: Source,
        ranges: Iterable[tuple[int, int]],
        *,
        workers: int | None = None,
        strict: bool = False,
        on_progress: OnProgress | None = None,
    ) -> None:
        """Prepare the loop over the images [start, stop) of `ranges`, one batch each.

        `workers` threads decode (see `actstats.data.loader.joint_batches`). With `strict` an image that cannot
        be read is an error.

        Raises:
            ActstatsError: images cannot be decoded on this device, or are to be distorted as well.
        """
        self._wanted, self._source = wanted, source
        self._strict, self._on_progress = strict, on_progress
        ranges = list(ranges)
        self._distorters = [self._distorter(w) for w in wanted]
        views = [self._view(w, distorter) for w, distorter in zip(wanted, self._distorters, strict=True)]
        # Networks that want the same pixels share them; attacks are made on the batch, later.
        keys = [_pixels_of(w) for w in wanted]
        distinct = list(dict.fromkeys(keys))
        self._view_of = [distinct.index(key) for key in keys]
        self._loader = joint_batches(
            source, [views[keys.index(key)] for key in distinct], ranges, workers=workers
        )
        self.failures: list[dict[str, str]] = [{} for _ in wanted]
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
                for number, upload in enumerate(uploads):
                    batch = batches[self._view_of[number]]
                    self._note_failures(number, batch)
                    yield number, batch, self._input(number, batch, upload) if len(batch.position) else None
                self.progress = Progress(
                    done=self.progress.done + batch.stop - batch.start,
                    total=self.progress.total,
                    failed=len(set().union(*self.failures)),
                    seconds=time.perf_counter() - begun - self.idle,
                    waiting=waited,
                )
                del batch, batches
                if self._on_progress is not None:
                    self._on_progress(self.progress)

    def _distorter(self, wanted: Wanted) -> Distorter | None:
        if not wanted.chain:
            return None
        images_of = of_images(wanted.loaded.preprocessing, "distorting images")
        source = self._source
        # What is random in a distortion is drawn by the image's index in the source that was swept.
        numbers = source.indices if isinstance(source, Subset) else range(len(source))
        return Distorter(wanted.chain, source.paths, wanted.loaded.model, images_of, numbers)

    def _view(self, wanted: Wanted, distorter: Distorter | None) -> View:
        preprocessing, device = wanted.loaded.preprocessing, wanted.device
        if wanted.decode == "device":
            if distorter is not None:
                raise ActstatsError(
                    "images are distorted on the CPU; decode on the CPU as well, or do not distort"
                )
            images_of = of_images(preprocessing, "decoding on the device")
            decoder = DeviceDecoder(self._source, images_of, device)
            return View(preprocessing, decoder=decoder, pin=device.type == "cuda")
        distort = None if distorter is None else distorter.image
        return View(preprocessing, distort, pin=device.type == "cuda")

    def _input(self, number: int, batch: Batch, upload: Callable[[Tensor], Tensor]) -> Tensor:
        distorter = self._distorters[number]
        pixels = upload(batch.pixels)
        if distorter is not None:
            with torch.inference_mode(False):  # an attack needs gradients
                pixels = distorter.batch(pixels, (batch.position + batch.start).tolist())
        with torch.inference_mode():
            return self._wanted[number].loaded.preprocessing.normalize(pixels)

    def _note_failures(self, number: int, batch: Batch) -> None:
        for index, message in batch.messages.items():
            path = self._source.paths[index]
            if self._strict:
                raise StrictError(
                    f"{path}: {message} (unless strict, a sweep records such an image and goes on)"
                )
            self.failures[number][path] = message


class Feed:
    """A `JointFeed` of one network: each item is a `Batch` and the network's input, or None.

    Attributes:
        failures: reason by path, of the images that could not be read so far.
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
        """Prepare the loop; arguments and errors as of `Wanted` and `JointFeed`."""
        wanted = Wanted(loaded, device, chain, decode)
        self._joint = JointFeed(
            [wanted], source, ranges, workers=workers, strict=strict, on_progress=on_progress
        )
        self.failures = self._joint.failures[0]

    @property
    def progress(self) -> Progress:
        """How far the loop is."""
        return self._joint.progress

    def leave_out(self, seconds: float) -> None:
        """Leave a time in which the caller did something else out of the progress."""
        self._joint.idle += seconds

    def __iter__(self) -> Generator[tuple[Batch, Tensor | None], None, None]:
        with closing(iter(self._joint)) as passes:
            for _, batch, images in passes:
                yield batch, images
                del batch, images  # before the next ones are made
