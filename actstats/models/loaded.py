"""A network that is ready to be swept, and the record of what it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from torch import nn

from actstats.data.preprocessing import Preprocessing
from actstats.data.transform import Transform
from actstats.models.checkpoints import state_sha256


@dataclass(frozen=True)
class Loaded:
    """A network ready to be swept, and known by its `identity`. Those of `load_model` are in eval mode.

    `identity` is fit for JSON: `arch`, `num_classes`, and `weights`, which is all that `load_from_manifest`
    needs.
    """

    model: nn.Module
    preprocessing: Preprocessing | Transform
    identity: dict[str, Any]

    @classmethod
    def of(cls, model: nn.Module, preprocessing: Preprocessing | Transform) -> Self:
        """Return a network of the caller's own, left in the mode that it is in. It cannot be rebuilt by name."""
        weights = {"source": "module", "sha256": state_sha256(model)}
        return cls(model, preprocessing, {"arch": type(model).__name__, "weights": weights})
