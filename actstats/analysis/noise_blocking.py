"""The effect of image noise on each unit's total variation, and how much of it layers block."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from actstats.analysis.comparing import pair_images, pair_units, require_same_network, units_by_layer
from actstats.analysis.coverage import result, usable
from actstats.analysis.tables import unit_table
from actstats.errors import ActstatsError
from actstats.store.dataset import images_of

_DESCRIBED = {
    "clean": ("activation", "total variation on the clean images, mean over the images"),
    "noisy": ("activation", "total variation on the noisy images, mean over the same images"),
    "change": ("activation", "noisy - clean"),
    "change_error": ("activation", "standard error of the change over images, paired"),
    "relative_change": ("1", "change / clean"),
    "outlier": ("", "whether the change reaches the share of the layer's mean total variation"),
}


def noise(
    clean: xr.Dataset, noisy: xr.Dataset, *, reference: xr.Dataset | None = None, share: float = 0.2
) -> xr.Dataset:
    """Return the change in each unit's total variation when noise is added to the images, lazily.

    With c[n] and d[n] the total variation of a unit's map for image n, clean and noisy, over the images that have a
    value in both sweeps:

    - `clean`, `noisy` = mean of c, mean of d; `change` = mean of d - c; `relative_change` = change / clean;
    - `change_error` = standard deviation of d - c over the images (n - 1 in the denominator) / sqrt(n);
    - `outlier`: abs(change) >= `share` x the mean over the layer's units of the clean total variation of `reference`,
      the rule of Chen et al. 2020 (arXiv 2006.09373), where the reference is the standard network.

    Args:
        clean: dataset of a sweep with `total_variation`, as returned by `open_dataset`.
        noisy: dataset for the same network and images with noise.
        reference: clean sweep that sets the scale of the outlier rule. Default: `clean`.
        share: threshold of the outlier rule, relative to that scale.

    Returns:
        The variables above, f64 [unit], and `outlier`, bool [unit].

    Raises:
        ActstatsError: the sweeps differ in images, layers or weights, a variable is missing, no partition is
            complete, or `share` is not above 0.
    """
    if not share > 0:
        raise ActstatsError(f"`share=` must be above 0, not {share}")
    require_same_network(clean, noisy, "noise")
    first, second = _paired(clean, noisy)
    before, after = first["total_variation"], second["total_variation"]
    both = before.notnull() & after.notnull()
    change = after - before
    found = {
        "clean": before.where(both).mean("image"),
        "noisy": after.where(both).mean("image"),
        "change": change.mean("image"),
        "change_error": change.std("image", ddof=1) / np.sqrt(both.sum("image")),
    }
    found["relative_change"] = found["change"] / found["clean"].where(found["clean"] > 0)
    scale = found["clean"]
    if reference is not None:
        scale = usable(reference, "noise", "total_variation")["total_variation"].mean("image")
        if missing := units_by_layer(first).keys() - units_by_layer(scale.to_dataset(name="scale")).keys():
            raise ActstatsError(f"the stores have different layers: the reference has no {min(missing)}")
    limit = share * _mean_of_layer(scale, first["layer"])
    found["outlier"] = (abs(found["change"]) >= limit) & (limit > 0)
    described = {n: found[n].assign_attrs(units=u, long_name=text) for n, (u, text) in _DESCRIBED.items()}
    return result(described, first)


def noise_by_layer(found: xr.Dataset, *, input_increase: float | None = None) -> pd.DataFrame:
    """Return the results of `noise` by layer, and the fraction of the noise that is blocked up to each layer.

    With C and D the means over a layer's units of `clean` and `noisy`,

    - `increase` = D / C - 1: the relative increase of the layer's total variation;
    - `blocked` = 1 - increase / increase of the input: 0 if the layer's increase equals that of the noisy images, 1
      if no noise is left, negative if noise is amplified.

    The increase of the input is `input_increase`, as measured by the function of that name. By default it is that of
    the first layer, whose `blocked` is then 0.

    Returns:
        One row per layer, in order of execution: `layer`, `units`, `measured` (units with a value, which the means
        are of), `clean`, `noisy`, `increase`, `blocked`, `outliers` (a count) and `outlier_share` (of the units that
        are measured).
    """
    units = unit_table(found)
    grouped = units.groupby("layer", sort=False)
    table = grouped[["clean", "noisy"]].mean()
    table.insert(0, "units", grouped.size())
    table.insert(1, "measured", grouped["change"].count())
    table["increase"] = table["noisy"] / table["clean"].where(table["clean"] > 0) - 1
    table["blocked"] = 1 - table["increase"] / (
        table["increase"].iloc[0] if input_increase is None else input_increase
    )
    table["outliers"] = grouped["outlier"].sum()
    table["outlier_share"] = table["outliers"] / table["measured"].where(table["measured"] > 0)
    return table.reset_index()


def _paired(clean: xr.Dataset, noisy: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset]:
    """Return the total variation of the same units for the images that are complete in both sweeps."""
    both = pair_images([clean, noisy], "noise")
    both[1] = pair_units(*both)
    images = [images_of(dataset, (), "noise") for dataset in both]
    pending = images[0].pending | images[1].pending
    if pending.any():
        both = [dataset.isel(image=np.flatnonzero(~pending)) for dataset in both]
    first, second = (usable(dataset, "noise", "total_variation") for dataset in both)
    read = int((images[0].read & images[1].read).sum())
    first.attrs |= {
        "outdated": first.attrs["outdated"] or second.attrs["outdated"],
        "images": len(pending),
        "images_read": read,
        "images_pending": int(pending.sum()),
        "images_unreadable": int((~pending).sum()) - read,
    }
    return first, second.assign_coords(image=first["image"]) if "image" in first.coords else second


def _mean_of_layer(values: xr.DataArray, layer: xr.DataArray) -> xr.DataArray:
    """Return the mean of `values` [unit] over the units of each unit's layer, [unit] as `layer`."""
    means = values.groupby("layer").mean().sel(layer=xr.DataArray(layer.values, dims="unit"))
    return means.drop_vars("layer")
