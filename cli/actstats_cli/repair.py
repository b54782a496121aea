"""`actstats repair`: restore what is damaged in a store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from actstats.support import located
from actstats_cli import options
from actstats_cli.printing import count, print_json, say
from actstats_cli.progress import Reporter
from actstats_cli.run import failure_lines, raise_what_failed

if TYPE_CHECKING:
    from actstats.sweeping.progress import Started

_MAX_FAILED: Final = 1.0
"""Share of unreadable images that a repair accepts: the sweep has decided on it."""


@click.command()
@click.argument("store", type=located)
@click.option("--data", metavar="IMAGES", help="Location of the images, if they were moved since the sweep.")
@click.option(
    "--weights", metavar="FILE", help="The weights file of the sweep, if it was a file of your own."
)
@options.factory
@options.trust
@options.offline
@options.device_of_the_sweep
@options.workers
@options.as_json
def repair(
    store: str,
    data: str | None,
    weights: str | None,
    arch: str | None,
    trust: bool,
    offline: bool,
    device: str | None,
    workers: int | None,
    as_json: bool,
) -> None:
    """Restore every damaged object of a store, and compute what is not complete.

    The store records its sweep, so no option of the sweep is needed. Metadata and coordinates are restored from the
    manifest and the names of the images; partitions with a damaged object are computed again.

    \b
        actstats info googlenet.zarr --verify
        actstats repair googlenet.zarr
        actstats repair googlenet.zarr --data /moved/photographs
    """
    import actstats

    notes: list[str] = []
    with Reporter() as reporter:

        def started(start: Started) -> None:
            notes.extend(start.notes)
            reporter.started(start)

        summary = actstats.repair(
            store,
            data=data,
            weights=weights,
            arch=arch,
            trust=trust,
            offline=offline,
            device=device,
            workers=workers,
            max_failed=_MAX_FAILED,
            on_start=started,
            on_progress=reporter.advance,
            on_note=reporter.note,
        )
    if as_json:
        print_json(
            {
                "store": str(store),
                "notes": notes,
                "computed": summary.partitions,
                "complete": summary.complete,
                "failures": summary.failures,
            }
        )
    elif not notes and not summary.partitions:
        say(f"{store}: nothing is damaged")
    else:
        say(f"{store}: repaired; {count(summary.partitions, 'partition')} computed")
        for line in failure_lines(summary):
            say(line)
    raise_what_failed([summary], _MAX_FAILED)
