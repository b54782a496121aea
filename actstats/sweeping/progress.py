"""Reports of a sweep: what it will cost, its start, its progress after each batch, and its end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from actstats.errors import ActstatsError
from actstats.passes.images import Progress
from actstats.store import Schema, Store
from actstats.store.description import Attack, computed_on
from actstats.support import URL, html_facts


@dataclass(frozen=True)
class Estimate:
    """Estimated cost of a sweep.

    Attributes:
        images: number of images in the whole sweep.
        partitions: number of partitions, the blocks that are completed one by one.
        bytes: size of the store before compression.
        memory: approximate peak memory in bytes, of the GPU if the sweep runs on one, else of this process.
        seconds: duration of the whole sweep, extrapolated from a few batches; None if not measured.
    """

    images: int
    partitions: int
    bytes: int
    memory: int
    seconds: float | None = None


@dataclass(frozen=True)
class Started:
    """Description of a run that is about to start, passed to `on_start`."""

    store: Path | URL
    arch: str
    layers: int
    units: int
    images: int
    """Number of images in the whole sweep."""
    partitions: int
    """Number of partitions in the whole sweep."""
    complete: int
    """Number of partitions that were complete before this run."""
    todo: int
    """Number of images to process in this run."""
    input: str = ""
    """Description of the network's input: sizes and moments of the images, or the function that makes it."""
    notes: Sequence[str] = ()
    """Messages for the user, one line each, such as recomputed partitions or changed versions."""


@dataclass(frozen=True)
class Summary:
    """Summary of a run of a sweep."""

    store: Path | URL
    images: int
    """Number of images in the whole sweep."""
    units: int
    layers: int
    progress: Progress
    partitions: int
    """Number of partitions that this run completed."""
    complete: bool
    """Whether every partition of the store is complete."""
    failures: dict[str, str] = field(default_factory=dict)
    """Dict from the path of each image that this run could not read to the reason."""
    aside: dict[int, str] = field(default_factory=dict)
    """Dict from the index of each partition that a cluster gave up after several tries to its error."""
    computed_on: dict[str, int] = field(default_factory=dict)
    """Number of complete partitions in the store by the device and versions that computed them."""
    attack: Attack | None = None
    """How far an adversarial distortion moved the images of the complete partitions."""
    changed: Mapping[str, Summary] = field(default_factory=dict)
    """Summary of the sweep of changed images for each of `sweep`'s `changed`."""
    failed: bool = False
    """Whether the fraction of unreadable images in the whole sweep exceeds `Execution.max_failed`."""

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
        if self.attack is not None:
            facts.append(("attack", self.attack))
        if unread:
            facts.append(("not read", "; ".join(unread[:3]) + more))
        if self.progress.unavailable:
            facts.append(("to try again", f"{self.progress.unavailable:,} images: run it again"))
        return html_facts("Sweep", facts)


@dataclass
class Outcome:
    """What became of one of the sweeps of a run."""

    failures: dict[str, str] = field(default_factory=dict)
    """Dict from the path of each unreadable image to the reason."""
    error: ActstatsError | None = None
    """The error that stopped the sweep."""
    aside: dict[int, str] = field(default_factory=dict)
    """Dict from the index of each partition that a cluster gave up after several tries to its error."""


@dataclass
class Run:
    """One run of a sweep: its open store, the partitions to compute, and its progress."""

    store: Store
    schema: Schema
    todo: list[int]
    max_failed: float
    retried: list[int] = field(default_factory=list)
    """The partitions in `todo` that are complete, but had missing images."""
    progress: Progress = field(default_factory=lambda: Progress(0, 0, 0, 0.0, 0.0))
    outcome: Outcome = field(default_factory=Outcome)

    def summary(self) -> Summary:
        """Return a summary of this run."""
        # An object for each partition, which is not read where it says nothing.
        records = self.store.provenance() if self.todo or self.store.manifest.distort else []
        return Summary(
            store=self.store.path,
            images=self.schema.images,
            units=self.schema.units,
            layers=len(self.schema.layers),
            progress=self.progress,
            partitions=len(self.todo) - len(self.outcome.aside),
            complete=bool(self.store.completed.all()),
            failures=self.outcome.failures,
            aside=self.outcome.aside,
            computed_on=computed_on(records) if self.todo else {},
            attack=Attack.of(records),
            failed=bool((self.store.statuses() > 0).mean() > self.max_failed),
        )


@contextmanager
def bar(
    total: int, wanted: bool | None, callback: Callable[[Progress], None] | None
) -> Iterator[Callable[[Progress], None] | None]:
    """Show a tqdm progress bar over `total` images; yields a function to call after each batch.

    The function also calls `callback`. If `wanted` is None, the bar is shown only in a notebook without a callback.
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
    """Return whether this process is a notebook kernel."""
    found = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(found).__name__ == "ZMQInteractiveShell"
