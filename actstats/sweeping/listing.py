"""What of a network can be hooked, and how large a store of the layers chosen would be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch

from actstats.layers import Layer, probe, select
from actstats.metrics import DEFAULT, Metric, choose
from actstats.models import load_model
from actstats.store import Schema
from actstats.sweeping.buffers import schema_of

MANY_IMAGES: Final = 10**9
"""More than a partition holds, whatever its size."""


@dataclass(frozen=True)
class Listing:
    """Layers of a network, and what a sweep of them would store.

    Attributes:
        layers: those listed, in the order of execution.
        presets: the presets that each of them is in, by its name.
        refused: the calls whose output cannot be hooked, by layer name, each with the reason.
        never_ran: the modules that were never called, each with the likely reason.
        schema: what a sweep of `layers` stores.
    """

    layers: tuple[Layer, ...]
    presets: Mapping[str, tuple[str, ...]]
    refused: Mapping[str, str]
    never_ran: Mapping[str, str]
    schema: Schema

    @property
    def bytes_an_image(self) -> int:
        """Size of one image's values, before compression."""
        return self._bytes(per_image=True)

    @property
    def bytes_a_partition(self) -> int:
        """Size of what is summed over one partition, before compression."""
        return self._bytes(per_image=False)

    def _bytes(self, *, per_image: bool) -> int:
        outputs = tuple(output for output in self.schema.outputs if output.per_image == per_image)
        return replace(self.schema, outputs=outputs).bytes(1)


def list_layers(
    arch: str,
    weights: str | Path = "none",
    *,
    robust: str | bool | None = None,
    seed: int = 0,
    offline: bool = False,
    layers: Sequence[str] = (),
    metrics: Sequence[str] = DEFAULT,
    custom: Sequence[str | Metric | type[Metric]] = (),
    top_k: int = 16,
    per_image: bool = True,
    partition_size: int = 1024,
) -> Listing:
    """Run `arch` once and return what can be hooked; with `layers`, only those that they select.

    The arguments are those of `sweep`.

    Raises:
        ActstatsError: an unknown architecture, layer or metric.
    """
    chosen = choose(metrics, custom)
    loaded = load_model(arch, weights, robust=robust, seed=seed, offline=offline)
    probed = probe(loaded.model, torch.zeros(2, *loaded.preprocessing.shape))
    found = select(probed, layers) if layers else [candidate.layer for candidate in probed.candidates]
    return Listing(
        layers=tuple(found),
        presets={candidate.layer.name: candidate.presets for candidate in probed.candidates},
        refused=probed.refused,
        never_ran=probed.never_ran,
        schema=schema_of(chosen, found, MANY_IMAGES, partition_size, top_k, per_image),
    )
