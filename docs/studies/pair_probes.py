"""How the networks answer: shape or texture, one cue removed, concepts of units, ablation with its control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import xarray as xr
from pair_networks import Kept, Run, split

from actstats import Loaded, open_dataset, open_source
from actstats.analysis import quantiles, smoothness, unit_table
from actstats.analysis.shape_bias import (
    HUMANS,
    compare_shape_bias,
    is_human,
    read_decisions,
    shape_bias,
)
from actstats.data import Source
from actstats.distort import parse
from actstats.layers import select_layers
from actstats.layers.layer import Layer
from actstats.probing.ablate import ablate_accuracy
from actstats.probing.concepts import open_segmented
from actstats.probing.controls import Control
from actstats.probing.cue_conflict import decide
from actstats.probing.cues import Version, cue_accuracy
from actstats.probing.dissect import detectors, dissection, overlaps, thresholds
from actstats.probing.unit_sets import by_rank

VERSIONS = (
    *("scramble:2", "scramble:4", "scramble:8"),
    *("contour", "greyscale", "lowpass:8", "highpass:8", "noise:0.05", "noise:0.1", "noise:0.2"),
)
RANK, SHARE = "roughness", 0.1
ABLATED = ("conv1", "conv2", "conv3")


def measure(
    runs: Sequence[Run],
    work: Path,
    photographs: Path,
    shown: Source,
    decisions: Path | None,
    random: int,
    kept: Kept,
) -> dict[str, Any]:
    """Return the answers of all networks, by probe."""
    loaded = {run.name: run.load() for run in runs}
    said = pd.concat(
        [*(decide(of, shown, name=name) for name, of in loaded.items()), *_people(decisions, shown)],
        ignore_index=True,
    )
    images = open_source(photographs)
    versions = [Version(name, parse(name)) for name in VERSIONS]
    pair = [run.name for kind in split(runs) for run in kind[:1]]
    cues = cue_accuracy(loaded, images, versions, correct_only=True)
    of_pair = cue_accuracy({name: loaded[name] for name in pair}, images, versions, correct_only=True)
    return {
        "biases": _biases(said, list(loaded)),
        "bias_differences": _differences(said, runs),
        "cues": _records(cues, "version", "network", "images", "accuracy"),
        "cues_of_pair": _records(
            of_pair, "version", "network", "images", "accuracy", "low", "high", "difference", "p"
        ),
        "detectors": [
            {"network": run.name, **row}
            for run in runs
            for row in kept(run, "detectors", lambda run=run: _detectors(run, loaded, work, photographs))
        ],
        "ablations": [
            {"network": run.name, **row}
            for run in runs
            for row in kept(
                run, f"ablations-{random}", lambda run=run: _ablations(run, loaded, work, images, random)
            )
        ],
    }


def _people(decisions: Path | None, shown: Source) -> list[pd.DataFrame]:
    """Return the recorded decisions of people on the stimuli that are shown."""
    if decisions is None:
        return []
    recorded = read_decisions([decisions])
    names = tuple(Path(path).name for path in shown.paths)
    people = recorded["observer"].map(is_human) & recorded["imagename"].map(
        lambda name: str(name).endswith(names)
    )
    return [recorded[people]]


def _biases(said: pd.DataFrame, networks: Sequence[str]) -> list[dict[str, Any]]:
    table = shape_bias(said)
    chosen = table[(table["category"] == "all") & table["observer"].isin([*networks, HUMANS])]
    columns = ("observer", "trials", "shape", "texture", "other", "shape_bias", "low", "high", "clusters")
    order = {name: at for at, name in enumerate([*networks, HUMANS])}
    return _records(chosen.sort_values("observer", key=lambda names: names.map(order)), *columns)


def _differences(said: pd.DataFrame, runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return R - S for every network of R and every one of S, on the same stimuli."""
    names = [run.name for run in runs]
    table = compare_shape_bias(said[said["observer"].isin(names)]).set_index(["observer", "other"])
    rows = []
    for s, r in product(*split(runs)):
        row = table.loc[(r.name, s.name)]  # Observers are in alphabetical order, R before S.
        rows.append({"s": s.name, "r": r.name, **{name: row[name] for name in ("difference", "low", "high")}})
    return rows


def swept_layers(dataset: xr.Dataset, loaded: Loaded) -> list[Layer]:
    """Return the layers of a sweep in the network that was swept."""
    names = [layer["name"] for layer in dataset.attrs["layers"]]
    return select_layers(loaded.model, torch.zeros(2, *loaded.preprocessing.shape), names)


def _detectors(run: Run, loaded: Mapping[str, Loaded], work: Path, photographs: Path) -> list[dict[str, Any]]:
    """Return how many units of each layer detect a concept of each category."""
    dataset = open_dataset(run.store(work))
    layers = swept_layers(dataset, loaded[run.name])
    counted = overlaps(loaded[run.name], open_segmented(photographs), layers, thresholds(dataset))
    return _records(detectors(dissection(counted)), "layer", "category", "units", "detectors")


def _ablations(
    run: Run, loaded: Mapping[str, Loaded], work: Path, images: Source, random: int
) -> list[dict[str, Any]]:
    """Return the accuracy without the roughest tenth of the units of the first layers, and without random ones.

    `activity` is Spearman's correlation, over the layer's units, of roughness with the share of activations above 0.
    """
    dataset = open_dataset(run.store(work))
    layers = [layer for layer in swept_layers(dataset, loaded[run.name]) if layer.name in ABLATED]
    units = unit_table(xr.merge([smoothness(dataset)[RANK], quantiles(dataset, 0.5)["sparsity"]]).compute())
    units = units[units["layer"].isin(ABLATED)]
    roughest = [chosen for chosen in by_rank(units, RANK, [SHARE]) if ":highest " in chosen.name]
    table = ablate_accuracy(
        loaded[run.name], images, layers, roughest, control=Control(random, matched=True)
    ).set_index("layers")
    columns = ("units", "change", "random_mean", "random_worst", "p_random")
    return [
        {
            "layer": layer,
            **table.loc[layer, list(columns)].to_dict(),
            "activity": part[RANK].corr(1 - part["sparsity"], method="spearman"),
        }
        for layer, part in units.groupby("layer", sort=False)
    ]


def _records(table: pd.DataFrame, *columns: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = table[list(columns)].to_dict("records")
    return rows
