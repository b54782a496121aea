"""Measure how much noise changes the input images themselves, the baselines for `noise_by_layer`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from actstats.analysis.comparing import pair_images
from actstats.errors import ActstatsError
from actstats.store.dataset import require_manifest
from actstats.store.manifest import Manifest
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
    before = after = 0.0
    for calm, rough in _pairs(clean, noisy, images, data):
        before, after = before + _total_variation(calm), after + _total_variation(rough)
    if not before:
        raise ActstatsError("the clean images are constant: they have no total variation to compare with")
    return after / before - 1


def input_change(
    clean: xr.Dataset, noisy: xr.Dataset, *, images: int = 256, data: str | None = None
) -> float:
    """Return how much the images themselves change from a clean to a noisy sweep, relative to their variance.

    That is the mean of (noisy - clean)^2 over the variance over positions and images, each summed over the three
    colours: the `relative_map_change` of the input. Arguments and errors are those of `input_increase`.
    """
    energy = np.zeros(3)
    values = []
    for calm, rough in _pairs(clean, noisy, images, data):
        energy += np.square(rough - calm).mean((0, 1))
        values.append((calm.mean((0, 1)), calm.var((0, 1))))
    means, variances = np.array(values).swapaxes(0, 1)
    variance = (variances.mean(0) + means.var(0)).sum()
    if not variance:
        raise ActstatsError("the clean images are constant: they have no variance to compare with")
    return float(energy.sum() / len(values) / variance)


def _pairs(
    clean: xr.Dataset, noisy: xr.Dataset, images: int, data: str | None
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Yield evenly spaced images as both sweeps showed them to the network, f64 [H, W, 3] in [0, 1]."""
    clean, noisy = pair_images([clean, noisy], "the change of the input")
    read = np.flatnonzero((clean["status"].values == 0) & (noisy["status"].values == 0))
    if not len(read):
        raise ActstatsError("no image was read in both sweeps, so the change of the input cannot be measured")
    read = read[np.linspace(0, len(read) - 1, min(images, len(read))).round().astype(int)]
    if "image" not in clean.variables:
        raise ActstatsError("the images are read by their numbers: open the store with actstats.open_dataset")
    chosen = clean["image"].values[read].tolist()
    yield from zip(
        *(
            _shown(require_manifest(dataset, "the change of the input"), chosen, data)
            for dataset in (clean, noisy)
        ),
        strict=True,
    )


def _total_variation(image: NDArray[np.float64]) -> float:
    return float(sum(np.abs(np.diff(image, axis=axis)).sum() for axis in (0, 1)))


def _shown(manifest: Manifest, chosen: list[int], data: str | None) -> Iterator[NDArray[np.float64]]:
    """Yield these images as this sweep showed them to the network, f64 [H, W, 3] in [0, 1]."""
    # Here, because an analysis of stores alone does without torch, which takes seconds and half a gigabyte.
    from actstats.data import batches, open_source
    from actstats.data.preprocessing import of_images
    from actstats.distort import Place
    from actstats.store.sweep import Recorded

    sweep, record = Recorded(manifest), manifest.data
    source = open_source(data or on_this_machine(record.spec), limit=record.limit, sample=record.sample)
    preprocessing = of_images(sweep.preprocessing, "the change of the input")
    chain = sweep.chain
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
    for batch in shown:
        if batch.messages:
            index, message = next(iter(batch.messages.items()))
            raise ActstatsError(
                f"{source.paths[index]} was swept, but now: {message}; if the images were moved, "
                "say where they are with `data=`"
            )
        pixels: NDArray[np.float64] = batch.pixels[0].double().numpy()
        yield pixels
