"""The numbers of each unit that the report shows: which analysis gives each, and how it is called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import xarray as xr

from actstats.analysis import noise, quantiles, selectivity, smoothness, spectrum
from actstats.errors import ActstatsError


@dataclass(frozen=True)
class Measure:
    """One number a unit: the variable `key` of what `analysis` returns."""

    analysis: str
    key: str
    name: str
    unit: str
    about: str


MEASURES: Final = (
    Measure(
        "smoothness",
        "roughness",
        "roughness",
        "1",
        "Total variation by pair of neighbours over the map's standard deviation: 1.13 for white noise, near 0 for "
        "smooth maps.",
    ),
    Measure(
        "smoothness",
        "step",
        "total variation by position",
        "activation",
        "Mean difference of neighbours in the map.",
    ),
    Measure(
        "smoothness",
        "total_variation",
        "total variation",
        "activation",
        "Sum of the differences of all neighbours in the map: grows with its area and scale.",
    ),
    Measure(
        "spectrum",
        "high_share",
        "high-frequency share",
        "1",
        "Share of the map's power, mean apart, above half Nyquist: 0.25 cycles a pixel.",
    ),
    Measure(
        "spectrum",
        "centroid",
        "spectral centroid",
        "cycles/pixel",
        "Mean frequency of the map's power, mean apart.",
    ),
    Measure(
        "spectrum",
        "slope",
        "spectral slope",
        "1",
        "Exponent of power over frequency: 0 for white noise, about -2 for photographs.",
    ),
    Measure(
        "selectivity",
        "top_classes",
        "classes among the top images",
        "1",
        "How many classes the images that excite the unit most belong to.",
    ),
    Measure(
        "selectivity",
        "top_entropy",
        "entropy of the top images' classes",
        "bit",
        "0 if all top images are of one class.",
    ),
    Measure(
        "selectivity",
        "selectivity",
        "class selectivity",
        "1",
        "0: all classes excite the unit alike; 1: it answers to one class alone.",
    ),
    Measure("quantiles", "sparsity", "sparsity", "1", "Share of activations that are zero."),
    Measure(
        "noise",
        "change",
        "change by noise",
        "activation",
        "Change of total variation when noise is added to the images.",
    ),
    Measure(
        "noise",
        "relative_change",
        "relative change by noise",
        "1",
        "The same over the total variation without noise.",
    ),
)
"""In the order in which the report offers them; each only if a store has what it is computed from."""

_ANALYSES: Final[dict[str, Callable[[xr.Dataset], xr.Dataset]]] = {
    "smoothness": smoothness,
    "spectrum": spectrum,
    "selectivity": selectivity,
    "quantiles": lambda dataset: quantiles(dataset, 0.5),
}


def measure_units(dataset: xr.Dataset, noisy: xr.Dataset | None = None) -> tuple[xr.Dataset, list[str]]:
    """Return every measure that a store allows, in memory, f64 [unit], and why others could not be had, a line each.

    `noisy` is a sweep of the same network on the same images with noise, if there is one.

    Raises:
        ActstatsError: no measure can be had.
    """
    found: dict[str, xr.DataArray] = {}
    problems = []
    for name, analysis in _ANALYSES.items():
        try:
            found |= _loaded(name, analysis(dataset))
        except ActstatsError as error:
            problems.append(str(error))
    if noisy is not None:
        found |= _loaded("noise", noise(dataset, noisy))
    if not found:
        raise ActstatsError(problems[0])
    order = [measure.key for measure in MEASURES if measure.key in found]
    return xr.Dataset({key: found[key] for key in order}), problems


def _loaded(analysis: str, computed: xr.Dataset) -> dict[str, xr.DataArray]:
    """Compute the variables that are shown. One analysis at a time, so that memory holds the chunks of one."""
    keys = [measure.key for measure in MEASURES if measure.analysis == analysis]
    return {key: values.astype(float) for key, values in computed[keys].compute().data_vars.items()}  # type: ignore[misc]


def shown(measured: Sequence[xr.Dataset]) -> list[Measure]:
    """Return the measures that all of these have a value of."""
    return [
        measure
        for measure in MEASURES
        if all(measure.key in units and bool(units[measure.key].notnull().any()) for units in measured)
    ]
