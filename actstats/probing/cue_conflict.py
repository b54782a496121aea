"""The cue-conflict test of a network: what it says of one thing's shape in the texture of another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

from actstats.analysis.shape_bias import cues
from actstats.data import Source, open_source
from actstats.data.source import Subset
from actstats.errors import ActstatsError
from actstats.models import Loaded
from actstats.probing.demo_stimuli import DemoStimuli
from actstats.probing.forward import Passes, logits, prepared
from actstats.probing.readout import (
    NearestMean,
    Readout,
    class_names,
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
    rows = []
    for index, path in enumerate(source.paths):
        if (pair := cues(path)) is not None:
            rows.append((index, path.rpartition("/")[2], *pair))
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
    `nearest_mean` of those images instead.
    """
    if learn_from is not None:
        return nearest_mean(loaded, learn_from, device, passes)
    wanted = sorted({*shown["shape"], *shown["texture"]})
    outputs = output_count(loaded, device)
    return forced_choice(outputs, wanted, class_names(loaded) if classes is None else classes)


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
        `shape_bias` and `write_decisions`. Its `attrs` count the `stimuli`, those of `unknown` categories, which were
        left out, and those `unreadable`.

    Raises:
        ActstatsError: no stimuli, or a network that knows fewer than two of their categories.
    """
    shown = stimuli(source)
    passes = passes or Passes()
    target = prepared(loaded, passes.device)
    readout = stimuli_readout(loaded, target, shown, classes=classes, learn_from=learn_from, passes=passes)
    known = shown["shape"].isin(readout.names) & shown["texture"].isin(readout.names)
    counts = {"stimuli": len(shown), "unknown": int((~known).sum())}
    shown = shown[known].reset_index(drop=True)
    chosen = Subset(source, shown["image"].tolist())
    read, outputs = logits(loaded, chosen, target, passes)
    said = pd.Series([readout.names[i] for i in readout.decide(outputs)], index=read, name="response")
    table = shown.join(said, how="inner").assign(observer=name or str(loaded.identity["arch"]))
    table = table[["observer", "response", "shape", "texture", "imagename"]].reset_index(drop=True)
    table.attrs = {**counts, "unreadable": len(shown) - len(read)}
    return table
