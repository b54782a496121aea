"""`actstats compare`: the paper's findings for stores, as a table and as an HTML page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from actstats.errors import ActstatsError
from actstats.support import located
from actstats_cli import options
from actstats_cli.analyses.output import computing, some
from actstats_cli.printing import note, print_json, say, size, table
from actstats_cli.progress import Bar

if TYPE_CHECKING:
    from actstats.report.findings import Finding


def _size(ctx: click.Context, param: click.Parameter, value: float) -> float:
    if not value >= 0:  # NaN too
        raise click.BadParameter(f"{value:g} is not a size of 0 MB or more.", ctx, param)
    return value


@click.command()
@some
@click.option(
    "--against",
    multiple=True,
    metavar="STORE",
    type=located,
    help="Store of a robust network; repeat it for each. STORES are then as many training runs of the standard one, "
    "and the networks are compared as groups, with verdicts from three a side on.",
)
@click.option(
    "--report",
    "page",
    type=options.LocalPath(dir_okay=False),
    metavar="PAGE",
    help="Also write an HTML page to browse, such as report.html.",
)
@click.option(
    "--name",
    "names",
    multiple=True,
    metavar="NAME",
    help="Name of a store; repeat it for each, those of --against last. Default: the file names.",
)
@click.option(
    "--noisy",
    multiple=True,
    metavar="STORE",
    type=located,
    help="Sweep of the same network over the same images with noise; repeat it for each store, those of --against "
    "last.",
)
@click.option(
    "--pair",
    type=click.Choice(["match", "index"]),
    default="match",
    show_default=True,
    help="Unit to show beside each unit: its counterpart, or the unit of the same index, which pairs channels and "
    "not functions.",
)
@click.option(
    "--matches",
    multiple=True,
    metavar="FILE",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Counterparts from `analyze match --by unit --out FILE`, repeatable. Default: match the units now.",
)
@click.option("--data", metavar="IMAGES", help="Location of the images, if they were moved since the sweep.")
@click.option(
    "--top",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    metavar="N",
    help="Number of top images per unit on the page.",
)
@click.option(
    "--maps",
    is_flag=True,
    help="Draw the activation map of each unit over its top images on the page. Runs the networks on these again.",
)
@click.option(
    "--largest-page",
    type=float,
    default=32,
    callback=_size,
    show_default=True,
    metavar="MB",
    help="Size beyond which the report is a page and a folder instead of one file: 0 for always, inf for never.",
)
@options.trust
@options.scheduler
@options.as_json
def compare(
    stores: Sequence[Path],
    against: Sequence[Path],
    page: Path | None,
    names: Sequence[str],
    noisy: Sequence[Path],
    pair: str,
    matches: Sequence[Path],
    data: str | None,
    top: int,
    maps: bool,
    largest_page: float,
    trust: bool,
    scheduler: str | None,
    as_json: bool,
) -> None:
    """Compare a standard network with a robust one, or with several, or groups of both: S.zarr R.zarr.

    Prints the paper's findings and whether the stores agree. --report also writes an HTML page with plots by
    layer and a view of every unit beside its counterparts: top images, receptive fields, spectrum, histogram,
    classes. The page loads nothing from a network. With one STORE, shows that store alone.

    \b
        actstats compare standard.zarr robust.zarr --report report.html
        actstats compare s.zarr r.zarr --noisy s-noisy.zarr --noisy r-noisy.zarr
        actstats compare s.zarr r1.zarr r3.zarr --matches s-r1.csv --matches s-r3.csv --report radii.html
        actstats compare s1.zarr s2.zarr s3.zarr --against r1.zarr --against r2.zarr --against r3.zarr
        actstats compare googlenet.zarr --report googlenet.html --maps
    """
    import actstats.report

    written = {}
    context = click.get_current_context()
    for name in ("data", "top", "maps", "largest_page"):
        if page is None and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise ActstatsError(f"--{name.replace('_', '-')} is for the page: give --report too")
    with computing(scheduler), Bar() as bar:
        if page is None:
            compared = actstats.report.compare(
                stores,
                against=against,
                names=names,
                noisy=noisy,
                pair=pair,
                matches=matches,
                trust=trust,
            )
            called, findings, notes = compared.names, compared.findings, compared.notes
            columns = compared.columns
        else:
            report = actstats.report.write_report(
                stores,
                page,
                against=against,
                names=names,
                noisy=noisy,
                data=data,
                top=top,
                largest_page=largest_page * 1e6,
                pair=pair,
                matches=matches,
                trust=trust,
                maps=maps,
                on_progress=bar.advance,
            )
            called, findings, notes = report.names, report.findings, report.notes
            columns = report.columns
            folder = report.folder and str(report.folder)
            written = {"report": str(page), "bytes": report.bytes, "folder": folder}
    if as_json:
        found = {
            "stores": [str(store) for store in stores],
            "against": [str(store) for store in against],
            "names": called,
            "columns": columns,
            "notes": notes,
        }
        print_json({**found, "findings": [finding.as_dict() for finding in findings], **written})
        return
    align = {1: "<>", 2: "<>><<"}.get(len(columns), "<<>><<")
    for line in table(list(finding_rows(columns, findings)), align):
        say(line)
    for text in notes:
        note(text)
    if page is not None:
        beside = f" and {report.folder}" if report.folder else ""
        say(f"wrote {page}{beside}, {size(report.bytes)}")


def finding_rows(names: Sequence[str], findings: Sequence[Finding]) -> Iterator[tuple[str, ...]]:
    """Yield a row for each finding, or, with more than two columns, for each comparison with the first.

    `names` are those of the networks, or of two groups.
    """
    if len(names) == 1:
        yield ("median", *names)
    elif len(names) == 2:
        yield ("finding", *names, "difference", "verdict")
    else:
        yield ("finding", "network", names[0], "network's", "difference", "verdict")
    for finding in findings:
        first, *others = finding.values
        if not others:
            yield (finding.claim, first)
        for at, value in enumerate(others):
            said = finding.comparisons[at] if finding.comparisons else None
            words = (said.difference, "; ".join(filter(None, (said.words, said.scope)))) if said else ("", "")
            if len(names) == 2:
                yield (finding.claim, first, value, *words)
            else:
                own = said.first if said and said.first else "" if at else first
                yield ("" if at else finding.claim, names[at + 1], own, value, *words)
