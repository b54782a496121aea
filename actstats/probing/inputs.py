"""Measure how much noise increases the total variation of the input images, the baseline for `noise_by_layer`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from actstats.analysis.comparing import pair_images
from actstats.attributes import find_manifest
from actstats.errors import ActstatsError
from actstats.support import on_this_machine

_WORKERS = 2


def input_increase(
    clean: xr.Dataset, noisy: xr.Dataset, *, images: int = 256, data: str | None = None
) -> float:
    """Return the relative increase of the images' own total variation from a clean to a noisy sweep of them.

    That is (mean over images of TV noisy) / (mean of TV clean) - 1, with TV summed over the three colours of the
    image in [0, 1], resized, cropped and distorted as each sweep recorded it, on `images` of them that are evenly
    spaced.

    Args:
        clean: of a sweep, as `open_dataset` returns it.
        noisy: of a distorted sweep of the same images, likewise.
        images: how many to read at most.
        data: where the images lie now; None: where they were swept.

    Raises:
        ActstatsError: other images in the two sweeps, images that are gone, or a distortion that needs the network.
    """
    clean, noisy = pair_images([clean, noisy], "the input's total variation")
    read = np.flatnonzero((clean["status"].values == 0) & (noisy["status"].values == 0))
    if not len(read):
        raise ActstatsError(
            "no image was read in both sweeps, so their own total variation cannot be measured"
        )
    read = read[np.linspace(0, len(read) - 1, min(images, len(read))).round().astype(int)]
    if "image" not in clean.variables:
        raise ActstatsError("the images are read by their numbers: open the store with actstats.open_dataset")
    chosen = clean["image"].values[read].tolist()
    before, after = (
        _total_variation(find_manifest(dataset.attrs), chosen, data) for dataset in (clean, noisy)
    )
    if not before:
        raise ActstatsError("the clean images are constant: they have no total variation to compare with")
    return after / before - 1


def _total_variation(attributes: Mapping[str, Any], chosen: list[int], data: str | None) -> float:
    """Return the sum of the total variation of these images, as this sweep showed them to the network."""
    # Here, because an analysis of stores alone does without torch, which takes seconds and half a gigabyte.
    import torch

    from actstats.data import batches, open_source
    from actstats.data.opening import as_recorded
    from actstats.data.preprocessing import Preprocessing
    from actstats.distort import Place, parse

    source = open_source(
        data or on_this_machine(attributes["data"]["spec"]), **as_recorded(attributes["data"])
    )
    preprocessing = Preprocessing.from_dict(attributes["preprocessing"])
    chain = parse(attributes.get("distort", []))
    if any(spec.startswith("pgd") for spec in chain.specs):
        raise ActstatsError(
            "an attack depends on the network, so the attacked images cannot be made again from the store alone"
        )
    shown = batches(
        source,
        preprocessing,
        [(index, index + 1) for index in chosen],
        workers=_WORKERS,
        distort=lambda pixels, index, size: chain.image(
            pixels, Place(index, source.paths[index], preprocessing, size)
        ),
    )
    total = 0.0
    for batch in shown:
        if batch.messages:
            index, message = next(iter(batch.messages.items()))
            raise ActstatsError(
                f"{source.paths[index]} was swept, but now: {message}; if the images were moved, "
                "say where they are with `data=`"
            )
        x = batch.pixels.double()
        total += float(sum(torch.diff(x, dim=axis).abs().sum() for axis in (1, 2)))
    return total
