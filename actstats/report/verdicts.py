"""Verdicts: what differences between networks decide, by layer and over all layers, and what that leaves out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import pandas as pd

from actstats.analysis.replication import LEAST_NETWORKS

SMALLEST_EFFECT: Final = 0.147
"""The smallest |Cliff's delta| that counts: the usual threshold of a small effect (Romano et al. 2006)."""
LEAST_UNITS: Final = 5
"""Number of units of a layer from which on it counts: of 4 against 4, a rank test at 5 % decides only extremes."""
LEAST_PAIRS: Final = 6
"""Number of matched units from which on they get a verdict: no sign test of 5 pairs reaches 5 %."""
OF_A_PAIR: Final = "other training runs are not in it"
"""What a verdict on two networks leaves out: how much networks differ that were trained alike."""
TOO_FEW: Final = f"{OF_A_PAIR}: a verdict takes {LEAST_NETWORKS} networks a side"
"""The same for groups of networks that are too small."""
LARGEST_P: Final = 0.05
"""p of Welch's t test below which a layer counts as lower or higher in one kind of network."""
SCALED: Final = "no verdict: depends on the scale"
"""In place of a verdict on a measure that is not invariant to the scale of activations."""
RULE: Final = (
    "Values are medians over all units. In each layer, Cliff's delta compares R's units with S's: -1 if all of R's "
    "are lower, 0 if neither tends to be, 1 if all are higher. The delta shown is the median over layers. A layer "
    f"counts as lower or higher if |delta| is at least {SMALLEST_EFFECT}, the usual threshold of a small effect "
    "(Romano et al. 2006), and the 95 % bootstrap interval over its units excludes 0. As in the paper: R is lower in "
    "more than half of the layers. Opposite: R is higher in more than half. Negligible: |delta| is below "
    f"{SMALLEST_EFFECT} in half of the layers or more. Undecided: none of these. For matched units, delta is the "
    "share of units whose counterpart is higher minus the share of those whose counterpart is lower, over all layers "
    "together. This one delta, with its bootstrap interval over units, gives the verdict. Layers of fewer than "
    f"{LEAST_UNITS} units, and fewer than {LEAST_PAIRS} matched units, are too few to count. Measures that depend on "
    "the scale of activations or weights, which is free, get no verdict."
)
_OF_THE_PAIR: Final = (
    " Every verdict is about this pair of networks: the intervals are over their units, and two training runs that "
    "differ by their seed alone may differ as much."
)
RULE_OF_GROUPS: Final = (
    "S and R are groups of networks, which differ by their training run. Values are means over the networks of the "
    "medians over all units, with the lowest and the highest network. In each layer, Welch's t test compares the "
    "networks' medians, so that the variation is that of training runs, and Cliff's delta the units of a network of "
    "R with those of one of S, as a mean over such pairs. The delta shown is the median over layers, and so is S "
    "against S, the greatest |delta| between two networks of S. A layer counts as lower or higher if p is below "
    f"{LARGEST_P} and |delta| is at least {SMALLEST_EFFECT}, the usual threshold of a small effect (Romano et al. "
    "2006). As in the paper: R is lower in more than half of the layers. Opposite: R is higher in more than half. "
    f"Negligible: |delta| is below {SMALLEST_EFFECT} in half of the layers or more. Undecided: none of these, or "
    f"fewer than {LEAST_NETWORKS} networks in a group. Measures that depend on the scale of activations or weights, "
    "which is free, get no verdict."
)
_DIFFERENCE: Final = ("difference", "difference_low", "difference_high")
_WORDS: Final = {
    "agrees": "as in the paper",
    "differs": "opposite",
    "negligible": "negligible",
    "open": "undecided",
}


@dataclass(frozen=True)
class LayerDecision:
    """How two networks, or two groups of networks, differ in one layer.

    Attributes:
        layer: its name.
        decision: `lower`, `neither`, `higher`; empty where there are too few units or networks to count.
        delta: Cliff's delta of the other network's units against the first one's; of groups, the mean over pairs of
            networks.
        difference: the difference of the means over units; of groups, of the means over the networks' medians.
        difference_low: lower end of its 95 % interval, over units; of groups, over networks.
        difference_high: upper end.
        delta_low: lower end of the 95 % interval of `delta` over units; None for groups.
        delta_high: upper end.
        p: of Welch's t test over the networks' medians; None for a pair.
        null_delta: the greatest |delta| between two networks of the first group; None for a pair.
        medians_s: the median over the layer's units of each network of the first group; empty for a pair.
        medians_r: the same of the other group.
    """

    layer: str
    decision: str
    delta: float
    difference: float
    difference_low: float
    difference_high: float
    delta_low: float | None = None
    delta_high: float | None = None
    p: float | None = None
    null_delta: float | None = None
    medians_s: tuple[float, ...] = ()
    medians_r: tuple[float, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """How one network differs from the first one, or one group of networks from the other.

    Attributes:
        network: its name; `R` for a group.
        difference: how it differs, in words.
        verdict: `agrees`, `differs`, `negligible` or `open`; empty where the paper makes no claim, or the measure
            depends on the scale of activations.
        words: the verdict in words, or why there is none.
        scope: what the verdict leaves out, or how many networks it is of, in words; empty without a verdict.
        layers: number of layers in which it is lower, neither, and higher, by the rule in `RULE`.
        delta: Cliff's delta against the first network, as the median over layers, or over all matched units; None
            where nothing was compared.
        first: the value of the first network over the units that this comparison is of, if these are not all units.
        by_layer: the decisions by layer, in order of execution; empty where all units are compared together.
    """

    network: str
    difference: str = ""
    verdict: str = ""
    words: str = ""
    scope: str = ""
    layers: tuple[int, int, int] = (0, 0, 0)
    delta: float | None = None
    first: str = ""
    by_layer: tuple[LayerDecision, ...] = ()


def rule(*, groups: bool = False) -> str:
    """Return the rule of the verdicts in words, with what they leave out: of pairs of networks, or of groups."""
    return RULE_OF_GROUPS if groups else RULE + _OF_THE_PAIR


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
    return _counts(_decisions(table).tolist())


def compare_layers(name: str, table: pd.DataFrame, *, invariant: bool = True) -> Comparison:
    """Return the comparison of a network with the first one, from the rows of one variable in `compare_units`.

    Args:
        name: name of the network.
        table: the rows.
        invariant: whether the measure is invariant to the scale of activations, without which there is no verdict.
    """
    decisions = _decisions(table)
    by_layer = tuple(
        LayerDecision(
            **{name: getattr(row, name) for name in (*_DIFFERENCE, "delta_low", "delta_high")},
            layer=str(row.layer),
            decision=decision,
            delta=row.cliffs_delta,
        )
        for row, decision in zip(table.itertuples(), decisions, strict=True)
    )
    compared = table[decisions != ""]
    lower, _, higher = layers = _counts(decisions.tolist())
    if compared.empty:
        return replace(
            _of_a_pair(name, "open", invariant=invariant),
            difference="too few units to compare",
            by_layer=by_layer,
        )
    delta = float(compared["cliffs_delta"].median())
    if len(compared) == 1:
        low, high = (float(compared[end].iloc[0]) for end in ("delta_low", "delta_high"))
        difference = f"delta {delta:+.2f} ({low:+.2f} to {high:+.2f})"
    else:
        difference = f"delta {delta:+.2f}; lower in {lower} of {len(compared)} layers, higher in {higher}"
    return replace(
        _of_a_pair(name, _over_layers(layers, compared["cliffs_delta"]), invariant=invariant),
        difference=difference,
        layers=layers,
        delta=delta,
        by_layer=by_layer,
    )


def compare_groups(table: pd.DataFrame, *, invariant: bool = True) -> Comparison:
    """Return the comparison of two groups of networks, from the rows of one variable in `compare_networks`.

    `invariant` is as for `compare_layers`.
    """
    enough = table[["networks_s", "networks_r"]].min(axis=1) >= LEAST_NETWORKS
    apart = (table["p"] < LARGEST_P) & (table["delta"].abs() >= SMALLEST_EFFECT)
    lower, higher = (
        apart & (sign * table["difference"] > 0) & (sign * table["delta"] > 0) for sign in (-1, 1)
    )
    decisions = _decided(lower, higher, enough)
    by_layer = tuple(
        LayerDecision(
            **{
                name: getattr(row, name)
                for name in (*_DIFFERENCE, "delta", "p", "null_delta", "medians_s", "medians_r")
            },
            layer=str(row.layer),
            decision=decision,
        )
        for row, decision in zip(table.itertuples(), decisions, strict=True)
    )
    layers = _counts(decisions.tolist())
    known = table[table["delta"].notnull()]
    delta, null = (float(known[name].median()) for name in ("delta", "null_delta"))
    difference = f"delta {delta:+.2f}, S against S {null:.2f}" if len(known) else "no values to compare"
    if sum(layers):
        noun = "layer" if sum(layers) == 1 else "layers"
        difference += f"; lower in {layers[0]} of {sum(layers)} {noun}, higher in {layers[2]}"
    said = Comparison("R", difference, layers=layers, delta=delta if len(known) else None, by_layer=by_layer)
    if not invariant:
        return replace(said, words=SCALED)
    if not sum(layers):
        return replace(said, verdict="open", words=_WORDS["open"], scope=TOO_FEW)
    verdict = _over_layers(layers, table["delta"][enough])
    runs = " and ".join(str(table[name].max()) for name in ("networks_s", "networks_r"))
    return replace(said, verdict=verdict, words=_WORDS[verdict], scope=f"over {runs} training runs")


def compare_pairs(name: str, row: pd.Series, first: str, *, claimed: bool) -> Comparison:
    """Return the comparison of counterparts with their units, from a row of `compare_matched` over all layers.

    `first` is the value of the first network over the units that have a counterpart; without a claim, there is no
    verdict.
    """
    pairs = int(row["pairs"])
    delta: float | None = None
    if not np.isfinite(row["delta_low"]) or pairs < LEAST_PAIRS:
        units = "1 matched unit is" if pairs == 1 else f"{pairs} matched units are"
        verdict, difference = "open", f"{units} too few to compare"
    else:
        delta, low, high = (float(row[key]) for key in ("delta", "delta_low", "delta_high"))
        difference = f"delta {delta:+.2f} ({low:+.2f} to {high:+.2f}) over {pairs:,} units"
        if delta <= -SMALLEST_EFFECT and high < 0:
            verdict = "agrees"
        elif delta >= SMALLEST_EFFECT and low > 0:
            verdict = "differs"
        else:
            verdict = "negligible" if abs(delta) < SMALLEST_EFFECT else "open"
    said = _of_a_pair(name, verdict) if claimed else Comparison(name)
    return replace(said, difference=difference, delta=delta, first=first)


def _of_a_pair(name: str, verdict: str, *, invariant: bool = True) -> Comparison:
    """Return a comparison of two networks with a verdict, in words, and nothing else."""
    if not invariant:
        return Comparison(name, words=SCALED)
    words = _WORDS[verdict] if verdict == "open" else f"this pair: {_WORDS[verdict]}"
    return Comparison(name, verdict=verdict, words=words, scope=OF_A_PAIR)


def _decisions(table: pd.DataFrame) -> pd.Series:
    """Return the decision on each row of `compare_units`, empty where a network has too few units to count."""
    lower = (table["cliffs_delta"] <= -SMALLEST_EFFECT) & (table["delta_high"] < 0)
    higher = (table["cliffs_delta"] >= SMALLEST_EFFECT) & (table["delta_low"] > 0)
    enough = table["delta_low"].notnull() & (table[["units_s", "units_r"]].min(axis=1) >= LEAST_UNITS)
    return _decided(lower, higher, enough)


def _decided(lower: pd.Series, higher: pd.Series, enough: pd.Series) -> pd.Series:
    """Return the decision on each layer, from which are lower, which are higher, and which count."""
    decisions = pd.Series("neither", index=enough.index).mask(lower, "lower").mask(higher, "higher")
    return decisions.where(enough, "")


def _counts(decisions: Sequence[str]) -> tuple[int, int, int]:
    return decisions.count("lower"), decisions.count("neither"), decisions.count("higher")


def _over_layers(layers: tuple[int, int, int], deltas: pd.Series) -> str:
    """Return the verdict that follows from the counts of layers and the deltas of those that count."""
    lower, _, higher = layers
    if lower > len(deltas) / 2:
        return "agrees"
    if higher > len(deltas) / 2:
        return "differs"
    return "negligible" if (deltas.abs() < SMALLEST_EFFECT).mean() >= 0.5 else "open"
