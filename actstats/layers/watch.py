"""`watch`: hooks that hand over each layer's maps the moment that its module returns them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from actstats.errors import ActstatsError
from actstats.layers.layer import ROOT, Layer, returned_tensor


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
