"""`probe`: one forward pass that finds out what of a network can be hooked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from actstats.errors import ActstatsError
from actstats.layers.axes import Grid, Labels
from actstats.layers.chains import convolution_calls
from actstats.layers.graph import IMAGE_VALUE, Call, Graph, Value, trace
from actstats.layers.layer import Layer
from actstats.layers.presets import block_modules, paper_modules

IMAGES = 2
"""Images in the pass: with two, an axis that does not hold the images shows."""


@dataclass(frozen=True)
class Candidate:
    """A layer that can be hooked, and the presets that it is in: of `conv`, `block`, `all` and `paper`."""

    layer: Layer
    presets: tuple[str, ...]


@dataclass(frozen=True)
class Probe:
    """What a network did with an example.

    Attributes:
        candidates: every layer that can be hooked, in the order in which the modules returned.
        refused: the calls, by layer name, whose output cannot be hooked, each with the reason.
        never_ran: the modules that were never called, each with the likely reason.
        default: the preset that stands for `conv` here: `block` in a network with at most one convolution.
    """

    candidates: tuple[Candidate, ...]
    refused: Mapping[str, str]
    never_ran: Mapping[str, str]
    default: str


def probe(model: nn.Module, example: Tensor) -> Probe:
    """Run `model` once on two images of `example` [n, 3, H, W] and return what can be hooked.

    The pass runs in eval and inference mode, channels_last, on the example's device; the model is left as it was.

    Raises:
        ActstatsError: the model cannot run on the example.
    """
    images = example[:IMAGES] if len(example) >= IMAGES else example[:1].expand(IMAGES, *example.shape[1:])
    memory_format = torch.channels_last if images.ndim == 4 else torch.contiguous_format
    try:
        graph = trace(model, images.contiguous(memory_format=memory_format))
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ActstatsError(
            f"the model fails on an example of shape {list(images.shape)}: {reason}"
        ) from error
    return _digest(model, graph)


def _digest(model: nn.Module, graph: Graph) -> Probe:
    counts = Counter(call.module for call in graph.calls)
    layers: dict[tuple[str, int], Layer] = {}
    refused: dict[str, str] = {}
    for call in graph.calls:
        name = f"{call.module}:{call.number}" if counts[call.module] > 1 else call.module
        made = call.problem or _layer(name, call, graph.values[call.output or 0])
        if isinstance(made, Layer):
            layers[call.module, call.number] = made
        else:
            call.problem = made
            refused[name] = made
    units = {layer.module: layer.units for layer in layers.values()}
    blocks = set(block_modules(model, counts))
    members = {
        "conv": {(call.module, call.number) for call in convolution_calls(graph)},
        "block": {key for key in layers if key[0] in blocks},
        "paper": {key for key in layers if key[0] in (paper_modules(units) or ())},
    }
    default = "conv"
    if len(members["conv"]) <= 1 and members["block"]:
        members["conv"], default = members["block"], "block"
    members["all"] = _distinct(graph, [members["conv"], members["block"]])
    candidates = tuple(
        Candidate(layer, tuple(preset for preset, keys in members.items() if key in keys))
        for key, layer in layers.items()
    )
    return Probe(candidates, refused, _never_ran(model, counts), default)


def _layer(name: str, call: Call, value: Value) -> Layer | str:
    """Return the layer of a call that returned `value`, or why it has no maps."""
    shape = value.shape
    axes = _axes(value.labels)
    if axes is None:
        return f"it returns {list(shape)}, and which axes hold units, rows and columns cannot be told"
    sizes = dict(zip(axes, shape, strict=True))
    height, width, prefix = sizes.get("h", 1), sizes.get("w", 1), 0
    if "t" in axes:
        grid = value.labels[axes.index("t")]
        assert isinstance(grid, Grid)
        height, width, prefix = grid.height, grid.width, grid.before
    units = sizes.get("c", 1)
    return Layer(name, call.module, call.number, call.kind, units, height, width, shape[1:], axes, prefix)


def _axes(labels: Labels) -> str | None:
    """Return a letter for each axis (see `Layer.axes`), or None if the labels do not tell.

    Where no axis but the images' is known the conventions [N, C] and [N, T, C] decide.
    """
    rest = labels[1:]
    if not any(rest):
        return {0: "n", 1: "nc", 2: "nwc"}.get(len(rest))
    letters = ["t" if isinstance(label, Grid) else label or "c" for label in rest]
    if len(set(letters)) < len(letters) or ("t" in letters and {"h", "w"} & set(letters)):
        return None
    return "n" + "".join(letters)


def _distinct(graph: Graph, preferred: Sequence[set[tuple[str, int]]]) -> set[tuple[str, int]]:
    """Return one call for each value that is returned: one of the first preferred set that has any, or the first.

    A mere rearrangement of a value, or the image itself, is not another value.
    """
    chosen: dict[int, tuple[int, tuple[str, int]]] = {}
    for call in graph.calls:
        if call.output is None or call.problem:
            continue
        key, content = (call.module, call.number), graph.values[call.output].content
        rank = next((at for at, keys in enumerate(preferred) if key in keys), len(preferred))
        if content != IMAGE_VALUE and (content not in chosen or rank < chosen[content][0]):
            chosen[content] = rank, key
    return {key for _, key in chosen.values()}


def _never_ran(model: nn.Module, counts: Mapping[str, int]) -> dict[str, str]:
    """Return why each module that was never called was not."""
    modules = dict(model.named_modules())
    reasons = {}
    for name, module in modules.items():
        if name == "" or name in counts:
            continue
        parent = name.rpartition(".")[0]
        holder = modules.get(parent)
        if isinstance(module, nn.ModuleList | nn.ModuleDict):
            reason = f"it only holds modules; '{name}.*' names those inside"
        elif isinstance(holder, nn.MultiheadAttention):
            reason = f"{parent}, a MultiheadAttention, uses its weights without calling it"
        elif parent in counts or parent == "":
            unused = "an auxiliary head, an unused branch, or used for its weights alone"
            reason = f"{parent or 'the model'} does not call it in eval mode ({unused})"
        else:
            reason = f"{parent}, which holds it, did not call it"
        reasons[name] = reason
    return reasons
