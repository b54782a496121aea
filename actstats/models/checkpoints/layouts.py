"""Layouts of training programs' checkpoints: keys and names of weights, and normalisers before the network."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, NamedTuple

from torch import Tensor

from actstats.models.checkpoints.records import Foreign, Refused, TensorRecord

AVERAGES: Final = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
"""Keys of averaged copies of the weights: these are what a training program that keeps them evaluates."""
PARTS: Final = (*AVERAGES, "state_dict", "model", "model_state_dict", "net", "network", "weights")
"""Keys under which training programs keep weights among other things; the first that exists is used."""
_MEANS: Final = {"new_mean": "new_std", "mean": "std", "_mean": "_std", "mu": "sigma"}
"""Names of a normaliser's standard deviation, by that of its mean."""
_RENAMED: Final = (
    # `robustness` splits AlexNet's last layer off; its GoogLeNet of 2019 names a branch's convolution.
    (re.compile(r"(^|\.)last_layer\."), r"\1classifier.6."),
    (re.compile(r"(^|\.)branch4_conv\."), r"\1branch4.1."),
    # DenseNet's published files say `denselayer1.norm.1` for what is now `denselayer1.norm1`.
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\."), r"\1\2."),
)


_WHITE: Final = 255.0
_LEAST_STD: Final = 16.0
"""Least standard deviation that tells images from 0 to 255 by itself; in those from 0 to 1 it is at most 0.5."""
_LONGEST_NAME: Final = 1000
_MOST_DOTS: Final = 64
"""Bounds of a weight's name; every ending of it behind a dot is looked up."""
_MOST_WEIGHTS: Final = 1_000_000
_SCRIPTED: Final = "__torch__."
"""Beginning of the names of classes in TorchScript."""


class Part(NamedTuple):
    """Weights of a checkpoint: the key that they were under, and the versions of modules that PyTorch recorded."""

    key: str
    state: dict[str, Tensor | TensorRecord]
    layout: Mapping[str, Any]


@dataclass(frozen=True)
class Normaliser:
    """A normalisation of the input that is part of a checkpoint: (x - mean) / std on images in [0, 1]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def find_part(content: Any, key: str | None = None) -> Part:
    """Return the weights in a checkpoint's content: those under `key`, or under the first of `PARTS`, or all.

    Raises `Refused` with the keys of the checkpoint if there are none.
    """
    choices = {"": content}
    if isinstance(content, Mapping):
        choices |= {name: value for name, value in content.items() if isinstance(name, str)}
    # A plain state dict has a tensor under each key, so one that is there and has more inside is a part.
    for name in (*PARTS, "") if key is None else (key,):
        state, layout = _state_of(choices.get(name))
        if state:
            require_plain(state)
            return Part(name, state, layout)
    # For a message: one part may lie under many keys, so each is looked at once, and not all of them.
    few = dict(islice(choices.items(), 100))
    holds = {id(value): bool(_state_of(value)[0]) for value in {id(v): v for v in few.values()}.values()}
    there = [name for name, value in few.items() if name and holds[id(value)]]
    if there:
        raise Refused(f"its weights lie under {', '.join(there[:6])}; choose with FILE#{there[0]}")
    asked = f"under {key!r}" if key else "neither alone nor under state_dict, model or the like"
    raise Refused(f"it holds no state dict, {asked}")


def renamed(names: Iterable[str]) -> dict[str, str]:
    """Return the current name of each weight, by the name in the file.

    >>> renamed(["module.model.inception3a.branch4_conv.bn.bias"])
    {'module.model.inception3a.branch4_conv.bn.bias': 'module.model.inception3a.branch4.1.bn.bias'}
    """
    found = {}
    for old in names:
        new = old
        for pattern, replacement in _RENAMED:
            new = pattern.sub(replacement, new)
        found[old] = new
    return found


def require_plain(names: Iterable[str]) -> None:
    """Raise `Refused` if a weight's name is longer or deeper than any network's."""
    for name in names:
        if len(name) > _LONGEST_NAME or name.count(".") > _MOST_DOTS:
            raise Refused(f"it has a weight whose name is too long or too deep, {name[:40]}...")


def find_normaliser(state: Mapping[str, Tensor]) -> tuple[Normaliser | None, set[str]]:
    """Return the normaliser among tensors, and the names of its tensors.

    Raises `Refused` if there are several that differ.
    """
    found: dict[Normaliser, str] = {}
    names: set[str] = set()
    for name in state:
        parent, dot, last = name.rpartition(".")
        twin = f"{parent}{dot}{_MEANS.get(last)}"
        if last in _MEANS and twin in state and state[name].numel() == state[twin].numel() == 3:
            if state[name].is_complex() or state[twin].is_complex():
                raise Refused(f"its normaliser {parent or name} holds no real numbers")
            mean, std = (tuple(state[each].flatten().float().tolist()) for each in (name, twin))
            if not all(map(math.isfinite, (*mean, *std))) or min(std) <= 0:
                raise Refused(
                    f"its normaliser {parent or name} has values that are not finite, or a standard deviation that "
                    "is not positive"
                )
            found[_on_unit_scale(mean, std, parent or name)] = name
            names |= {name, twin}
    if len(found) > 1:
        told = " and ".join(f"{name} {list(each.mean)}" for each, name in list(found.items())[:2])
        raise Refused(f"it has two normalisers that differ, {told}")
    return next(iter(found), None), names


def _on_unit_scale(mean: tuple[float, ...], std: tuple[float, ...], name: str) -> Normaliser:
    """Return a normaliser for images in [0, 1], given its values for these or for images from 0 to 255."""
    if max(mean) <= 1 and max(std) <= 1:
        scale = 1.0
    elif max(*mean, *std) <= _WHITE and (max(mean) > 1 or min(std) > _LEAST_STD):
        scale = _WHITE
    else:
        raise Refused(
            f"its normaliser {name} is for images neither from 0 to 1 nor from 0 to 255: mean {list(mean)}, "
            f"standard deviation {list(std)}"
        )
    centre, spread = (tuple(value / scale for value in values) for values in (mean, std))
    return Normaliser(centre, spread)  # type: ignore[arg-type]


def _state_of(value: Any) -> tuple[dict[str, Tensor | TensorRecord], Mapping[str, Any]]:
    if isinstance(value, Foreign):
        return _state_of_module(value, "", set()), {}
    if not isinstance(value, Mapping):
        return {}, {}
    state = {name: entry for name, entry in value.items() if isinstance(entry, Tensor | TensorRecord)}
    if not all(isinstance(name, str) for name in state):
        return {}, {}
    layout = getattr(value, "_metadata", None)
    return state, layout if isinstance(layout, Mapping) else {}


def _state_of_module(module: Foreign, prefix: str, seen: set[int]) -> dict[str, Tensor | TensorRecord]:
    """Return the weights in the placeholder of a whole module, by their names in its `state_dict()`."""
    fields = module.state
    if id(module) in seen or not isinstance(fields, Mapping):
        return {}
    if len(prefix) > _LONGEST_NAME:
        raise Refused(f"it has a module whose name is too long, {prefix[:40]}...")
    seen.add(id(module))
    if module.name.startswith(_SCRIPTED):  # whose parameters, buffers, modules and constants lie side by side
        fields = dict.fromkeys(("_parameters", "_modules"), fields)
    kept = {name: fields.get(name) for name in ("_parameters", "_buffers", "_modules")}
    parameters, buffers, children = (value if isinstance(value, Mapping) else {} for value in kept.values())
    forgotten = fields.get("_non_persistent_buffers_set")
    state: dict[str, Tensor | TensorRecord] = {
        f"{prefix}{name}": entry
        for name, entry in (*parameters.items(), *buffers.items())
        if isinstance(entry, TensorRecord) and not (isinstance(forgotten, set) and name in forgotten)
    }
    for name, child in children.items():
        if isinstance(child, Foreign) and len(seen) < 10_000:
            state |= _state_of_module(child, f"{prefix}{str(name)[:_LONGEST_NAME]}.", seen)
        if len(state) > _MOST_WEIGHTS:
            raise Refused(f"it has more than {_MOST_WEIGHTS:,} weights")
    return state
