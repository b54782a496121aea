"""Thumbnails of all images that are among the top images of some unit, each once."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from actstats.data import MISSING, ImageError, Source
from actstats.data.loader import default_workers
from actstats.data.preprocessing import Preprocessing, of_images
from actstats.distort import Chain, Place
from actstats.errors import ActstatsError
from actstats.store.sweep import Sweep

SIDE: Final = 128
"""Side of a thumbnail in pixels: enough for four in a row on a high-density phone, or on half a desktop window."""
_QUALITY: Final = 74
_AT_ONCE: Final = 256


@dataclass(frozen=True)
class Shown:
    """The images of a sweep as the network saw them, except for adversarial distortions.

    Attributes:
        source: the images.
        numbers: for each image of the sweep its index in `source`, i8; -1 for those that are gone.
        preprocessing: the preprocessing of the sweep.
        chain: its distortions.
        note: what a reader has to know about the images; empty if they are those of the sweep.
    """

    source: Source
    numbers: NDArray[np.int64]
    preprocessing: Preprocessing
    chain: Chain
    note: str = ""

    @classmethod
    def of(cls, sweep: Sweep, paths: Sequence[str], data: str | Path | Source | None) -> Self:
        """Open the images of a sweep, with these paths, from `data` or from where they were swept.

        Where some images are gone or others were added, those of the same path are shown, with a note.

        Raises:
            ActstatsError: they are missing, or none is left.
        """
        preprocessing = of_images(sweep.preprocessing, "showing images")
        try:
            source = sweep.images(data)
            return cls(source, np.arange(len(source)), preprocessing, sweep.chain)
        except ActstatsError:
            source = sweep.images_there(data)
            known = {path: index for index, path in enumerate(source.paths)}
            numbers = np.array([known.get(path, -1) for path in paths])
            # Images of the same names that are other images must not be shown for those that were swept.
            if not (numbers >= 0).any() or set(source.paths) == set(paths):
                raise
        note = (
            f"The images of {source.spec} are not exactly those that were swept: {(numbers >= 0).sum():,} of the "
            f"{len(paths):,} are there, and shown by their path."
        )
        return cls(source, numbers, preprocessing, sweep.chain, note)

    def image(self, index: int) -> Image.Image:
        """Return image `index` of the sweep, cropped and distorted; raises `ImageError`."""
        number = int(self.numbers[index])
        if number < 0:
            raise ImageError(MISSING, "is gone")
        image = self.source.image(number)
        pixels = self.preprocessing.pixels(image)
        if self.chain:
            place = Place(index, self.source.paths[number], self.preprocessing, image.size)
            pixels = (self.chain.image(pixels, place) * 255).round().astype(np.uint8)
        return Image.fromarray(pixels)


@dataclass(frozen=True)
class Pictures:
    """The images that a report shows, numbered from 0 across all stores.

    Attributes:
        paths: path of each.
        labels: class of each, i4; -1 for none.
        members: for each, the number of its source and its index in that source.
        sources: the sources; None where one cannot be opened.
    """

    paths: list[str]
    labels: NDArray[np.int32]
    members: list[tuple[int, int]]
    sources: list[Shown | None]

    @property
    def at_hand(self) -> int:
        """Number of images whose source can be opened."""
        return sum(self.sources[number] is not None for number, _ in self.members)

    def thumbnails(self) -> Iterator[bytes | None]:
        """Yield a JPEG of SIDE x SIDE for each picture, as the network saw it; None if it cannot be read."""
        with ThreadPoolExecutor(default_workers()) as executor:
            for start in range(0, len(self.members), _AT_ONCE):  # in groups, to limit memory
                yield from executor.map(self._thumbnail, self.members[start : start + _AT_ONCE])

    def _thumbnail(self, member: tuple[int, int]) -> bytes | None:
        number, index = member
        source = self.sources[number]
        if source is None:
            return None
        try:
            image = source.image(index)
        except ImageError:
            return None
        encoded = io.BytesIO()
        image.resize((SIDE, SIDE), Image.Resampling.LANCZOS).save(
            encoded, "JPEG", quality=_QUALITY, optimize=True
        )
        return encoded.getvalue()


class Collection:
    """Numbers the distinct images of several stores."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self._known: dict[str, int] = {}
        self._sources: list[Shown | None] = []
        self._paths: list[str] = []
        self._labels: list[NDArray[np.int32]] = []
        self._members: list[tuple[int, int]] = []
        self._numbers: list[dict[int, int]] = []

    def number(
        self,
        sweep: Sweep,
        labels: NDArray[Any],
        images: NDArray[np.int64],
        data: str | Path | Source | None,
    ) -> NDArray[np.int32]:
        """Return the numbers of `images`, i4 of the same shape; -1 for those below 0.

        Args:
            sweep: the sweep.
            labels: class of each of the store's images, [image].
            images: indices along the store's axis `image`, of any shape.
            data: the images, if they were moved since the sweep.
        """
        manifest, paths = sweep.manifest, sweep.dataset["path"].values
        mark = repr([manifest.data.fingerprint, manifest.preprocessing, manifest.distort])
        if mark not in self._known:
            self._known[mark] = len(self._sources)
            self._numbers.append({})
            try:
                shown = Shown.of(sweep, list(map(str, paths)), data)
                self._sources.append(shown)
                self.notes += [shown.note] if shown.note and shown.note not in self.notes else []
            except ActstatsError as error:
                self._sources.append(None)
                note = f"Images are not shown: {error}"
                self.notes += [note] if note not in self.notes else []
        at = self._known[mark]
        distinct = np.unique(images[images >= 0])
        known = self._numbers[at]
        for index in distinct.tolist():
            if index not in known:
                known[index] = len(self._members)
                self._members.append((at, index))
                self._paths.append(str(paths[index]))
                self._labels.append(labels[index])
        table = np.array([known[index] for index in distinct.tolist()], dtype=np.int32)
        found = np.full(images.shape, -1, dtype=np.int32)
        found[images >= 0] = table[np.searchsorted(distinct, images[images >= 0])]
        return found

    def pictures(self) -> Pictures:
        """Return all images that were numbered."""
        return Pictures(self._paths, np.array(self._labels, dtype=np.int32), self._members, self._sources)
