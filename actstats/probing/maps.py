"""Activation maps of units on some of the images of a sweep, for which the network runs over these images again."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from actstats.data import Source
from actstats.data.source import Subset
from actstats.layers import watch
from actstats.probing.forward import Passes, inputs, prepared, running
from actstats.store.sweep import Sweep

Wanted = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Channels of a layer and indices of images, i8 [maps] each: one map for each pair."""


def activation_maps(
    sweep: Sweep,
    source: Source,
    wanted: Mapping[str, Wanted],
    *,
    largest: int | None = None,
    passes: Passes = Passes(),  # noqa: B008 - frozen
) -> dict[str, NDArray[np.float32]]:
    """Return the maps that are wanted of each layer, f32 [maps, height, width]; NaN where an image cannot be read.

    Args:
        sweep: the sweep.
        source: its images.
        wanted: the units and images by layer.
        largest: the largest side of a map; maps that are larger are averaged down to it.
        passes: how the images pass through the network.

    Raises:
        ActstatsError: the network cannot be rebuilt, or none of the images can be read.
    """
    loaded = sweep.network()
    device = prepared(loaded, passes.device)
    layers, _ = sweep.layers(list(wanted))
    found = {}
    for layer in layers:
        height, width = (min(side, largest or side) for side in (layer.height, layer.width))
        found[layer.name] = np.full((len(wanted[layer.name][0]), height, width), np.nan, dtype=np.float32)
    images = np.unique(np.concatenate([asked for _, asked in wanted.values()]))
    rows = images[:0]

    def keep(index: int, maps: Tensor) -> None:
        name = layers[index].name
        channels, asked = wanted[name]
        at = np.flatnonzero(np.isin(asked, rows))
        chosen = maps[np.searchsorted(rows, asked[at]), channels[at]].float()
        _, height, width = found[name].shape
        # Without effect on maps that have this size.
        found[name][at] = adaptive_avg_pool2d(chosen, (height, width)).cpu().numpy()

    batches = inputs(loaded, Subset(source, images.tolist()), device, passes, sweep.chain or None)
    with running(loaded, passes.batch_size), closing(batches):
        for batch, pixels in batches:
            rows = images[batch.position + batch.start]
            with watch(loaded.model, layers, keep):
                loaded.model(pixels)
    return found
