"""The networks of the study: the embedded pair, and further training runs by the same recipe."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from actstats import Loaded, load_model
from actstats.models.sources import demo_file

KINDS = "SR"


@dataclass(frozen=True)
class Run:
    """One trained network, S if it was trained on clean images, else R: `S0` is that of seed 0."""

    kind: str
    seed: int
    weights: Path

    @property
    def name(self) -> str:
        """Name in tables and of files."""
        return f"{self.kind}{self.seed}"

    @property
    def sha256(self) -> str:
        """Hash of the weights file."""
        return str(self.load().identity["weights"]["file_sha256"])

    def load(self) -> Loaded:
        """Return the network on the CPU."""
        return load_model("googlenet", self.weights)

    def store(self, work: Path, noisy: bool = False) -> Path:
        """Return where its sweep is, of clean or of noisy photographs."""
        return work / f"{self.name}{'-noisy' if noisy else ''}.zarr"


def find_runs(folders: Iterable[Path]) -> list[Run]:
    """Return the embedded pair and the networks in `folders`, those of S first, each kind by seed.

    Which kind a network is, and its seed, are read from the recipe in the file.
    """
    files = [demo_file("s"), demo_file("r")]
    files += [file for folder in folders for file in sorted(folder.glob("googlenet-*.safetensors"))]
    runs = []
    for file in files:
        with safe_open(file, "pt") as opened:
            recipe = json.loads(opened.metadata()["training"])
        runs.append(Run("R" if recipe["epsilon"] else "S", recipe["seed"], file))
    if len({run.name for run in runs}) < len(runs):
        raise SystemExit(
            f"two networks are of one kind and seed: {', '.join(str(run.weights) for run in runs)}"
        )
    return sorted(runs, key=lambda run: (KINDS.index(run.kind), run.seed))


def split(runs: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """Return the networks of S and those of R. The first of each are the embedded pair."""
    standard, robust = ([run for run in runs if run.kind == kind] for kind in KINDS)
    return standard, robust


@dataclass(frozen=True)
class Kept:
    """Results of single networks, kept in `work` as JSON with the weights and images that they are of."""

    work: Path
    images: str

    def __call__(self, run: Run, what: str, compute: Callable[[], Any]) -> Any:
        """Return the result that is kept, or compute and keep it."""
        file, of = self.work / f"{run.name}-{what}.json", {"weights": run.sha256, "images": self.images}
        if file.exists():
            known = json.loads(file.read_text())
            if known["of"] == of:
                return known["result"]
        result = rounded(compute(), digits=12)
        file.write_text(json.dumps({"of": of, "result": result}))
        return result


def rounded(value: Any, digits: int = 6) -> Any:
    """Return plain Python values for JSON, floats with this many significant digits, NaN as None."""
    if isinstance(value, dict):
        return {str(key): rounded(each, digits) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(each, digits) for each in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if np.isfinite(value) else None
    return value
