"""Ablation: what a network still tells when units are set to zero, and so which units carry what.

Chen, Agarwal and Nguyen 2020 (arXiv 2006.09373) zero one unit, or the units that detect one category of concepts,
and look at the accuracy. The sets are those of `unit_sets`; `complement` makes of each what keeps only the set.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from actstats.analysis.inference import crossed_interval, mcnemar, paired_p
from actstats.analysis.shape_bias import UNNUMBERED, stimulus_factors, stimulus_images
from actstats.data import NO_LABEL, Source
from actstats.data.source import Subset
from actstats.errors import ActstatsError
from actstats.layers import Layer
from actstats.models import Loaded
from actstats.probing.controls import Control, activity, compare_with_random, describe, with_random_sets
from actstats.probing.cue_conflict import known_stimuli, stimuli, stimuli_readout
from actstats.probing.forward import Passes, inputs, one_pass, prepared, ready_for_images
from actstats.probing.readout import UNREAD, NearestMean, Readout, exclusions, labelled_readout, nearest_mean
from actstats.probing.resume import Ablated, ablated
from actstats.probing.unit_sets import UnitSet, check_units

INTACT = "intact"
"""The name of the row for the network as it is."""

Decisions = NDArray[np.int64]


def ablate_accuracy(
    loaded: Loaded,
    source: Source,
    layers: Sequence[Layer],
    sets: Sequence[UnitSet],
    *,
    classes: Sequence[str] | None = None,
    learn_from: Source | None = None,
    control: Control | None = None,
    at_once: int = 8,
    passes: Passes | None = None,
) -> pd.DataFrame:
    """Return the accuracy on labelled images with each set of units at zero.

    Args:
        loaded: the network with its preprocessing.
        source: images with classes that the network can say (`labelled_readout`); those without one are left out.
        layers: where the units are (`select_layers`).
        sets: units to be set to zero together.
        classes: names of the network's outputs in order; None: as its weights file has them, or ImageNet's.
        learn_from: other images of the same classes, for a network that has other classes: an image is said to be of
            the class whose mean outputs on these, with no unit at zero, are nearest. None: as the outputs are named.
        control: random sets to compare each set with; None: none. The images are shown once more before.
        at_once: ablations in one pass, each of a batch of images.
        passes: batch size, device, progress over the images.

    Returns:
        A row for the network `intact` and one for each set: `ablation`, `layers`, `units` (at zero), `images`,
        `correct`, `accuracy`, `change` (of the accuracy), `lost` (images no longer right), `gained`, and `p` of the
        exact McNemar test that as many are lost as gained. With `control`, the mean and the worst `change` of its
        random sets, `random_mean` and `random_worst`, and `p_random` = (random sets that leave as few images right
        or fewer + 1) / (random sets + 1). `attrs["notes"]` says how many images are excluded.

    Raises:
        ActstatsError: units that the layers lack, images without classes, or classes that the network cannot say.
    """
    passes = passes or Passes()
    target = _checked(loaded, layers, sets, at_once, passes)
    learned = None if learn_from is None else nearest_mean(loaded, learn_from, target, passes)
    readout, truth = labelled_readout(loaded, source, target, classes=classes, learned=learned)
    shown = np.flatnonzero(truth != NO_LABEL)
    if not len(shown):
        raise ActstatsError(
            f"none of the {len(truth)} images of {source.spec} is of a class that the network knows: use more "
            "images, or others"
        )
    images_of = Subset(source, shown.tolist())
    every, places = _with_control(loaded, images_of, layers, sets, control, target, passes)
    counts = np.zeros((len(every) + 1, 4), dtype=np.int64)
    unchanged = np.full(len(truth), UNREAD)
    for at, rows, intact, decided in _decisions(
        loaded, images_of, layers, every, readout, target, at_once, passes
    ):
        unchanged[shown[rows]] = intact
        right, before = decided == truth[shown[rows]], intact == truth[shown[rows]]
        counts[at] += len(rows), right.sum(), (before & ~right).sum(), (right & ~before).sum()
    images, correct, lost, gained = counts[: len(sets) + 1].T
    accuracy = correct / images
    table = pd.DataFrame(
        {
            **_described(sets),
            "images": images,
            "correct": correct,
            "accuracy": accuracy,
            "change": accuracy - accuracy[0],
            "lost": lost,
            "gained": gained,
            "p": list(map(mcnemar, lost.tolist(), gained.tolist())),
            **({} if control is None else compare_with_random(counts[:, 1], places, images[0])),
        }
    )
    notes = exclusions(INTACT, truth != NO_LABEL, unchanged)
    table.attrs["notes"] = notes if control is None else [*notes, *describe(control)]
    return table


def ablate_decisions(
    loaded: Loaded,
    source: Source,
    layers: Sequence[Layer],
    sets: Sequence[UnitSet],
    *,
    classes: Sequence[str] | None = None,
    learn_from: Source | None = None,
    control: Control | None = None,
    at_once: int = 8,
    passes: Passes | None = None,
) -> pd.DataFrame:
    """Return how a network decides cue-conflict stimuli, by shape or by texture, with each set of units at zero.

    The arguments are those of `ablate_accuracy`; `source` has stimuli named `<shape><n>-<texture><n>.png`, of which
    those with a conflict between categories that the network knows are shown.

    Returns:
        A row for the network `intact` and one for each set: `ablation`, `layers`, `units`, `trials`, the decisions
        for `shape`, `texture`, `other`, `shape_bias` with its interval `low`, `high`, clustered by shape image and
        texture image (`crossed_interval`); the changes against the intact network of the share of trials decided by
        shape, by texture, and of the bias: `shape_change`, `texture_change`, `bias_change`; and `p`, of the test that
        the shape loses as many trials as it gains (`paired_p`). With `control`, the mean and the worst `shape_change`
        of its random sets, `random_mean` and `random_worst`, and `p_random` = (random sets with as few decisions for
        shape or fewer + 1) / (random sets + 1). `attrs["notes"]` says how many stimuli are excluded.

    Raises:
        ActstatsError: units that the layers lack, no stimuli, or a network that knows fewer than two categories.
    """
    passes = passes or Passes()
    target = _checked(loaded, layers, sets, at_once, passes)
    shown = stimuli(source)
    readout = stimuli_readout(loaded, target, shown, classes=classes, learn_from=learn_from, passes=passes)
    conflicts = shown[shown["shape"] != shown["texture"]]
    known = known_stimuli(conflicts, readout, source)
    shown = conflicts[known].reset_index(drop=True)
    cues = {
        cue: shown[cue].map({n: i for i, n in enumerate(readout.names)}).to_numpy()
        for cue in ("shape", "texture")
    }
    chosen = Subset(source, shown["image"].tolist())
    every, random = _with_control(loaded, chosen, layers, sets, control, target, passes)
    decided_by = np.full((len(every) + 1, len(shown)), -1, dtype=np.int8)
    unchanged = np.full(len(conflicts), UNREAD)
    places = np.flatnonzero(known)
    for at, rows, intact, decided in _decisions(
        loaded, chosen, layers, every, readout, target, at_once, passes
    ):
        unchanged[places[rows]] = intact
        decided_by[at, rows] = np.where(
            decided == cues["shape"][rows], 1, np.where(decided == cues["texture"][rows], 2, 0)
        )
    scores, decided_by = (decided_by == 1).sum(1), decided_by[: len(sets) + 1]
    images = stimulus_images(*(shown[name].tolist() for name in ("imagename", "shape", "texture")))
    factors = stimulus_factors(images)
    trials, shape, texture = ((decided_by >= 0).sum(1), *((decided_by == cue).sum(1) for cue in (1, 2)))
    with np.errstate(invalid="ignore"):
        bias = shape / (shape + texture)
    intervals = []
    for row in decided_by:
        kept = row > 0
        intervals.append(crossed_interval(row[kept] == 1, [factor[kept] for factor in factors]))
    read = decided_by[0] >= 0
    before, on_read = decided_by[0, read] == 1, [factor[read] for factor in factors]
    table = pd.DataFrame(
        {
            **_described(sets),
            "trials": trials,
            "shape": shape,
            "texture": texture,
            "other": trials - shape - texture,
            "shape_bias": bias,
            "low": [interval.low for interval in intervals],
            "high": [interval.high for interval in intervals],
            "shape_change": shape / trials - shape[0] / trials[0],
            "texture_change": texture / trials - texture[0] / trials[0],
            "bias_change": bias - bias[0],
            "p": [paired_p(before, row[read] == 1, on_read) for row in decided_by],
            **({} if control is None else compare_with_random(scores, random, trials[0])),
        }
    )
    notes = exclusions(INTACT, known, unchanged, "stimuli")
    if not factors:
        notes.append(UNNUMBERED.format(INTACT))
    table.attrs["notes"] = notes if control is None else [*notes, *describe(control)]
    return table


def _checked(
    loaded: Loaded, layers: Sequence[Layer], sets: Sequence[UnitSet], at_once: int, passes: Passes
) -> torch.device:
    if not sets:
        raise ActstatsError("no set of units was given to be ablated")
    if at_once < 1:
        raise ActstatsError(f"the ablations in one pass are {at_once}; they must be at least 1")
    check_units(sets, layers)
    return prepared(loaded, passes.device)


def _with_control(
    loaded: Loaded,
    source: Source,
    layers: Sequence[Layer],
    sets: Sequence[UnitSet],
    control: Control | None,
    device: torch.device,
    passes: Passes,
) -> tuple[Sequence[UnitSet], NDArray[np.int64]]:
    """Return the sets and the random sets of a control, and where those of each set are; see `with_random_sets`."""
    if control is None:
        return sets, np.empty((len(sets), 0), dtype=np.int64)
    touched = {name for chosen in sets for name in chosen.units}
    active = activity(loaded, source, [layer for layer in layers if layer.name in touched], device, passes)
    return with_random_sets(sets, active, control)


def _decisions(
    loaded: Loaded,
    source: Source,
    layers: Sequence[Layer],
    sets: Sequence[UnitSet],
    readout: Readout | NearestMean,
    device: torch.device,
    at_once: int,
    passes: Passes,
) -> Iterator[tuple[int, NDArray[np.int64], Decisions, Decisions]]:
    """Yield, for each batch, (0, rows, intact, intact), then (1 + set, rows, intact, decided) for every set."""
    by_name = {layer.name: layer for layer in layers}
    groups: dict[tuple[str, ...], list[int]] = {}
    for index, chosen in enumerate(sets):
        groups.setdefault(tuple(sorted(chosen.units)), []).append(index)
    ways: dict[tuple[str, ...], Ablated] = {}
    batches = inputs(loaded, source, device, passes)
    with closing(batches), ready_for_images(loaded):
        while True:
            # Gradients are back before each `yield`, so that they are never off in the caller's code.
            with one_pass(passes.batch_size, f" and `at_once={at_once}`"):
                found = next(batches, None)
                if found is None:
                    return
                batch, images = found
                rows = batch.position + batch.start
                intact = readout.decide(loaded.model(images))
                results = [(0, rows, intact, intact)]
                for names, members in groups.items():
                    if names not in ways:
                        ways[names] = ablated(loaded.model, [by_name[name] for name in names], images)
                    ways[names].record(images)
                    for start in range(0, len(members), at_once):
                        part = members[start : start + at_once]
                        masks = {
                            name: _mask([sets[i] for i in part], by_name[name]).to(device) for name in names
                        }
                        outputs = ways[names].outputs(masks)
                        decided = readout.decide(outputs.flatten(0, 1)).reshape(len(part), len(rows))
                        results += [(1 + i, rows, intact, row) for i, row in zip(part, decided, strict=True)]
            yield from results


def _mask(sets: Sequence[UnitSet], layer: Layer) -> torch.Tensor:
    """Return which of the layer's units each set has, bool [sets, units]."""
    mask = torch.zeros(len(sets), layer.units, dtype=torch.bool)
    for row, chosen in zip(mask, sets, strict=True):
        row[list(chosen.units[layer.name])] = True
    return mask


def _described(sets: Sequence[UnitSet]) -> dict[str, list[Any]]:
    return {
        "ablation": [INTACT, *(chosen.name for chosen in sets)],
        "layers": ["", *(" ".join(chosen.units) for chosen in sets)],
        "units": [0, *(len(chosen) for chosen in sets)],
    }
