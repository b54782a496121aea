"""How far a sweep is, and what it did."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Progress:
    """How far a sweep is: what `sweep` hands to its `progress` callback after every batch."""

    done: int
    """Images done in this run, unreadable ones included."""
    total: int
    """Images that this run has to do."""
    failed: int
    seconds: float
    """Since the first batch was asked for."""
    waiting: float
    """Seconds of these in which the model waited for data."""

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.done / self.seconds if self.seconds else 0.0

    @property
    def remaining(self) -> float:
        """Seconds to go at this rate."""
        return (self.total - self.done) / self.rate if self.rate else float("inf")

    @property
    def waiting_share(self) -> float:
        """Share of the time in which the model waited for data."""
        return self.waiting / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Summary:
    """What a call of `sweep` did."""

    store: Path
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
