"""Chains of distortions, parsed from specs such as `scramble:4+noise:0.1`.

    cropped image -> steps in the loader's threads -> batch -> first attack and later steps -> normalise

Steps on single images run in the threads that decode images. An attack needs the network, so it and the steps after
it run on whole batches.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from actstats.data.preprocessing import Preprocessing
from actstats.distort.attack import Adversarial
from actstats.distort.steps import (
    Contour,
    Greyscale,
    HighPass,
    Image,
    LowPass,
    Noise,
    Place,
    Scramble,
    Silhouette,
    Step,
)
from actstats.errors import ActstatsError, nearest
from actstats.support import one_or_more


@dataclass(frozen=True)
class Chain:
    """Distortions in the order in which they are applied. An empty chain is falsy and changes nothing."""

    steps: tuple[Step | Adversarial, ...] = ()

    def __post_init__(self) -> None:
        for step in self.steps[1:]:
            if isinstance(step, Silhouette):
                raise ActstatsError(f"{step} replaces the image, so it must be the first distortion")

    def __bool__(self) -> bool:
        return bool(self.steps)

    @property
    def specs(self) -> list[str]:
        """The spec of each step, JSON-serializable; `parse` turns them into an equal chain."""
        return [str(step) for step in self.steps]

    def record(self) -> dict[str, Any]:
        """Return the entries for the manifest, empty for an empty chain."""
        if not self:
            return {}
        first = self.steps[0]
        masks = {"masks": first.fingerprint} if isinstance(first, Silhouette) else {}
        return {"distort": self.specs, **masks}

    def check(self, preprocessing: Preprocessing) -> None:
        """Raise `ActstatsError` if a step cannot be applied to images of this size."""
        for step in self.steps:
            if isinstance(step, Scramble | LowPass | HighPass):
                step.check(preprocessing.crop)

    def image(self, pixels: NDArray[np.uint8], place: Place) -> Image:
        """Apply the steps before the first attack to a cropped image, u8 [H, W, 3]; return f32 [H, W, 3] in [0, 1].

        Raises `ImageError` if this image cannot be distorted.
        """
        image = pixels.astype(np.float32) / np.float32(255)
        for number in range(self._first_attack):
            image = self._apply(number, image, place)
        return image

    def batch(
        self, model: nn.Module, preprocessing: Preprocessing, pixels: Tensor, places: Sequence[Place]
    ) -> Tensor:
        """Apply the first attack, against `model`, and the steps after it to a batch, f32 [N, H, W, 3] in [0, 1].

        `pixels` are the results of `image` for `places`. This runs forward passes, so no hooks should be registered.
        """
        return self.attacked(model, preprocessing, pixels, places)[0]

    def attacked(
        self, model: nn.Module, preprocessing: Preprocessing, pixels: Tensor, places: Sequence[Place]
    ) -> tuple[Tensor, Tensor | None]:
        """Return the result of `batch`, and the l2 distance over which the first attack moved each image, f32 [N]."""
        moved: Tensor | None = None
        for number, step in enumerate(self.steps[self._first_attack :], self._first_attack):
            if isinstance(step, Adversarial):
                before, pixels = pixels, step.attack(model, preprocessing, pixels)
                if moved is None:
                    moved = (pixels - before).flatten(1).norm(dim=1)
            else:
                arrays = pixels.cpu().numpy()
                distorted = [self._apply(number, *pair) for pair in zip(arrays, places, strict=True)]
                pixels = torch.from_numpy(np.stack(distorted)).to(pixels.device)
        return pixels, moved

    @property
    def attack(self) -> Adversarial | None:
        """The first attack of the chain, if there is one."""
        return next((step for step in self.steps if isinstance(step, Adversarial)), None)

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
    """A chain bound to the images of a source and to the network that attacks target.

    `numbers` holds the index of each image in the whole source, as `paths` may be those of a subset.
    """

    chain: Chain
    paths: Sequence[str]
    model: nn.Module
    preprocessing: Preprocessing
    numbers: Sequence[int]

    def image(self, pixels: NDArray[np.uint8], index: int, size: tuple[int, int]) -> Image:
        """Apply `Chain.image` to image `index` of the source, with `size` (width, height) before resizing."""
        return self.chain.image(pixels, self._place(index, size))

    def batch(self, pixels: Tensor, indices: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """Return the result of `Chain.attacked` for the images with these indices."""
        places = [self._place(index) for index in indices]
        return self.chain.attacked(self.model, self.preprocessing, pixels, places)

    def _place(self, index: int, size: tuple[int, int] | None = None) -> Place:
        return Place(self.numbers[index], self.paths[index], self.preprocessing, size)


_Builder = Callable[..., Step | Adversarial]


def _pgd(norm: str, epsilon: str, steps: str) -> Adversarial:
    if norm != "l2":
        raise ActstatsError(f"pgd supports the norm l2, not {norm!r}, as in pgd:l2:0.5:20")
    return Adversarial(float(epsilon), int(steps))


_KINDS: Final[dict[str, tuple[str, _Builder]]] = {
    "scramble": ("scramble:GRID, as in scramble:4", lambda grid: Scramble(int(grid))),
    "noise": ("noise:SIGMA, as in noise:0.1", lambda sigma: Noise(float(sigma))),
    "lowpass": ("lowpass:CYCLES, as in lowpass:8", lambda cycles: LowPass(float(cycles))),
    "highpass": ("highpass:CYCLES, as in highpass:8", lambda cycles: HighPass(float(cycles))),
    "greyscale": ("greyscale, which takes no value", Greyscale),
    "silhouette": ("silhouette:FOLDER, a folder of masks", lambda folder: Silhouette(Path(folder))),
    "contour": ("contour, which takes no value", Contour),
    "pgd": ("pgd:l2:EPSILON:STEPS, as in pgd:l2:0.5:20", _pgd),
}
KINDS: Final = tuple(_KINDS)
"""Names of the distortions."""


def parse(specs: str | Iterable[str]) -> Chain:
    """Parse `specs` into a chain; a spec may join several distortions with `+`.

    Raises `ActstatsError` if a spec is not a distortion.

    >>> parse(["greyscale", "scramble:4+noise:0.10"]).specs
    ['greyscale', 'scramble:4', 'noise:0.1']
    """
    # Before a digit, a `+` is part of a number, as in 1e+3: no distortion begins with a digit.
    return Chain(tuple(_step(part) for spec in one_or_more(specs) for part in re.split(r"\+(?!\d)", spec)))


def _step(spec: str) -> Step | Adversarial:
    name, colon, rest = spec.strip().partition(":")
    if name not in _KINDS:
        hint = nearest(name, KINDS) or f"; choose from {', '.join(KINDS)}"
        raise ActstatsError(f"unknown distortion {spec!r}{hint}")
    usage, build = _KINDS[name]
    # The name of a folder may contain colons.
    arguments = [rest] if name == "silhouette" and rest else rest.split(":") if colon else []
    try:
        return build(*arguments)
    except (TypeError, ValueError):
        raise ActstatsError(f"invalid distortion {spec!r}; use {usage}") from None
