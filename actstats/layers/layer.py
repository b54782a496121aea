"""A layer: one call of one module, and how to see what it returns as maps [N, C, H, W]."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from actstats.errors import ActstatsError

ROOT = "(model)"
"""The name of the network itself, which has none among its modules."""


@dataclass(frozen=True)
class Layer:
    """What one call of one module returns, seen as maps.

    Attributes:
        name: the module's name, with `:call` after it if the module is called several times in a forward pass.
        module: the module's name in `model.named_modules()`; `(model)` for the network itself.
        call: which of the module's calls in a forward pass, counted from 0.
        kind: the name of the module's class.
        units: maps an image (channels, or features of a linear layer or of a token).
        height: rows of a map.
        width: columns of a map.
        shape: the shape of what the module returns, without its first axis, the images.
        axes: what each axis of the output is, the images' included, a letter each: `n` images, `c` units,
            `h` rows, `w` columns, `t` tokens that form a grid, row by row.
        prefix: tokens before the grid's first (a class token, say); they take no part in the maps.

    >>> import torch
    >>> tokens = Layer("encoder", "encoder", 0, "Block", 8, 2, 3, shape=(7, 8), axes="ntc", prefix=1)
    >>> tokens.maps(torch.zeros(5, 7, 8)).shape
    torch.Size([5, 8, 2, 3])
    """

    name: str
    module: str
    call: int
    kind: str
    units: int
    height: int
    width: int
    shape: tuple[int, ...]
    axes: str
    prefix: int = 0

    def maps(self, output: Tensor) -> Tensor:
        """Return the module's `output` as maps [N, C, H, W]: a strided view, never a copy.

        Raises:
            ActstatsError: the output's shape is not the one that was probed, the number of images apart.
        """
        if output.shape[1:] != self.shape:
            raise ActstatsError(
                f"layer {self.name} returned {list(output.shape)}, but {['N', *self.shape]} was probed: "
                "all images of a sweep must have one size".replace("'", "")
            )
        if self.axes == "nchw":
            return output
        axes = self.axes
        if "t" in axes:
            at = axes.index("t")
            grid = output.narrow(at, self.prefix, self.height * self.width)
            output = torch.unflatten(grid, at, (self.height, self.width))
            axes = axes.replace("t", "hw")
        output = output.permute([axes.index(axis) for axis in "nchw" if axis in axes])
        for at, axis in enumerate("nchw"):
            if axis not in axes:
                output = output.unsqueeze(at)
        return output


def returned_tensor(output: object) -> Tensor | None:
    """Return the tensor that a layer's maps are read from, or None.

    That is the output itself or, of a tuple or a list, its first element (of an attention module's
    `(output, weights)`, the output).
    """
    if isinstance(output, (tuple, list)) and output:  # torch 2.6 cannot trace `tuple | list`
        output = output[0]
    return output if isinstance(output, Tensor) else None
