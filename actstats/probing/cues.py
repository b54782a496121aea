"""How accurate networks are once a cue is gone: shape by scrambling, texture by silhouettes, contours or a style.

Chen, Agarwal and Nguyen 2020 (arXiv 2006.09373) compare a standard network with an adversarially trained one on
such versions of the images that both classify correctly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from actstats.analysis.inference import crossed_interval, paired_p
from actstats.analysis.shape_bias import UNNUMBERED, cues_of, stimulus_factors, stimulus_images
from actstats.data import NO_LABEL, Source
from actstats.data.image import is_image_name
from actstats.data.preprocessing import of_images
from actstats.distort import Chain
from actstats.errors import ActstatsError
from actstats.models import Loaded
from actstats.probing.forward import Passes, logits, prepared
from actstats.probing.readout import UNREAD, exclusions, labelled_readout, nearest_mean

CLEAN = "clean"
"""The name of the version that nothing was done to."""


@dataclass(frozen=True)
class Version:
    """One version of the images: `chain` distorts those of `source` (None: the clean ones)."""

    name: str
    chain: Chain | None = None
    source: Source | None = None


def cue_accuracy(
    networks: Mapping[str, Loaded],
    source: Source,
    versions: Sequence[Version],
    *,
    classes: Sequence[str] | None = None,
    correct_only: bool = False,
    learn_from: Source | None = None,
    passes: Passes | None = None,
) -> pd.DataFrame:
    """Return each network's accuracy on the clean images and on each version of them.

    Args:
        networks: by name, in the order of the table; two or more are set against the first.
        source: the clean images, with classes that the networks can say (`labelled_readout`).
        versions: what is done to them, or other sources of the same classes (stylised images, say).
        classes: names of the networks' outputs in order; None: as their weights have them, or ImageNet's.
        correct_only: count only the images whose clean version all the networks get right ("ImageNet-CL" in the
            paper); another source's images belong to the clean ones of the same path, endings aside.
        learn_from: other images of the same classes, for networks that have other classes: an image is said to be of
            the class whose mean outputs on these are nearest (`NearestMean`). None: what the outputs stand for.
        passes: batch size, device, progress (of one version and network at a time).

    Returns:
        A row for each version, `clean` first, and network: `version`, `network`, `images`, `correct`, `accuracy`,
        with Wilson's 95 % interval `low`, `high`; `change`, against the clean images; and against the first network
        on the same images, `difference` of the accuracies and `p` of McNemar's exact test (NaN for itself). Versions
        whose images are named as cue-conflict stimuli share shape and texture images: their intervals and tests are
        clustered by both (`crossed_interval`, `paired_p`). Images
        that could not be read, or whose class one of the networks does not know, are excluded; `attrs["notes"]` says
        how many.

    Raises:
        ActstatsError: no network, two versions of one name, images without classes, classes that a network cannot
            say, nothing left to count, a distortion that does not fit the images.
    """
    if not networks:
        raise ActstatsError("no network was given")
    named = [Version(CLEAN), *versions]
    again = [version.name for version in named if sum(other.name == version.name for other in named) > 1]
    if again:
        raise ActstatsError(f"two versions of the images have the name {again[0]!r}")
    right: dict[str, dict[str, NDArray[np.int8]]] = {version.name: {} for version in named}
    notes: list[str] = []
    passes = passes or Passes()
    for network, loaded in networks.items():
        target = prepared(loaded, passes.device)
        learned = None if learn_from is None else nearest_mean(loaded, learn_from, target, passes)
        for version in named:
            if version.chain is not None:
                version.chain.check(of_images(loaded.preprocessing, "distorting images"))
            images = version.source or source
            readout, truth = labelled_readout(loaded, images, target, classes=classes, learned=learned)
            rows, outputs = logits(loaded, images, target, passes, version.chain)
            decisions = np.full(len(images), UNREAD)
            decisions[rows] = readout.decide(outputs)
            known = truth != NO_LABEL
            counted = known & (decisions != UNREAD)
            right[version.name][network] = np.where(counted, decisions == truth, -1).astype(np.int8)
            notes += exclusions(f"{network}, {version.name}", known, decisions)
    clean = right[CLEAN]
    kept = np.all([said == 1 if correct_only else said >= 0 for said in clean.values()], axis=0)
    table = []
    for version in named:
        chosen = kept
        if version.source is not None:
            chosen = (
                _of_paths(version.source, source, kept)
                if correct_only
                else np.ones(len(version.source), bool)
            )
        factors = _factors((version.source or source).paths, notes)
        table += _rows(version.name, right[version.name], chosen, factors)
    result = _with_change(pd.DataFrame(table))
    result.attrs["notes"] = list(dict.fromkeys(notes))
    return result


def _rows(
    version: str,
    right: Mapping[str, NDArray[np.int8]],
    kept: NDArray[np.bool_],
    factors: Sequence[NDArray[np.object_]],
) -> list[dict[str, object]]:
    """Return the rows of one version: right is 1, wrong 0, and unread -1, i8 [images] for each network."""
    kept = kept & np.all([said >= 0 for said in right.values()], axis=0)
    if not kept.any():
        raise ActstatsError(f"no image of the version {version!r} is left to count")
    factors = [factor[kept] for factor in factors]
    first: NDArray[np.bool_] | None = None
    rows = []
    for network, said in right.items():
        good = said[kept] == 1
        images, correct = len(good), int(good.sum())
        interval = crossed_interval(good, factors)
        against = good if first is None else first
        rows.append({
            "version": version, "network": network, "images": images, "correct": correct,
            "accuracy": correct / images, "low": interval.low, "high": interval.high,
            "difference": np.nan if first is None else float(good.mean() - against.mean()),
            "p": np.nan if first is None else paired_p(against, good, factors),
        })  # fmt: skip
        first = against
    return rows


def _factors(paths: Sequence[str], notes: list[str]) -> list[NDArray[np.object_]]:
    """Return the levels of the factors of crossed stimuli, `<shape>/<shape><n>-<texture><n>.png`; none for others."""
    pairs = [pair for pair in cues_of(paths) if pair is not None]
    shapes, textures = ([pair[at] for pair in pairs] for at in (0, 1))
    if shapes != [path.rpartition("/")[0].rpartition("/")[2].lower() for path in paths]:
        return []
    factors = stimulus_factors(stimulus_images(paths, shapes, textures))
    if not factors:
        notes.append(UNNUMBERED.format("the networks"))
    return factors


def _with_change(table: pd.DataFrame) -> pd.DataFrame:
    """Add how far each accuracy is from that on the clean images."""
    clean = table[table["version"] == CLEAN].set_index("network")["accuracy"]
    table.insert(7, "change", table["accuracy"] - table["network"].map(clean))
    return table


def _of_paths(source: Source, clean: Source, kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which images of a source are versions of the clean ones kept: by path, or by path without suffix.

    Raises `ActstatsError` if two clean images differ in their suffix only, so that it is not clear which is meant.
    """
    same = set(source.paths) <= set(clean.paths)
    key = str if same else _without_suffix
    counted = Counter(map(key, clean.paths))
    if (again := max(counted, key=counted.__getitem__)) and counted[again] > 1:
        raise ActstatsError(
            f"{counted[again]} clean images are named {again}, with different suffixes: rename them"
        )
    chosen = {key(path) for path, keep in zip(clean.paths, kept, strict=True) if keep}
    return np.array([key(path) in chosen for path in source.paths])


def _without_suffix(path: str) -> str:
    return path.rpartition(".")[0] if is_image_name(path) else path
