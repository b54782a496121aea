"""Thumbnails of the images that appear among the top images of any unit, each once."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from actstats.data import ImageError, Source
from actstats.data.loader import default_workers
from actstats.data.preprocessing import Preprocessing
from actstats.distort import Chain, Place, parse
from actstats.errors import ActstatsError
from actstats.report.contact_sheet import swept_images

SIDE: Final = 128
"""Pixels of a thumbnail's side: four in a row of a phone at twice the density, or of a desktop's half."""
_QUALITY: Final = 74
_AT_ONCE: Final = 256


@dataclass(frozen=True)
class Shown:
    """The images of a sweep, as the network saw them, but for adversarial changes."""

    source: Source
    preprocessing: Preprocessing
    chain: Chain

    @classmethod
    def of(cls, manifest: Mapping[str, Any], data: str | None) -> Self:
        """Open the images of the sweep that `manifest` describes, where they were or where `data` says.

        Raises:
            ActstatsError: they are not there, or are others.
        """
        source = swept_images(manifest["data"], data)
        return cls(
            source, Preprocessing.from_dict(manifest["preprocessing"]), parse(manifest.get("distort", ()))
        )

    def image(self, index: int) -> Image.Image:
        """Return image `index` cropped and distorted; raises `ImageError`."""
        image = self.source.image(index)
        pixels = self.preprocessing.pixels(image)
        if self.chain:
            place = Place(index, self.source.paths[index], self.preprocessing, image.size)
            pixels = (self.chain.image(pixels, place) * 255).round().astype(np.uint8)
        return Image.fromarray(pixels)


@dataclass(frozen=True)
class Pictures:
    """The images that a report shows, numbered from 0 through all stores.

    `paths` and `labels` say what each is, `members` where it is: the number of its source, and its index there.
    """

    paths: list[str]
    labels: NDArray[np.int32]
    members: list[tuple[int, int]]
    sources: list[Shown | None]

    @property
    def at_hand(self) -> int:
        """How many there may be thumbnails of."""
        return sum(self.sources[number] is not None for number, _ in self.members)

    def thumbnails(self) -> Iterator[bytes | None]:
        """Yield each picture as the network sees it, a JPEG of SIDE x SIDE; None if it cannot be had any more."""
        with ThreadPoolExecutor(default_workers()) as executor:
            for start in range(0, len(self.members), _AT_ONCE):  # so that few wait in memory
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
    """Numbers images as they are met, each of a source once."""

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
        manifest: dict[str, Any],
        paths: NDArray[Any],
        labels: NDArray[Any],
        images: NDArray[np.int64],
        data: str | None,
    ) -> NDArray[np.int32]:
        """Return the numbers of `images`, indices along a store's axis `image` of any shape, -1 for those below 0.

        `paths` and `labels` are the store's, [image]; `data` says where the images lie now, if they were moved.
        """
        mark = repr([manifest["data"]["fingerprint"], manifest["preprocessing"], manifest.get("distort")])
        if mark not in self._known:
            self._known[mark] = len(self._sources)
            self._numbers.append({})
            try:
                self._sources.append(Shown.of(manifest, data))
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
        """Return all that were numbered."""
        return Pictures(self._paths, np.array(self._labels, dtype=np.int32), self._members, self._sources)
