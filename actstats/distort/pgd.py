"""Adversarial examples within an l2 ball, by projected gradient ascent on the cross-entropy.

Madry et al. 2018, "Towards deep learning models resistant to adversarial attacks"; the step along the
normalised gradient is that of the l2 attack there.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


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
    """Return images within l2 distance `epsilon` of `images` and within [0, 1] that raise the loss.

    Args:
        predict: from images in [0, 1] to logits, [N, 3, H, W] to [N, classes], differentiable; each image's
            logits must depend on that image alone, so a network is to be in eval mode.
        images: f32 [N, 3, H, W] in [0, 1].
        labels: int64 [N], the classes to move away from.
        epsilon: radius of the ball, in the unit of `images`, over all pixels and colours of an image.
        steps: number of gradient steps; 0 returns the start.
        step: length of a step; None: 2.5 * epsilon / steps, which can cross the ball and come back.
        start: offset to begin from, like `images`, brought into the ball; None: from `images` itself.

    Returns:
        Images, f32 [N, 3, H, W], detached.
    """
    length = 2.5 * epsilon / max(steps, 1) if step is None else step
    offset = torch.zeros_like(images) if start is None else start
    moved = _within(images, offset, epsilon)
    with torch.inference_mode(False), torch.enable_grad():
        for _ in range(steps):
            point = moved.clone().requires_grad_()
            loss = cross_entropy(predict(point).float(), labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, point)
            moved = _within(images, moved - images + length * _unit(gradient), epsilon)
    return moved


def random_offset(noise: Tensor, epsilon: float) -> Tensor:
    """Return offsets in the directions of `noise`, f32 [N, 3, H, W], of half the radius `epsilon`."""
    return 0.5 * epsilon * _unit(noise)


def _within(images: Tensor, offset: Tensor, epsilon: float) -> Tensor:
    """Return `images + offset`, brought into the ball and then into [0, 1], which leaves it in the ball."""
    norm = _norm(offset)
    return (images + offset * (epsilon / norm.clamp_min(epsilon))).clamp(0, 1)


def _unit(x: Tensor) -> Tensor:
    return x / _norm(x).clamp_min(1e-12)


def _norm(x: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x, dim=(1, 2, 3), keepdim=True)
    return norm
