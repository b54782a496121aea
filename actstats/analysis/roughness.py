"""Smoothness of a unit's maps: total variation, per step, and relative to the scale of the map.

The same quantities are defined for the kernels of a convolution (`kernel_smoothness`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from actstats.analysis.coverage import result, usable
from actstats.errors import ActstatsError

if TYPE_CHECKING:
    from torch import nn

_OF_MAPS = {
    "total_variation": ("activation", "total variation of the map, mean over images"),
    "step": ("activation", "mean difference of neighbours: total variation / pairs, mean over images"),
    "roughness": ("1", "total variation / pairs / standard deviation of the map, mean over images"),
}
_OF_KERNELS = {
    "total_variation": ("weight", "total variation of the filter's kernels"),
    "step": ("weight", "mean difference of neighbouring weights: total variation / pairs"),
    "roughness": ("1", "total variation / pairs / standard deviation of the filter's weights"),
    "normed_filter": ("1", "mean step of the filter scaled to a root mean square of 1"),
    "normed_kernels": ("1", "mean step of each kernel scaled to a root mean square of 1, mean over kernels"),
}


def smoothness(dataset: xr.Dataset) -> xr.Dataset:
    """Return the roughness of each unit's maps, averaged over the images, lazily.

    For a map x of H x W positions with total variation TV = sum abs(x[i+1,j] - x[i,j]) + sum abs(x[i,j+1] - x[i,j])
    (anisotropic, Rudin, Osher and Fatemi 1992; used by Chen et al. 2020, arXiv 2006.09373, to compare networks):

    - `total_variation` = mean of TV, which grows with the area of the map and the scale of the activation;
    - `step` = mean of TV / (H (W - 1) + W (H - 1)), per pair of neighbours, comparable between map sizes;
    - `roughness` = mean of step / sqrt(variance of the map), independent of scale: 2 / sqrt(pi) = 1.13 for white
      normal noise, near 0 for a smooth gradient. Constant maps have no roughness and are excluded from this mean.

    Args:
        dataset: dataset of a sweep with `total_variation` and `variance`, as returned by `open_dataset`.

    Returns:
        The three variables, f64 [unit]. NaN if a unit has no image with a value, or a map of one position.

    Raises:
        ActstatsError: a variable is missing, or no partition is complete.
    """
    swept = usable(dataset, "smoothness", "total_variation", "variance")
    height, width = swept["height"], swept["width"]
    pairs = (height * (width - 1) + width * (height - 1)).astype("float64")
    pairs = pairs.where(pairs > 0)
    spread = np.sqrt(swept["variance"].where(swept["variance"] > 0))
    total = swept["total_variation"].mean("image")
    found = {
        "total_variation": total,
        "step": total / pairs,
        "roughness": (swept["total_variation"] / spread).mean("image") / pairs,
    }
    return _described(found, swept, _OF_MAPS)


def kernel_smoothness(model: nn.Module) -> xr.Dataset:
    """Return the roughness of the kernels of every `torch.nn.Conv2d` in `model`, by filter.

    A filter has one kernel per input channel. The formulas are those of `smoothness` for a map, with TV and pairs
    summed over the filter's kernels, and the variance of all its weights around their mean. The scale of a filter is
    free where batch norm follows, and that of its kernels where activations precede, so two more scale it away, with
    RMS the root mean square of the weights:

    - `normed_filter` = TV / pairs / RMS of the filter: 2 / sqrt(pi) = 1.13 for white normal weights;
    - `normed_kernels` = mean over the filter's kernels of TV / pairs / RMS of the kernel. Kernels whose weights are
      all 0 are excluded.

    Returns:
        `total_variation` (of weights), `step`, `roughness`, `normed_filter`, `normed_kernels`, f64 [unit], with one
        unit per filter. `layer` is the name of the module, `channel` the filter, `height` and `width` are those of
        the kernel. NaN for 1 x 1 kernels, which have no step.

    Raises:
        ActstatsError: the network has no such convolution.
    """
    from torch import nn

    convolutions = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    if not convolutions:
        raise ActstatsError(f"{type(model).__name__} has no torch.nn.Conv2d whose kernels could be analysed")
    parts = []
    for name, module in convolutions.items():
        kernels = module.weight.detach().double().cpu().numpy()
        filters, _, height, width = kernels.shape
        each = np.abs(np.diff(kernels, axis=2)).sum((2, 3)) + np.abs(np.diff(kernels, axis=3)).sum((2, 3))
        pairs = height * (width - 1) + width * (height - 1) or np.nan
        total, step = each.sum(1), each.mean(1) / pairs
        energy = (kernels**2).mean((2, 3))
        normed = xr.DataArray(each / pairs / _positive(np.sqrt(energy)), dims=("unit", "kernel"))
        values = (
            total,
            step,
            step / _positive(kernels.std((1, 2, 3))),
            step / _positive(np.sqrt(energy.mean(1))),
            normed.mean("kernel").values,
        )
        sizes = {"height": height, "width": width}
        parts.append(
            xr.Dataset(
                {key: ("unit", value) for key, value in zip(_OF_KERNELS, values, strict=True)},
                coords={
                    "layer": ("unit", np.full(filters, name, dtype=object)),
                    "channel": ("unit", np.arange(filters, dtype=np.int32)),
                    **{key: ("unit", np.full(filters, size, dtype=np.int32)) for key, size in sizes.items()},
                },
            )
        )
    whole = xr.concat(parts, "unit").assign_attrs(analysis="kernel_smoothness", arch=type(model).__name__)
    return _described({name: whole[name] for name in _OF_KERNELS}, whole, _OF_KERNELS)


def _positive(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(values > 0, values, np.nan)


def _described(
    found: dict[str, xr.DataArray], source: xr.Dataset, names: Mapping[str, tuple[str, str]]
) -> xr.Dataset:
    described = {
        name: found[name].assign_attrs(units=units, long_name=text) for name, (units, text) in names.items()
    }
    return result(described, source)
