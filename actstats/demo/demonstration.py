"""The demo: what two embedded networks still recognise without fine detail, and how their units differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pandas as pd

from actstats.analysis import write_table
from actstats.data import open_source
from actstats.demo.pair import Stores, compare_pair, draw_layers, kernel_sheet, sweep_pair
from actstats.distort import parse
from actstats.errors import ActstatsError
from actstats.models import Loaded, load_model
from actstats.passes.images import Progress
from actstats.probing.cues import Version, cue_accuracy
from actstats.probing.forward import Passes, halves
from actstats.report import write_report
from actstats.report.findings import Finding
from actstats.sweeping.progress import Started

NOISE: Final = 0.1
BLUR: Final = "lowpass:8"
"""The cue test: images without what varies more than eight times across them."""


@dataclass(frozen=True)
class Demo:
    """Results of the demo.

    Attributes:
        cues: accuracy of both networks on clean and blurred images, as from `cue_accuracy`.
        findings: the overview of the report.
        stores: paths of the sweeps.
        files: the other files that were written.
        notes: what a reader has to know, one line each.
    """

    cues: pd.DataFrame
    findings: list[Finding]
    stores: Stores
    files: list[Path]
    notes: list[str]


def demo(
    out: str | Path,
    *,
    layers: Sequence[str] = ("paper",),
    limit: int | None = None,
    device: str = "auto",
    overwrite: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    on_start: Callable[[Started], None] | None = None,
    on_stage: Callable[[str], None] | None = None,
) -> Demo:
    """Compare the two networks embedded in actstats, S and R, on the demo photographs: by cue, and unit by unit.

    Writes four stores, `cues.csv` (the accuracies), `comparison.csv` (every measure in every layer), `kernels.png`,
    `layers.png` and `report.html` to the folder `out`. Nothing is downloaded.

    Args:
        out: output folder, created if missing.
        layers: the layers to sweep, as in `sweep`. The kernels of the first convolution are always compared.
        limit: use only the first `limit` crops.
        device: as in `sweep`.
        overwrite: whether to replace stores with other settings.
        on_progress: called after each batch.
        on_start: called at the start of each sweep.
        on_stage: called with a description of each stage.

    Raises:
        ActstatsError: the folder cannot be written, or holds other sweeps.
    """
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ActstatsError(f"cannot create the folder {folder}: {error.strerror or error}") from error
    standard, robust = (load_model("googlenet", "demo", robust=which) for which in (False, True))
    say = on_stage or (lambda _: None)
    say(f"classifying crops, clean and blurred ({BLUR})")
    cues = _cues({"S": standard, "R": robust}, limit, Passes(device=device, on_progress=on_progress))
    stores, _ = sweep_pair(
        standard,
        robust,
        "demo",
        folder,
        noise=NOISE,
        layers=layers,
        limit=limit,
        device=device,
        overwrite=overwrite,
        on_progress=on_progress,
        on_start=on_start,
    )
    say("comparing the two networks")
    models = standard.model.cpu(), robust.model.cpu()
    table = compare_pair(stores, *models)
    names = ("cues.csv", "comparison.csv", "kernels.png", "layers.png", "report.html")
    files = [folder / name for name in names]
    write_table(cues, files[0])
    write_table(table, files[1])
    kernel_sheet(*models).save(files[2])
    draw_layers(table, files[3])
    say("writing the report")
    report = write_report(stores.clean, files[4], names=("S", "R"), noisy=stores.noisy)
    return Demo(cues, report.findings, stores, files, report.notes)


def _cues(networks: Mapping[str, Loaded], limit: int | None, passes: Passes) -> pd.DataFrame:
    """Return the accuracies of the networks at telling the photographs apart, by `cue_accuracy`.

    Every other crop defines the classes, the photographs; the rest is classified.
    """
    taught, tested = halves(open_source("demo", limit=limit))
    return cue_accuracy(networks, tested, [Version(BLUR, parse([BLUR]))], learn_from=taught, passes=passes)
