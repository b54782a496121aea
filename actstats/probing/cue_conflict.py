"""The cue-conflict test of a network: what it says of one thing's shape in the texture of another."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from actstats.analysis.shape_bias import cues
from actstats.data import Source
from actstats.errors import ActstatsError
from actstats.models import Loaded
from actstats.probing.forward import Advance, Subset, logits, prepared
from actstats.probing.readout import Readout, class_names, forced_choice, output_count


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
    loaded: Loaded, outputs: int, shown: pd.DataFrame, classes: Sequence[str] | None
) -> Readout:
    """Return the forced choice among the stimuli's categories, for a network with so many outputs.

    `classes` names its outputs in order; None: as its weights file does, or ImageNet's.
    """
    wanted = sorted({*shown["shape"], *shown["texture"]})
    return forced_choice(outputs, wanted, class_names(loaded) if classes is None else classes)


def decide(
    loaded: Loaded,
    source: Source,
    *,
    name: str | None = None,
    classes: Sequence[str] | None = None,
    batch_size: int = 32,
    device: str = "auto",
    workers: int | None = None,
    advance: Advance | None = None,
) -> pd.DataFrame:
    """Return the network's decision on every stimulus whose shape and texture are among its categories.

    With ImageNet's 1,000 outputs it is a forced choice among the 16 entry-level categories (mean probability over
    each category's outputs, then the greatest); with classes of its own, among those that occur in the stimuli.

    Args:
        loaded: the network with its preprocessing.
        source: images named `<shape>/<shape><n>-<texture><n>.png`; others are passed over.
        name: of the observer in the table; None: the architecture's.
        classes: names of the network's outputs in order; None: those that its weights file brings, or ImageNet's.
        batch_size: images a forward pass.
        device: "cpu", "cuda", or "auto".
        workers: threads that decode; None: one for each core but at most 8.
        advance: called after each batch.

    Returns:
        A row for each stimulus that could be read: `observer`, `response`, `shape`, `texture`, `imagename`, fit for
        `shape_bias` and `write_decisions`. Its `attrs` count the `stimuli`, those of `unknown` categories, which were
        left out, and those `unreadable`.

    Raises:
        ActstatsError: no stimuli, or a network that knows fewer than two of their categories.
    """
    shown = stimuli(source)
    target = prepared(loaded, device)
    readout = stimuli_readout(loaded, output_count(loaded, target), shown, classes)
    known = shown["shape"].isin(readout.names) & shown["texture"].isin(readout.names)
    counts = {"stimuli": len(shown), "unknown": int((~known).sum())}
    shown = shown[known].reset_index(drop=True)
    chosen = Subset(source, shown["image"].tolist())
    read, outputs = logits(loaded, chosen, target, batch_size=batch_size, workers=workers, advance=advance)
    said = pd.Series([readout.names[i] for i in readout.decide(outputs)], index=read, name="response")
    table = shown.join(said, how="inner").assign(observer=name or str(loaded.identity["arch"]))
    table = table[["observer", "response", "shape", "texture", "imagename"]].reset_index(drop=True)
    table.attrs = {**counts, "unreadable": len(shown) - len(read)}
    return table
