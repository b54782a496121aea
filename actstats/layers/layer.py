"""A layer is one call of one module, viewed as maps [N, C, H, W]; hooks pass the maps to a callback."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from actstats.errors import ActstatsError

ROOT = "(model)"
"""Name of the network itself, which `named_modules` leaves empty."""


@dataclass(frozen=True)
class Layer:
    """The output of one call of a module, viewed as maps.

    Attributes:
        name: the module's name, followed by `:call` if the module is called several times per forward pass.
        module: the module's name in `model.named_modules()`; `(model)` for the network itself.
        call: index of the call among the module's calls in a forward pass, from 0.
        kind: name of the module's class.
        units: maps per image (channels, or features of a linear layer or a token).
        height: number of rows of a map.
        width: number of columns of a map.
        shape: shape of the module's output, without the batch axis.
        axes: one letter per axis of the output, batch axis included: `n` images, `c` units, `h` rows, `w` columns,
            `t` tokens that form a grid in row-major order.
        prefix: number of tokens before the grid, such as a class token; they are not part of the maps.
        calls: how many times the module is called in a forward pass.

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
    calls: int = 1

    def maps(self, output: Tensor) -> Tensor:
        """Return the module's `output` as maps [N, C, H, W], a strided view rather than a copy.

        Raises:
            ActstatsError: apart from the batch axis, the output's shape is not the one that was probed.
        """
        batch = self.axes.index("n")
        if output.shape[:batch] + output.shape[batch + 1 :] != self.shape:
            probed = [*self.shape[:batch], "N", *self.shape[batch:]]
            raise ActstatsError(
                f"layer {self.name} returned {list(output.shape)}, but {probed} was probed: "
                "all images of a sweep must have the same size".replace("'", "")
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
    """Return the tensor that a layer's maps are read from, or None if there is none.

    This is the output itself or, for a tuple or list, its first element (an attention module may return
    `(output, weights)`).
    """
    if isinstance(output, (tuple, list)) and output:  # torch 2.6 cannot trace `tuple | list`
        output = output[0]
    return output if isinstance(output, Tensor) else None


@contextmanager
def whole_passes(model: nn.Module, begin: Callable[[int], None], end: Callable[[], None]) -> Iterator[None]:
    """Call `begin(images)` before each forward pass of `model`, and `end()` after each that succeeds.

    A network may call itself, for instance on the mirrored image. Only the outermost call is a forward pass.
    """
    depth = 0

    def enter(_module: nn.Module, args: Any, kwargs: Any) -> None:
        nonlocal depth
        if not depth:
            given = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
            begin(0 if given is None or not given.ndim else given.shape[0])
        depth += 1

    def succeed(_module: nn.Module, _args: Any, _output: Any) -> None:
        if depth == 1:
            end()

    def leave(_module: nn.Module, _args: Any, _output: Any) -> None:
        nonlocal depth
        depth -= 1

    handles = [
        # Of `Module`: a ScriptModule refuses its own, although it calls these hooks.
        nn.Module.register_forward_pre_hook(model, enter, with_kwargs=True),
        nn.Module.register_forward_hook(model, succeed),
        nn.Module.register_forward_hook(model, leave, always_call=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def watch(
    model: nn.Module, layers: Sequence[Layer], callback: Callable[[int, Tensor], None]
) -> Iterator[None]:
    """Call `callback(index, maps)` as each of `layers` is computed, in every forward pass of `model`.

    `index` is the position of the layer in `layers`. `maps` [N, C, H, W] is a view of the module's output at the time
    it returns: a later in-place operation may overwrite it, so the callback must read it immediately. The hooks are
    removed when the `with` block exits, even after an exception. The outputs of the modules are never changed.

    Every pass must be like the one that was probed: each layer returns maps of every image of the pass, of the probed
    size, and its module is called as often. These checks read shapes only, so they never wait for a GPU.
    What the caller compiled with `torch.compile` runs eagerly, because compiled code does not call later hooks.

    Raises:
        ActstatsError: on entry, if the model has no such module or a layer is given twice; during a forward pass, if
            the pass differs from the one that was probed.
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
    batch = 0

    def begin(images: int) -> None:
        nonlocal batch
        batch = images
        calls.update(dict.fromkeys(calls, 0))

    def hook_for(name: str, indices: dict[int, int]) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            number = calls[name]
            calls[name] = number + 1
            index = indices.get(number)
            if index is None:
                return
            layer, tensor = layers[index], returned_tensor(output)
            if tensor is None:
                raise ActstatsError(f"layer {layer.name} did not return a tensor in this forward pass")
            maps = layer.maps(tensor)
            if maps.shape[0] != batch:
                raise ActstatsError(
                    f"layer {layer.name} returned maps of {maps.shape[0]} images in a forward pass of {batch}, but "
                    "of all images when probed: a layer that splits, repeats or skips images cannot be swept"
                )
            callback(index, maps)

        return hook

    def end() -> None:
        for name, indices in by_module.items():
            first = layers[min(indices.values())]
            if calls[name] != first.calls:
                raise ActstatsError(_called(first, calls[name]))

    with ExitStack() as stack:
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        for name, indices in by_module.items():
            handle = nn.Module.register_forward_hook(modules[name], hook_for(name, indices))
            stack.callback(handle.remove)
        stack.enter_context(whole_passes(model, begin, end))
        yield


def _called(layer: Layer, calls: int) -> str:
    """Return the message for a layer whose module was called another number of times than when probed."""
    if not calls:
        return f"layer {layer.name} did not run in this forward pass, but did when probed"
    return (
        f"layer {layer.name}: {layer.module} was called {calls} times in this forward pass, but {layer.calls} times "
        "when probed, so its calls cannot be told apart"
    )
