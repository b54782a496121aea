"""The distortion that asks the network itself: adversarial examples of the swept model."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from actstats.data.preprocessing import Preprocessing
from actstats.distort.pgd import pgd_l2
from actstats.errors import ActstatsError


@dataclass(frozen=True)
class Adversarial:
    """Untargeted PGD in an l2 ball, away from the class that the network itself sees in the image.

    It starts from the image, so nothing about it is random. `epsilon` is a distance over all pixels and
    colours in [0, 1] of the cropped image.
    """

    epsilon: float
    steps: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.epsilon) and self.epsilon > 0):
            raise ActstatsError(f"{self} must have a positive epsilon, as pgd:l2:0.5:20 has")
        if self.steps < 1:
            raise ActstatsError(f"{self} must make at least 1 step, as pgd:l2:0.5:20 does")

    def __str__(self) -> str:
        return f"pgd:l2:{self.epsilon:g}:{self.steps}"

    def attack(self, model: nn.Module, preprocessing: Preprocessing, pixels: Tensor) -> Tensor:
        """Return adversarial examples of `model`, which is in eval mode, f32 [N, H, W, 3] like `pixels`.

        Gradients are in f32, whatever precision the sweep runs in.
        """

        def predict(images: Tensor) -> Tensor:
            logits = model(preprocessing.normalize(images.permute(0, 2, 3, 1)))
            if not isinstance(logits, Tensor) or logits.ndim != 2:
                raise ActstatsError(f"{self} needs a network that returns logits, [N, classes]")
            return logits

        images = pixels.permute(0, 3, 1, 2)
        with torch.no_grad():
            answers = predict(images).argmax(1)
        return pgd_l2(predict, images, answers, self.epsilon, self.steps).permute(0, 2, 3, 1)
