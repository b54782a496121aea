"""Pair the units that a report shows side by side: counterparts, or units of the same index if requested."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import xarray as xr

from actstats.analysis.counterparts import LEAST, LEVEL, match_both, read_matches, select_matches
from actstats.errors import ActstatsError

WAYS: Final = ("match", "index")
_KEPT: Final = ["counterpart", "best", "held_out", "stable", "reciprocal"]
BY_INDEX: Final = "Units are paired by index, as requested: this pairs channel numbers, not functions."
ALL_PAIRS: Final = 4
"""Most stores of which every two are matched. Of more, each is matched with the first, in linear time."""
BY_MATCH: Final = (
    "A unit's counterpart is the unit that correlates best with it over the images, if their correlation r on "
    f"held-out images is at least {LEAST} (or the threshold of the given matches) and significant (q at most {LEVEL} "
    "within the layer), and if both are each other's best on both halves of the images."
)


@dataclass(frozen=True)
class Pairing:
    """Pairs of units of several networks.

    Attributes:
        way: `match`, `index`, or empty where no two networks are paired.
        found: by the numbers of two networks, for each unit of the first: `counterpart` in the second and `best`
            candidate, i64, -1: none; `held_out` f64, the correlation on held-out images; `stable`, whether the best
            candidate is the same on half of the images; and `reciprocal`, whether both are each other's best.
        notes: how units are paired by index, or why networks are not paired, one line each.
    """

    way: str
    found: dict[tuple[int, int], xr.Dataset]
    notes: list[str]


def pair_units(
    datasets: Sequence[xr.Dataset],
    names: Sequence[str],
    way: str = "match",
    matches: Sequence[str | Path] = (),
    *,
    of_first: bool = False,
) -> Pairing:
    """Pair the units of every two stores, or match those of each with the first if there are more than `ALL_PAIRS`.

    Args:
        datasets: stores with the same units.
        names: names of the stores.
        way: `match` pairs each unit with its counterpart, `index` with the unit of the same index.
        matches: files of `analyze match --by unit`; without them, counterparts are sought within layers.
        of_first: match each store with the first one only, as there are many.

    Raises:
        ActstatsError: `way` is unknown, or `matches` is given for one store or has no counterparts of the first
            network in another one. Stores that cannot be matched, such as sweeps over different images, get a note
            instead.
    """
    if way not in WAYS:
        raise ActstatsError(f"`pair=` must be one of {', '.join(WAYS)}, not {way!r}")
    if way == "index" and matches:
        raise ActstatsError("`matches=` pairs units by match: omit it, or omit `pair='index'`")
    numbers = range(len(datasets))
    if len(datasets) == 1 and matches:
        raise ActstatsError("`matches=` pairs the units of two stores or more: omit it for one store")
    if len(datasets) == 1:
        return Pairing("", {}, [])
    if way == "index":
        every = np.arange(datasets[0].sizes["unit"])
        nowhere = np.full(len(every), np.nan)
        same = xr.Dataset(
            {
                "counterpart": ("unit", every),
                "best": ("unit", every),
                "held_out": ("unit", nowhere),
                **dict.fromkeys(["stable", "reciprocal"], ("unit", np.ones(len(every), dtype=bool))),
            }
        )
        return Pairing("index", {(a, b): same for a in numbers for b in numbers if a != b}, [BY_INDEX])
    if matches:
        table, found = read_matches(matches), {}
        for a in numbers:
            for b in numbers:
                selected = select_matches(table, datasets[a], datasets[b]) if a != b else None
                if selected is not None:
                    found[a, b] = selected
                elif a == 0 and b:
                    raise ActstatsError(
                        f"`matches=` has no matches of {names[0]}'s units in {names[b]} over the stores' images"
                    )
        return Pairing("match", found, [])
    found, notes = {}, []
    if many := len(datasets) > ALL_PAIRS and not of_first:
        notes.append(f"Units are matched with those of {names[0]} only, as there are {len(datasets)} stores.")
    for a in numbers[:1] if of_first or many else numbers:
        for b in numbers[a + 1 :]:
            try:
                both = match_both(datasets[a], datasets[b])
            except ActstatsError as error:
                notes.append(f"units of {names[a]} and {names[b]} are not paired: {error}")
            else:
                found[a, b], found[b, a] = (part[_KEPT].reset_coords(drop=True) for part in both)
    return Pairing("match" if found else "", found, notes)
