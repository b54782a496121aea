"""Stimuli whose shape is a place and whose texture is a colour, and networks that go by one or the other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from actstats import Preprocessing

COLOURS = {"bear": (1, 0, 0), "bird": (0, 1, 0), "dog": (0, 0, 1)}
"""The texture of each category. Its shape is a bright third of the image: the first, second or third from left."""
PLAIN = Preprocessing(resize=None, crop=30, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def stimulus(shape: str, colour: tuple[int, ...], seed: int = 0) -> Image.Image:
    """30 x 30: the third of the shape three times as bright as the rest."""
    pixels = np.random.default_rng(seed).integers(60, 70, (30, 30, 1)) * np.array(colour)
    at = 10 * list(COLOURS).index(shape)
    pixels[:, at : at + 10] *= 3
    return Image.fromarray(pixels.astype(np.uint8))


def write_stimuli(folder: Path) -> Path:
    """All nine pairs of a shape and a texture, as the published stimuli lie."""
    for shape in COLOURS:
        (folder / shape).mkdir(parents=True)
        for texture, colour in COLOURS.items():
            stimulus(shape, colour).save(folder / shape / f"{shape}1-{texture}2.png")
    return folder


class ByColour(nn.Module):
    """The mean of each colour is the class's logit."""

    def __init__(self) -> None:
        super().__init__()
        self.colours = nn.Conv2d(3, 3, 1, bias=False)
        with torch.no_grad():
            self.colours.weight.copy_(20 * torch.eye(3)[..., None, None])

    def forward(self, x: Tensor) -> Tensor:
        return self.colours(x).mean((2, 3))


class ByPlace(ByColour):
    """The brightness of each third is."""

    def forward(self, x: Tensor) -> Tensor:
        return self.colours(x).sum((1, 2)).unflatten(1, (3, 10)).mean(2)


class ShapeUnit(nn.Module):
    """Units 0 to 2 are the colours, the textures here; unit 3 is the brightness, whose place is the shape.

    Shape weighs more: without unit 3 texture decides, without the other three nothing changes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Identity()
        self.features = nn.Conv2d(3, 4, 1, bias=False)
        with torch.no_grad():
            weights = torch.cat([torch.eye(3), torch.ones(1, 3)])
            self.features.weight.copy_(weights[..., None, None])
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.relu(self.features(self.stem(x)))
        texture = maps[:, :3].mean((2, 3))
        shape = maps[:, 3].mean(1).unflatten(1, (3, 10)).mean(2)
        return texture + 100 * shape


def shape_net() -> tuple[nn.Module, Preprocessing]:
    """For the command line: `tests.probing.probed:shape_net`."""
    return ShapeUnit(), PLAIN


def colour_net() -> tuple[nn.Module, Preprocessing]:
    return ByColour(), PLAIN
