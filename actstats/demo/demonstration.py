"""The demo: sweep the embedded pair over the demo photographs, clean and with noise, and compare and plot them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from actstats.analysis import write_table
from actstats.demo.pair import Row, Stores, compare_pair, draw_layers, kernel_sheet, sweep_pair
from actstats.errors import ActstatsError
from actstats.models import load_model
from actstats.report import write_report
from actstats.sweeping.progress import Progress, Started

NOISE: Final = 0.1


@dataclass(frozen=True)
class Demo:
    """Results of the demo: stores, comparison table, other files, and notes for the reader."""

    stores: Stores
    rows: list[Row]
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
    """Sweep the two networks embedded in actstats, S and R, over the demo photographs, and compare them.

    Writes four stores, `comparison.csv` (every measure in every layer), `kernels.png`, `layers.png` and `report.html`
    to the folder `out`. Nothing is downloaded.

    Args:
        out: output folder, created if missing.
        layers: the layers to sweep, as in `sweep`. The kernels of the first convolution are always compared.
        limit: use only the first `limit` crops.
        device: as in `sweep`.
        overwrite: whether to replace stores with other settings.
        on_progress: called after each batch.
        on_start: called at the start of each sweep.
        on_stage: called with a description of each stage after the sweeps.

    Raises:
        ActstatsError: the folder cannot be written, or holds other sweeps.
    """
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ActstatsError(f"cannot create the folder {folder}: {error.strerror or error}") from error
    standard, robust = (load_model("googlenet", "demo", robust=which) for which in (False, True))
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
    say = on_stage or (lambda _: None)
    say("comparing the two networks")
    models = standard.model.cpu(), robust.model.cpu()
    rows, layers = compare_pair(stores, *models)
    files = [folder / name for name in ("comparison.csv", "kernels.png", "layers.png", "report.html")]
    write_table(layers, files[0])
    kernel_sheet(*models).save(files[1])
    draw_layers(layers, files[2])
    say("writing the report")
    report = write_report(stores.clean, files[3], names=("S", "R"), noisy=stores.noisy)
    return Demo(stores, rows, files, report.notes)
