"""Compute the findings: every measure of every unit, and how the networks compare with what the paper found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import xarray as xr
from torch import nn

from actstats.analysis import (
    compare_matched,
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
from actstats.attributes import find_manifest
from actstats.errors import ActstatsError
from actstats.report.networks import rebuild
from actstats.report.pairing import BY_MATCH, Pairing, pair_units
from actstats.store import open_dataset
from actstats.store.manifest import treatment
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
"""All measures, in the order of the report, which lists those that its stores have the data for."""

PAPER: Final = "Chen, Agarwal and Nguyen 2020, arXiv 2006.09373"
SMALLEST_EFFECT: Final = 0.147
"""The smallest |Cliff's delta| that counts: the usual threshold of a small effect (Romano et al. 2006)."""
LEAST_UNITS: Final = 5
"""Number of units of a layer from which on it counts: of 4 against 4, a rank test at 5 % decides only extremes."""
LEAST_PAIRS: Final = 6
"""Number of matched units from which on they get a verdict: no sign test of 5 pairs reaches 5 %."""
RULE: Final = (
    "Values are medians over all units. In each layer, Cliff's delta compares R's units with S's: -1 if all of R's "
    "are lower, 0 if neither tends to be, 1 if all are higher. The delta shown is the median over layers. A layer "
    f"counts as lower or higher if |delta| is at least {SMALLEST_EFFECT}, the usual threshold of a small effect "
    "(Romano et al. 2006), and the 95 % bootstrap interval over its units excludes 0. As in the paper: R is lower in "
    "more than half of the layers. Opposite: R is higher in more than half. Negligible: |delta| is below "
    f"{SMALLEST_EFFECT} in half of the layers or more. Undecided: none of these. For matched units, delta is the "
    "share of units whose counterpart is higher minus the share of those whose counterpart is lower, over all layers "
    "together. This one delta, with its bootstrap interval over units, gives the verdict. Layers of fewer than "
    f"{LEAST_UNITS} units, and fewer than {LEAST_PAIRS} matched units, are too few to count."
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
    "relative_change": "Noise adds relatively less total variation to R's units",
}
"""The paper's claim about each measure, which is always that R's value is lower."""
_MATCHED: Final = {
    "roughness": "R's counterparts are smoother than S's units",
    "centroid": "R's counterparts have lower frequencies",
    "selectivity": "Class selectivity of counterparts",
}
"""Measures that are compared unit by unit, and the claim or the title of the line."""
_WORDS: Final = {
    "agrees": "as in the paper",
    "differs": "opposite",
    "negligible": "negligible",
    "open": "undecided",
}
_RESAMPLES: Final = 400


@dataclass(frozen=True)
class Comparison:
    """How one network differs from the first one.

    Attributes:
        network: its name.
        difference: how it differs, in words.
        verdict: `agrees`, `differs`, `negligible` or `open`; empty where the paper makes no claim.
        words: the verdict in words.
        layers: number of layers in which it is lower, neither, and higher, by the rule in `RULE`.
        delta: Cliff's delta against the first network, as the median over layers, or over all matched units; None
            where nothing was compared.
        first: the value of the first network over the units that this comparison is of, if these are not all units.
    """

    network: str
    difference: str = ""
    verdict: str = ""
    words: str = ""
    layers: tuple[int, int, int] = (0, 0, 0)
    delta: float | None = None
    first: str = ""


@dataclass(frozen=True)
class Finding:
    """One line of the overview.

    Attributes:
        claim: the paper's claim, or the measure's name where the paper makes none.
        how: how it is measured.
        values: the median over all units of each store, as text. Of matched units, the first network's is over
            those paired with the first network compared; see `Comparison.first` for the others.
        comparisons: each further store compared with the first; empty where nothing is compared.
    """

    claim: str
    how: str
    values: list[str]
    comparisons: tuple[Comparison, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the finding as a dict that JSON can hold."""
        return asdict(self)

    def _repr_html_(self) -> str:
        facts: list[tuple[str, object]] = [("measured by", self.how), ("values", " and ".join(self.values))]
        for said in self.comparisons:
            of = f" of {said.network}" if len(self.comparisons) > 1 else ""
            facts.append((f"difference{of}", said.difference))
            if sum(said.layers):
                lower, neither, higher = said.layers
                facts.append((f"layers{of}", f"lower in {lower}, neither in {neither}, higher in {higher}"))
            if said.words:
                facts.append((f"verdict{of}", said.words))
        return html_facts(self.claim, facts)


@dataclass(frozen=True)
class Compared:
    """One store or several, the first of which is S, with the measures of their units.

    Attributes:
        names: names of the stores.
        datasets: the stores, loaded lazily.
        measured: the measures of each store, f64 [unit] each, in memory.
        measures: the measures that all stores have.
        networks: the swept networks, or why one cannot be rebuilt.
        pairing: which of their units are counterparts.
        findings: the overview.
        notes: what a reader has to know about the stores, one line each.
    """

    names: list[str]
    datasets: list[xr.Dataset]
    measured: list[xr.Dataset]
    measures: list[Measure]
    networks: list[nn.Module | str]
    pairing: Pairing
    findings: list[Finding]
    notes: list[str]

    @property
    def manifests(self) -> list[dict[str, Any]]:
        """The stores' attributes."""
        return [find_manifest(dataset.attrs) for dataset in self.datasets]


def compare(
    stores: Sequence[str | Path],
    *,
    names: Sequence[str] = (),
    noisy: Sequence[str | Path] = (),
    pair: str = "match",
    matches: Sequence[str | Path] = (),
    trust: bool = False,
) -> Compared:
    """Measure every unit of one store or of several with the same layers, and compare each with the first one.

    Args:
        stores: stores written by `actstats sweep`; if several, the standard network's (S) comes first.
        names: names of the stores. Default: their file names.
        noisy: for each store a sweep of the same network over the same images with noise.
        pair: `match` pairs units with their counterparts, if the stores hold the same images; `index` pairs units of
            the same index.
        matches: files of `actstats analyze match --by unit` to pair by; without them units are matched here.
        trust: use the factory, weights file or address that a store names to rebuild its network. Set it only for
            stores of your own.

    Raises:
        ActstatsError: a store is missing, the layers differ, no measure can be computed from the stores, a sweep in
            `noisy` was not swept with noise, `pair` or `matches` is invalid, or an optional package is not installed.
    """
    if not stores:
        raise ActstatsError("compare needs at least one store")
    if noisy and len(noisy) != len(stores):
        raise ActstatsError(f"give a noisy sweep for each of the {len(stores)} stores, not {len(noisy)}")
    called = _names(stores, names)
    datasets = [open_dataset(store) for store in stores]
    for further in datasets[1:]:
        require_same_units(datasets[0], further)
    against: list[xr.Dataset | None] = [*map(open_dataset, noisy)] if noisy else [None] * len(datasets)
    for name, dataset, other in zip(called, datasets, against, strict=True):
        if other is not None:
            _require_noise(name, find_manifest(dataset.attrs), find_manifest(other.attrs))
    measured, notes = [], [*_demo_notes(datasets), *_treatment_notes(called, datasets)]
    for name, dataset, other in zip(called, datasets, against, strict=True):
        units, problems = measure_units(dataset, other)
        measured.append(units)
        notes += [f"{name}: {line}" for line in (*coverage_notes(usable(dataset, "the report")), *problems)]
    measures = common_measures(measured)
    networks = [rebuild(store, trust=trust) for store in stores]
    pairing = pair_units(datasets, called, pair, matches)
    lines = derive_findings(measured, measures, networks, names=called, pairing=pairing)
    return Compared(called, datasets, measured, measures, networks, pairing, lines, [*notes, *pairing.notes])


def measure_units(dataset: xr.Dataset, noisy: xr.Dataset | None = None) -> tuple[xr.Dataset, list[str]]:
    """Return every measure that a store has the data for, f64 [unit], in memory, and why others are missing.

    `noisy` is a sweep of the same network over the same images with noise.

    Raises:
        ActstatsError: the store has the data for no measure.
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
    """Return the measures that have a value in each of these datasets."""
    return [
        measure
        for measure in MEASURES
        if all(measure.key in units and bool(units[measure.key].notnull().any()) for units in measured)
    ]


def derive_findings(
    measured: Sequence[xr.Dataset],
    measures: Sequence[Measure],
    networks: Sequence[nn.Module | str],
    *,
    names: Sequence[str] = ("S", "R"),
    pairing: Pairing | None = None,
) -> list[Finding]:
    """Return the overview of one store, or of several, each compared with the first (S).

    Args:
        measured: the measures of each store, as from `measure_units`.
        measures: the measures to show.
        networks: the swept networks, for their kernels, or why one cannot be rebuilt.
        names: names of the stores.
        pairing: which units are counterparts.
    """
    if len(measured) == 1:
        return [_without_claim(measure, measured) for measure in measures]
    claimed = [measure for measure in measures if measure.key in _CLAIMS]
    keys = [measure.key for measure in claimed]
    tables = [
        compare_units(measured[0], other, keys, resamples=_RESAMPLES) if keys else pd.DataFrame()
        for other in measured[1:]
    ]
    found = [
        Finding(
            _CLAIMS[measure.key],
            f"{measure.name}: {measure.about}",
            [_median(units[measure.key]) for units in measured],
            tuple(
                _compared(name, table[table["variable"] == measure.key])
                for name, table in zip(names[1:], tables, strict=True)
            ),
        )
        for measure in claimed
    ]
    others = [measure for measure in measures if measure.key not in _CLAIMS]
    paired = _of_matched(measured, measures, names, pairing) if pairing and pairing.way == "match" else []
    kernels = _kernels(networks, names)
    return [*found, *paired, *kernels, *(_without_claim(measure, measured) for measure in others)]


def finding(claim: str, standard: xr.DataArray, robust: xr.DataArray, *, how: str = "") -> Finding:
    """Return the finding about a measure of your own, by the rule in `RULE`.

    Args:
        claim: that the measure is lower for the units of `robust`, in words.
        standard: the measure of each unit of one network, [unit], with the coordinate `layer`.
        robust: the same for another network with the same layers.
        how: how it is measured.

    Raises:
        ActstatsError: the units differ.
    """
    units = [array.rename("measure").to_dataset() for array in (standard, robust)]
    require_same_units(*units)
    table = compare_units(units[0], units[1], ["measure"], resamples=_RESAMPLES)
    said = _compared("R", table)
    if said.verdict == "agrees":
        said = replace(said, words="as claimed")
    return Finding(claim, how, [_number(float(of["measure"].median())) for of in units], (said,))


def count_layers(table: pd.DataFrame) -> tuple[int, int, int]:
    """Return the numbers of layers in which R is lower, neither, and higher, by the rule in `RULE`.

    `table` has the rows of one variable from `compare_units`. Layers with too few units to compare are not counted.

    >>> table = pd.DataFrame(
    ...     {
    ...         "cliffs_delta": [-0.5, -0.1, 0.3],
    ...         "delta_low": [-0.6, -0.2, -0.1],
    ...         "delta_high": [-0.4, -0.05, 0.7],
    ...         "units_s": 64,
    ...         "units_r": 64,
    ...     }
    ... )
    >>> count_layers(table)
    (1, 2, 0)
    """
    counted = table[_enough(table)]
    lower = int(((counted["cliffs_delta"] <= -SMALLEST_EFFECT) & (counted["delta_high"] < 0)).sum())
    higher = int(((counted["cliffs_delta"] >= SMALLEST_EFFECT) & (counted["delta_low"] > 0)).sum())
    return lower, len(counted) - lower - higher, higher


def _enough(table: pd.DataFrame) -> pd.Series:
    """Return which rows of `compare_units` have enough units in both networks to count."""
    return table["delta_low"].notnull() & (table[["units_s", "units_r"]].min(axis=1) >= LEAST_UNITS)


def _compared(name: str, table: pd.DataFrame) -> Comparison:
    """Return the verdict on one variable from its rows in `compare_units`."""
    lower, _, higher = layers = count_layers(table)
    compared = table[_enough(table)]
    if compared.empty:
        return Comparison(name, "too few units to compare", "open", _WORDS["open"], layers)
    delta = float(compared["cliffs_delta"].median())
    if len(compared) == 1:
        low, high = (float(compared[end].iloc[0]) for end in ("delta_low", "delta_high"))
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
    return Comparison(name, difference, verdict, _WORDS[verdict], layers, delta)


def _without_claim(measure: Measure, measured: Sequence[xr.Dataset]) -> Finding:
    return Finding(measure.name, measure.about, [_median(units[measure.key]) for units in measured])


def _of_matched(
    measured: Sequence[xr.Dataset], measures: Sequence[Measure], names: Sequence[str], pairing: Pairing
) -> list[Finding]:
    """Return the findings on matched units: how many there are, and how their counterparts differ."""
    first = measured[0].sizes["unit"]
    counts, how_well = [""], []
    counterparts = {}
    for at, name in enumerate(names[1:], 1):
        found = pairing.found.get((0, at))
        if found is None:
            counts.append("none")
            how_well.append(Comparison(name, "not paired"))
            continue
        counterparts[at] = found["counterpart"].values
        has = counterparts[at] >= 0
        counts.append(f"{int(has.sum()):,} of {first:,}")
        median = _number(float(np.median(found["held_out"].values[has]))) if has.any() else "none"
        words = f"median r {median} on held-out images"
        if (back := pairing.found.get((at, 0))) is not None:
            there = back["counterpart"].values >= 0
            words += f"; {int(there.sum()):,} of {len(there):,} in the other direction"
        how_well.append(Comparison(name, words))
    lines = [Finding(f"Units of {names[0]} with a counterpart", BY_MATCH, counts, tuple(how_well))]
    known = {measure.key: measure for measure in measures}
    for key in (key for key in _MATCHED if key in known and counterparts):
        values, compared = [""], []
        for at, name in enumerate(names[1:], 1):
            if at not in counterparts:
                values.append("none")
                compared.append(Comparison(name, "not paired"))
                continue
            table = compare_matched(
                measured[0], measured[at], counterparts[at], [key], within_layers=False, resamples=_RESAMPLES
            )
            row = table.iloc[0]
            values.append(_number(row["median_r"]))
            compared.append(_paired(name, row, claimed=key in _CLAIMS))
        values[0] = next((said.first for said in compared if said.first), "none")
        how = f"{known[key].name} of units that have a counterpart, and of the counterparts."
        lines.append(Finding(_MATCHED[key], how, values, tuple(compared)))
    return lines


def _paired(name: str, row: pd.Series, *, claimed: bool) -> Comparison:
    """Return the verdict on one row of `compare_matched`."""
    first = _number(row["median_s"])
    pairs = int(row["pairs"])
    if not np.isfinite(row["delta_low"]) or pairs < LEAST_PAIRS:
        verdict, words = ("open", _WORDS["open"]) if claimed else ("", "")
        return Comparison(name, f"{pairs} matched units are too few to compare", verdict, words, first=first)
    delta, low, high = (float(row[key]) for key in ("delta", "delta_low", "delta_high"))
    difference = f"delta {delta:+.2f} ({low:+.2f} to {high:+.2f}) over {pairs:,} units"
    if not claimed:
        return Comparison(name, difference, delta=delta, first=first)
    if delta <= -SMALLEST_EFFECT and high < 0:
        verdict = "agrees"
    elif delta >= SMALLEST_EFFECT and low > 0:
        verdict = "differs"
    else:
        verdict = "negligible" if abs(delta) < SMALLEST_EFFECT else "open"
    return Comparison(name, difference, verdict, _WORDS[verdict], delta=delta, first=first)


def _kernels(networks: Sequence[nn.Module | str], names: Sequence[str]) -> list[Finding]:
    """Compare the weights themselves: the first convolution's kernels, and all kernels larger than 1 x 1.

    Where they cannot be compared, the line says why: other findings do not depend on the weights.
    """
    how = "Roughness of the weights."
    try:
        every = [_rough_kernels(network, name) for network, name in zip(networks, names, strict=True)]
        for other in every[1:]:
            require_same_units(every[0], other)
    except ActstatsError as error:
        missing = tuple(
            Comparison(name, f"not measured: {error}", "open", "not measured") for name in names[1:]
        )
        return [Finding("R's kernels are smoother", how, ["none"] * len(names), missing)]
    first = [units.isel(unit=units["layer"].values == units["layer"].values[0]) for units in every]
    lines = []
    for claim, kernels in (
        (f"R's first kernels are smoother ({first[0]['layer'].values[0]})", first),
        ("R's kernels are smoother, over all layers", every),
    ):
        compared = tuple(
            _compared(name, compare_units(kernels[0], other, ["roughness"], resamples=_RESAMPLES))
            for name, other in zip(names[1:], kernels[1:], strict=True)
        )
        medians = [_number(float(units["roughness"].median())) for units in kernels]
        lines.append(Finding(claim, how, medians, compared))
    return lines


def _rough_kernels(network: nn.Module | str, name: str) -> xr.Dataset:
    """Return the roughness of a network's kernels, those with a value; raises `ActstatsError` if there are none."""
    if isinstance(network, str):
        raise ActstatsError(network)
    kernels = kernel_smoothness(network)[["roughness"]]
    kernels = kernels.isel(unit=np.flatnonzero(kernels["roughness"].notnull()))
    if not kernels.sizes["unit"]:
        raise ActstatsError(f"{name} has no kernel larger than 1 x 1 that varies")
    return kernels


def _loaded(analysis: str, computed: xr.Dataset) -> dict[str, xr.DataArray]:
    """Compute the measures of one analysis; analyses are computed one by one to limit memory."""
    keys = [measure.key for measure in MEASURES if measure.analysis == analysis]
    return {key: values.astype(float) for key, values in computed[keys].compute().data_vars.items()}  # type: ignore[misc]


def _names(stores: Sequence[str | Path], names: Sequence[str]) -> list[str]:
    if names and len(names) != len(stores):
        raise ActstatsError(f"give a name for each of the {len(stores)} stores, not {len(names)}")
    if not all(name.strip() for name in names):
        raise ActstatsError("the name of a store must not be empty")
    found = list(names) or [Path(store).name.removesuffix(".zarr") for store in stores]
    if len(set(found)) < len(found):
        if names:
            raise ActstatsError(f"names of stores must be unique, got {', '.join(found)}")
        marks = "SR" if len(found) == 2 else map(str, range(1, len(found) + 1))
        found = [f"{name} ({mark})" for name, mark in zip(found, marks, strict=True)]
    return found


def _require_noise(name: str, clean: Mapping[str, Any], noisy: Mapping[str, Any]) -> None:
    """Raise `ActstatsError` unless the noisy sweep is the clean one with noise added, and nothing else."""
    before, after = list(clean.get("distort", ())), list(noisy.get("distort", ()))
    added = after[len(before) :]
    if not added or after[: len(before)] != before or not all(step.startswith("noise:") for step in added):
        raise ActstatsError(
            f"`noisy=` for {name} was swept with the distortions {' + '.join(after) or 'none'}, which are not those "
            f"of {name} and noise: sweep the same images with `distort=noise:0.1`"
        )
    one, two = ({**treatment(manifest), "distortion": ""} for manifest in (clean, noisy))
    if one != two:
        what = ", ".join(key for key in one if one[key] != two[key])
        raise ActstatsError(f"`noisy=` for {name} differs from it in more than noise: {what}")


def _treatment_notes(names: Sequence[str], datasets: Sequence[xr.Dataset]) -> list[str]:
    """Return a line for each store whose images or numbers were treated differently from the first one's."""
    first, *others = (treatment(find_manifest(dataset.attrs)) for dataset in datasets)
    notes = []
    for name, other in zip(names[1:], others, strict=True):
        differences = [
            f"{key} ({first[key]} and {other[key]})" if key in ("distortion", "amp") else key
            for key in first
            if first[key] != other[key]
        ]
        if differences:
            notes.append(
                f"{names[0]} and {name} were swept with different {', '.join(differences)}: what differs may be due "
                "to that and not to the networks"
            )
    return notes


def _demo_notes(datasets: Sequence[xr.Dataset]) -> list[str]:
    """Return the line that warns of findings from the demo's few photographs; none for other images."""
    demo = [dataset for dataset in datasets if dataset.attrs["data"].get("kind") == "demo"]
    if not demo:
        return []
    photographs = len(np.unique(demo[0]["label"].values))
    return [
        f"These {demo[0].sizes['image']} images are crops of {photographs} photographs: enough to show what a report "
        "looks like, too few for conclusions about the networks."
    ]


def _median(values: xr.DataArray) -> str:
    """Return the median over units, and of how many it is where some have no value.

    >>> _median(xr.DataArray([1.0, 3.0], dims="unit")), _median(xr.DataArray([np.nan, 3.0], dims="unit"))
    ('2', '3 (1 of 2 units)')
    """
    measured, units = int(values.notnull().sum()), values.size
    of = f" ({measured:,} of {units:,} units)" if 0 < measured < units else ""
    return f"{_number(float(values.median()))}{of}"


def _number(value: float) -> str:
    """Return three significant digits.

    >>> _number(-0.12345), _number(float("nan"))
    ('-0.123', 'none')
    """
    return "none" if np.isnan(value) else f"{value:.3g}"
