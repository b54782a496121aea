"""Controls of an ablation: random sets of as many living units of the same layers, and what they cost.

A set of units may matter only because it is large, or because its units are active. Random sets of the same size show
how much any such set costs, random sets of the same activity how much its activity explains. The p of a set is that
of a randomisation test (Phipson and Smyth 2010, doi:10.2202/1544-6115.1585).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actstats.data import Source
from actstats.errors import ActstatsError
from actstats.layers import Layer, watch
from actstats.models import Loaded
from actstats.probing.forward import Passes, inputs, running
from actstats.probing.unit_sets import UnitSet

Activity = Mapping[str, NDArray[np.float64]]
"""For each layer, the share of positions at which each unit is above 0, f64 [units]."""

STRATA: Final = 5
"""Groups of similar activity from which matched sets are drawn: five remove 90 % of a bias (Cochran 1968)."""


@dataclass(frozen=True)
class Control:
    """Random sets to compare each ablated set with.

    Attributes:
        sets: number of random sets for each ablated set. p is at least 1 / (sets + 1).
        matched: whether their units have about the activity of the set's: the living units of a layer are divided
            into fifths by activity, and as many are drawn from each as the set has there.
        seed: seed of the drawing. A set gets the same random sets whatever else is ablated.

    Raises:
        ActstatsError: `sets` is below 1, or `seed` negative.
    """

    sets: int
    matched: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.sets < 1:
            raise ActstatsError(f"the number of random sets is {self.sets}; it must be at least 1")
        if self.seed < 0:
            raise ActstatsError(f"`seed=` must be 0 or more, not {self.seed}")


def activity(
    loaded: Loaded, source: Source, layers: Sequence[Layer], device: torch.device, passes: Passes
) -> dict[str, NDArray[np.float64]]:
    """Return the share of positions at which each unit is above 0, over all images of a source.

    A unit that is never above 0 is not living. The network is on `device`.

    Raises:
        ActstatsError: no image can be read.
    """
    sums = [torch.zeros(layer.units, dtype=torch.float64, device=device) for layer in layers]
    images = 0

    def add(index: int, maps: Tensor) -> None:
        sums[index].add_((maps > 0).double().mean((2, 3)).sum(0))

    batches = inputs(loaded, source, device, passes)
    with running(loaded, passes.batch_size), closing(batches):
        for _, pixels in batches:
            images += len(pixels)
            with watch(loaded.model, layers, add):
                loaded.model(pixels)
    return {layer.name: (of / images).cpu().numpy() for layer, of in zip(layers, sums, strict=True)}


def random_sets(chosen: UnitSet, active: Activity, control: Control) -> list[UnitSet]:
    """Return random sets of as many living units as `chosen` has in each of its layers.

    Units of `chosen` may be drawn, too: under the null hypothesis it is one of these sets.
    """
    strata: dict[str, list[NDArray[np.int64]]] = {}
    counts: dict[str, list[int]] = {}
    for layer in sorted(chosen.units):
        values = active[layer]
        living = np.flatnonzero(values > 0)
        ordered = living[np.argsort(values[living], kind="stable")]
        strata[layer] = np.array_split(ordered, STRATA) if control.matched else [living]
        counts[layer] = [int(np.isin(units, chosen.units[layer]).sum()) for units in strata[layer]]
    rng = np.random.default_rng([control.seed, zlib.crc32(repr((control.matched, counts)).encode())])
    drawn = []
    for number in range(control.sets):
        units = {
            layer: np.concatenate(
                [rng.choice(of, n, replace=False) for of, n in zip(strata[layer], counts[layer], strict=True)]
            )
            for layer in strata
        }
        channels = {layer: tuple(sorted(of.tolist())) for layer, of in units.items()}
        drawn.append(UnitSet(f"random {number}", channels))
    return drawn


def with_random_sets(
    sets: Sequence[UnitSet], active: Activity, control: Control
) -> tuple[list[UnitSet], NDArray[np.int64]]:
    """Return the sets, followed by the random ones that differ from them, and where each set's are, [set, random].

    Sets of the same size share their random sets, and equal sets are ablated once.
    """
    every = list(sets)
    at = {_key(chosen): index for index, chosen in reversed(list(enumerate(sets)))}
    places = np.empty((len(sets), control.sets), dtype=np.int64)
    for index, chosen in enumerate(sets):
        for number, drawn in enumerate(random_sets(chosen, active, control)):
            if (key := _key(drawn)) not in at:
                at[key] = len(every)
                every.append(drawn)
            places[index, number] = at[key]
    return every, places


def compare_with_random(scores: NDArray[np.int64], places: NDArray[np.int64], images: int) -> dict[str, Any]:
    """Return the columns of a control: `random_mean`, `random_worst`, `p_random`, NaN for the intact network.

    Args:
        scores: the number of images decided rightly, for the intact network and then for every set, i64 [1 + sets].
        places: the random sets of each set that is shown, as from `with_random_sets`.
        images: the number of images.
    """
    own, drawn = scores[1 : 1 + len(places)], scores[1 + places]
    as_bad = (drawn <= own[:, None]).sum(1)
    change = (drawn - scores[0]) / images
    columns = {
        "random_mean": change.mean(1),
        "random_worst": change.min(1),
        "p_random": (as_bad + 1) / (places.shape[1] + 1),
    }
    return {name: [np.nan, *values.tolist()] for name, values in columns.items()}


def describe(control: Control) -> list[str]:
    """Return what the random sets are, a line each."""
    of = "of as many living units of the same layers" + (", matched by activity" if control.matched else "")
    lines = [f"p_random: {control.sets:,} random sets {of} for each set (seed {control.seed})"]
    if 1 / (control.sets + 1) > 0.05:
        lines.append(f"p_random is at least {1 / (control.sets + 1):.2g} with {control.sets} random sets")
    return lines


def _key(chosen: UnitSet) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple(sorted((layer, channels) for layer, channels in chosen.units.items() if channels))
