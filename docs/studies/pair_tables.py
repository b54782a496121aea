"""Write the tables and plots of `pair.md` from the figures in `pair.json`, without the photographs.

python docs/studies/pair_tables.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from markdown_table import table
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import ttest_ind

from actstats.analysis.plotting import COLOURS
from actstats.analysis.replication import LEAST_NETWORKS
from actstats.analysis.shape_bias import HUMANS

HERE: Final = Path(__file__).parent
OF_LAYERS: Final = ("pair.tables", "probes.tables")
DRAWN: Final = {
    "R's activation maps are smoother": "roughness of the activation maps",
    "Noise changes R's maps less": "change of the maps by noise",
    "R's maps have lower frequencies": "spectral centroid, cycles/pixel",
    "R's top images are less mixed": "class entropy of the top images, bit",
}
LOW_LEVEL: Final = ("colour", "edge", "texture")

Figures = dict[str, Any]


def write(folder: Path) -> None:
    """Write the tables and plots of the figures in `folder` into it."""
    figures = json.loads((folder / "pair.json").read_text())
    for name, lines in tables(figures).items():
        (folder / name).write_text(lines)
    draw_layers(figures, folder / "pair-layers.png")
    draw_probes(figures, folder / "pair-probes.png")


def tables(figures: Figures) -> dict[str, str]:
    """Return the text of each file of tables, by name."""
    of_units = [*_networks(figures), *_findings(figures), *_by_layer(figures), *_noise(figures)]
    of_answers = [*_biases(figures), *_cues(figures), *_detectors(figures), *_ablations(figures)]
    return {
        name: "\n".join(lines) + "\n" for name, lines in zip(OF_LAYERS, (of_units, of_answers), strict=True)
    }


def _networks(figures: Figures) -> Iterator[str]:
    yield from table(
        f"**The networks**. S0 and R0 are the embedded pair. Per cent correct of {figures['images']} photographs, "
        "clean and attacked by PGD-20 within an l2 radius, as in the model card.",
        ("network", "seed", "clean", "ε = 1", "ε = 2", "SHA-256 of the weights"),
        (
            (of["name"], of["seed"], *(f"{100 * share:.1f}" for share in of["accuracy"]), f"`{of['sha256']}`")
            for of in figures["networks"]
        ),
    )


def _findings(figures: Figures) -> Iterator[str]:
    yield from table(
        f"**The paper's findings**, {_runs(figures)}. Values are medians over all units, as a mean over the networks "
        "with the lowest and the highest. The delta is the median over layers, and so is S against S, the greatest "
        "between two networks of S.",
        ("finding", "S", "R", "difference", "verdict", "the embedded pair alone"),
        (
            (
                *(line["claim"], *line["values"], line["difference"].replace("S against S nan", "one S")),
                _verdict(line),
                f"{line['pair']['difference']}: {line['pair']['words'].removeprefix('this pair: ')}",
            )
            for line in figures["findings"]
        ),
    )


def _verdict(line: dict[str, Any]) -> str:
    return f"**{line['words']}**" if line["scope"].startswith("over") else line["words"]


def _by_layer(figures: Figures) -> Iterator[str]:
    for line in figures["findings"]:
        if line["by_layer"]:
            yield from table(
                f"**{line['claim']}**: {line['measure'].rstrip('.')}. Medians over units, network by network; bold "
                "where a layer counts as lower or higher over training runs. The last column is what the "
                "embedded pair decides.",
                (
                    "layer",
                    "S",
                    "R",
                    "R - S, 95 % interval over networks",
                    "p",
                    "delta",
                    "S against S",
                    "this pair",
                ),
                map(_layer, line["by_layer"], line["pair"]["decisions"]),
            )


def _layer(row: dict[str, Any], of_pair: str) -> tuple[str, ...]:
    mark = "**" if row["decision"] in ("lower", "higher") else ""
    return (
        row["layer"],
        *(" / ".join(map(_number, row[f"medians_{kind}"])) for kind in "sr"),
        mark + _interval(row["difference"], row["difference_low"], row["difference_high"]) + mark,
        _number(row["p"], 2),
        f"{row['delta']:+.2f}",
        _number(row["null_delta"], 2),
        of_pair,
    )


def _noise(figures: Figures) -> Iterator[str]:
    """Yield what part of the change of the input does not arrive in each layer."""
    layers: dict[str, dict[str, float]] = {}
    for row in figures["noise"]:
        layers.setdefault(row["layer"], {})[row["network"]] = row["blocked"]
    yield from table(
        "**Blocked noise**: 1 less the change of a layer's maps over the change of the photographs, both relative to "
        "the variance of the clean ones; 0 if the maps change as much, below 0 if they change more.",
        ("layer", *_names(figures)),
        ((layer, *(f"{of[name]:.2f}" for name in _names(figures))) for layer, of in layers.items()),
    )


def _biases(figures: Figures) -> Iterator[str]:
    yield from table(
        "**Shape or texture**, the cue-conflict stimuli whose two cues differ and are among the 11 categories. "
        "Intervals are clustered by shape image and texture image, those of people by person, too; clusters is the "
        "least of these numbers.",
        ("observer", "trials", "shape", "texture", "other", "clusters", "shape bias, 95 % interval"),
        (
            (
                *(row[key] for key in ("observer", "trials", "shape", "texture", "other", "clusters")),
                _share(row["shape_bias"], row["low"], row["high"]),
            )
            for row in figures["biases"]
        ),
    )
    yield from table(
        "**R - S on the same stimuli**, in points, with two-way intervals; bold where the interval excludes 0. Each "
        "is 95 % by itself.",
        ("R", "S", "difference, 95 % interval"),
        ((row["r"], row["s"], _points(row)) for row in figures["bias_differences"]),
    )
    biases = {row["observer"]: row["shape_bias"] for row in figures["biases"]}
    yield from table(
        "**Over training runs**, Welch's t test on the networks' shape biases, in per cent. It leaves out that other "
        "stimuli would give other biases.",
        ("S", "R", "R - S, 95 % interval over networks", "p"),
        [compared(figures, {name: 100 * biases[name] for name in _names(figures)}, 1)],
    )


def _cues(figures: Figures) -> Iterator[str]:
    versions: dict[str, dict[str, dict[str, Any]]] = {}
    for row in figures["cues"]:
        versions.setdefault(row["version"], {})[row["network"]] = row
    images = figures["cues"][0]["images"]
    yield from table(
        f"**One cue gone**: per cent right of the {images} photographs that all networks get right when clean, "
        "network by network; bold where p of Welch's t test over networks is below 0.05.",
        ("version", "S", "R", "R - S, 95 % interval over networks", "p"),
        (
            (version, *compared(figures, {name: 100 * of[name]["accuracy"] for name in of}, 1))
            for version, of in versions.items()
            if version != "clean"
        ),
    )
    pair: dict[str, list[dict[str, Any]]] = {}
    for row in figures["cues_of_pair"]:
        pair.setdefault(row["version"], []).append(row)
    yield from table(
        f"**One cue gone, the embedded pair alone**: the {figures['cues_of_pair'][0]['images']} photographs that "
        "both get right when clean. Intervals and McNemar's test are over photographs.",
        ("version", "S0, 95 % interval", "R0, 95 % interval", "R - S", "p (McNemar)"),
        (
            (
                version,
                *(_share(of["accuracy"], of["low"], of["high"]) for of in both),
                f"{100 * both[1]['difference']:+.1f}",
                f"{both[1]['p']:.1g}",
            )
            for version, both in pair.items()
            if version != "clean"
        ),
    )


def _detectors(figures: Figures) -> Iterator[str]:
    kinds = {"colours, edges and textures": LOW_LEVEL, "a photograph's category": ("photograph",)}
    for title, categories in kinds.items():
        counts: dict[str, dict[str, float]] = {}
        for row in figures["detectors"]:
            if row["category"] in categories:
                for layer in (row["layer"], "all layers"):
                    of = counts.setdefault(layer, dict.fromkeys(_names(figures), 0.0))
                    of[row["network"]] += row["detectors"]
        counts["all layers"] = counts.pop("all layers")
        yield from table(
            f"**Concepts**: units that detect {title} (IoU of 0.04 or more), network by network; bold where p of "
            "Welch's t test over networks is below 0.05.",
            ("layer", "S", "R", "R - S, 95 % interval over networks", "p"),
            ((layer, *compared(figures, of, 0)) for layer, of in counts.items()),
        )


def _ablations(figures: Figures) -> Iterator[str]:
    yield from table(
        "**Without the roughest tenth of a layer's units**: change of the accuracy on photographs, in points, beside "
        f"that of {figures['random']} random sets of as many units of the layer, as active as these. p is the share "
        "of sets that cost as much, the set itself included; bold up to 0.05. The last column is Spearman's "
        "correlation of roughness with activity, the share of activations above 0, over the units.",
        ("layer", "network", "units", "change", "random sets, mean", "worst", "p", "roughness, activity"),
        (
            (
                *(row["layer"], row["network"], int(row["units"]), _change(row)),
                *(f"{100 * row[key]:+.1f}" for key in ("random_mean", "random_worst")),
                *(f"{row['p_random']:.2g}", f"{row['activity']:+.2f}"),
            )
            for row in sorted(figures["ablations"], key=lambda row: row["layer"])
        ),
    )


def _change(row: dict[str, Any]) -> str:
    mark = "**" if row["p_random"] <= 0.05 else ""
    return f"{mark}{100 * row['change']:+.1f}{mark}"


def _names(figures: Figures, kind: str = "") -> list[str]:
    return [of["name"] for of in figures["networks"] if of["kind"].startswith(kind)]


def _runs(figures: Figures) -> str:
    """Return of how many networks a table is, and what follows from that."""
    s, r = (len(_names(figures, kind)) for kind in "SR")
    few = (
        "" if min(s, r) >= LEAST_NETWORKS else f": too few for verdicts, which take {LEAST_NETWORKS} of each"
    )
    return f"{s} network{'s' * (s > 1)} of S and {r} of R{few}"


def compared(figures: Figures, values: dict[str, float], digits: int) -> tuple[str, str, str, str]:
    """Return the cells of one number per network: those of S, those of R, and Welch's test where it can decide."""
    sides = [[values[name] for name in _names(figures, kind)] for kind in "SR"]
    cells = [" / ".join(f"{value:.{digits}f}" for value in side) for side in sides]
    s, r = sides
    difference = np.mean(r) - np.mean(s)
    if min(len(s), len(r)) < LEAST_NETWORKS or not (np.ptp(s) or np.ptp(r)):
        return cells[0], cells[1], f"{difference:+.1f}", "none"
    test = ttest_ind(r, s, equal_var=False)
    low, high = test.confidence_interval()
    mark = "**" if test.pvalue < 0.05 else ""
    shown = f"{mark}{difference:+.1f} ({low:+.1f} to {high:+.1f}){mark}"
    return cells[0], cells[1], shown, f"{test.pvalue:.2g}"


def _number(value: float | None, digits: int = 3) -> str:
    return "none" if value is None else f"{value:.{digits}g}"


def _interval(value: float, low: float | None, high: float | None) -> str:
    return f"{value:+.3g}" if low is None or high is None else f"{value:+.3g} ({low:+.3g} to {high:+.3g})"


def _points(row: dict[str, Any]) -> str:
    mark = "**" if np.sign(row["low"]) == np.sign(row["high"]) else ""
    return f"{mark}{100 * row['difference']:+.1f} ({100 * row['low']:+.1f} to {100 * row['high']:+.1f}){mark}"


def _share(value: float, low: float, high: float) -> str:
    return f"{100 * value:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def draw_layers(figures: Figures, file: Path) -> None:
    """Draw medians over each layer's units, a line for each network."""
    lines = {line["claim"]: line["by_layer"] for line in figures["findings"]}
    figure = Figure(figsize=(9, 5.6), layout="constrained")
    for axes, (claim, title) in zip(figure.subplots(2, 2).flat, DRAWN.items(), strict=True):
        layers = lines[claim]
        for kind in "SR":
            values = np.array([layer[f"medians_{kind.lower()}"] for layer in layers], dtype=float)
            for at, name in enumerate(_names(figures, kind)):
                style = {"marker": "o", "ms": 3, "lw": 1.2, "color": COLOURS[kind], "alpha": 0.75}
                axes.plot(values[:, at], label=kind if name == _names(figures, kind)[0] else None, **style)
        axes.set_title(title, fontsize=10)
        axes.set_xticks(
            range(len(layers)), [row["layer"] for row in layers], rotation=60, ha="right", fontsize=7
        )
        axes.grid(alpha=0.3)
        if claim.startswith("Noise"):
            axes.set_yscale("log")
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False
    )
    figure.savefig(file, dpi=150)


def draw_probes(figures: Figures, file: Path) -> None:
    """Draw shape biases with their intervals, and each network's accuracy with one cue removed."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 2))
    names = [row["observer"] for row in figures["biases"]]
    for at, row in enumerate(figures["biases"]):
        low, high = row["shape_bias"] - row["low"], row["high"] - row["shape_bias"]
        left.errorbar(at, row["shape_bias"], [[low], [high]], fmt="o", color=_colour(names[at]), capsize=3)
    left.set_xticks(range(len(names)), ["people" if name == HUMANS else name for name in names])
    left.set_title("shape bias, 95 % interval over stimuli", fontsize=10)
    rows = [row for row in figures["cues"] if row["version"] != "clean"]
    versions = list(dict.fromkeys(row["version"] for row in rows))
    for shift, kind in ((-0.12, "S"), (0.12, "R")):
        _points_of(
            right, shift, kind, [row for row in rows if row["network"] in _names(figures, kind)], versions
        )
    right.set_xticks(range(len(versions)), versions, rotation=40, ha="right", fontsize=8)
    right.set_title("accuracy on the photographs that all get right when clean", fontsize=10)
    right.legend(frameon=False, loc="upper left", ncols=2)
    for axes in (left, right):
        axes.set_ylim(0, 1.02)
        axes.grid(axis="y", alpha=0.3)
    figure.savefig(file, dpi=150)


def _points_of(
    axes: Axes, shift: float, kind: str, rows: Sequence[dict[str, Any]], versions: Sequence[str]
) -> None:
    places = [versions.index(row["version"]) + shift for row in rows]
    axes.plot(
        places, [row["accuracy"] for row in rows], "o", ms=4, color=COLOURS[kind], alpha=0.75, label=kind
    )


def _colour(name: str) -> str:
    return COLOURS.get(name[0], "#555555") if name != HUMANS else "#555555"


if __name__ == "__main__":
    write(HERE)
