"""The effect of image noise on each unit: on the total variation of its maps, and on the maps themselves."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from actstats.analysis.changes import CLEAN, is_compared, map_changes, paired_sweeps
from actstats.analysis.comparing import units_by_layer
from actstats.analysis.coverage import result, usable
from actstats.analysis.tables import unit_table
from actstats.errors import ActstatsError
from actstats.store.dataset import require_manifest

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
    """Return how much noise in the images changes each unit, lazily: total variation, and maps if they were compared.

    With c[n] and d[n] the total variation of a unit's map for image n, clean and noisy, over the images that have a
    value in both sweeps:

    - `clean`, `noisy` = mean of c, mean of d; `change` = mean of d - c; `relative_change` = change / clean;
    - `change_error` = standard deviation of d - c over the images (n - 1 in the denominator) / sqrt(n);
    - `outlier`: abs(change) >= `share` x the mean over the layer's units of the clean total variation of `reference`,
      the rule of Chen et al. 2020 (arXiv 2006.09373), where the reference is the standard network.

    Total variation does not tell noise from what it replaces: maps may change throughout and have as much of it as
    before. If `noisy` was swept beside `clean` (`sweep --changed`), so that its maps were compared with the clean
    ones, the variables of `map_changes` are added, which say how much of the maps changes.

    Args:
        clean: dataset of a sweep with `total_variation`, and `mean` and `variance` for the change of the maps, as
            returned by `open_dataset`.
        noisy: dataset for the same network and images with noise.
        reference: clean sweep that sets the scale of the outlier rule. Default: `clean`.
        share: threshold of the outlier rule, relative to that scale.

    Returns:
        The variables above, f64 [unit], and `outlier`, bool [unit].

    Raises:
        ActstatsError: the sweeps differ in images, layers or weights, `clean` is the more distorted one, the maps
            were compared with those of another sweep, a variable is missing, no partition is complete, or `share` is
            not above 0.
    """
    if not share > 0:
        raise ActstatsError(f"`share=` must be above 0, not {share}")
    _refuse_swapped(clean, noisy)
    first, second = paired_sweeps(clean, noisy, "noise", ["total_variation"], ["total_variation"])
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
    if is_compared(noisy) and all(name in clean.data_vars for name in CLEAN):
        changes = map_changes(clean, noisy)
        described |= {str(name): variable for name, variable in changes.data_vars.items()}
    return result(described, first)


def _refuse_swapped(clean: xr.Dataset, noisy: xr.Dataset) -> None:
    """Raise an `ActstatsError` if the images of `clean` are those of `noisy`, distorted further."""
    before, after = (require_manifest(dataset, "noise").distort for dataset in (clean, noisy))
    if len(before) > len(after) and before[: len(after)] == after:
        raise ActstatsError(
            f"noise: the first sweep is distorted by {' + '.join(before[len(after) :])} and the second is not: give "
            "the clean sweep first"
        )


def noise_by_layer(
    found: xr.Dataset, *, input_increase: float | None = None, input_change: float | None = None
) -> pd.DataFrame:
    """Return the results of `noise` by layer, and what arrives of the noise in the input.

    With C and D the means over a layer's units of `clean` and `noisy`,

    - `increase` = D / C - 1: the relative increase of the layer's total variation (Chen et al. 2020);
    - `relative_increase` = increase / increase of the input: 1 if the layer's total variation increases as much as
      that of the images. It says nothing about whether the noise passes, which may replace what was there.

    If the maps were compared (`sweep --changed`),

    - `relative_map_change`, `map_correlation`: medians over the layer's units;
    - `blocked` = 1 - relative_map_change / relative change of the input: 0 if the layer's maps change as much as the
      input, relative to their variance, 1 if they do not change, negative if they change more.

    The increase and the relative change of the input are `input_increase` and `input_change`, as measured by the
    functions of these names. By default they are those of the first layer.

    Returns:
        One row per layer, in order of execution: `layer`, `units`, `measured` (units with a value, which the means
        are of), (`relative_map_change`, `map_correlation`, `blocked`,) `clean`, `noisy`, `increase`,
        `relative_increase`, `outliers` (a count) and `outlier_share` (of the units that are measured).
    """
    units = unit_table(found)
    grouped = units.groupby("layer", sort=False)
    table = grouped[["clean", "noisy"]].mean()
    if "relative_map_change" in units:
        changes = grouped[["relative_map_change", "map_correlation"]].median()
        of_input = changes["relative_map_change"].iloc[0] if input_change is None else input_change
        changes["blocked"] = 1 - changes["relative_map_change"] / (of_input or np.nan)
        table = pd.concat([changes, table], axis=1)
    table.insert(0, "units", grouped.size())
    table.insert(1, "measured", grouped["change"].count())
    table["increase"] = table["noisy"] / table["clean"].where(table["clean"] > 0) - 1
    of_input = table["increase"].iloc[0] if input_increase is None else input_increase
    table["relative_increase"] = table["increase"] / (of_input or np.nan)
    table["outliers"] = grouped["outlier"].sum()
    table["outlier_share"] = table["outliers"] / table["measured"].where(table["measured"] > 0)
    return table.reset_index()


def _mean_of_layer(values: xr.DataArray, layer: xr.DataArray) -> xr.DataArray:
    """Return the mean of `values` [unit] over the units of each unit's layer, [unit] as `layer`."""
    means = values.groupby("layer").mean().sel(layer=xr.DataArray(layer.values, dims="unit"))
    return means.drop_vars("layer")
