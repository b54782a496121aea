"""The pair's answers: shape or texture, one cue removed, concepts that units detect, ablation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import xarray as xr
from markdown_table import table
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from actstats import open_source
from actstats.analysis import plotting, smoothness, unit_table
from actstats.analysis.shape_bias import HUMANS, read_decisions, shape_bias
from actstats.data import Source
from actstats.demo.pair import Stores
from actstats.distort import parse
from actstats.layers import select_layers
from actstats.layers.layer import Layer
from actstats.models import Loaded
from actstats.probing.ablate import INTACT, ablate_accuracy, ablate_decisions
from actstats.probing.concepts import open_segmented
from actstats.probing.cue_conflict import decide
from actstats.probing.cues import Version, cue_accuracy
from actstats.probing.dissect import detectors, dissection, overlaps, thresholds
from actstats.probing.unit_sets import by_category, by_rank, each_unit

VERSIONS = (
    *("scramble:2", "scramble:4", "scramble:8"),
    *("contour", "greyscale", "lowpass:8", "highpass:8", "noise:0.05", "noise:0.1", "noise:0.2"),
)
RANK = "roughness"
SHARE = 0.1
SINGLY = ("conv1",)  # Its units are ablated one by one.
COLOURS = {**plotting.COLOURS, HUMANS: "#555555"}

Pair = Mapping[str, Loaded]


def write(
    stores: Stores, pair: Pair, photographs: Path, stimuli: str, decisions: Path | None, into: Path
) -> None:
    """Write `probes.tables` and `pair-probes.png`."""
    shown = open_source(stimuli)
    images = open_source(photographs)
    biases = _biases(pair, shown, decisions)
    cues = cue_accuracy(pair, images, [Version(name, parse(name)) for name in VERSIONS], correct_only=True)
    lines = [*_bias_lines(biases), *_cue_lines(cues)]
    dissected = _dissected(stores, pair, photographs)
    units = {name: unit_table(found) for name, found in dissected.items()}
    lines += [*_detector_lines(dissected), *_ablation_lines(stores, pair, units, images, shown)]
    (into / "probes.tables").write_text("\n".join(lines) + "\n")
    draw(biases, cues, into / "pair-probes.png")


def _biases(pair: Pair, shown: Source, decisions: Path | None) -> pd.DataFrame:
    """Return `shape_bias` of the pair, and of people on the same stimuli."""
    said = [decide(loaded, shown, name=name) for name, loaded in pair.items()]
    if decisions is not None:
        recorded = read_decisions([decisions])
        names = set(said[0]["imagename"])
        people = recorded["observer"].str.startswith("subject-") & recorded["imagename"].map(
            lambda name: any(str(name).endswith(stimulus) for stimulus in names)
        )
        said.append(recorded[people])
    return shape_bias(pd.concat(said, ignore_index=True))


def _bias_lines(biases: pd.DataFrame) -> Iterator[str]:
    kept = biases[biases["observer"].isin(COLOURS)]
    columns = ("observer", "trials", "shape", "texture", "other", "shape bias, 95 % interval")
    whole = (
        kept[kept["category"] == "all"]
        .set_index("observer")
        .loc[[n for n in COLOURS if n in set(kept["observer"])]]
    )
    yield from table(
        "**Shape or texture**, the cue-conflict stimuli whose two cues differ and are among the 11 categories.",
        columns,
        (
            (at, row.trials, row.shape, row.texture, row.other, _share(row.shape_bias, row.low, row.high))
            for at, row in zip(whole.index, whole.itertuples(), strict=True)
        ),
    )
    by_category = kept[(kept["category"] != "all") & (kept["observer"] != HUMANS)]
    wide = by_category.pivot_table(
        index="category", columns="observer", values=["shape", "texture", "trials"]
    )
    yield from table(
        "**By the category of the shape**: decisions for shape and for texture.",
        ("shape", "trials", "S", "R"),
        (
            (
                name,
                int(row["trials", "S"]),
                *(f"{row['shape', n]:.0f} : {row['texture', n]:.0f}" for n in "SR"),
            )
            for name, row in wide.iterrows()
        ),
    )


def _cue_lines(cues: pd.DataFrame) -> Iterator[str]:
    rows = []
    for version, part in cues.groupby("version", sort=False):
        s, r = (part[part["network"] == name].iloc[0] for name in "SR")
        shares = (_share(row["accuracy"], row["low"], row["high"]) for row in (s, r))
        rows.append((version, s["images"], *shares, f"{100 * r['difference']:+.1f}", f"{r['p']:.1g}"))
    yield from table(
        "**One cue gone**: per cent right of the photographs that both networks get right when clean.",
        ("version", "images", "S, 95 % interval", "R, 95 % interval", "R - S", "p (McNemar)"),
        rows,
    )


def swept_layers(dataset: xr.Dataset, loaded: Loaded) -> list[Layer]:
    """Return the layers of a sweep in the network that was swept."""
    names = [layer["name"] for layer in dataset.attrs["layers"]]
    return select_layers(loaded.model, torch.zeros(2, *loaded.preprocessing.shape), names)


def _dissected(stores: Stores, pair: Pair, photographs: Path) -> dict[str, xr.Dataset]:
    """Return, for each network, the concept that each unit overlaps most."""
    found = {}
    for (name, loaded), dataset in zip(pair.items(), stores.opened(), strict=True):
        layers = swept_layers(dataset, loaded)
        found[name] = dissection(overlaps(loaded, open_segmented(photographs), layers, thresholds(dataset)))
    return found


def _detector_lines(dissected: Mapping[str, xr.Dataset]) -> Iterator[str]:
    tables = {name: detectors(found).set_index(["layer", "category"]) for name, found in dissected.items()}
    layers = list(dict.fromkeys(tables["S"].index.get_level_values("layer")))
    categories = [
        name for name in dict.fromkeys(tables["S"].index.get_level_values("category")) if name != "all"
    ]
    rows = []
    for layer in layers:
        cells = [
            f"{tables['S'].loc[(layer, c), 'detectors']} : {tables['R'].loc[(layer, c), 'detectors']}"
            for c in ("all", *categories)
        ]
        rows.append((layer, tables["S"].loc[(layer, "all"), "units"], *cells))
    totals = [
        " : ".join(str(tables[n].xs(c, level="category")["detectors"].sum()) for n in "SR")
        for c in ("all", *categories)
    ]
    rows.append(("all layers", dissected["S"].sizes["unit"], *totals))
    yield from table(
        "**Concepts**: units that detect one (IoU of 0.04 or more), S : R.",
        ("layer", "units", "all", *categories),
        rows,
    )


def _ablation_lines(
    stores: Stores, pair: Pair, units: Mapping[str, pd.DataFrame], images: Source, shown: Source
) -> Iterator[str]:
    rows: dict[str, list[tuple[object, ...]]] = {"rank": [], "category": [], "singly": []}
    found = {}
    for (name, loaded), dataset in zip(pair.items(), stores.opened(), strict=True):
        layers = swept_layers(dataset, loaded)
        ranked = by_rank(unit_table(smoothness(dataset)), RANK, [SHARE])
        sets = [*ranked, *by_category(units[name])]
        right = ablate_accuracy(loaded, images, layers, sets).set_index("ablation")
        said = ablate_decisions(loaded, shown, layers, sets).set_index("ablation")
        found[name] = right.join(said[["trials", "shape_change", "texture_change", "bias_change"]])
        first = [layer for layer in layers if layer.name in SINGLY]
        single = ablate_decisions(loaded, shown, first, each_unit(first)).set_index("ablation")
        single = single.drop(INTACT).sort_values("shape_change")
        for at in (*range(3), *range(-3, 0)):
            row = single.iloc[at]
            rows["singly"].append((name, single.index[at], *_changes(row), f"{row['p']:.2g}"))
    for layer in dict.fromkeys(units["S"]["layer"]):
        for end in ("lowest", "highest"):
            label = f"{layer}:{end} {SHARE:g} {RANK}"
            s, r = (found[name].loc[label] for name in "SR")
            rows["rank"].append(
                (layer, "smoothest" if end == "lowest" else "roughest", s["units"], *_pairs(s, r))
            )
        for category in dict.fromkeys(units["S"]["concept_category"]):
            label = f"{layer}:{category}"
            if all(label in found[name].index for name in "SR"):
                s, r = (found[name].loc[label] for name in "SR")
                rows["category"].append((layer, category, f"{s['units']} : {r['units']}", *_pairs(s, r)))
    heads = ("accuracy S", "R", "shape S", "R", "texture S", "R")
    what = "change, in points, of accuracy on photographs and of the share of stimuli decided by shape and by texture"
    yield from table(
        f"**Without a tenth of a layer's units**, the smoothest or the roughest ({RANK}): {what}.",
        ("layer", "without", "units", *heads),
        rows["rank"],
    )
    yield from table(
        "**Without the detectors of one category**, where both networks have any: the same.",
        ("layer", "without", "units S : R", *heads),
        rows["category"],
    )
    yield from table(
        "**One unit at zero**: of each network the three whose loss costs the most decisions for shape, and the "
        "three whose loss brings the most; p is of one test among 64.",
        ("network", "unit", "shape", "texture", "p"),
        rows["singly"],
    )


def _pairs(s: pd.Series, r: pd.Series) -> list[str]:
    return [f"{100 * x[key]:+.1f}" for key in ("change", "shape_change", "texture_change") for x in (s, r)]


def _changes(row: pd.Series) -> list[str]:
    return [f"{100 * row[key]:+.1f}" for key in ("shape_change", "texture_change")]


def _share(value: float, low: float, high: float) -> str:
    return f"{100 * value:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def draw(biases: pd.DataFrame, cues: pd.DataFrame, file: Path) -> None:
    """Draw shape biases, and accuracies with one cue removed, with their intervals."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 3))
    whole = biases[biases["category"] == "all"].set_index("observer")
    for at, name in enumerate(n for n in COLOURS if n in whole.index):
        row = whole.loc[name]
        _bar(left, at, row["shape_bias"], row["low"], row["high"], COLOURS[name])
    left.set_xticks(range(at + 1), [n for n in COLOURS if n in whole.index])
    left.set_title("shape bias", fontsize=10)
    versions = list(dict.fromkeys(cues["version"]))
    for shift, name in ((-0.2, "S"), (0.2, "R")):
        for at, row in enumerate(cues[cues["network"] == name].itertuples()):
            _bar(right, at + shift, row.accuracy, row.low, row.high, COLOURS[name], 0.38)
    right.set_xticks(range(len(versions)), versions, rotation=40, ha="right", fontsize=8)
    right.set_title("accuracy on the photographs that both get right when clean", fontsize=10)
    right.legend(
        [right.patches[0], right.patches[len(versions)]], ["S", "R"], frameon=False, loc=(0.32, 0.78)
    )
    for axes in (left, right):
        axes.set_ylim(0, 1)
        axes.grid(axis="y", alpha=0.3)
    figure.savefig(file, dpi=150)


def _bar(
    axes: Axes, at: float, value: float, low: float, high: float, colour: str, width: float = 0.6
) -> None:
    axes.bar(at, value, width, color=colour, alpha=0.8)
    axes.errorbar(at, value, np.array([[value - low], [high - value]]), color="black", lw=1, capsize=2)
