"""List the layers of a network that can be swept, and the size of the store they would need."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Unpack

from actstats.metrics import resolve_metrics
from actstats.store import Schema
from actstats.sweeping.options import StoredOptions, fields_in, with_options
from actstats.sweeping.settings import Settings

if TYPE_CHECKING:
    from actstats.data.preprocessing import Preprocessing
    from actstats.layers import Layer


@dataclass(frozen=True)
class LayerListing:
    """The layers of a network, and what a sweep of them would store.

    Attributes:
        layers: the listed layers, in order of execution.
        presets: dict from the name of each layer to the presets that contain it.
        refused: dict from the name of each call whose output cannot be hooked to the reason.
        never_ran: dict from the name of each module that was never called to the likely reason.
        schema: schema of the store of a sweep of `layers`.
    """

    layers: tuple[Layer, ...]
    presets: Mapping[str, tuple[str, ...]]
    refused: Mapping[str, str]
    never_ran: Mapping[str, str]
    schema: Schema

    @property
    def bytes_per_image(self) -> int:
        """Size in bytes of the values of one image, before compression."""
        return self.schema.bytes(per_image=True, images=1)

    @property
    def bytes_per_partition(self) -> int:
        """Size in bytes of the sums over one partition, before compression."""
        return self.schema.bytes(per_image=False, images=1)


@with_options(Settings)
def list_layers(
    arch: str,
    weights: str | Path | None = None,
    *,
    robust: str | bool | None = None,
    seed: int = 0,
    offline: bool = False,
    preprocessing: Preprocessing | Callable[[Any], Any] | str | None = None,
    layers: Sequence[str] = (),
    **settings: Unpack[StoredOptions],
) -> LayerListing:
    """Run `arch` once and return the layers that can be swept, or those of them that match `layers`.

    The arguments are those of `plan`, with the fields of `Settings` that affect the size of the store; random weights
    are enough to list layers.

    Raises:
        ActstatsError: the architecture, a layer or a metric is unknown.
    """
    import torch
    from PIL import Image

    from actstats.data.transform import choose_preprocessing
    from actstats.layers import probe, select
    from actstats.models import load_model

    decided = Settings(**fields_in(Settings, settings))
    loaded = load_model(arch, weights, robust=robust, seed=seed, offline=offline)
    # The image only shows which shape a function of the caller returns.
    chosen = choose_preprocessing(preprocessing, loaded.own_preprocessing, Image.new("RGB", (500, 375)))
    probed = probe(loaded.model, chosen.example(2, torch.device("cpu")))
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
"""More images than any partition holds."""
