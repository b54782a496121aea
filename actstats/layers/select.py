"""Selectors: from presets, names and patterns to layers."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Final

from torch import Tensor, nn

from actstats.errors import ActstatsError, nearest
from actstats.layers.layer import Layer
from actstats.layers.presets import PAPER
from actstats.layers.probe import Candidate, Probe, probe
from actstats.support import one_or_more

PRESETS: Final = ("conv", "block", "all", "paper")


def select_layers(
    model: nn.Module, example: Tensor, selectors: str | Sequence[str] = ("conv",)
) -> list[Layer]:
    """Return the layers that any of `selectors` names, in the order of execution.

    A selector is one of

    - `conv`: the output of every convolution, after the normalisation and activation that directly follow it, as
      far as a module returns that (what a network computes by functions between its modules no hook can see);
      in a network with at most one convolution, `block`;
    - `block`: the output of every block, the outermost modules of classes that run repeatedly;
    - `all`: every distinct value that a module returns;
    - `paper`: the modules of AlexNet, GoogLeNet or ResNet-50 that the paper looks at;
    - a module's name, `inception3a`: all its calls; with `:k`, `layer1.0.relu:1`: its call k, counted from 0;
    - a pattern of whole names, `*.branch1`, with `*`, `?` and `[...]` as in a shell.

    `example` [n, 3, H, W] is what the network is probed with (see `probe`).

    Raises:
        ActstatsError: a selector names nothing, or something that cannot be hooked.
    """
    return select(probe(model, example), selectors)


def select(probed: Probe, selectors: str | Sequence[str]) -> list[Layer]:
    """Return the layers of a probed network that any of `selectors` names; see `select_layers`."""
    if not selectors:
        raise ActstatsError("no layers were asked for: give a preset, a module's name or a pattern")
    chosen = {layer.name for selector in one_or_more(selectors) for layer in _matches(probed, selector)}
    return [c.layer for c in probed.candidates if c.layer.name in chosen]


def _matches(probed: Probe, selector: str) -> list[Layer]:
    """Return the layers that one selector names: one or more."""
    if selector in PRESETS:
        return _preset(probed, selector)
    if found := [c.layer for c in probed.candidates if _names(c, selector)]:
        return found
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
            f"preset 'paper' is for {', '.join(PAPER)} with their usual modules; this network is none of them: "
            "use 'conv', 'block' or module names"
        )
    has = {"conv": "no convolution whose output a module returns", "block": "no repeated blocks of modules"}
    raise ActstatsError(
        f"preset '{preset}' names nothing: this network has {has.get(preset, 'no module to hook')}; "
        "use 'all' or module names"
    )


def _why_nothing(probed: Probe, selector: str) -> str:
    for name, reason in {**probed.refused, **probed.never_ran}.items():
        same = selector in (name, name.rpartition(":")[0])
        if same or fnmatchcase(name, selector):
            verb = "never ran" if name in probed.never_ran else "cannot be hooked"
            given = "" if same else f"layer pattern '{selector}' fits nothing that can be hooked: "
            return f"{given}layer '{name}' {verb}: {reason}"
    module, _, number = selector.rpartition(":")
    calls = sum(c.layer.module == module for c in probed.candidates)
    if calls and number.isdigit():
        times = "once" if calls == 1 else f"{calls} times"
        return f"layer '{selector}': {module} is called {times} in a forward pass; its calls count from 0"
    known = [*PRESETS, *dict.fromkeys(c.layer.module for c in probed.candidates), *probed.never_ran]
    hint = nearest(selector, known) or "; list what can be hooked with: actstats layers"
    return f"no layer fits '{selector}'{hint}"
