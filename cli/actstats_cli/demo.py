"""`actstats demo`: the embedded pair over the demo photographs, as tables, pictures and a report."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from actstats_cli import options
from actstats_cli.compare import finding_rows
from actstats_cli.printing import message, note, print_json, say, table
from actstats_cli.progress import Reporter

if TYPE_CHECKING:
    import pandas as pd


@click.command()
@click.option(
    "--out",
    type=options.LocalPath(file_okay=False),
    default=Path("actstats-demo"),
    show_default=True,
    help="Folder for the stores, the pictures and the report, created if missing.",
)
@options.number("--limit", "Use only the first N of the 256 crops.", least=2)
@options.layers_of_the_paper
@options.device
@click.option("--overwrite", is_flag=True, help="Replace stores of a different demonstration.")
@options.as_json
def demo(
    out: Path, limit: int | None, layers: tuple[str, ...], device: str, overwrite: bool, as_json: bool
) -> None:
    """Compare a standard and a robust network on photographs, without a download.

    Classifies crops of eight photographs, clean and blurred, by the two small GoogLeNets embedded in actstats, S
    (standard) and R (adversarially trained), and sweeps both over the crops, clean and with noise. Prints how they
    differ and writes pictures and a report to browse.

    \b
        actstats demo
        actstats demo --out /tmp/demo --limit 64
        actstats compare actstats-demo/s.zarr actstats-demo/r.zarr
    """
    from actstats.demo.demonstration import demo as run

    with Reporter() as reporter:

        def stage(words: str) -> None:
            reporter.close()
            message(words)

        made = run(
            out,
            layers=layers,
            limit=limit,
            device=device,
            overwrite=overwrite,
            on_progress=reporter.advance,
            on_start=reporter.started,
            on_stage=stage,
        )
    if as_json:
        stores = [str(store) for store in (*made.stores.clean, *made.stores.noisy)]
        print_json({
            "cues": json.loads(made.cues.to_json(orient="records")),
            "findings": [finding.as_dict() for finding in made.findings],
            "stores": stores,
            "files": [str(file) for file in made.files],
            "notes": made.notes,
        })  # fmt: skip
        return
    for line in table(list(_cue_rows(made.cues)), "<>>>>"):
        say(line)
    say()
    for line in table(list(finding_rows(["S", "R"], made.findings)), "<>><<"):
        say(line)
    for text in made.notes:
        note(text)
    for file in made.files:
        say(f"wrote {file}")


def _cue_rows(cues: pd.DataFrame) -> Iterator[tuple[str, ...]]:
    """Yield the accuracies, a row for each version of the images."""
    images = int(cues["images"].iloc[0])
    yield (f"accuracy on {images:,} crops", "S", "R", "difference", "p (McNemar)")
    for version, rows in cues.groupby("version", sort=False):
        standard, robust = (row for _, row in rows.iterrows())
        name = "clean" if version == "clean" else f"blurred ({version})"
        numbers = (f"{standard['accuracy']:.2f}", f"{robust['accuracy']:.2f}", f"{robust['difference']:+.2f}")
        yield (name, *numbers, f"{robust['p']:.1g}")
