"""What can be swept: the layers of a network, found by running it once, and what they would take to store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from actstats.metrics import resolve_metrics
from actstats.store import Schema
from actstats.sweeping.settings import Settings

if TYPE_CHECKING:
    from actstats.layers import Layer


@dataclass(frozen=True)
class LayerListing:
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
    def bytes_per_image(self) -> int:
        """Size of one image's values, before compression."""
        return self.schema.bytes(per_image=True, images=1)

    @property
    def bytes_per_partition(self) -> int:
        """Size of what is summed over one partition, before compression."""
        return self.schema.bytes(per_image=False, images=1)


def list_layers(
    arch: str,
    weights: str | Path = "none",
    *,
    robust: str | bool | None = None,
    seed: int = 0,
    offline: bool = False,
    layers: Sequence[str] = (),
    **settings: Any,
) -> LayerListing:
    """Run `arch` once and return what can be hooked; with `layers`, only those that they select.

    The arguments are those of `plan`; of `Settings`, those that decide the size of a store.

    Raises:
        ActstatsError: an unknown architecture, layer or metric.
    """
    import torch

    from actstats.layers import probe, select
    from actstats.models import load_model

    decided = Settings(**settings)
    loaded = load_model(arch, str(weights), robust=robust, seed=seed, offline=offline)
    probed = probe(loaded.model, loaded.preprocessing.example(2, torch.device("cpu")))
    found = select(probed, layers) if layers else [candidate.layer for candidate in probed.candidates]
    schema = Schema.of(
        resolve_metrics(decided.metrics, decided.custom),
        found,
        _MANY_IMAGES,
        partition_size=decided.partition_size,
        top_k=decided.top_k,
        per_image=decided.per_image,
    )
    presets = {candidate.layer.name: candidate.presets for candidate in probed.candidates}
    return LayerListing(tuple(found), presets, probed.refused, probed.never_ran, schema)


_MANY_IMAGES: Final = 10**9
"""More than a partition holds, whatever its size."""
