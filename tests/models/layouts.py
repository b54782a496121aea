"""Checkpoints as training programs lay them out, around small networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

State = Mapping[str, Tensor]

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


class Arguments:
    """What a training program keeps beside its weights, and no reader has."""

    def __init__(self) -> None:
        self.eps = 3.0
        self.schedule = lambda epoch: epoch * 2


def normaliser(
    prefix: str, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD
) -> dict[str, Tensor]:
    return {
        f"{prefix}.new_mean": torch.tensor(mean).reshape(3, 1, 1),
        f"{prefix}.new_std": torch.tensor(std).reshape(3, 1, 1),
    }


def prefixed(prefix: str, state: State) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def attacked(state: State, wrapper: str = "", data_parallel: str = "module.") -> dict[str, Tensor]:
    """The state of robustness's AttackerModel: the network, twice, and its normaliser, twice."""
    inside = {
        **normaliser("normalizer"),
        **prefixed(f"model.{wrapper}", state),
        **normaliser("attacker.normalize"),
        **prefixed(f"attacker.model.{wrapper}", state),
    }
    return prefixed(data_parallel, inside)


ROBUST: dict[str, Callable[[State], Any]] = {
    "robustness": lambda state: {"model": attacked(state), "optimizer": {}, "epoch": 90, "args": Arguments()},
    "robustness, older": lambda state: {"state_dict": attacked(state), "epoch": 1},
    "robustness, a wrapped network": lambda state: {"model": attacked(state, "model.")},
    "robustness, alone": lambda state: attacked(state, data_parallel=""),
    "the attacker alone": lambda state: {
        **normaliser("module.attacker.normalize"),
        **prefixed("module.attacker.model.", state),
    },
    "a normaliser in front": lambda state: {
        "normalize.mean": torch.tensor(MEAN).reshape(1, 3, 1, 1),
        "normalize.std": torch.tensor(STD).reshape(1, 3, 1, 1),
        **prefixed("model.", state),
    },
    "a sequence of both": lambda state: {
        "state_dict": {
            "module.0.mean": torch.tensor(MEAN),
            "module.0.std": torch.tensor(STD),
            **prefixed("module.1.", state),
        }
    },
}
"""Layouts with a normaliser inside."""

PLAIN: dict[str, Callable[[State], Any]] = {
    "data parallel": lambda state: prefixed("module.", state),
    "compiled": lambda state: {"model": prefixed("_orig_mod.", state)},
    "lightning": lambda state: {"state_dict": prefixed("model.", state), "hyper_parameters": {"lr": 0.1}},
    "an average": lambda state: {
        "model": {name: tensor + 1 for name, tensor in state.items()},
        "model_ema": {"n_averaged": torch.tensor(7), **prefixed("module.", state)},
    },
    "timm's average": lambda state: {
        "state_dict": {name: tensor + 1 for name, tensor in state.items()},
        "state_dict_ema": dict(state),
    },
}
"""Layouts without one."""
