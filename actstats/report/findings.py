"""From stores to findings: every measure of every unit, and how two networks compare with what the paper found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import xarray as xr
from torch import nn

from actstats.analysis import (
    compare_units,
    kernel_smoothness,
    noise,
    quantiles,
    selectivity,
    smoothness,
    spectrum,
)
from actstats.analysis.comparing import require_same_units
from actstats.analysis.coverage import notes as coverage_notes
from actstats.analysis.coverage import usable
from actstats.errors import ActstatsError
from actstats.report.networks import rebuild
from actstats.store import open_dataset
from actstats.support import html_facts


@dataclass(frozen=True)
class Measure:
    """One number per unit: the variable `key` of the dataset that `analysis` returns."""

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
        "Total variation per pair of neighbours, divided by the map's standard deviation: 1.13 for white noise, "
        "near 0 for smooth maps.",
    ),
    Measure(
        "smoothness",
        "step",
        "mean step between neighbours",
        "activation",
        "Mean absolute difference between neighbouring positions of the map.",
    ),
    Measure(
        "smoothness",
        "total_variation",
        "total variation",
        "activation",
        "Sum of the absolute differences between neighbouring positions. Grows with the map's size and scale.",
    ),
    Measure(
        "spectrum",
        "high_share",
        "high-frequency share",
        "1",
        "Share of the map's power above half the Nyquist frequency (0.25 cycles/pixel), DC excluded.",
    ),
    Measure(
        "spectrum",
        "centroid",
        "spectral centroid",
        "cycles/pixel",
        "Power-weighted mean frequency of the map, DC excluded.",
    ),
    Measure(
        "spectrum",
        "slope",
        "spectral slope",
        "1",
        "Exponent of power as a function of frequency: 0 for white noise, about -2 for photographs.",
    ),
    Measure(
        "selectivity",
        "top_classes",
        "classes among the top images",
        "1",
        "Number of distinct classes among the images that excite the unit most.",
    ),
    Measure(
        "selectivity",
        "top_entropy",
        "class entropy of the top images",
        "bit",
        "Entropy of the classes of the top images: 0 if all are of one class.",
    ),
    Measure(
        "selectivity",
        "selectivity",
        "class selectivity",
        "1",
        "0 if all classes excite the unit equally, 1 if only one class does.",
    ),
    Measure("quantiles", "sparsity", "sparsity", "1", "Share of activations that are exactly zero."),
    Measure(
        "noise",
        "change",
        "change under noise",
        "activation",
        "Change in total variation when noise is added to the images.",
    ),
    Measure(
        "noise",
        "relative_change",
        "relative change under noise",
        "1",
        "Change in total variation under noise, divided by the total variation without it.",
    ),
)
"""In the order in which the report offers them. A report has those that its stores hold the data for."""

PAPER: Final = "Chen, Agarwal and Nguyen 2020, arXiv 2006.09373"
SMALLEST_EFFECT: Final = 0.147
"""The least |Cliff's delta| that counts: the usual bound of a small effect (Romano et al. 2006)."""
RULE: Final = (
    "Values are medians over all units. In each layer, Cliff's delta compares R's units with S's: -1 if all of R's "
    "are lower, 0 if neither tends to be, 1 if all are higher. The delta shown is the median over layers. A layer "
    f"counts as lower or higher if |delta| is at least {SMALLEST_EFFECT}, the usual bound of a small effect (Romano "
    "et al. 2006), and the 95 % bootstrap interval over its units excludes 0. As in the paper: R is lower in more "
    "than half of the layers. Opposite: R is higher in more than half. Negligible: |delta| is below "
    f"{SMALLEST_EFFECT} in half of the layers or more. Undecided: none of these."
)
ELSEWHERE: Final = (
    ("R decides by shape, S by texture", "actstats analyze shape-bias"),
    ("R is better on images without texture, worse without shape", "actstats analyze cues"),
    ("R's units detect textures and colours, less often objects", "actstats analyze dissect"),
    ("Which units carry shape", "actstats analyze ablate"),
)
"""Findings that stores alone cannot show, and the command for each."""
_CLAIMS: Final = {
    "roughness": "R's activation maps are smoother",
    "total_variation": "R's activation maps have less total variation",
    "high_share": "R passes on less high-frequency power",
    "centroid": "R's maps have lower frequencies",
    "top_classes": "R's units respond to fewer kinds of image",
    "top_entropy": "R's top images are less mixed",
    "change": "Noise adds less total variation to R's units",
    "relative_change": "Noise adds less to R's units, relative to what they have",
}
"""What the paper found by each measure: that R's is lower."""
_WORDS: Final = {
    "agrees": "as in the paper",
    "differs": "opposite",
    "negligible": "negligible",
    "open": "undecided",
}
_RESAMPLES: Final = 400


@dataclass(frozen=True)
class Finding:
    """One line of the overview.

    Attributes:
        claim: the paper's claim, or the measure's name where the paper makes none.
        how: how it is measured.
        values: the median over all units of each store, as text.
        difference: how R differs from S, in words.
        verdict: `agrees`, `differs`, `negligible` or `open`; empty where the paper makes no claim.
        words: the verdict in words.
        layers: number of layers in which R is lower, neither, and higher, by the rule in `RULE`.
        delta: Cliff's delta of R against S, the median over layers; None where nothing was compared.
    """

    claim: str
    how: str
    values: list[str]
    difference: str = ""
    verdict: str = ""
    words: str = ""
    layers: tuple[int, int, int] = (0, 0, 0)
    delta: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the finding as a dict that JSON can hold."""
        return asdict(self)

    def _repr_html_(self) -> str:
        facts: list[tuple[str, object]] = [("measured by", self.how), ("values", " and ".join(self.values))]
        if self.words:
            lower, neither, higher = self.layers
            facts += [
                ("difference", self.difference),
                ("layers", f"lower in {lower}, neither in {neither}, higher in {higher}"),
                ("verdict", self.words),
            ]
        return html_facts(self.claim, facts)


@dataclass(frozen=True)
class Compared:
    """One store, or two (S and R), with the measures of their units.

    Attributes:
        names: what the stores are called.
        datasets: the stores, lazily.
        measured: for each store its measures, f64 [unit] each, in memory.
        measures: the measures that all stores have.
        networks: the swept networks, or why one cannot be rebuilt.
        findings: the overview.
        notes: what a reader has to know of the stores, a line each.
    """

    names: list[str]
    datasets: list[xr.Dataset]
    measured: list[xr.Dataset]
    measures: list[Measure]
    networks: list[nn.Module | str]
    findings: list[Finding]
    notes: list[str]

    @property
    def manifests(self) -> list[dict[str, Any]]:
        """The stores' attributes."""
        return [dict(dataset.attrs) for dataset in self.datasets]


def compare(
    stores: Sequence[str | Path],
    *,
    names: Sequence[str] = (),
    noisy: Sequence[str | Path] = (),
    trust: bool = False,
) -> Compared:
    """Measure every unit of one store, or of two stores with the same layers (S and R), and compare the two.

    Args:
        stores: one or two stores written by `actstats sweep`; of two, S comes first.
        names: what to call the stores. Default: their file names.
        noisy: for each store a sweep of the same network over the same images with noise.
        trust: use the factory, weights file or address that a store names, to rebuild its network. Only for stores
            of your own.

    Raises:
        ActstatsError: a store is missing, the layers differ, the stores hold nothing that could be measured, or an
            optional package is not installed.
    """
    if len(stores) not in (1, 2):
        raise ActstatsError(f"one store or two can be compared, not {len(stores)}")
    if noisy and len(noisy) != len(stores):
        raise ActstatsError(f"give a noisy sweep for each of the {len(stores)} stores, not {len(noisy)}")
    called = _names(stores, names)
    datasets = [open_dataset(store) for store in stores]
    if len(datasets) == 2:
        require_same_units(*datasets)
    against = [open_dataset(store) for store in noisy] if noisy else [None] * len(datasets)
    measured, notes = [], _demo_notes(datasets)
    for name, dataset, other in zip(called, datasets, against, strict=True):
        units, problems = measure_units(dataset, other)
        measured.append(units)
        notes += [f"{name}: {line}" for line in (*coverage_notes(usable(dataset, "the report")), *problems)]
    measures = common_measures(measured)
    networks = [rebuild(store, trust=trust) for store in stores]
    lines = derive_findings(measured, measures, networks)
    return Compared(called, datasets, measured, measures, networks, lines, notes)


def measure_units(dataset: xr.Dataset, noisy: xr.Dataset | None = None) -> tuple[xr.Dataset, list[str]]:
    """Return every measure that a store has the data for, f64 [unit], in memory, and why others are missing.

    `noisy` is a sweep of the same network over the same images with noise.

    Raises:
        ActstatsError: the store has the data for none.
    """
    analyses: dict[str, Callable[[xr.Dataset], xr.Dataset]] = {
        "smoothness": smoothness,
        "spectrum": spectrum,
        "selectivity": selectivity,
        "quantiles": lambda of: quantiles(of, 0.5),
    }
    found: dict[str, xr.DataArray] = {}
    problems = []
    for name, analysis in analyses.items():
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


def common_measures(measured: Sequence[xr.Dataset]) -> list[Measure]:
    """Return the measures of which each of these datasets has a value."""
    return [
        measure
        for measure in MEASURES
        if all(measure.key in units and bool(units[measure.key].notnull().any()) for units in measured)
    ]


def derive_findings(
    measured: Sequence[xr.Dataset], measures: Sequence[Measure], networks: Sequence[nn.Module | str]
) -> list[Finding]:
    """Return the overview of one store, or of two (S and R).

    Args:
        measured: what `measure_units` returned for each store.
        measures: the measures to show.
        networks: the swept networks, for their kernels, or why one cannot be rebuilt.
    """
    if len(measured) == 1:
        return [_without_claim(measure, measured) for measure in measures]
    claimed = [measure for measure in measures if measure.key in _CLAIMS]
    keys = [measure.key for measure in claimed]
    table = compare_units(measured[0], measured[1], keys, resamples=_RESAMPLES) if keys else pd.DataFrame()
    found = [
        _finding(
            _CLAIMS[measure.key],
            f"{measure.name}: {measure.about}",
            [float(units[measure.key].median()) for units in measured],
            table[table["variable"] == measure.key],
        )
        for measure in claimed
    ]
    others = [measure for measure in measures if measure.key not in _CLAIMS]
    return [*found, *_kernels(networks), *(_without_claim(measure, measured) for measure in others)]


def finding(claim: str, standard: xr.DataArray, robust: xr.DataArray, *, how: str = "") -> Finding:
    """Return the finding about a measure of your own, by the rule in `RULE`.

    Args:
        claim: that the measure is lower for the units of `robust`, in words.
        standard: the measure of each unit of one network, [unit], with the coordinate `layer`.
        robust: the same of another network with the same layers.
        how: how it is measured.

    Raises:
        ActstatsError: the units differ.
    """
    units = [array.rename("measure").to_dataset() for array in (standard, robust)]
    require_same_units(*units)
    table = compare_units(units[0], units[1], ["measure"], resamples=_RESAMPLES)
    found = _finding(claim, how, [float(of["measure"].median()) for of in units], table)
    return replace(found, words="as claimed") if found.verdict == "agrees" else found


def count_layers(table: pd.DataFrame) -> tuple[int, int, int]:
    """Return in how many layers R is lower, neither, and higher, by the rule in `RULE`.

    `table` has the rows of one variable from `compare_units`. Layers with too few units to compare are not counted.

    >>> table = pd.DataFrame(
    ...     {
    ...         "cliffs_delta": [-0.5, -0.1, 0.3],
    ...         "delta_low": [-0.6, -0.2, -0.1],
    ...         "delta_high": [-0.4, -0.05, 0.7],
    ...     }
    ... )
    >>> count_layers(table)
    (1, 2, 0)
    """
    lower = int(((table["cliffs_delta"] <= -SMALLEST_EFFECT) & (table["delta_high"] < 0)).sum())
    higher = int(((table["cliffs_delta"] >= SMALLEST_EFFECT) & (table["delta_low"] > 0)).sum())
    return lower, int(table["delta_low"].notnull().sum()) - lower - higher, higher


def _finding(claim: str, how: str, medians: Sequence[float], table: pd.DataFrame) -> Finding:
    values = [_number(median) for median in medians]
    layers = count_layers(table)
    lower, _, higher = layers
    compared = table[table["delta_low"].notnull()]
    if compared.empty:
        return Finding(claim, how, values, "too few units to compare", "open", _WORDS["open"])
    delta = float(compared["cliffs_delta"].median())
    if len(compared) == 1:
        low, high = (float(compared[name].iloc[0]) for name in ("delta_low", "delta_high"))
        difference = f"delta {delta:+.2f} ({low:+.2f} to {high:+.2f})"
    else:
        difference = f"delta {delta:+.2f}; lower in {lower} of {len(compared)} layers, higher in {higher}"
    if lower > len(compared) / 2:
        verdict = "agrees"
    elif higher > len(compared) / 2:
        verdict = "differs"
    elif (compared["cliffs_delta"].abs() < SMALLEST_EFFECT).mean() >= 0.5:
        verdict = "negligible"
    else:
        verdict = "open"
    return Finding(claim, how, values, difference, verdict, _WORDS[verdict], layers, delta)


def _without_claim(measure: Measure, measured: Sequence[xr.Dataset]) -> Finding:
    medians = [_number(float(units[measure.key].median())) for units in measured]
    return Finding(measure.name, measure.about, medians)


def _kernels(networks: Sequence[nn.Module | str]) -> list[Finding]:
    """Compare the weights themselves: the first convolution's kernels, and all that are larger than 1 x 1."""
    how = "Roughness of the weights."
    found = []
    for network in networks:
        if isinstance(network, str):
            reason = f"not measured: {network}"
            return [
                Finding("R's kernels are smoother", how, ["none", "none"], reason, "open", "not measured")
            ]
        found.append(kernel_smoothness(network)[["roughness"]])
    found = [units.isel(unit=np.flatnonzero(units["roughness"].notnull())) for units in found]
    first = [units.isel(unit=units["layer"].values == units["layer"].values[0]) for units in found]
    lines = []
    for claim, kernels in (
        (f"R's first kernels are smoother ({first[0]['layer'].values[0]})", first),
        ("R's kernels are smoother, over all layers", found),
    ):
        table = compare_units(kernels[0], kernels[1], ["roughness"], resamples=_RESAMPLES)
        medians = [float(units["roughness"].median()) for units in kernels]
        lines.append(_finding(claim, how, medians, table))
    return lines


def _loaded(analysis: str, computed: xr.Dataset) -> dict[str, xr.DataArray]:
    """Compute the measures of one analysis. One at a time, so that memory holds the chunks of one only."""
    keys = [measure.key for measure in MEASURES if measure.analysis == analysis]
    return {key: values.astype(float) for key, values in computed[keys].compute().data_vars.items()}  # type: ignore[misc]


def _names(stores: Sequence[str | Path], names: Sequence[str]) -> list[str]:
    if names and len(names) != len(stores):
        raise ActstatsError(f"give a name for each of the {len(stores)} stores, not {len(names)}")
    found = list(names) or [Path(store).name.removesuffix(".zarr") for store in stores]
    if len(set(found)) < len(found):
        if names:
            raise ActstatsError(f"both stores are called {found[0]}; give two names")
        found = [f"{name} ({letter})" for name, letter in zip(found, "SR", strict=False)]
    return found


def _demo_notes(datasets: Sequence[xr.Dataset]) -> list[str]:
    """Return the line that warns of findings from the demo's few photographs; none for other images."""
    demo = [dataset for dataset in datasets if dataset.attrs["data"].get("kind") == "demo"]
    if not demo:
        return []
    photographs = len(np.unique(demo[0]["label"].values))
    return [
        f"These {demo[0].sizes['image']} images are crops of {photographs} photographs: enough to show what a report "
        "looks like, too few to decide anything about the networks."
    ]


def _number(value: float) -> str:
    """Return three significant digits.

    >>> _number(-0.12345), _number(float("nan"))
    ('-0.123', 'none')
    """
    return "none" if np.isnan(value) else f"{value:.3g}"
