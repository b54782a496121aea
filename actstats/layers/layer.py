"""A layer: one call of one module, what it returns seen as maps [N, C, H, W], and hooks that hand these over."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

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


@contextmanager
def watch(
    model: nn.Module, layers: Sequence[Layer], callback: Callable[[int, Tensor], None]
) -> Iterator[None]:
    """Call `callback(index, maps)` in every forward pass of `model`, as each of `layers` is computed.

    `index` is the layer's in `layers`, `maps` [N, C, H, W] a view of what the module returned, at the time that it
    returned it: an in-place operation may overwrite it later, so the callback has to read it at once. The hooks
    are gone at the end of the `with` block, however it ends, and what the modules return is never changed.

    Raises:
        ActstatsError: out of the forward pass, when a layer's shape is not the one that was probed, or when
            a layer did not run; at the beginning, when the model has no such module or a layer is given twice.
    """
    modules = {name or ROOT: module for name, module in model.named_modules()}
    by_module: dict[str, dict[int, int]] = {}
    for index, layer in enumerate(layers):
        if layer.module not in modules:
            raise ActstatsError(f"layer {layer.name}: the model has no module {layer.module}")
        if layer.call in by_module.setdefault(layer.module, {}):
            raise ActstatsError(f"layer {layer.name} is given twice")
        by_module[layer.module][layer.call] = index
    calls = dict.fromkeys(by_module, 0)
    seen = 0

    def begin(_module: nn.Module, _args: Any) -> None:
        nonlocal seen
        seen = 0
        calls.update(dict.fromkeys(calls, 0))

    def hook_for(name: str, indices: dict[int, int]) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            nonlocal seen
            number = calls[name]
            calls[name] = number + 1
            index = indices.get(number)
            if index is None:
                return
            tensor = returned_tensor(output)
            if tensor is None:
                raise ActstatsError(f"layer {layers[index].name} returned no tensor this time")
            seen += 1
            callback(index, layers[index].maps(tensor))

        return hook

    def end(_module: nn.Module, _args: Any, _output: Any) -> None:
        if seen != len(layers):
            missing = next(layer.name for layer in layers if calls[layer.module] <= layer.call)
            raise ActstatsError(f"layer {missing} did not run in this forward pass, but did when probed")

    handles = []
    try:
        handles.append(model.register_forward_pre_hook(begin))
        for name, indices in by_module.items():
            handles.append(modules[name].register_forward_hook(hook_for(name, indices)))
        handles.append(model.register_forward_hook(end))
        yield
    finally:
        for handle in handles:
            handle.remove()
