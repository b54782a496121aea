"""Rebuild the swept networks, whose kernels and receptive fields the report shows."""

from __future__ import annotations

from typing import Final

import torch
from torch import nn

from actstats.errors import ActstatsError
from actstats.layers import named_layers
from actstats.layers.passes import ready, runs_in_channels_last
from actstats.layers.receptive import ReceptiveField, receptive_fields
from actstats.store.manifest import Manifest
from actstats.store.sweep import Sweep

_PROBES: Final = 56
"""Number of input rows probed for receptive fields; the thumbnails they are drawn on have about twice as many."""


def rebuild(sweep: Sweep) -> nn.Module | str:
    """Return the network that was swept, or one line that says why it cannot be rebuilt."""
    try:
        return sweep.network().model
    except ActstatsError as error:
        return str(error)


def field_step(crop: int) -> int:
    """Return the accuracy, in pixels, of the receptive fields in a report on inputs of `crop` pixels a side."""
    return max(1, crop // _PROBES)


def swept_fields(manifest: Manifest, network: nn.Module | str) -> dict[str, ReceptiveField]:
    """Return receptive fields by layer, accurate to a fiftieth of the input; empty without a network."""
    if isinstance(network, str):
        return {}
    shape = manifest.preprocessing.shape
    if shape[1] != shape[2]:  # The page draws them on squares.
        return {}
    example = torch.zeros(2, *shape)
    layers = named_layers(network, example, list(manifest.axis))
    with ready(network, channels_last=runs_in_channels_last(network, example)):
        return receptive_fields(network, shape, layers, step=field_step(shape[1]))
