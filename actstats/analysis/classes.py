"""Class selectivity of units: the class selectivity index, and the classes among the top images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from actstats.analysis.coverage import result, usable, values_of
from actstats.errors import ActstatsError
from actstats.store.merging import reduce_partitions
from actstats.support import require_package

_RANKED = ("top_value", "top_image", "top_position")
_DESCRIBED = {
    "selectivity": ("1", "class selectivity index"),
    "preferred_class": ("", "label with the greatest mean activation, -1 if none"),
    "top_entropy": ("bit", "entropy of the classes of the top images"),
    "top_classes": ("", "distinct classes among the top images"),
    "top_images": ("", "top images that there are"),
}


def class_means(dataset: xr.Dataset, variable: str = "mean") -> xr.DataArray:
    """Return the mean of a per-image variable over the images of each class, lazily, [label, unit].

    `label` contains the classes of the images that were read; images without a label (-1) are excluded.

    Raises:
        ActstatsError: no image has a label, the variable is missing, or flox is not installed.
    """
    require_package("flox", "grouping by class")
    swept = usable(dataset, "selectivity", variable)
    return _class_means(swept, variable)


def _class_means(swept: xr.Dataset, variable: str) -> xr.DataArray:
    from xarray.groupers import UniqueGrouper

    label = _labels(swept)
    classes = np.unique(label[(label >= 0) & (swept["status"].values == 0)])
    if not len(classes):
        raise ActstatsError("selectivity needs labelled images, but no image that was read has a label")
    found = values_of(swept, variable).reset_coords(drop=True).drop_vars("image", errors="ignore")
    found = found.assign_coords(label=("image", label))
    return found.groupby(label=UniqueGrouper(labels=classes)).mean()


def selectivity(dataset: xr.Dataset, variable: str = "mean") -> xr.Dataset:
    """Return how selective each unit is for classes of images, lazily.

    - `selectivity` = (m - o) / (m + o), where m is the greatest of the class means of `variable` and o the mean of
      the other class means: the class selectivity index of Morcos et al. 2018 (arXiv 1803.06959). It is 0 if all
      class means are equal, and 1 if the unit responds to one class only. The index is defined for non-negative
      activations: it is NaN if a class mean is below 0, or if the unit is never active.
    - `preferred_class`: the label with mean m, i64, the lowest one on ties.
    - `top_entropy` = - sum of p log2 p, in bits, where p are the proportions of the classes among the unit's top
      images: 0 if all images are of one class, at most log2 k. `top_classes` is the number of these classes, and
      `top_images` the number of images: fewer than k if fewer activate the unit. Images with the value 0 do not, nor
      does any image if `variable` is the same for all: their ranks are those of their indices.

    Args:
        dataset: dataset of a sweep of labelled images with `variable` and the top images, as returned by
            `open_dataset`.
        variable: per-image variable: `mean`, as in Morcos et al., or `maximum`.

    Returns:
        The variables above by unit. `top_entropy` and `top_classes` are NaN if no top image has a label.

    Raises:
        ActstatsError: a variable is missing, there are fewer than two classes, or no partition is complete.
    """
    require_package("flox", "selectivity")
    swept = usable(dataset, "selectivity", variable, *_RANKED)
    means = _class_means(swept, variable)
    if means.sizes["label"] < 2:
        raise ActstatsError(
            "selectivity needs images of at least two classes, but those that were read have one"
        )
    means = means.chunk({"label": -1})
    greatest, lowest = means.max("label"), means.min("label")
    counted = means.notnull().sum("label")
    others = (means.sum("label") - greatest) / (counted - 1).where(counted > 1)
    total = greatest + others
    found = {
        "selectivity": (greatest - others) / total.where((lowest >= 0) & (total > 0)),
        "preferred_class": _preferred(means),
        **_of_top_images(swept, variable),
    }
    return result(
        {name: found[name].assign_attrs(units=u, long_name=text) for name, (u, text) in _DESCRIBED.items()},
        swept,
    )


def variety(dataset: xr.Dataset) -> pd.DataFrame:
    """Return the number of distinct images and classes among the top images of all units of a layer.

    They are few if many units respond to the same images ("fewer types of inputs", Chen et al. 2020,
    arXiv 2006.09373).

    Returns:
        One row per layer, in order of execution: `layer`, `units`, `top_places` (top images of all units together),
        `distinct_images`, `distinct_classes` (excluding images without a label).

    Raises:
        ActstatsError: the store has no top images, or no partition is complete.
    """
    swept = usable(dataset, "selectivity", *_RANKED)
    image = _top_images(swept).transpose("unit", "rank").values
    layer = np.repeat(swept["layer"].values, image.shape[1])
    label = _label_of_number(swept)[image]
    table = pd.DataFrame({"layer": layer, "image": image.ravel(), "label": label.ravel()})
    grouped = table.where(table != -1).assign(layer=layer).groupby("layer", sort=False)
    counts = grouped.agg(
        top_places=("image", "count"),
        distinct_images=("image", "nunique"),
        distinct_classes=("label", "nunique"),
    )
    counts.insert(0, "units", grouped.size() // image.shape[1])
    return counts.reset_index()


def _preferred(means: xr.DataArray) -> xr.DataArray:
    labels = means["label"].values

    def at_greatest(values: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
        found = np.where(np.isnan(values), -np.inf, values).argmax(-1)
        return np.asarray(np.where(np.isnan(values).all(-1), -1, labels[found]))

    found: xr.DataArray = xr.apply_ufunc(
        at_greatest, means, input_core_dims=[["label"]], dask="parallelized", output_dtypes=[np.int64]
    )
    return found


def _top_images(swept: xr.Dataset) -> xr.DataArray:
    """Return the top images that activate each unit, [unit, rank]; -1 for those of value 0, ranked by index alone."""
    lists = reduce_partitions(swept[list(_RANKED)])
    image, value = lists["top_image"], lists["top_value"]
    if image.dtype.kind == "f":  # NaN for units that `where` excluded
        image = image.fillna(-1).astype(np.int64)
    return image.where(value != 0, -1).chunk({"rank": -1})


def _of_top_images(swept: xr.Dataset, variable: str) -> dict[str, xr.DataArray]:
    # No image stands out for a unit that is constant: its top images are the first of the dataset.
    values = values_of(swept, variable).reset_coords(drop=True)
    varies = values.max("image") > values.min("image")
    computed = xr.apply_ufunc(
        _classes_among,
        _top_images(swept).where(varies, -1),
        xr.DataArray(_label_of_number(swept), dims="number"),
        input_core_dims=[["rank"], ["number"]],
        output_core_dims=[[]] * 3,
        dask="parallelized",
        output_dtypes=[np.float64, np.float64, np.int64],
    )
    return dict(zip(("top_entropy", "top_classes", "top_images"), computed, strict=True))


def _classes_among(
    image: NDArray[np.int64], label: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Return entropy and number of the classes of `image` [..., rank], and how many images there are.

    `label` is that of each image of the store, and -1 at index -1.
    """
    of_image = label[image]
    known = of_image >= 0
    # How often the class of each image occurs among the k. The sum of the reciprocals counts each class once.
    alike = (of_image[..., :, None] == of_image[..., None, :]) & known[..., None, :]
    often = np.where(known, alike.sum(-1), 1)
    n = known.sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        entropy = -np.where(known, np.log2(often / n[..., None]), 0.0).sum(-1) / n
    distinct = np.where(known, 1 / often, 0.0).sum(-1).round()
    return np.abs(entropy), np.where(n > 0, distinct, np.nan), (image >= 0).sum(-1)


def _label_of_number(swept: xr.Dataset) -> NDArray[np.int64]:
    """Return the label of each image by its number in the store, and -1 at index -1 and for images not in `swept`."""
    numbers = swept["image"].values
    found = np.full(int(numbers.max()) + 2, -1, dtype=np.int64)
    found[numbers] = _labels(swept)
    return found


def _labels(swept: xr.Dataset) -> NDArray[np.int64]:
    if "label" not in swept.coords or swept["label"].dims != ("image",):
        raise ActstatsError("selectivity needs the coordinate label along image, which this dataset lacks")
    label: NDArray[np.int64] = swept["label"].values
    if label.dtype.kind not in "iu":
        raise ActstatsError("selectivity needs labels that are integers, -1 for images without a label")
    return label
