"""The presets `block` and `paper`: which modules they name in a network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

from torch import nn

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
"""The modules, with their units, that "The shape and simplicity biases of adversarially robust ImageNet-trained
CNNs" (Chen, Agarwal, Nguyen) looks at."""

_RESNET_50: Final = {"layer1.0.conv1": 64, "layer1.2.conv3": 256, "layer3.5.conv3": 1024}
"""What tells ResNet-50 from its deeper and wider kin, in whose `layer3` there is a block 6 or wider convolutions."""


def paper_modules(units: Mapping[str, int]) -> list[str] | None:
    """Return the modules that the preset `paper` names, or None if the network is none of the paper's.

    `units` are those of each module of the network; a network is known by these, not by the name of its class.
    """
    for network, modules in PAPER.items():
        telling = {**modules, **_RESNET_50} if network == "ResNet-50" else modules
        deeper = network == "ResNet-50" and "layer3.6.conv3" in units
        if not deeper and all(units.get(name) == count for name, count in telling.items()):
            return list(modules)
    return None


def block_modules(model: nn.Module, calls: Mapping[str, int]) -> list[str]:
    """Return the names of the network's blocks: the outermost composite modules of classes that occur repeatedly.

    `calls` is how often each module ran. A class occurs repeatedly if its modules ran twice or more in one forward
    pass. A block has weights: a norm with its activation is none. A class that holds several blocks of one class in
    a container is a stage, and its blocks count, not itself. Beside blocks, a module of another class that is built
    from repeated ones is a block too (such as the two downsampling modules among Inception v3's mixed ones).
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
            # A convolution with its norm, two of which make a branch of a block, has one layer with weights.
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
    """Return how many modules inside have weights of their own beyond a scale and a shift of channels."""
    return sum(any(p.ndim > 1 for p in inner.parameters(recurse=False)) for inner in module.modules())


def _is_composite(module: nn.Module) -> bool:
    return next(module.children(), None) is not None


def _is_container(module: nn.Module) -> bool:
    """Return whether the module only holds others: a list, or a sequence that is not a named block of leaves."""
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        return type(module).forward in (nn.ModuleList.forward, nn.ModuleDict.forward)
    if type(module).forward is not nn.Sequential.forward:
        return False
    return type(module) is nn.Sequential or any(_is_composite(child) for child in module.children())


def _children(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the module's children with their full names, those of containers in the containers' place."""
    for child_name, child in module.named_children():
        full = f"{name}.{child_name}" if name else child_name
        if _is_container(child):
            yield from _children(full, child)
        else:
            yield full, child


def _ran_inside(name: str, module: nn.Module, calls: Mapping[str, int]) -> bool:
    return any(calls.get(f"{name}.{inner}".rstrip("."), 0) for inner, _ in module.named_modules())
