"""A network that is ready to be swept, and the record that identifies it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from torch import nn

from actstats.data.preprocessing import Preprocessing
from actstats.data.transform import Transform
from actstats.models.checkpoints import state_sha256


@dataclass(frozen=True)
class Loaded:
    """A network that is ready to be swept. `load_model` returns it in eval mode.

    `identity` is a JSON-serialisable dict of `arch`, `num_classes` and `weights`, which is all that
    `load_from_manifest` needs.
    """

    model: nn.Module
    preprocessing: Preprocessing | Transform
    identity: dict[str, Any]

    @classmethod
    def of(cls, model: nn.Module, preprocessing: Preprocessing | Transform) -> Self:
        """Wrap a module of the caller, which stays in its current mode. It cannot be rebuilt by name."""
        weights = {"source": "module", "sha256": state_sha256(model)}
        return cls(model, preprocessing, {"arch": type(model).__name__, "weights": weights})
