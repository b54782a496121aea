"""From images to a network's input: the one loop that sweeps and everything in `actstats.probing` share.

images -> decoding threads, distortions -> batch -> upload -> attack -> normalise -> the caller's forward pass
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable
from contextlib import closing

import torch
from torch import Tensor

from actstats.data import Batch, Source, batches
from actstats.data.on_device import DeviceDecoder
from actstats.data.transform import of_images
from actstats.distort import Chain, Distorter
from actstats.errors import ActstatsError
from actstats.models import Loaded
from actstats.sweeping.device import uploader
from actstats.sweeping.progress import Progress

OnProgress = Callable[[Progress], None]


class Feed:
    """Batches of images on their way into a network; iterate over it once.

    Each item is a `Batch` and the network's input for its readable images, [n, C, H, W] on `device`, or
    None where none of them could be read. Whatever ends the loop, closing the iterator stops the decoding
    threads.

    Attributes:
        failures: reason by path, of the images that could not be read so far.
        progress: how far the loop is.
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
        """Prepare the loop over the images [start, stop) of `ranges`, one batch each.

        `chain` distorts each cropped image; `decode` is "pillow" or "device"; `workers` threads decode (see
        `actstats.data.batches`). With `strict` an image that cannot be read is an error.

        Raises:
            ActstatsError: images cannot be decoded on this device, or are to be distorted as well.
        """
        self._source, self._preprocessing, self._device = source, loaded.preprocessing, device
        self._strict, self._on_progress = strict, on_progress
        ranges = list(ranges)
        self._distorter = None
        if chain:
            images_of = of_images(loaded.preprocessing, "distorting images")
            self._distorter = Distorter(chain, source.paths, loaded.model, images_of)
        if chain and decode == "device":
            raise ActstatsError(
                "images are distorted on the CPU; decode on the CPU as well, or do not distort"
            )
        decoder = None
        if decode == "device":
            decoder = DeviceDecoder(source, of_images(loaded.preprocessing, "decoding on the device"), device)
        self._loader = batches(
            source,
            loaded.preprocessing,
            ranges,
            workers=workers,
            pin=device.type == "cuda",
            distort=None if self._distorter is None else self._distorter.image,
            decoder=decoder,
        )
        self.failures: dict[str, str] = {}
        self.progress = Progress(0, sum(stop - start for start, stop in ranges), 0, 0.0, 0.0)

    def __iter__(self) -> Generator[tuple[Batch, Tensor | None], None, None]:
        upload = uploader(self._device)
        begun, waited = time.perf_counter(), 0.0
        with closing(self._loader):
            while True:
                asked = time.perf_counter()
                batch = next(self._loader, None)
                if batch is None:
                    return
                waited += time.perf_counter() - asked
                self._note_failures(batch)
                yield batch, self._input(batch, upload) if len(batch.position) else None
                self.progress = Progress(
                    done=self.progress.done + batch.stop - batch.start,
                    total=self.progress.total,
                    failed=len(self.failures),
                    seconds=time.perf_counter() - begun,
                    waiting=waited,
                )
                del batch
                if self._on_progress is not None:
                    self._on_progress(self.progress)

    def _input(self, batch: Batch, upload: Callable[[Tensor], Tensor]) -> Tensor:
        pixels = upload(batch.pixels)
        if self._distorter is not None:
            with torch.inference_mode(False):  # an attack needs gradients
                pixels = self._distorter.batch(pixels, (batch.position + batch.start).tolist())
        with torch.inference_mode():
            return self._preprocessing.normalize(pixels)

    def _note_failures(self, batch: Batch) -> None:
        for index, message in batch.messages.items():
            path = self._source.paths[index]
            if self._strict:
                raise ActstatsError(
                    f"{path}: {message} (unless strict, a sweep records such an image and goes on)"
                )
            self.failures[path] = message
