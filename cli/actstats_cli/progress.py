"""Progress of a sweep on stderr: a bar on a terminal, an occasional plain line elsewhere."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from actstats.support import URL
from actstats.text import printable
from actstats_cli.printing import count, duration, message, note, with_flags

if TYPE_CHECKING:
    from actstats.passes.images import Progress
    from actstats.sweeping.progress import Started

EVERY = 10.0
"""Seconds between plain lines."""
PATIENCE = 5.0
"""Seconds to wait for the first batch before explaining why it takes long."""


class Bar:
    """Shows the progress of a loop over images on stderr. Close it before printing anything else."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._last = time.monotonic()

    def advance(self, progress: Progress) -> None:
        """Show the progress after a batch, of the same loop or of a new one."""
        waiting = f"{progress.waiting_share:.0%} waiting for data"
        if progress.workers:
            waiting += f", {_of_workers(progress.workers)}"
        if _has_room_for_a_bar():
            if self._bar is None or self._bar.total != progress.total or progress.done < self._bar.n:
                self.begin(progress.total)
            self._bar.set_postfix_str(printable(waiting), refresh=False)
            self._bar.update(progress.done - self._bar.n)
        elif time.monotonic() - self._last >= EVERY or progress.done == progress.total:
            self._last = time.monotonic()
            message(
                f"{progress.done:,} of {progress.total:,} images ({progress.done / progress.total:.0%}), "
                f"{progress.rate:.1f} images/s, {duration(progress.remaining)} to go, {waiting}"
            )

    def begin(self, total: int) -> None:
        """Draw an empty bar, if there is a terminal to draw on."""
        self.close()
        if _has_room_for_a_bar():
            from tqdm import tqdm

            layout = (
                "{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
            )
            self._bar = tqdm(total=total, unit=" images", bar_format=layout, dynamic_ncols=True)

    def close(self) -> None:
        """Stop updating the bar, and leave it on the screen."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _above(self, text: str) -> None:
        """Print a line on stderr, above the bar if there is one."""
        if self._bar is None:
            message(text)
        else:
            self._bar.write(printable(with_flags(text)), file=sys.stderr)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Reporter(Bar):
    """Reports on stderr what a sweep will compute, and its progress."""

    def __init__(self) -> None:
        super().__init__()
        self.stores: list[Path | URL] = []
        self._timer = threading.Timer(PATIENCE, self._explain)

    def started(self, start: Started) -> None:
        """Print what will be computed; called once for each sweep of a pass."""
        total = start.todo
        self.stores.append(start.store)
        message(
            f"{start.arch}: {count(start.layers, 'layer')}, {count(start.units, 'unit')}, "
            f"{count(start.images, 'image')} in {count(start.partitions, 'partition')}, to {start.store}"
        )
        message(f"input: {start.input}")
        for text in start.notes:
            note(text)
        if start.complete and total:
            message(f"resuming: {start.complete} of {count(start.partitions, 'partition')} are complete")
        if total:
            self.begin(total)
            self._timer.cancel()  # the previous sweep's, in a pass of several
            self._timer = threading.Timer(PATIENCE, self._explain)
            self._timer.daemon = True
            self._timer.start()

    def _explain(self) -> None:
        """Explain why there is no progress yet; called by the timer's thread."""
        self._above("the first batch takes longer if kernels must be compiled, once per machine")

    def advance(self, progress: Progress) -> None:
        """Show the progress after a batch."""
        self._timer.cancel()
        super().advance(progress)

    def note(self, text: str) -> None:
        """Print a note above the bar."""
        self._above(f"note: {text}")

    def close(self) -> None:
        """Stop reporting."""
        self._timer.cancel()
        super().close()


def _of_workers(rates: Mapping[str, float]) -> str:
    """Return the number of workers and their speed.

    >>> (
    ...     _of_workers({"tcp://a:1": 210.3, "tcp://b:1": 195.0, "tcp://c:1": 0.0}),
    ...     _of_workers({"tcp://a:1": 20.04}),
    ... )
    ('3 workers, 195.0 to 210.3 images/s each', '1 worker, 20.0 images/s each')
    """
    known = sorted({f"{rate:.1f}" for rate in rates.values() if rate}, key=float)
    each = f", {' to '.join(dict.fromkeys((known[0], known[-1])))} images/s each" if known else ""
    return f"{count(len(rates), 'worker')}{each}"


def _has_room_for_a_bar() -> bool:
    """Whether stderr is a terminal with at least one column."""
    return sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns > 0
