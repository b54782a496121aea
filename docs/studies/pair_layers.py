"""The units of all networks, layer by layer: what differs between S and R over training runs, and what noise does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pair_networks import Run, split

from actstats import open_dataset, sweep
from actstats.analysis import noise, noise_by_layer
from actstats.probing.inputs import input_change
from actstats.report.findings import Finding, common_measures, derive_findings, measure_units
from actstats.report.verdicts import Comparison

NOISE = "noise:0.1"
OF_A_LAYER = (
    *("layer", "decision", "difference", "difference_low", "difference_high"),
    *("p", "delta", "null_delta", "medians_s", "medians_r"),
)


def sweep_all(runs: Sequence[Run], photographs: Path, work: Path) -> None:
    """Sweep each network over the photographs, clean and with noise, in one pass, unless it is done."""
    for run in runs:
        sweep(
            *(run.load(), photographs, run.store(work)),
            layers="paper",
            device="cpu",
            changed={NOISE: run.store(work, noisy=True)},
        )


def measure(runs: Sequence[Run], work: Path) -> dict[str, Any]:
    """Return the findings on groups of networks, those on the embedded pair alone, and what noise changes."""
    standard, robust = split(runs)
    measured = {
        run.name: measure_units(*(open_dataset(run.store(work, noisy)) for noisy in (False, True)))[0]
        for run in runs
    }
    measures = [m for m in common_measures(list(measured.values())) if m.claim]
    models = {run.name: run.load().model for run in runs}

    def findings(chosen: Sequence[Run], against: int) -> list[Finding]:
        names = [run.name for run in chosen]
        of, networks = [measured[name] for name in names], [models[name] for name in names]
        return derive_findings(of, measures, networks, names=names, against=against)

    pair = findings([standard[0], robust[0]], 0)
    return {
        "findings": [
            {
                "claim": line.claim,
                "measure": line.how.partition(":")[0],
                "values": line.values,
                **_said(line.comparisons[0]),
                "layers": list(line.comparisons[0].layers),
                "by_layer": [
                    {name: getattr(layer, name) for name in OF_A_LAYER}
                    for layer in (line.comparisons[0].by_layer if line.comparisons[0].verdict else ())
                ],
                "pair": {
                    "values": of_pair.values,
                    **_said(of_pair.comparisons[0]),
                    "decisions": [layer.decision for layer in of_pair.comparisons[0].by_layer],
                },
            }
            for line, of_pair in zip(findings(runs, len(robust)), pair, strict=True)
        ],
        "noise": [row for run in runs for row in _noise(run, work)],
    }


def _said(comparison: Comparison) -> dict[str, str]:
    return {name: getattr(comparison, name) for name in ("difference", "words", "scope")}


def _noise(run: Run, work: Path) -> list[dict[str, Any]]:
    """Return how much noise changes the maps of each layer, relative to their variance and to the input's change."""
    clean, noisy = (open_dataset(run.store(work, of)) for of in (False, True))
    table = noise_by_layer(noise(clean, noisy), input_change=input_change(clean, noisy))
    rows: list[dict[str, Any]] = table[["layer", "units", "relative_map_change", "blocked"]].to_dict(
        "records"
    )
    return [{"network": run.name, **row} for row in rows]
