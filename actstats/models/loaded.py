"""A network that is ready to be swept, and the record that identifies it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import nn

from actstats.data.preprocessing import Preprocessing
from actstats.data.transform import NEEDED, Transform
from actstats.errors import ActstatsError
from actstats.identity import Identity
from actstats.models.checkpoints import state_sha256


@dataclass(frozen=True)
class Loaded:
    """A network that is ready to be swept. `load_model` returns it in eval mode.

    Attributes:
        model: the network.
        own_preprocessing: the preprocessing of its weights; None if it is not known.
        identity: JSON-serialisable dict of `arch`, `weights` and, if known, `num_classes`, which is all that
            `load_from_manifest` needs.
    """

    model: nn.Module
    own_preprocessing: Preprocessing | Transform | None
    identity: Identity

    @classmethod
    def of(cls, model: object, preprocessing: Preprocessing | Transform | None = None) -> Self:
        """Wrap a module of the caller, which stays in its current mode. It cannot be rebuilt by name.

        Raises:
            ActstatsError: it is not a module.
        """
        if not isinstance(model, nn.Module):
            exported = "; pass its `module()`" if isinstance(model, torch.export.ExportedProgram) else ""
            raise ActstatsError(
                f"the network is of type {type(model).__name__}, not a torch module or the name of one{exported}"
            )
        weights = {"source": "module", "sha256": state_sha256(model)}
        return cls(model, preprocessing, {"arch": type(model).__name__, "weights": weights})

    @property
    def preprocessing(self) -> Preprocessing | Transform:
        """The preprocessing that turns an image into the network's input.

        Raises:
            ActstatsError: it is not known.
        """
        if self.own_preprocessing is None:
            raise ActstatsError(NEEDED)
        return self.own_preprocessing
