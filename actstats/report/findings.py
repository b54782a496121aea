"""Compute the findings: every measure of every unit, and how the networks compare with what the paper found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import xarray as xr
from torch import nn

from actstats.analysis import (
    compare_matched,
    compare_networks,
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
from actstats.analysis.measures import KERNELS, MEASURES, Measure
from actstats.errors import ActstatsError
from actstats.report.networks import rebuild
from actstats.report.pairing import BY_MATCH, Pairing, pair_units
from actstats.report.verdicts import Comparison, compare_groups, compare_layers, compare_pairs
from actstats.store.manifest import Manifest
from actstats.store.merging import hold
from actstats.store.sweep import Sweep, open_sweep
from actstats.support import URL, html_facts

PAPER: Final = "Chen, Agarwal and Nguyen 2020, arXiv 2006.09373"
ELSEWHERE: Final = (
    ("R decides by shape, S by texture", "actstats analyze shape-bias"),
    ("R is better on images without texture, worse without shape", "actstats analyze cues"),
    ("R's units detect textures and colours, less often objects", "actstats analyze dissect"),
    ("Which units carry shape", "actstats analyze ablate"),
)
"""Findings that stores alone cannot show, and the command for each."""
_RESAMPLES: Final = 400


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

    def as_dict(self) -> dict[str, object]:
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
                facts.append((f"verdict{of}", "; ".join(filter(None, (said.words, said.scope)))))
        return html_facts(self.claim, facts)


@dataclass(frozen=True)
class Compared:
    """One store or several, the first of which is S, with the measures of their units.

    Attributes:
        names: names of the stores.
        sweeps: the stores.
        measured: the measures of each store, f64 [unit] each, in memory.
        measures: the measures that all stores have.
        networks: the swept networks, or why one cannot be rebuilt.
        pairing: which of their units are counterparts.
        findings: the overview.
        notes: what a reader has to know about the stores, one line each.
        against: number of networks of R, the last ones, if two groups are compared; else 0.
    """

    names: list[str]
    sweeps: list[Sweep]
    measured: list[xr.Dataset]
    measures: list[Measure]
    networks: list[nn.Module | str]
    pairing: Pairing
    findings: list[Finding]
    notes: list[str]
    against: int = 0

    @property
    def columns(self) -> list[str]:
        """What the values of a finding are of: the stores, or both groups.

        A group is called S or R, with the number of its networks.
        """
        if not self.against:
            return self.names
        return [
            f"S ({len(self.names) - self.against} networks)",
            f"R ({self.against} network{'s' * (self.against > 1)})",
        ]

    @property
    def manifests(self) -> list[Manifest]:
        """The records of the stores."""
        return [sweep.manifest for sweep in self.sweeps]


def compare(
    stores: Sequence[str | Path | Sweep],
    *,
    against: Sequence[str | Path | Sweep] = (),
    names: Sequence[str] = (),
    noisy: Sequence[str | Path] = (),
    pair: str = "match",
    matches: Sequence[str | Path] = (),
    trust: bool = False,
) -> Compared:
    """Measure every unit of one store or of several with the same layers, and compare each with the first one.

    With `against`, two groups of networks are compared instead, which differ by their training run: the network is
    the unit of replication. One store in `stores` is no group: each of `against` is compared with it.

    Args:
        stores: stores written by `actstats sweep`, or `Sweep`s; if several, the standard network's (S) comes first.
            With `against`, those of the standard networks.
        against: stores of the robust networks (R), three or more for verdicts.
        names: names of the stores, those of `stores` and then those of `against`. Default: their file names.
        noisy: for each store, in the same order, a sweep of the same network over the same images with noise.
        pair: `match` pairs units with their counterparts, if the stores hold the same images; `index` pairs units of
            the same index.
        matches: files of `actstats analyze match --by unit` to pair by; without them units are matched here.
        trust: use the factory, weights file or address that a store names to rebuild its network. Set it only for
            stores of your own.

    Raises:
        ActstatsError: a store is missing, the layers differ, no measure can be computed from the stores, a sweep in
            `noisy` was not swept with noise, `pair` or `matches` is invalid, two stores of groups are of the same
            weights, or an optional package is not installed.
    """
    if not stores:
        raise ActstatsError("compare needs at least one store")
    of_robust = len(against) if len(stores) > 1 else 0
    if of_robust and matches:
        raise ActstatsError("`matches=` pairs the units of single networks: omit it for groups of networks")
    stores = [*stores, *against]
    if noisy and len(noisy) != len(stores):
        raise ActstatsError(f"give a noisy sweep for each of the {len(stores)} stores, not {len(noisy)}")
    sweeps = [store if isinstance(store, Sweep) else open_sweep(store, trust=trust) for store in stores]
    called = _names([sweep.path for sweep in sweeps], names)
    datasets = hold([sweep.dataset for sweep in sweeps], ["mean"])  # for `selectivity` and `match`
    for further in datasets[1:]:
        require_same_units(datasets[0], further)
    if of_robust:
        _require_distinct(called, sweeps)
    with_noise: list[Sweep | None] = [*map(open_sweep, noisy)] if noisy else [None] * len(sweeps)
    for name, sweep, other in zip(called, sweeps, with_noise, strict=True):
        if other is not None:
            _require_noise(name, sweep.manifest, other.manifest)
    measured, notes = [], [*_demo_notes(sweeps), *_treatment_notes(called, sweeps)]
    for name, dataset, other in zip(called, datasets, with_noise, strict=True):
        units, problems = measure_units(dataset, None if other is None else other.dataset)
        measured.append(units)
        notes += [f"{name}: {line}" for line in (*coverage_notes(usable(dataset, "the report")), *problems)]
    if noisy and (
        lacking := [
            name for name, of in zip(called, measured, strict=True) if "relative_map_change" not in of
        ]
    ):
        notes.append(
            f"How much noise changes the maps is not measured for {', '.join(lacking)}: sweep clean and noisy images "
            "in one pass (sweep --changed), with the metrics mean and variance"
        )
    measures = common_measures(measured)
    networks = [rebuild(sweep) for sweep in sweeps]
    pairing = pair_units(datasets, called, pair, matches, of_first=bool(of_robust))
    lines = derive_findings(measured, measures, networks, names=called, pairing=pairing, against=of_robust)
    notes += pairing.notes
    return Compared(called, sweeps, measured, measures, networks, pairing, lines, notes, of_robust)


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
    against: int = 0,
) -> list[Finding]:
    """Return the overview of one store, or of several, each compared with the first (S), or of two groups.

    Args:
        measured: the measures of each store, as from `measure_units`.
        measures: the measures to show.
        networks: the swept networks, for their kernels, or why one cannot be rebuilt.
        names: names of the stores.
        pairing: which units are counterparts.
        against: number of networks of R, the last ones, if these are compared with the others as a group; 0 to
            compare each network with the first.
    """
    if len(measured) == 1:
        return [_without_claim(measure, measured, 0) for measure in measures]
    claimed = [measure for measure in measures if measure.claim]
    compared = _compared(measured, claimed, names, against)
    found = [
        Finding(
            measure.claim,
            f"{measure.name}: {measure.about}",
            _values(measure.key, measured, against),
            compared[measure.key],
        )
        for measure in claimed
    ]
    others = [measure for measure in measures if not measure.claim]
    matched = bool(pairing and pairing.way == "match" and not against)
    paired = _of_matched(measured, measures, names, pairing) if pairing and matched else []
    kernels = _kernels(networks, names, against)
    return [*found, *paired, *kernels, *(_without_claim(measure, measured, against) for measure in others)]


def _compared(
    measured: Sequence[xr.Dataset], measures: Sequence[Measure], names: Sequence[str], against: int
) -> dict[str, tuple[Comparison, ...]]:
    """Return the comparisons by each measure: of every network with the first one, or of the last `against` as R."""
    keys = [measure.key for measure in measures]
    if not keys:
        return {}
    if against:
        table = compare_networks(measured[:-against], measured[-against:], keys)
        return {
            measure.key: (
                compare_groups(table[table["variable"] == measure.key], invariant=measure.invariant),
            )
            for measure in measures
        }
    tables = [compare_units(measured[0], other, keys, resamples=_RESAMPLES) for other in measured[1:]]
    return {
        measure.key: tuple(
            compare_layers(name, table[table["variable"] == measure.key], invariant=measure.invariant)
            for name, table in zip(names[1:], tables, strict=True)
        )
        for measure in measures
    }


def _values(key: str, measured: Sequence[xr.Dataset], against: int) -> list[str]:
    """Return the medians over all units as text: of each store, or of both groups."""
    if not against:
        return [_median(units[key]) for units in measured]
    medians = [float(units[key].median()) for units in measured]
    return [_of_group(medians[:-against]), _of_group(medians[-against:])]


def _of_group(medians: Sequence[float]) -> str:
    """Return the mean over networks, and the lowest and the highest one.

    >>> _of_group([1.0, 2.0, 3.0]), _of_group([float("nan")])
    ('2 (1 to 3)', 'none')
    """
    known = [median for median in medians if not np.isnan(median)]
    if not known:
        return "none"
    return f"{_number(float(np.mean(known)))} ({_number(min(known))} to {_number(max(known))})"


def finding(claim: str, standard: xr.DataArray, robust: xr.DataArray, *, how: str = "") -> Finding:
    """Return the finding about a measure of your own, by the rule in `RULE`.

    A measure whose attribute `units` is of activations or weights, such as `activation^2`, gets no verdict, because
    their scale is free.

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
    invariant = not any(scaled in str(standard.attrs.get("units", "")) for scaled in ("activation", "weight"))
    said = compare_layers("R", table, invariant=invariant)
    if said.verdict == "agrees":
        said = replace(said, words=said.words.replace("as in the paper", "as claimed"))
    return Finding(claim, how, [_number(float(of["measure"].median())) for of in units], (said,))


def _without_claim(measure: Measure, measured: Sequence[xr.Dataset], against: int) -> Finding:
    return Finding(measure.name, measure.about, _values(measure.key, measured, against))


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
    for measure in (measure for measure in measures if measure.matched and counterparts):
        values, compared = [""], []
        for at, name in enumerate(names[1:], 1):
            if at not in counterparts:
                values.append("none")
                compared.append(Comparison(name, "not paired"))
                continue
            table = compare_matched(
                measured[0],
                measured[at],
                counterparts[at],
                [measure.key],
                within_layers=False,
                resamples=_RESAMPLES,
            )
            row = table.iloc[0]
            values.append(_number(row["median_r"]))
            claimed = bool(measure.claim) and measure.invariant
            compared.append(compare_pairs(name, row, _number(row["median_s"]), claimed=claimed))
        values[0] = next((said.first for said in compared if said.first), "none")
        how = f"{measure.name} of units that have a counterpart, and of the counterparts."
        lines.append(Finding(measure.matched, how, values, tuple(compared)))
    return lines


def _kernels(networks: Sequence[nn.Module | str], names: Sequence[str], against: int) -> list[Finding]:
    """Compare the weights themselves: the first convolution's kernels, and all kernels larger than 1 x 1.

    Where they cannot be compared, the line says why: other findings do not depend on the weights.
    """
    of_filters, of_kernels = (measure for measure in KERNELS if measure.claim)
    try:
        every = [_kernels_of(network, name) for network, name in zip(networks, names, strict=True)]
        for other in every[1:]:
            require_same_units(every[0], other)
    except ActstatsError as error:
        others = ["R"] if against else names[1:]
        missing = tuple(Comparison(name, f"not measured: {error}", "open", "not measured") for name in others)
        values = ["none"] * (1 + len(others))
        return [Finding("R's kernels are smoother", of_kernels.about, values, missing)]
    layer = every[0]["layer"].values[0]
    first = [units.isel(unit=units["layer"].values == layer) for units in every]
    # Behind another convolution the scale of each input is free, as it is not in the image.
    reads_image = every[0].attrs["reads_image"] == layer
    of_first = replace(of_filters if reads_image else of_kernels, invariant=True)
    lines = []
    for claim, measure, kernels in (
        (f"{of_filters.claim} ({layer})", of_first, first),
        (of_kernels.claim, of_kernels, every),
    ):
        compared = _compared(kernels, [measure], names, against)[measure.key]
        lines.append(Finding(claim, measure.about, _values(measure.key, kernels, against), compared))
    return lines


def _kernels_of(network: nn.Module | str, name: str) -> xr.Dataset:
    """Return the measures of a network's kernels, those with a value; raises `ActstatsError` if there are none.

    The attribute `reads_image` is the name of the first convolution.
    """
    if isinstance(network, str):
        raise ActstatsError(network)
    every = kernel_smoothness(network)
    kernels = every[[measure.key for measure in KERNELS if measure.claim]]
    kernels = kernels.isel(unit=np.flatnonzero(kernels["normed_kernels"].notnull()))
    if not kernels.sizes["unit"]:
        raise ActstatsError(f"{name} has no kernel larger than 1 x 1 that varies")
    return kernels.assign_attrs(reads_image=every["layer"].values[0])


def _loaded(analysis: str, computed: xr.Dataset) -> dict[str, xr.DataArray]:
    """Compute the measures that an analysis returned; analyses are computed one by one to limit memory."""
    keys = [measure.key for measure in MEASURES if measure.analysis == analysis and measure.key in computed]
    return {key: values.astype(float) for key, values in computed[keys].compute().data_vars.items()}  # type: ignore[misc]


def _names(stores: Sequence[Path | URL], names: Sequence[str]) -> list[str]:
    if names and len(names) != len(stores):
        raise ActstatsError(f"give a name for each of the {len(stores)} stores, not {len(names)}")
    if not all(name.strip() for name in names):
        raise ActstatsError("the name of a store must not be empty")
    found = list(names) or [Path(str(store)).name.removesuffix(".zarr") for store in stores]
    if len(set(found)) < len(found):
        if names:
            raise ActstatsError(f"names of stores must be unique, got {', '.join(found)}")
        marks = "SR" if len(found) == 2 else map(str, range(1, len(found) + 1))
        found = [f"{name} ({mark})" for name, mark in zip(found, marks, strict=True)]
    return found


def _require_noise(name: str, clean: Manifest, noisy: Manifest) -> None:
    """Raise `ActstatsError` unless the noisy sweep is the clean one with noise added, and nothing else."""
    networks = [(of.arch, of.weights.sha256) for of in (clean, noisy)]
    if networks[0] != networks[1]:
        raise ActstatsError(
            f"`noisy=` for {name} is of a different network: give a noisy sweep for each store, in the same order"
        )
    before, after = clean.distort, noisy.distort
    added = after[len(before) :]
    if not added or after[: len(before)] != before or not all(step.startswith("noise:") for step in added):
        raise ActstatsError(
            f"`noisy=` for {name} was swept with the distortions {' + '.join(after) or 'none'}, which are not those "
            f"of {name} and noise: sweep the same images with `distort=noise:0.1`"
        )
    one, two = ({**manifest.treatment, "distortion": ""} for manifest in (clean, noisy))
    if one != two:
        what = ", ".join(key for key in one if one[key] != two[key])
        raise ActstatsError(f"`noisy=` for {name} differs from it in more than noise: {what}")


def _require_distinct(names: Sequence[str], sweeps: Sequence[Sweep]) -> None:
    """Raise `ActstatsError` if two stores are of the same weights: a training run counts once."""
    seen: dict[str, str] = {}
    for name, sweep in zip(names, sweeps, strict=True):
        if (first := seen.setdefault(sweep.manifest.weights.sha256, name)) != name:
            raise ActstatsError(
                f"{first} and {name} are of the same weights: groups of networks need a training run for each store"
            )


def _treatment_notes(names: Sequence[str], sweeps: Sequence[Sweep]) -> list[str]:
    """Return a line for each store whose images or numbers were treated differently from the first one's."""
    first, *others = (sweep.manifest.treatment for sweep in sweeps)
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


def _demo_notes(sweeps: Sequence[Sweep]) -> list[str]:
    """Return the line that warns of findings from the demo's few photographs; none for other images."""
    demo = [sweep.dataset for sweep in sweeps if sweep.manifest.data.kind == "demo"]
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
