"""Select layers of a network by preset, name or pattern, among those that one forward pass finds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Final

import torch
from torch import Tensor, nn

from actstats.errors import ActstatsError, first, nearest
from actstats.layers.axes import identify_axes
from actstats.layers.chains import convolution_calls, functional_activations
from actstats.layers.graph import IMAGE_VALUE, Call, Graph, Value, trace
from actstats.layers.layer import ROOT, Layer
from actstats.layers.passes import in_channels_last, ready, runs_in_channels_last, unsteady_calls
from actstats.support import one_or_more, random_images

# fmt: off
PAPER: Final[Mapping[str, Mapping[str, int]]] = {
    "AlexNet": {"features.1": 64, "features.4": 192, "features.7": 384, "features.9": 256, "features.11": 256},
    "GoogLeNet": {
        "conv1": 64, "conv2": 64, "conv3": 192, "inception3a": 256, "inception3b": 480, "inception4a": 512,
        "inception4b": 512, "inception4c": 512, "inception4d": 528, "inception4e": 832, "inception5a": 832,
        "inception5b": 1024,
    },
    "ResNet-50": {"conv1": 64, "layer1": 256, "layer2": 512, "layer3": 1024, "layer4": 2048},
}
# fmt: on
"""Modules and their number of units, from "The shape and simplicity biases of adversarially robust ImageNet-trained
CNNs" (Chen, Agarwal, Nguyen).
"""

_RESNET_50: Final = {"layer1.0.conv1": 64, "layer1.2.conv3": 256, "layer3.5.conv3": 1024}
"""Modules that distinguish ResNet-50 from its wider variants. Deeper variants have a `layer3.6`."""


def paper_modules(units: Mapping[str, int]) -> list[str] | None:
    """Return the modules of the preset `paper`, or None if the network is not one of the paper's.

    `units` maps each module of the network to its number of units. The network is recognised by these, not by its
    class name.
    """
    for network, modules in PAPER.items():
        telling = {**modules, **_RESNET_50} if network == "ResNet-50" else modules
        deeper = network == "ResNet-50" and "layer3.6.conv3" in units
        if not deeper and all(units.get(name) == count for name, count in telling.items()):
            return list(modules)
    return None


def block_modules(model: nn.Module, calls: Mapping[str, int]) -> list[str]:
    """Return the names of the network's blocks: the outermost composite modules of classes that occur repeatedly.

    `calls` maps each module to its number of calls in one forward pass. A class occurs repeatedly if its modules ran
    at least twice. A block has weights, so a normalisation with its activation is not a block. A class that holds
    several blocks of one class in a container is a stage: its blocks are returned, not the stage itself. A module
    next to blocks that is built from repeated modules is a block too, such as the two downsampling modules among the
    mixed modules of Inception v3.
    """
    ran: Counter[type[nn.Module]] = Counter()
    for name, module in model.named_modules():
        if not _is_container(module):
            ran[type(module)] += calls.get(name, 0)
    repeated = {kind for kind, count in ran.items() if count > 1}

    def is_unit(module: nn.Module) -> bool:
        composite = _is_composite(module) and not _is_container(module)
        return type(module) in repeated and composite and _layers_with_weights(module) > 0

    def holds_blocks(module: nn.Module) -> bool:
        for container in filter(_is_container, module.children()):
            # A convolution with its norm has one layer with weights. Two of these are a branch, not blocks.
            kinds = Counter(
                type(c) for c in container.children() if is_unit(c) and _layers_with_weights(c) > 1
            )
            if any(count > 1 for count in kinds.values()):
                return True
        return False

    stages = {type(module) for module in model.modules() if is_unit(module) and holds_blocks(module)}

    def is_repeated(module: nn.Module) -> bool:
        return is_unit(module) and type(module) not in stages

    def blocks(name: str, module: nn.Module) -> Iterator[str]:
        children = [c for c in _children(name, module) if _ran_inside(*c, calls)]
        among_blocks = any(is_repeated(child) for _, child in children)
        for child_name, child in children:
            built_from_repeated = any(is_repeated(inner) for inner in child.modules())
            if calls.get(child_name, 0) and (is_repeated(child) or (among_blocks and built_from_repeated)):
                yield child_name
            else:
                yield from blocks(child_name, child)

    return list(blocks("", model))


def _layers_with_weights(module: nn.Module) -> int:
    """Return how many of the modules inside have weights other than a per-channel scale and shift."""
    return sum(any(p.ndim > 1 for p in inner.parameters(recurse=False)) for inner in module.modules())


def _is_composite(module: nn.Module) -> bool:
    return next(module.children(), None) is not None


def _is_container(module: nn.Module) -> bool:
    """Return whether the module only groups others: a list or dict, or a sequence that is not a block of leaves."""
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        return type(module).forward in (nn.ModuleList.forward, nn.ModuleDict.forward)
    # A ScriptModule's class has no `forward`.
    if getattr(type(module), "forward", None) is not nn.Sequential.forward:
        return False
    return type(module) is nn.Sequential or any(_is_composite(child) for child in module.children())


def _children(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the module's children with their full names, replacing containers by their children."""
    for child_name, child in module.named_children():
        full = f"{name}.{child_name}" if name else child_name
        if _is_container(child):
            yield from _children(full, child)
        else:
            yield full, child


def _ran_inside(name: str, module: nn.Module, calls: Mapping[str, int]) -> bool:
    return any(calls.get(f"{name}.{inner}".rstrip("."), 0) for inner, _ in module.named_modules())


IMAGES = 2
"""Number of images in the probing pass. With two, the batch axis can be recognised."""


@dataclass(frozen=True)
class Candidate:
    """A layer that can be hooked, and the presets that include it (`conv`, `block`, `all`, `paper`)."""

    layer: Layer
    presets: tuple[str, ...]


@dataclass(frozen=True)
class Probe:
    """The layers found by running a network on an example.

    Attributes:
        candidates: every layer that can be hooked, in the order in which the modules returned.
        refused: calls whose output cannot be hooked, as layer name to reason.
        never_ran: modules that were never called, as module name to likely reason.
        default: the preset that `conv` stands for: `block` in a network with at most one convolution, else `conv`.
        unsteady: calls whose maps cannot belong to images, in order of execution, as layer name to reason.
        channels_last: whether the network can run in channels_last memory format.
        activated_later: layers of `conv` that a function activates afterwards, as layer name to the function's name.
    """

    candidates: tuple[Candidate, ...]
    refused: Mapping[str, str]
    never_ran: Mapping[str, str]
    default: str
    unsteady: Mapping[str, str] = field(default_factory=dict)
    channels_last: bool = True
    activated_later: Mapping[str, str] = field(default_factory=dict)


def probe(model: nn.Module, example: Tensor) -> Probe:
    """Run `model` on two images of `example` [n, 3, H, W] and return the layers that can be hooked.

    If the images of the example are alike, seeded random images of its range are used: with images that differ,
    layers show that they skip or reorder images. The model runs in eval mode several times, and is left unchanged.
    Images are in channels_last memory format unless it can only run on contiguous ones.

    Raises:
        ActstatsError: the model cannot run on the example.
    """
    images = _three_images(example)
    try:
        # Compiled code does not call hooks that are registered later.
        with (
            torch.random.fork_rng([images.device] if images.is_cuda else []),
            torch.compiler.set_stance("force_eager"),
        ):
            channels_last = runs_in_channels_last(model, images[:IMAGES])
            images = in_channels_last(images) if channels_last else images
            with ready(model, channels_last=channels_last):
                # Before the trace, so that what the network caches is not made of tensors in inference mode.
                unsteady = unsteady_calls(model, images)
                graph = trace(model, images[:IMAGES])
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        kind = str(images.dtype).removeprefix("torch.")
        hint = (
            ""
            if images.is_floating_point()
            else f"; the images are {kind}: convert them with `preprocessing=`"
        )
        raise ActstatsError(
            f"the model fails on an example of shape {list(images[:IMAGES].shape)}: {reason}{hint}"
        ) from error
    return replace(_digest(model, graph, unsteady), channels_last=channels_last)


def _three_images(example: Tensor) -> Tensor:
    """Return two different images like those of `example`, and a third, their mean."""
    images = example[:IMAGES].detach()
    if len(images) < IMAGES or torch.equal(images[0], images[1]):
        low, high = (float(value) for value in images.double().aminmax())
        low, high = (low, high) if low < high else (low - 2, high + 2)
        made = low + (high - low) * random_images(3, tuple(images.shape[1:]))
        return made.to(images.device, images.dtype)
    return torch.cat([images, (images[:1] / 2 + images[1:] / 2).to(images.dtype)])


def _digest(model: nn.Module, graph: Graph, unsteady: Mapping[tuple[str, int], str]) -> Probe:
    counts = Counter(call.module for call in graph.calls)
    layers: dict[tuple[str, int], Layer] = {}
    refused: dict[str, str] = {}
    names = {
        (call.module, call.number): f"{call.module}:{call.number}" if counts[call.module] > 1 else call.module
        for call in graph.calls
    }
    for call in graph.calls:
        name = names[call.module, call.number]
        made = call.problem or _layer(name, call, graph.values[call.output or 0])
        if isinstance(made, Layer):
            layers[call.module, call.number] = replace(made, calls=counts[call.module])
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
    later = functional_activations(graph)
    activated = {
        names[call.module, call.number]: later[call.output]
        for call in graph.calls
        if call.output in later and (call.module, call.number) in members["conv"]
    }
    reasons = {names.get(key, key[0]): reason for key, reason in unsteady.items()}
    return Probe(candidates, refused, _never_ran(model, counts), default, reasons, activated_later=activated)


def _layer(name: str, call: Call, value: Value) -> Layer | str:
    """Return the layer of a call that returned `value`, or the reason why it has no maps."""
    axes = identify_axes(value.shape, value.coordinates, IMAGES)
    if isinstance(axes, str):
        return axes
    batch = axes.letters.index("n")
    shape = (*value.shape[:batch], *value.shape[batch + 1 :])
    sizes = (axes.units, axes.height, axes.width)
    return Layer(name, call.module, call.number, call.kind, *sizes, shape, axes.letters, axes.prefix)


def _distinct(graph: Graph, preferred: Sequence[set[tuple[str, int]]]) -> set[tuple[str, int]]:
    """Return one call for each distinct value: in the first of the `preferred` sets that has one, or else the first.

    A mere rearrangement of a value is not a distinct value, nor is the image itself.
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
    """Return the likely reason for each module that was never called."""
    modules = dict(model.named_modules())
    reasons = {}
    for name, module in modules.items():
        if name == "" or name in counts:
            continue
        parent = name.rpartition(".")[0]
        holder = modules.get(parent)
        if isinstance(holder, torch.jit.ScriptModule):
            reason = f"{parent or 'the model'} is TorchScript, which calls no hooks inside; select {parent or ROOT!r}"
        elif isinstance(module, nn.ModuleList | nn.ModuleDict):
            reason = f"it only holds other modules; select those with '{name}.*'"
        elif isinstance(holder, nn.MultiheadAttention):
            reason = f"{parent}, a MultiheadAttention, uses its weights without calling it"
        elif parent in counts or parent == "":
            unused = "an auxiliary head, an unused branch, or used only for its weights"
            reason = f"{parent or 'the model'} does not call it in eval mode ({unused})"
        else:
            reason = f"{parent}, which holds it, did not call it"
        reasons[name] = reason
    return reasons


PRESETS: Final = ("conv", "block", "all", "paper")


def select_layers(
    model: nn.Module, example: Tensor, selectors: str | Sequence[str] = ("conv",)
) -> list[Layer]:
    """Return the layers that match any of `selectors`, in order of execution.

    Each selector is one of:

    - `conv`: the output of every convolution, after the normalisation and activation that directly follow it,
      provided that a module returns it (hooks cannot see what a network computes between its modules). In a network
      with at most one convolution, this is the same as `block`;
    - `block`: the output of every block, that is, of the outermost modules whose class runs repeatedly;
    - `all`: every distinct value that a module returns;
    - `paper`: the modules of AlexNet, GoogLeNet or ResNet-50 that the paper analyses;
    - the name of a module, such as `inception3a`: all calls of that module. `layer1.0.relu:1` selects call 1 only,
      counted from 0. A preset takes precedence over a module of the same name, unless it matches nothing; `conv:0`
      selects the module;
    - a pattern that matches whole names, such as `*.branch1`, with `*`, `?` and `[...]` as in a shell.

    The network is probed with `example` [n, 3, H, W] (see `probe`).

    Raises:
        ActstatsError: a selector matches nothing, or only what cannot be hooked.
    """
    return select(probe(model, example), selectors)


def named_layers(model: nn.Module, example: Tensor, names: Sequence[str]) -> list[Layer]:
    """Return the layers of these names, as a store has them: unlike in `select_layers`, a name is never a preset.

    Raises:
        ActstatsError: a name matches nothing, or only what cannot be hooked.
    """
    return select(probe(model, example), names, presets=False)


def select(probed: Probe, selectors: str | Sequence[str], *, presets: bool = True) -> list[Layer]:
    """Return the layers of a probed network that match any of `selectors`; see `select_layers` and `named_layers`."""
    if not selectors:
        raise ActstatsError("no layers were selected: give a preset, a module name or a pattern")
    chosen = {
        layer.name for selector in one_or_more(selectors) for layer in _matches(probed, selector, presets)
    }
    for at, (name, reason) in enumerate(probed.unsteady.items()):
        if name in chosen:
            earliest = next(iter(probed.unsteady))
            before = f"; the first such layer is {earliest}: select layers before it" if at else ""
            raise ActstatsError(f"layer '{name}' cannot be swept: {reason}{before}")
    return [c.layer for c in probed.candidates if c.layer.name in chosen]


def notes_on(probed: Probe, selectors: str | Sequence[str], layers: Sequence[Layer]) -> list[str]:
    """Return what a user should know about the `layers` that `selectors` match, one line each."""
    modules = {candidate.layer.module for candidate in probed.candidates}
    notes = [
        f"'{name}' is the preset; the module of that name is selected by '{name}:0'"
        for name in one_or_more(selectors)
        if name in PRESETS and name in modules and {layer.module for layer in layers} != {name}
    ]
    before = [layer.name for layer in layers if layer.name in probed.activated_later]
    if before:
        functions = sorted({probed.activated_later[name] for name in before})
        notes.append(
            f"{len(before)} of {len(layers)} layers are before their activation, since hooks cannot see a function "
            f"({', '.join(functions)} after {first(before)}); use modules such as nn.ReLU to see its values"
        )
    if not probed.channels_last:
        notes.append(
            "the network cannot run on images in channels_last memory format: it runs on contiguous ones"
        )
    return notes


def _matches(probed: Probe, selector: str, presets: bool) -> list[Layer]:
    """Return the layers that one selector matches, at least one."""
    named = [c.layer for c in probed.candidates if _names(c, selector)]
    if (
        presets
        and selector in PRESETS
        and not (named and not any(selector in c.presets for c in probed.candidates))
    ):
        return _preset(probed, selector)
    if named:
        return named
    if any(sign in selector for sign in "*?["):
        found = [c.layer for c in probed.candidates if _fits(c, selector)]
        if found:
            return found
    raise ActstatsError(_why_nothing(probed, selector))


def _names(candidate: Candidate, selector: str) -> bool:
    layer = candidate.layer
    return selector in (layer.name, layer.module, f"{layer.module}:{layer.call}")


def _fits(candidate: Candidate, pattern: str) -> bool:
    return fnmatchcase(candidate.layer.name, pattern) or fnmatchcase(candidate.layer.module, pattern)


def _preset(probed: Probe, preset: str) -> list[Layer]:
    if found := [c.layer for c in probed.candidates if preset in c.presets]:
        return found
    if preset == "paper":
        raise ActstatsError(
            f"preset 'paper' supports only {', '.join(PAPER)} with their usual modules; "
            "use 'conv', 'block' or module names"
        )
    has = {"conv": "no convolution whose output a module returns", "block": "no repeated blocks of modules"}
    refused = next((f"; layer '{name}' cannot be hooked: {why}" for name, why in probed.refused.items()), "")
    raise ActstatsError(
        f"preset '{preset}' matches nothing: this network has {has.get(preset, 'no module to hook')}; "
        f"use 'all' or module names{refused}"
    )


def _why_nothing(probed: Probe, selector: str) -> str:
    for name, reason in {**probed.refused, **probed.never_ran}.items():
        same = selector in (name, name.rpartition(":")[0])
        if same or fnmatchcase(name, selector):
            verb = "never ran" if name in probed.never_ran else "cannot be hooked"
            given = "" if same else f"layer pattern '{selector}' matches nothing that can be hooked: "
            return f"{given}layer '{name}' {verb}: {reason}"
    module, _, number = selector.rpartition(":")
    calls = sum(c.layer.module == module for c in probed.candidates)
    if calls and number.isdigit():
        times = "once" if calls == 1 else f"{calls} times"
        return f"layer '{selector}': {module} is called {times} in a forward pass; calls are counted from 0"
    known = [*PRESETS, *dict.fromkeys(c.layer.module for c in probed.candidates), *probed.never_ran]
    hint = nearest(selector, known) or "; `actstats layers` lists the layers that can be hooked"
    return f"no layer matches '{selector}'{hint}"
