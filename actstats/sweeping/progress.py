"""How far a sweep is, what it is about to do, and what it did."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from actstats.support import URL, html_facts


@dataclass(frozen=True)
class Progress:
    """How far a loop over images is: what `on_progress` is called with after every batch."""

    done: int
    """Images done in this run, unreadable ones included."""
    total: int
    """Images that this run has to do."""
    failed: int
    """Images that could not be read."""
    seconds: float
    """Since the first batch was asked for."""
    waiting: float
    """Seconds of these in which the network waited for images."""
    workers: Mapping[str, float] = field(default_factory=dict)
    """On a cluster, the images per second of each worker that is alive, by its address; 0 before its first partition.
    `waiting` is then a mean over the workers."""

    @property
    def rate(self) -> float:
        """Images per second."""
        return self.done / self.seconds if self.seconds else 0.0

    @property
    def remaining(self) -> float:
        """Seconds to go at this rate."""
        return (self.total - self.done) / self.rate if self.rate else float("inf")

    @property
    def waiting_share(self) -> float:
        """Share of the time in which the network waited for images."""
        return self.waiting / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Started:
    """What a run is about to do: what `on_start` is called with."""

    store: Path | URL
    arch: str
    layers: int
    units: int
    images: int
    """Images of the whole sweep."""
    partitions: int
    """Partitions of the whole sweep."""
    complete: int
    """Partitions that were complete before this run."""
    todo: int
    """Images that this run has to do."""
    notes: Sequence[str] = ()
    """What is worth knowing before: partitions computed again, versions that changed; one line each."""


@dataclass(frozen=True)
class Summary:
    """What a run of a sweep did."""

    store: Path | URL
    images: int
    """Images in the whole sweep."""
    units: int
    layers: int
    progress: Progress
    partitions: int
    """Partitions that this run completed."""
    complete: bool
    """Whether every partition of the store is complete now."""
    failures: dict[str, str] = field(default_factory=dict)
    """Reason by path, of the images that this run could not read."""
    aside: dict[int, str] = field(default_factory=dict)
    """The error of each partition that a cluster gave up after several tries, by its index."""
    computed_on: dict[str, int] = field(default_factory=dict)
    """Number of the store's complete partitions by the device and the versions that computed them."""
    failed: bool = False
    """Whether more of the whole sweep's images failed than `Execution.max_failed` allows."""

    def _repr_html_(self) -> str:
        unread = [f"{path}: {reason}" for path, reason in self.failures.items()]
        more = f" and {len(unread) - 3} more" if len(unread) > 3 else ""
        facts: list[tuple[str, object]] = [
            ("store", self.store),
            ("images", f"{self.images:,}"),
            ("units", f"{self.units:,} in {self.layers} layers"),
            ("this run", f"{self.progress.done:,} images, {self.progress.rate:.1f} images/s"),
            ("complete", "yes" if self.complete else "no: run it again to resume"),
        ]
        if unread:
            facts.append(("not read", "; ".join(unread[:3]) + more))
        return html_facts("Sweep", facts)


@contextmanager
def bar(
    total: int, wanted: bool | None, callback: Callable[[Progress], None] | None
) -> Iterator[Callable[[Progress], None] | None]:
    """Draw tqdm's bar over `total` images; yields what is to be called after each batch, which calls `callback` too.

    With `wanted` None there is a bar in a notebook, unless there is a callback.
    """
    notebook = in_notebook()
    if not (notebook and callback is None if wanted is None else wanted):
        yield callback
        return
    if notebook and find_spec("ipywidgets") is not None:
        from tqdm.notebook import tqdm
    else:
        from tqdm import tqdm
    with tqdm(total=total, unit=" images") as drawn:

        def advance(progress: Progress) -> None:
            drawn.update(progress.done - drawn.n)
            if callback is not None:
                callback(progress)

        yield advance


def in_notebook() -> bool:
    """Return whether this is the kernel of a notebook."""
    found = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(found).__name__ == "ZMQInteractiveShell"
