"""Forward passes with units set to zero, several ablations in one: resumed from the cut layers where that can be had.

A network is traced (torch.fx) to the operations between its images and its outputs. Those that do not depend on an
ablated layer run once for a batch of images; the rest runs for a batch of images times ablations, from the recorded
outputs of the layers on. A network that cannot be traced, or that does not give the same outputs when resumed, runs
as a whole for each ablation, with hooks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn

from actstats.layers import Layer
from actstats.layers.layer import ROOT, returned_tensor, whole_passes

Masks = Mapping[str, Tensor]
"""Which units are zero: for each layer's name, bool [ablations, units]."""


class Ablated(Protocol):
    """A network of which some layers are ablated."""

    def record(self, images: Tensor) -> None:
        """Take a batch of images [N, 3, H, W]."""
        ...

    def outputs(self, masks: Masks) -> Tensor:
        """Return the outputs for the recorded images under each of K ablations, [K, N, outputs]."""
        ...


def ablated(model: nn.Module, layers: Sequence[Layer], images: Tensor) -> Ablated:
    """Return the network with these layers ready to be ablated: resumed, if that gives what a whole pass gives.

    `images` [N, 3, H, W] is what both ways are compared with. The network is in eval mode, and stays as it is.
    """
    whole = Whole(model, layers)
    try:
        resumed = Resumed(model, layers)
    except Exception:  # Tracing fails in as many ways as a network can be written.
        return whole
    none = {
        layer.name: torch.zeros(2, layer.units, dtype=torch.bool, device=images.device) for layer in layers
    }
    all_units = {name: ~mask for name, mask in none.items()}
    for masks in (none, all_units):
        results = []
        for way in (whole, resumed):
            try:
                way.record(images)
                results.append(way.outputs(masks))
            except Exception:
                if way is whole:
                    raise
                return whole
        scale = results[0].abs().max().clamp_min(1e-6)
        if results[0].shape != results[1].shape or (results[0] - results[1]).abs().max() > 1e-3 * scale:
            return whole
    return resumed


class Whole:
    """The whole network runs for each ablation, with hooks that set units to zero."""

    def __init__(self, model: nn.Module, layers: Sequence[Layer]) -> None:
        self._model, self._layers = model, layers
        self._images: Tensor | None = None

    def record(self, images: Tensor) -> None:
        """Take a batch of images."""
        self._images = images

    def outputs(self, masks: Masks) -> Tensor:
        """Return the outputs for the recorded images under each of K ablations, [K, N, outputs]."""
        assert self._images is not None
        count = _count(masks)
        with _zeroing(self._model, self._layers, masks):
            found: Tensor = self._model(_repeated(self._images, count))
        return found.reshape(count, len(self._images), -1)


class Resumed:
    """The part of the network that depends on the layers runs for each ablation, the rest once for the images."""

    def __init__(self, model: nn.Module, layers: Sequence[Layer]) -> None:
        """Trace the network. Raises whatever tracing raises, and `ValueError` where a layer is not in the trace."""
        leaves = {layer.module for layer in layers}
        graph = _Tracer(leaves).trace(model)
        self._interpreter = _Interpreter(fx.GraphModule(model, graph))
        nodes = list(graph.nodes)
        self._at = {_node_of(layer, nodes): layer for layer in layers}
        dependent: set[fx.Node] = set()
        for node in nodes:
            if any(before in dependent or before in self._at for before in node.all_input_nodes):
                dependent.add(node)
        if nodes[-1] not in dependent:
            raise ValueError("the output does not depend on the layers")
        self._after = [node for node in nodes if node in dependent]
        self._kept = {
            before for node in self._after for before in node.all_input_nodes if before not in dependent
        } | {node for node in self._at if node not in dependent}
        self._before = _needed(nodes, self._kept)
        self._repeats: dict[fx.Node, Any] = {}
        self._recorded: dict[fx.Node, Any] = {}
        self._images = 0

    def record(self, images: Tensor) -> None:
        """Run what comes before the layers on a batch of images, and the layers, and keep what the rest reads.

        Raises `ValueError` if the rest reads something that depends on the number of images but cannot be repeated.
        """
        if not self._repeats:
            one, two = (self._record(images[:1].repeat(n, *[1] * (images.ndim - 1))) for n in (1, 2))
            self._repeats = {node: _repeats(one[node], two[node]) for node in self._kept}
        self._images = len(images)
        self._recorded = self._record(images)

    def _record(self, images: Tensor) -> dict[fx.Node, Any]:
        return self._interpreter.execute(self._before, {}, self._kept, iter([images]))

    def outputs(self, masks: Masks) -> Tensor:
        """Return the outputs for the recorded images under each of K ablations, [K, N, outputs]."""
        count = _count(masks)
        env: dict[fx.Node, Any] = {}
        for node, value in self._recorded.items():
            kept = _with_copies(value, self._repeats[node], count)
            env[node] = zeroed(kept, self._at[node], masks) if node in self._at else kept
        masked = {node: (layer, masks) for node, layer in self._at.items() if node not in self._recorded}
        last = self._after[-1]
        found: Tensor = self._interpreter.execute(self._after, env, {last}, iter(()), masked)[last]
        return found.reshape(count, self._images, -1)


class _Tracer(fx.Tracer):
    """Traces into all modules but torch's own and the given ones, which stay one node."""

    def __init__(self, leaves: Iterable[str]) -> None:
        super().__init__()
        self._leaves = frozenset(leaves)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name in self._leaves or super().is_leaf_module(m, module_qualified_name)


class _Interpreter(fx.Interpreter):
    def execute(
        self,
        nodes: Sequence[fx.Node],
        env: dict[fx.Node, Any],
        kept: set[fx.Node],
        arguments: Iterator[Any],
        masked: Mapping[fx.Node, tuple[Layer, Masks]] | None = None,
    ) -> dict[fx.Node, Any]:
        """Run `nodes` in order from the values in `env`, and return those of `kept`; others are freed once read."""
        last = {before: node for node in nodes for before in node.all_input_nodes}
        self.env, self.args_iter = env, arguments
        for node in nodes:
            value = self.run_node(node)
            if masked and node in masked:
                value = zeroed(value, *masked[node])
            env[node] = value
            for before in node.all_input_nodes:
                if last[before] is node and before not in kept:
                    env.pop(before, None)
        return {node: env[node] for node in kept}


def zeroed(output: Any, layer: Layer, masks: Masks) -> Any:
    """Return what a layer's module returned, for K ablations of N images each, with its masked units at zero.

    All positions of a unit are zero, also those that are not in its maps (a class token's).
    """
    tensor = returned_tensor(output)
    assert tensor is not None
    mask = masks[layer.name]
    batch, units = layer.axes.index("n"), layer.axes.find("c")
    shape = [1] * tensor.ndim
    shape[batch] = len(mask)
    if 0 <= units < batch:
        mask = mask.T
    if units >= 0:
        shape[units] = layer.units
    each = mask.reshape(shape).repeat_interleave(tensor.shape[batch] // len(masks[layer.name]), batch)
    result = tensor.masked_fill(each, 0)
    return type(output)((result, *output[1:])) if isinstance(output, tuple | list) else result


@contextmanager
def _zeroing(model: nn.Module, layers: Sequence[Layer], masks: Masks) -> Iterator[None]:
    """Set the masked units to zero in every forward pass inside, as their layers return them."""
    modules = {name or ROOT: module for name, module in model.named_modules()}
    calls: dict[str, int] = {}
    by_module: dict[str, dict[int, Layer]] = {}
    for layer in layers:
        by_module.setdefault(layer.module, {})[layer.call] = layer

    def hook_for(name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
            number = calls.get(name, 0)
            calls[name] = number + 1
            layer = by_module[name].get(number)
            return None if layer is None else zeroed(output, layer, masks)

        return hook

    with ExitStack() as stack:
        for name in by_module:
            stack.callback(nn.Module.register_forward_hook(modules[name], hook_for(name)).remove)
        stack.enter_context(whole_passes(model, lambda _: calls.clear(), lambda: None))
        yield


def _node_of(layer: Layer, nodes: Sequence[fx.Node]) -> fx.Node:
    """Return the node of one call of one module."""
    calls = [node for node in nodes if node.op == "call_module" and node.target == layer.module]
    if layer.call >= len(calls):
        raise ValueError(f"layer {layer.name} is not in the trace")
    return calls[layer.call]


def _needed(nodes: Sequence[fx.Node], wanted: set[fx.Node]) -> list[fx.Node]:
    """Return the nodes that have to run for those wanted, in order."""
    needed = set(wanted)
    for node in reversed(nodes):
        if node in needed:
            needed.update(node.all_input_nodes)
    return [node for node in nodes if node in needed]


def _count(masks: Masks) -> int:
    return len(next(iter(masks.values())))


def _repeated(tensor: Tensor, count: int) -> Tensor:
    """Return [N, ...] as [count * N, ...], in the memory format that it has; always a copy."""
    copies = tensor.repeat(count, *[1] * (tensor.ndim - 1))
    return copies.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else copies


def _repeats(one: Any, two: Any) -> Any:
    """Return whether the first axis of a value is that of the images, given the value for one image and for two.

    A tuple or list has an answer for each item. Whatever is the same for both numbers of images serves all. Raises
    `ValueError` for anything else, such as the number of images itself.
    """
    if isinstance(one, tuple | list):
        return [_repeats(*pair) for pair in zip(one, two, strict=True)]
    if not isinstance(one, Tensor):
        if one is not two and one != two:
            raise ValueError("a value depends on the number of images")
        return False
    if one.shape == two.shape:
        return False
    if one.ndim and two.shape == (2 * len(one), *one.shape[1:]):
        return True
    raise ValueError("a tensor has the images in another axis than the first")


def _with_copies(value: Any, repeats: Any, count: int) -> Any:
    if isinstance(value, tuple | list):
        copies = [_with_copies(item, each, count) for item, each in zip(value, repeats, strict=True)]
        return type(value)(copies) if isinstance(value, list) else tuple(copies)
    return _repeated(value, count) if repeats else value
