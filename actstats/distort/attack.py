"""Adversarial examples of the swept network, by projected gradient ascent on the cross-entropy within an l2 ball.

Madry et al. 2018, "Towards deep learning models resistant to adversarial attacks" (arXiv 1706.06083); each step
follows the normalised gradient, as in the l2 attack there. The direction is that of the cross-entropy, but the
gradient is that of a margin, which does not vanish when the network is confident (`pgd_l2`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from actstats.data.preprocessing import Preprocessing
from actstats.errors import ActstatsError
from actstats.support import exact


@dataclass(frozen=True)
class Adversarial:
    """Untargeted PGD within an l2 ball, away from the class that the network predicts for the image.

    It starts from the image, so the result is deterministic. `epsilon` is the l2 distance over all pixels and colours
    of the cropped image in [0, 1].
    """

    epsilon: float
    steps: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.epsilon) and self.epsilon > 0):
            raise ActstatsError(f"{self} needs a positive epsilon, such as pgd:l2:0.5:20")
        if self.steps < 1:
            raise ActstatsError(f"{self} needs at least 1 step, such as pgd:l2:0.5:20")

    def __str__(self) -> str:
        return f"pgd:l2:{exact(self.epsilon)}:{self.steps}"

    def attack(self, model: nn.Module, preprocessing: Preprocessing, pixels: Tensor) -> Tensor:
        """Return adversarial examples of `model`, f32 [N, H, W, 3] like `pixels`.

        The model must be in eval mode. Gradients are f32, regardless of the precision of the sweep.
        """

        def predict(images: Tensor) -> Tensor:
            logits = model(preprocessing.normalize(images.permute(0, 2, 3, 1)))
            if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] < 2:
                raise ActstatsError(
                    f"{self} needs a network that returns logits of 2 or more classes, [N, classes]"
                )
            return logits

        images = pixels.permute(0, 3, 1, 2)
        with torch.no_grad():
            answers = predict(images).argmax(1)
        return pgd_l2(predict, images, answers, self.epsilon, self.steps).permute(0, 2, 3, 1)


def pgd_l2(
    predict: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    epsilon: float,
    steps: int,
    *,
    step: float | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """Return images within l2 distance `epsilon` of `images` and within [0, 1] that raise the cross-entropy.

    Each step follows the gradient of log(sum of exp(z_j) over j != y) - z_y, with logits z and class y. That of the
    cross-entropy is (1 - p_y) times it, so both have the same direction, but 1 - p_y underflows at a gap of some 20
    between logits in f32, and an attack that does not move would pass for robustness.

    Args:
        predict: differentiable function from images in [0, 1], [N, 3, H, W], to logits of 2 or more classes,
            [N, classes]. The logits of an image must depend on that image only, so a network must be in eval mode.
        images: f32 [N, 3, H, W] in [0, 1].
        labels: int64 [N], the classes to move away from.
        epsilon: radius of the ball over all pixels and colours of an image, in the units of `images`.
        steps: number of gradient steps; 0 returns the start.
        step: length of a step; None for 2.5 * epsilon / steps, enough to cross the ball and return.
        start: initial offset, shaped like `images` and projected into the ball; None for no offset.

    Returns:
        Images, f32 [N, 3, H, W], detached. An image whose gradient is zero or not finite does not move in that step.
    """
    length = 2.5 * epsilon / max(steps, 1) if step is None else step
    offset = torch.zeros_like(images) if start is None else start
    moved = _within(images, offset, epsilon)
    with torch.inference_mode(False), torch.enable_grad():
        for _ in range(steps):
            point = moved.clone().requires_grad_()
            logits = predict(point).float()
            own = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, labels[:, None], True)
            margin = logits.masked_fill(own, -torch.inf).logsumexp(1) - logits[own]
            (gradient,) = torch.autograd.grad(margin.sum(), point)
            moved = _within(images, moved - images + length * _unit(gradient), epsilon)
    return moved


def random_offset(noise: Tensor, epsilon: float) -> Tensor:
    """Return offsets in the directions of `noise`, f32 [N, 3, H, W], with length `epsilon` / 2."""
    return 0.5 * epsilon * _unit(noise)


def _within(images: Tensor, offset: Tensor, epsilon: float) -> Tensor:
    """Return `images + offset`, projected into the ball and then clipped to [0, 1], which keeps it in the ball."""
    norm = _norm(offset)
    return (images + offset * (epsilon / norm.clamp_min(epsilon))).clamp(0, 1)


def _unit(x: Tensor) -> Tensor:
    """Return `x` with the length of each image 1, however small it is; 0 where it is 0 or not finite."""
    greatest = x.abs().amax(dim=(1, 2, 3), keepdim=True)
    moves = (greatest > 0) & greatest.isfinite()
    scaled = torch.where(moves, x / torch.where(moves, greatest, 1), 0)  # squares of tiny gradients underflow
    return scaled / _norm(scaled).clamp_min(1)


def _norm(x: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x, dim=(1, 2, 3), keepdim=True)
    return norm
