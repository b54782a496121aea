"""Receptive fields: the input pixels that each position of a layer's maps depends on.

They are measured rather than derived: one pixel of a constant image is set to NaN, the network runs, and everything
that depends on that pixel becomes NaN. This accounts for operations between modules and for the image border, where
fields are truncated. Weights do not matter (NaN times zero is NaN), so a network with random weights is sufficient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from actstats.layers.layer import Layer, watch

_BATCH = 16


@dataclass(frozen=True)
class ReceptiveField:
    """Receptive field of each position of a layer's maps, in pixels of the network's input.

    Position (i, j) depends on rows `top[i]` to `bottom[i]` and columns `left[j]` to `right[j]` of the input,
    inclusive. The arrays are int32, of shape [height] and [width].
    """

    top: NDArray[np.int32]
    bottom: NDArray[np.int32]
    left: NDArray[np.int32]
    right: NDArray[np.int32]


def receptive_fields(
    model: nn.Module, shape: tuple[int, int, int], layers: Sequence[Layer], step: int = 1
) -> dict[str, ReceptiveField]:
    """Return the receptive field of each of `layers` by name, for inputs of `shape` (3, height, width).

    One image is passed through the network for each pixel on the input's diagonal. With `step=2` only every other
    pixel is probed, and the edges of a field may be off by one pixel; larger steps are coarser accordingly. Rows and
    columns are probed together, so inputs and strides must be square. `model` must be in eval mode and have finite
    weights.

    >>> from torch import nn
    >>> from actstats.layers import select_layers
    >>> network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3))
    >>> layers = select_layers(network, torch.zeros(1, 3, 16, 16), ["2"])
    >>> field = receptive_fields(network, (3, 16, 16), layers)["2"]
    >>> int(field.top[0]), int(field.bottom[0]), int(field.top[3]), int(field.bottom[3])
    (0, 6, 5, 12)
    """
    side = shape[-1]
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    reached = [_Reached(layer, side) for layer in layers]
    probed = torch.unique(torch.tensor([*range(0, side, step), side - 1]))  # including both ends
    for pixels in torch.split(probed, _BATCH):
        images = torch.zeros(len(pixels), *shape, device=device)
        images[torch.arange(len(pixels)), :, pixels, pixels] = torch.nan

        def note(index: int, maps: Tensor, pixels: Tensor = pixels) -> None:
            reached[index].note(maps, pixels.numpy())

        with torch.inference_mode(), watch(model, layers, note):
            model(images.contiguous(memory_format=torch.channels_last))
    return {found.layer.name: found.field(step) for found in reached}


class _Reached:
    """Records which of the probed pixels reached which positions of one layer."""

    def __init__(self, layer: Layer, side: int) -> None:
        self.layer = layer
        self.side = side
        # First and last probed row (column) that reached each row (column) of the map.
        self.rows = (np.full(layer.height, side), np.full(layer.height, -1))
        self.columns = (np.full(layer.width, side), np.full(layer.width, -1))

    def note(self, maps: Tensor, pixels: NDArray[np.int64]) -> None:
        hit: NDArray[np.bool_] = maps.isnan().any(dim=1).cpu().numpy()
        for axis, (first, last) in ((2, self.rows), (1, self.columns)):
            for pixel, positions in zip(pixels, np.asarray(hit.any(axis=axis)), strict=True):
                first[positions] = np.minimum(first[positions], pixel)
                last[positions] = np.maximum(last[positions], pixel)

    def field(self, step: int) -> ReceptiveField:
        bounds = []
        for first, last in (self.rows, self.columns):
            unseen = last < 0  # It falls between two probed pixels, or only sees padding.
            centre = ((np.arange(len(first)) + 0.5) * self.side / len(first)).astype(np.int64)
            # Place the edge halfway between the outermost pixel that was seen and the next probed pixel.
            low = np.where(unseen, centre, np.maximum(first - (step - 1) // 2, 0))
            high = np.where(unseen, centre, np.minimum(last + step // 2, self.side - 1))
            bounds += [low.astype(np.int32), high.astype(np.int32)]
        return ReceptiveField(*bounds)
