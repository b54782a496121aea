"""The overview: what the paper found of standard and robust networks, and what two stores show of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
import xarray as xr
from torch import nn

from actstats.analysis import compare_units, kernel_smoothness
from actstats.report.measures import Measure

PAPER: Final = "Chen, Agarwal and Nguyen 2020, arXiv 2006.09373"
RULE: Final = (
    "Values are medians over all units. In each layer the units of the two are compared by Cliff's delta, with a "
    "95 % bootstrap interval over units. As in the paper: R is lower in more than half of the layers, with an "
    "interval that leaves out 0. The other way round: R is higher in as many. Undecided: neither."
)
ELSEWHERE: Final = (
    ("R decides by shape, S by texture", "actstats analyze shape-bias"),
    ("R is better on images without texture, worse without shape", "actstats analyze cues"),
    ("R's units detect textures and colours, less often objects", "actstats analyze dissect"),
    ("Which units carry shape", "actstats analyze ablate"),
)
"""What needs more than a store, and the command for it."""
_CLAIMS: Final = {
    "roughness": "R's activation maps are smoother",
    "total_variation": "R's activation maps have less total variation",
    "high_share": "R passes on less high-frequency power",
    "centroid": "R's maps are of lower frequency",
    "top_classes": "R's units answer to fewer kinds of image",
    "top_entropy": "R's top images are less mixed",
    "change": "Noise adds less total variation to R's units",
    "relative_change": "Noise adds less to R's units, relative to what they have",
}
"""What the paper found by each measure: always that R's is the lower."""
_RESAMPLES: Final = 400


@dataclass(frozen=True)
class Finding:
    """One line of the overview, in words.

    `claim` is the paper's, or the measure's name; `how` says how it is measured; `values` has one text a store;
    `difference` is in words, and `layers` how many lie lower, undecided and higher; `verdict` is `agrees`, `differs`,
    `open` or empty where the paper says nothing, and `words` says it to a reader.
    """

    claim: str
    how: str
    values: list[str]
    difference: str = ""
    verdict: str = ""
    words: str = ""
    layers: tuple[int, int, int] = (0, 0, 0)

    def as_dict(self) -> dict[str, Any]:
        """Return it fit for JSON."""
        return asdict(self)


def findings(
    measured: Sequence[xr.Dataset], measures: Sequence[Measure], networks: Sequence[nn.Module | str]
) -> list[Finding]:
    """Return the overview of one store or of two, S and R.

    `measured` is what `measure_units` gave of each; `networks` are the swept ones, for their kernels, or why they
    cannot be had.
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


def _without_claim(measure: Measure, measured: Sequence[xr.Dataset]) -> Finding:
    medians = [_number(float(units[measure.key].median())) for units in measured]
    return Finding(measure.name, measure.about, medians)


def _kernels(networks: Sequence[nn.Module | str]) -> list[Finding]:
    """Return what the convolutions' own kernels show: of the first, and of all with kernels larger than 1 x 1."""
    how = "roughness of the weights"
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
        ("R's kernels are smoother, in all layers", found),
    ):
        table = compare_units(kernels[0], kernels[1], ["roughness"], resamples=_RESAMPLES)
        medians = [float(units["roughness"].median()) for units in kernels]
        lines.append(_finding(claim, how, medians, table))
    return lines


def _finding(claim: str, how: str, medians: Sequence[float], table: pd.DataFrame) -> Finding:
    values = [_number(median) for median in medians]
    lower = int((table["delta_high"] < 0).sum())
    higher = int((table["delta_low"] > 0).sum())
    layers = int(table["delta_low"].notnull().sum())
    if not layers:
        return Finding(claim, how, values, "too few units to tell", "open", "undecided")
    middle = float(table["cliffs_delta"].median())
    if layers == 1:
        low, high = (float(table[name].iloc[0]) for name in ("delta_low", "delta_high"))
        difference = f"Cliff's delta {_number(middle)}, {_number(low)} to {_number(high)}"
    else:
        difference = f"lower in {lower} of {layers} layers, higher in {higher}"
    verdict, words = "open", "undecided"
    if lower > layers / 2:
        verdict, words = "agrees", "as in the paper"
    elif higher > layers / 2:
        verdict, words = "differs", "the other way round"
    return Finding(claim, how, values, difference, verdict, words, (lower, layers - lower - higher, higher))


def _number(value: float) -> str:
    """Return three significant digits.

    >>> _number(-0.12345), _number(float("nan"))
    ('-0.123', 'none')
    """
    return "none" if np.isnan(value) else f"{value:.3g}"
