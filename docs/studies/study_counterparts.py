"""Which units of the embedded pair correspond, and what they become: the tables and figures of `counterparts.md`.

    tar xf tiny-imagenet-11.tar
    python docs/studies/study_counterparts.py --data tiny-imagenet-11/val --work pair

Sweeps S, R and two untrained networks of the same architecture over the same photographs, all convolutions, and
matches their units. Sweeps that are already in `--work` are resumed, or reused.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from markdown_table import table
from matplotlib.figure import Figure
from numpy.typing import NDArray

import actstats
from actstats.analysis import (
    cliffs_delta,
    compare_matched,
    match,
    selectivity,
    similarity,
    smoothness,
    spectrum,
)
from actstats.analysis.plotting import COLOURS, draw_similarity

HERE = Path(__file__).parent
NETWORKS = {"s": "S", "r": "R", "u0": "untrained, seed 0", "u1": "untrained, seed 1"}
MEASURES = {
    "roughness": "roughness",
    "centroid": "spectral centroid",
    "selectivity": "class selectivity",
    "top_entropy": "entropy of the classes of the top images",
}
LEASTS = (0.3, 0.5, 0.7, 0.9)
RESAMPLES = 1000


def main() -> None:
    """Sweep, match, and write tables and figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", required=True, help="photographs that neither network was trained on")
    parser.add_argument("--work", type=Path, required=True, help="folder for the sweeps")
    parser.add_argument("--into", type=Path, default=HERE, help="folder for tables and figures")
    given = parser.parse_args()
    stores = sweeps(given.data, given.work)
    pairs = {
        (a, b): match(stores[a], stores[b])
        for a, b in (("s", "r"), ("r", "s"), ("s", "u0"), ("r", "u0"), ("u0", "u1"))
    }
    measured = {name: measures(stores[name]) for name in "sr"}
    lines = [
        *by_block(pairs),
        *by_rule(pairs),
        *by_fate(pairs["s", "r"], measured["s"]),
        *changes(pairs["s", "r"], measured),
        *everywhere(stores, pairs["s", "r"]),
        *alike(stores, given.into),
    ]
    (given.into / "counterparts.tables").write_text("\n".join(lines) + "\n")
    draw(pairs, given.into / "counterparts.png")


def sweeps(data: str, work: Path) -> dict[str, xr.Dataset]:
    """Return the stores of the four networks."""
    work.mkdir(parents=True, exist_ok=True)
    pair = {name: actstats.load_model("googlenet", "demo", robust=name == "r") for name in "sr"}
    for name, loaded in pair.items():
        actstats.sweep(loaded, data, work / f"{name}.zarr", layers="conv", device="cpu")
    for seed in (0, 1):
        actstats.sweep(
            "googlenet", data, work / f"u{seed}.zarr", weights="none", seed=seed, layers="conv", device="cpu",
            preprocessing=pair["s"].preprocessing,
        )  # fmt: skip
    return {name: actstats.open_dataset(work / f"{name}.zarr") for name in NETWORKS}


def measures(store: xr.Dataset) -> xr.Dataset:
    """Return the compared numbers of every unit, in memory."""
    parts = (smoothness(store), spectrum(store), selectivity(store))
    found = {name: part[name] for name in MEASURES for part in parts if name in part}
    return xr.Dataset(found).astype(float).compute()


def blocks_of(found: xr.Dataset) -> NDArray[np.object_]:
    """Return the block of each unit: `inception4a` for the layer `inception4a.branch1`."""
    return np.array([layer.partition(".")[0] for layer in found["layer"].values.tolist()], dtype=object)


def stages_of(found: xr.Dataset) -> NDArray[np.object_]:
    """Return the stage of each unit, the blocks between two poolings."""
    return np.array(
        ["conv1 to conv3" if name[0] == "c" else name[:10] for name in blocks_of(found)], dtype=object
    )


def interval(has: NDArray[np.bool_]) -> str:
    """Return a share in per cent with the 95 % bootstrap interval over units."""
    share = has.mean()
    drawn = np.random.default_rng(0).binomial(len(has), share, RESAMPLES) / len(has)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return f"{100 * share:.0f} % ({100 * low:.0f} to {100 * high:.0f})"


def by_block(pairs: dict[tuple[str, str], xr.Dataset]) -> Iterator[str]:
    """Yield how many units have counterparts, block by block, and how well the best ones agree."""
    there = pairs["s", "r"]
    rows: list[Sequence[object]] = []
    blocks = blocks_of(there)
    for block in [*dict.fromkeys(blocks.tolist()), "all"]:
        here = np.asarray((blocks == block) | (block == "all"))
        part = there.isel(unit=here)
        shares = [
            interval((pairs[key]["counterpart"].values >= 0)[here])
            for key in (("s", "r"), ("r", "s"), ("s", "u0"), ("r", "u0"), ("u0", "u1"))
        ]
        held, same = (float(part[name].median()) for name in ("held_out", "same_channel"))
        rows.append((block, int(here.sum()), *shares, held, same))
    columns = (
        "block", "units", "S in R", "R in S", "S in untrained", "R in untrained", "untrained in untrained",
        "r, held out", "r, same channel",
    )  # fmt: skip
    yield from table(
        "**Units with a counterpart** in the same convolution, and medians over S's units of their correlation with "
        "R: of the best unit on held-out photographs, and of the unit of the same channel.",
        columns,
        rows,
    )


def by_rule(pairs: dict[tuple[str, str], xr.Dataset]) -> Iterator[str]:
    """Yield how the number of counterparts depends on the rule."""
    rows: list[Sequence[object]] = []
    for least in LEASTS:
        row: list[object] = [least]
        for key in (("s", "r"), ("s", "u0")):
            found = pairs[key]
            good = ((found["held_out"] >= least) & (found["q"] <= 0.05)).values
            mutual = good & found["reciprocal"].values & found["stable"].values
            row += [f"{100 * has.mean():.0f} %" for has in (good, mutual)]
        rows.append(row)
    yield from table(
        "**The rule**: S's units with a counterpart, by the least held-out correlation; without and with the "
        "conditions that both units are each other's best on both halves and on all photographs.",
        ("least r", "in R, first two conditions", "all four", "in untrained, first two", "all four"),
        rows,
    )


def by_fate(found: xr.Dataset, measured: xr.Dataset) -> Iterator[str]:
    """Yield how S's units that have a counterpart in R differ from those that have none."""
    has, stages, rng = found["counterpart"].values >= 0, stages_of(found), np.random.default_rng(0)
    rows: list[Sequence[object]] = []
    for name, title in MEASURES.items():
        values = measured[name].values
        row: list[object] = [title]
        for stage in dict.fromkeys(stages.tolist()):
            here = (stages == stage) & np.isfinite(values)
            without, with_ = values[here & ~has], values[here & has]
            drawn = [
                float(cliffs_delta(rng.choice(without, len(without)), rng.choice(with_, len(with_))))
                for _ in range(RESAMPLES // 5)
            ]
            row.append(_effect(float(cliffs_delta(without, with_)), *np.quantile(drawn, [0.025, 0.975])))
        rows.append(row)
    yield from table(
        "**Which units of S survive**: Cliff's delta of units with a counterpart in R against those without; above "
        "0, survivors have more of it. Bold: the 95 % bootstrap interval over units excludes 0.",
        ("measure", *dict.fromkeys(stages.tolist())),
        rows,
    )


def changes(found: xr.Dataset, measured: dict[str, xr.Dataset]) -> Iterator[str]:
    """Yield how counterparts in R differ from their units in S."""
    stages = stages_of(found)
    rows: list[Sequence[object]] = []
    for name, title in MEASURES.items():
        row: list[object] = [title]
        for stage in dict.fromkeys(stages.tolist()):
            counterpart = np.where(stages == stage, found["counterpart"].values, -1)
            changed = compare_matched(
                measured["s"], measured["r"], counterpart, [name], within_layers=False, resamples=RESAMPLES
            ).iloc[0]
            row.append(_effect(changed["delta"], changed["delta_low"], changed["delta_high"]))
        rows.append(row)
    pairs = [
        int((found["counterpart"].values[stages == stage] >= 0).sum())
        for stage in dict.fromkeys(stages.tolist())
    ]
    rows.append(("pairs", *pairs))
    yield from table(
        "**What they become**: share of units whose counterpart in R has more of it, minus the share whose "
        "counterpart has less. Bold: the 95 % bootstrap interval over units excludes 0.",
        ("measure", *dict.fromkeys(stages.tolist())),
        rows,
    )


def everywhere(stores: dict[str, xr.Dataset], within: xr.Dataset) -> Iterator[str]:
    """Yield what matching over all layers adds."""
    found = match(stores["s"], stores["r"], across=True)
    has, here = found["counterpart"].values >= 0, within["counterpart"].values >= 0
    other = has & (found["counterpart_layer"].values != found["layer"].values)
    block = np.array(
        [layer.partition(".")[0] for layer in found["counterpart_layer"].values.tolist()], dtype=object
    )
    moved = other & (block != blocks_of(found))
    stages = stages_of(found)
    rows = [
        (
            stage,
            int((stages == stage).sum()),
            interval(here[stages == stage]),
            interval(has[stages == stage]),
            interval(other[stages == stage]),
            interval(moved[stages == stage]),
        )
        for stage in dict.fromkeys(stages.tolist())
    ]
    yield from table(
        "**Over all layers**: S's units with a counterpart anywhere in R.",
        ("stage", "units", "in the same layer", "anywhere", "of which in another layer", "in another block"),
        rows,
    )


def alike(stores: dict[str, xr.Dataset], into: Path) -> Iterator[str]:
    """Yield how alike the same layers are, and draw the heat maps of S and R."""
    found = similarity({NETWORKS[name]: stores[name] for name in ("s", "r", "u0")}, sample=600)
    networks, layers = found["network"].values, found["layer"].values
    pair = np.flatnonzero(networks != NETWORKS["u0"])
    draw_similarity(found.isel(row=pair, column=pair), into / "counterparts-similarity.png")
    names = dict.fromkeys(layers.tolist())
    stages = ["conv1 to conv3" if name[0] == "c" else name[:10] for name in names]
    rows: list[Sequence[object]] = []
    for stage in dict.fromkeys(stages):
        here = np.flatnonzero(np.array(stages) == stage)
        row: list[object] = [stage]
        for other in (1, 2):
            for measure in ("cka_unbiased", "rsa"):
                diagonal = found[measure].values[here, here + other * len(names)]
                row.append(float(np.nanmedian(diagonal)))
        rows.append(row)
    yield from table(
        "**Whole layers**: similarity of the same layers, medians over the layers of a stage.",
        ("stage", "S and R: CKA", "RSA", "S and untrained: CKA", "RSA"),
        rows,
    )


def draw(pairs: dict[tuple[str, str], xr.Dataset], path: Path) -> None:
    """Draw the held-out correlation of each unit's best counterpart, block by block."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    shades = {("s", "r"): COLOURS["R"], ("s", "u0"): "#5a5a5a"}
    names = {("s", "r"): "best unit of R", ("s", "u0"): "best unit of an untrained network"}
    blocks = blocks_of(pairs["s", "r"])
    known = list(dict.fromkeys(blocks.tolist()))
    for shift, (key, colour) in zip((-0.18, 0.18), shades.items(), strict=True):
        values = pairs[key]["held_out"].values
        kept = [values[(blocks == block) & np.isfinite(values)] for block in known]
        drawn = axes.boxplot(
            kept, positions=np.arange(len(known)) + shift, widths=0.3, whis=(5, 95), showfliers=False,
            patch_artist=True, medianprops={"color": "white"},
        )  # fmt: skip
        for box in drawn["boxes"]:
            box.set(facecolor=colour, edgecolor=colour)
        for part in ("whiskers", "caps"):
            for line in drawn[part]:
                line.set_color(colour)
        axes.plot([], [], color=colour, linewidth=6, label=names[key])
    axes.axhline(
        pairs["s", "r"].attrs["least"],
        color="black",
        linewidth=0.8,
        linestyle=":",
        label="least of a counterpart",
    )
    axes.set_xticks(np.arange(len(known)), known, rotation=30, ha="right")
    axes.set_ylabel("correlation with a unit of S, held out")
    axes.legend(frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
    figure.savefig(path, dpi=150)


def _effect(middle: float, low: float, high: float) -> str:
    mark = "**" if np.sign(low) == np.sign(high) != 0 else ""
    return f"{mark}{middle:+.2f}{mark} ({low:+.2f} to {high:+.2f})"


if __name__ == "__main__":
    main()
