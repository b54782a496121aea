"""The cue-conflict test of a network: what it says of one thing's shape in the texture of another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from actstats.analysis.shape_bias import cues_of
from actstats.data import Source, open_source
from actstats.data.source import Subset
from actstats.errors import ActstatsError, first
from actstats.models import Loaded
from actstats.probing.demo_stimuli import DemoStimuli
from actstats.probing.forward import Passes, logits, prepared
from actstats.probing.readout import (
    UNREAD,
    NearestMean,
    Readout,
    class_names,
    exclusions,
    forced_choice,
    nearest_mean,
    output_count,
)


def open_stimuli(spec: str | Path, *, limit: int | None = None) -> Source:
    """Open cue-conflict images: those that `spec` names (`open_source`), or, for "demo", those that ship.

    Raises:
        ActstatsError: there are none.
    """
    return DemoStimuli(limit) if str(spec) == "demo" else open_source(spec, limit=limit)


def stimuli(source: Source) -> pd.DataFrame:
    """Return the cue-conflict images of a source, a row each: `image` (its index), `imagename`, `shape`, `texture`.

    Images whose name tells no cues are passed over. Raises `ActstatsError` if all are.
    """
    rows = [
        (index, path.rpartition("/")[2], *pair)
        for index, (path, pair) in enumerate(zip(source.paths, cues_of(source.paths), strict=True))
        if pair is not None
    ]
    if not rows:
        raise ActstatsError(
            f"no image of {source.spec} is named as a cue-conflict stimulus: <shape>/<shape><n>-<texture><n>.png, "
            f"cat/cat7-bear1.png say, not {source.paths[0]}"
        )
    return pd.DataFrame(rows, columns=["image", "imagename", "shape", "texture"])


def stimuli_readout(
    loaded: Loaded,
    device: torch.device,
    shown: pd.DataFrame,
    *,
    classes: Sequence[str] | None,
    learn_from: Source | None,
    passes: Passes,
) -> Readout | NearestMean:
    """Return the forced choice among the stimuli's categories, for a network on `device`.

    `classes` names its outputs in order; None: as its weights file does, or ImageNet's. With `learn_from` it is a
    `nearest_mean` of those images instead. Names are in lower case, as those that `cues` reads from the stimuli.
    """
    if learn_from is not None:
        learned = nearest_mean(loaded, learn_from, device, passes)
        return replace(learned, names=tuple(map(str.lower, learned.names)))
    wanted = sorted({*shown["shape"], *shown["texture"]})
    outputs = output_count(loaded, device)
    names = class_names(loaded) if classes is None else classes
    return forced_choice(outputs, wanted, None if names is None else [name.lower() for name in names])


def decide(
    loaded: Loaded,
    source: Source,
    *,
    name: str | None = None,
    classes: Sequence[str] | None = None,
    learn_from: Source | None = None,
    passes: Passes | None = None,
) -> pd.DataFrame:
    """Return the network's decision on every stimulus whose shape and texture are among its categories.

    With ImageNet's 1,000 outputs it is a forced choice among the 16 entry-level categories (mean probability over
    each category's outputs, then the greatest); with classes of its own, among those that occur in the stimuli.
    A network with neither can learn the categories: see `learn_from`.

    Args:
        loaded: the network with its preprocessing.
        source: images named `<shape>/<shape><n>-<texture><n>.png`; others are passed over.
        name: of the observer in the table; None: the architecture's.
        classes: names of the network's outputs in order; None: those that its weights file brings, or ImageNet's.
        learn_from: images without a conflict of the same categories: a stimulus is said to be of the category whose
            mean outputs on these are nearest (`NearestMean`). None: what the outputs stand for.
        passes: batch size, device, progress.

    Returns:
        A row for each stimulus that could be read: `observer`, `response`, `shape`, `texture`, `imagename`, fit for
        `shape_bias` and `write_decisions`. `attrs["notes"]` says how many stimuli are excluded.

    Raises:
        ActstatsError: no stimuli, or a network that knows fewer than two of their categories.
    """
    shown = stimuli(source)
    passes = passes or Passes()
    target = prepared(loaded, passes.device)
    readout = stimuli_readout(loaded, target, shown, classes=classes, learn_from=learn_from, passes=passes)
    known = known_stimuli(shown, readout, source)
    rows, outputs = logits(loaded, Subset(source, shown["image"][known].tolist()), target, passes)
    decisions = np.full(len(shown), UNREAD)
    decisions[np.flatnonzero(known)[rows]] = readout.decide(outputs)
    # An undecided stimulus has an empty response, as a person who does not answer.
    responses = np.append(np.array(readout.names, dtype=object), "")[decisions]
    observer = name or str(loaded.identity["arch"])
    table = shown.assign(observer=observer, response=responses)[decisions != UNREAD]
    table = table[["observer", "response", "shape", "texture", "imagename"]].reset_index(drop=True)
    table.attrs["notes"] = exclusions(observer, known, decisions, "stimuli")
    return table


def known_stimuli(shown: pd.DataFrame, readout: Readout | NearestMean, source: Source) -> NDArray[np.bool_]:
    """Return which stimuli have a shape and a texture that the readout can name, bool [stimuli].

    Raises `ActstatsError` if none has, or if there is no stimulus.
    """
    known: NDArray[np.bool_] = (
        shown["shape"].isin(readout.names) & shown["texture"].isin(readout.names)
    ).to_numpy()
    if not known.any():
        raise ActstatsError(
            f"no stimulus of {source.spec} shows categories that the network knows: it knows "
            f"{first(readout.names)}, and the stimuli show {first(sorted({*shown['shape'], *shown['texture']}))}"
        )
    return known
