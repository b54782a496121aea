"""A chain of distortions, and where each is applied: on the loader's threads, or after an attack.

    cropped image -> steps on the loader's threads -> batch -> first pgd, and all after it -> normalise

Steps that look at one image alone run where images are decoded. An attack needs the network, so it and what
follows it run on whole batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from actstats.data.preprocessing import Preprocessing
from actstats.distort.adversarial import Adversarial
from actstats.distort.outlines import Silhouette
from actstats.distort.pixels import Scramble
from actstats.distort.step import Image, Place, Step
from actstats.errors import ActstatsError


@dataclass(frozen=True)
class Chain:
    """Distortions in the order in which they are applied; an empty chain is false and changes nothing."""

    steps: tuple[Step | Adversarial, ...] = ()

    def __post_init__(self) -> None:
        for step in self.steps[1:]:
            if isinstance(step, Silhouette):
                raise ActstatsError(f"{step} replaces the image, so it must be the first distortion")

    def __bool__(self) -> bool:
        return bool(self.steps)

    @property
    def specs(self) -> list[str]:
        """The spec of each step, from which `parse` makes an equal chain; fit for a manifest."""
        return [str(step) for step in self.steps]

    def record(self) -> dict[str, Any]:
        """Return the entries of the manifest: none where nothing is distorted."""
        if not self:
            return {}
        first = self.steps[0]
        masks = {"masks": first.fingerprint} if isinstance(first, Silhouette) else {}
        return {"distort": self.specs, **masks}

    def check(self, preprocessing: Preprocessing) -> None:
        """Raise `ActstatsError` where a step cannot be done to images of this size."""
        for step in self.steps:
            if isinstance(step, Scramble) and step.grid > preprocessing.crop:
                raise ActstatsError(f"{step} needs more pixels than the {preprocessing.crop} of a side")

    def image(self, pixels: NDArray[np.uint8], place: Place) -> Image:
        """Return the image up to the first attack, f32 [H, W, 3] in [0, 1], from cropped bytes, [H, W, 3].

        Raises `ImageError` where this image cannot be distorted.
        """
        image = pixels.astype(np.float32) / np.float32(255)
        for number in range(self._first_attack):
            image = self._apply(number, image, place)
        return image

    def batch(
        self, model: nn.Module, preprocessing: Preprocessing, pixels: Tensor, places: Sequence[Place]
    ) -> Tensor:
        """Return a batch as the network is to see it: the first attack on `model` and what follows it.

        `pixels`, f32 [N, H, W, 3], are what `image` returned for `places`; so is the result. It runs forward
        passes, so no hook should be listening.
        """
        for number, step in enumerate(self.steps[self._first_attack :], self._first_attack):
            if isinstance(step, Adversarial):
                pixels = step.attack(model, preprocessing, pixels)
            else:
                arrays = pixels.cpu().numpy()
                distorted = [self._apply(number, *pair) for pair in zip(arrays, places, strict=True)]
                pixels = torch.from_numpy(np.stack(distorted)).to(pixels.device)
        return pixels

    @cached_property
    def _first_attack(self) -> int:
        kinds = (number for number, step in enumerate(self.steps) if isinstance(step, Adversarial))
        return next(kinds, len(self.steps))

    def _apply(self, number: int, image: Image, place: Place) -> Image:
        step = self.steps[number]
        assert not isinstance(step, Adversarial)
        before = sum(type(other) is type(step) for other in self.steps[:number])
        return step(image, replace(place, occurrence=before))


@dataclass(frozen=True)
class Distorter:
    """A chain at work in a sweep: over the images of one source, and against one network."""

    chain: Chain
    paths: Sequence[str]
    model: nn.Module
    preprocessing: Preprocessing

    def image(self, pixels: NDArray[np.uint8], index: int, size: tuple[int, int]) -> Image:
        """Return image `index` up to the first attack, as `Chain.image` does; for `actstats.data.batches`."""
        return self.chain.image(pixels, Place(index, self.paths[index], self.preprocessing, size))

    def batch(self, pixels: Tensor, indices: Sequence[int]) -> Tensor:
        """Return the images of these indices as the network is to see them, as `Chain.batch` does."""
        places = [Place(int(index), self.paths[index], self.preprocessing) for index in indices]
        return self.chain.batch(self.model, self.preprocessing, pixels, places)
