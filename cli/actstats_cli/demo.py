"""`actstats demo`: the embedded pair over the demo photographs, as a table, pictures and a report."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from actstats_cli import options
from actstats_cli.printing import message, note, print_json, table
from actstats_cli.progress import Reporter

if TYPE_CHECKING:
    from actstats.demo.pair import Row


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

    Sweeps the two small GoogLeNets embedded in actstats, S (standard) and R (adversarially trained), over crops of
    eight photographs, clean and with noise. Prints how they differ and writes pictures and a report to browse.

    \b
        actstats demo
        actstats demo --out /tmp/demo --limit 64
        actstats compare actstats-demo/s.zarr actstats-demo/r.zarr
    """
    from actstats.demo.demonstration import demo as run
    from actstats.report.findings import SMALLEST_EFFECT

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
        files = [str(file) for file in made.files]
        stores = [str(store) for store in (*made.stores.clean, *made.stores.noisy)]
        rows = [dataclasses.asdict(row) for row in made.rows]
        print_json({"rows": rows, "stores": stores, "files": files, "notes": made.notes})
        return
    for line in table(_rows(made.rows), "<>>>>"):
        click.echo(line)
    click.echo(
        "S, R: medians over all units. delta: Cliff's delta of R against S with its 95 % bootstrap interval,"
    )
    click.echo(
        "-1 if all units of R are lower, 1 if all are higher. lower in: layers in which delta is at most"
    )
    click.echo(f"-{SMALLEST_EFFECT} (smaller effects are negligible) and its interval excludes 0.")
    for text in made.notes:
        note(text)
    for file in made.files:
        click.echo(f"wrote {file}")


def _rows(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    lines: list[tuple[str, ...]] = [("", "S", "R", "delta", "R lower in")]
    for row in rows:
        delta = "" if math.isnan(row.delta) else f"{row.delta:+.2f} ({row.low:+.2f} to {row.high:+.2f})"
        layers = f"{row.lower} of {row.layers}"
        lines.append((row.measure, f"{row.standard:.3g}", f"{row.robust:.3g}", delta, layers))
    return lines
