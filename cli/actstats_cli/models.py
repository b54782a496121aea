"""`actstats models`: which weights are known by name, how to choose them, and which are on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import click

from actstats_cli import options
from actstats_cli.printing import count, print_json, say, table

if TYPE_CHECKING:
    from actstats.models.catalogue import Entry


ANY: Final = "any"
"""Value of --robust when given without an argument."""


@click.command()
@click.option(
    "--arch", metavar="PATTERN", help="Only architectures that match this pattern, such as 'resnet*'."
)
@click.option(
    "--robust",
    is_flag=False,
    flag_value=ANY,
    metavar="[l2:EPS or linf:EPS]",
    help="Only adversarially trained weights, or those for one threat model: l2, linf, l2:3, linf:4 (in 1/255).",
)
@click.option("--cached", is_flag=True, help="Only weights that are on this machine.")
@options.as_json
def models(arch: str | None, robust: str | None, cached: bool, as_json: bool) -> None:
    """List published weights: torchvision's, and adversarially trained ones.

    Other weights can be given as a file, a URL, or hf://OWNER/REPOSITORY/FILE; see actstats sweep --help.

    \b
        actstats models --robust
        actstats models --arch 'resnet*' --robust linf
        actstats models --cached --json
    """
    from actstats.models.catalogue import entries
    from actstats.support import cache_folder

    found = [
        entry
        for entry in entries(robust_only=robust is not None)
        if _fits(entry, arch, None if robust == ANY else robust) and (entry.file is not None or not cached)
    ]
    if as_json:
        print_json({"cache": str(cache_folder()), "models": [entry.to_dict() for entry in found]})
        return
    for line in _lines(found):
        say(line)
    here = sum(entry.file is not None for entry in found)
    say(f"{count(len(found), 'set')} of weights, {here:,} of them on this machine; cache: {cache_folder()}")


def _fits(entry: Entry, arch: str | None, threat: str | None) -> bool:
    from fnmatch import fnmatchcase

    from actstats.models.robust import parse_threat

    if arch is not None and not fnmatchcase(entry.arch, arch):
        return False
    if threat is None:
        return True
    norm, epsilon = parse_threat(threat)
    return entry.threat == f"{norm}:{epsilon:g}" if ":" in threat else entry.threat.partition(":")[0] == norm


def _lines(found: Sequence[Entry]) -> Sequence[str]:
    if not found:
        return []
    rows = [("architecture", "threat", "top-1", "here", "options")]
    rows += [
        (
            entry.arch,
            entry.threat,
            "" if entry.accuracy is None else f"{entry.accuracy:.2f}",
            "yes" if entry.file else "*" if entry.url is None else "",
            entry.options,
        )
        for entry in found
    ]
    pages = dict.fromkeys(entry.page for entry in found if entry.page and not entry.url)
    notes = [f"* no stable address: download the file from the folder that {page} links to" for page in pages]
    return [*table(rows, "<<><<"), *notes, ""]
