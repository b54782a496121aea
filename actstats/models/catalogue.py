"""List the weights that are known by name, and which of them are on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actstats.models import torchvision_zoo as zoo
from actstats.models.downloads import cached_file
from actstats.models.robust import RobustCheckpoint, registry
from actstats.models.sources import DEMO_ARCH, demo_file


@dataclass(frozen=True)
class Entry:
    """One choice of weights.

    `options` are the command-line options that select the weights. `threat` is `standard` for weights trained without
    an attack, or a threat model such as `l2:3`. `accuracy` is the top-1 accuracy on ImageNet in percent, as published
    by the authors. `url` is None if there is no stable address, and `file` is None if the weights are not on this
    machine.
    """

    arch: str
    name: str
    threat: str
    options: str
    accuracy: float | None
    url: str | None
    page: str | None
    file: Path | None

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dict."""
        return {**vars(self), "file": None if self.file is None else str(self.file)}


def entries(*, robust_only: bool = False) -> Iterator[Entry]:
    """Yield all weights known by name: torchvision's weight sets, the embedded pair, and robust checkpoints."""
    if not robust_only:
        for arch in zoo.architectures():
            yield from _sets(arch)
    yield from _embedded(robust_only)
    yield from map(_robust, registry())


def _embedded(robust_only: bool) -> Iterator[Entry]:
    for letter, threat, option in (("s", "standard", ""), ("r", "l2", " --robust")):
        file = demo_file(letter)
        if file.is_file() and not (robust_only and letter == "s"):
            options = f"--arch {DEMO_ARCH} --weights demo{option}"
            yield Entry(DEMO_ARCH, f"demo-{letter}", threat, options, None, None, None, file)


def _sets(arch: str) -> Iterator[Entry]:
    sets = zoo.weight_sets(arch)
    for member in dict.fromkeys(sets.values()):
        accuracy = member.meta["_metrics"].get("ImageNet-1K", {}).get("acc@1")
        options = f"--arch {arch}" + ("" if member is sets["DEFAULT"] else f" --weights {member.name}")
        places = (zoo.hub_file(member), cached_file(member.url))
        file = next(filter(Path.is_file, places), None)
        yield Entry(arch, member.name, "standard", options, accuracy, member.url, None, file)


def _robust(row: RobustCheckpoint) -> Entry:
    options = f"--arch {row.arch} " + (f"--robust {row.threat}" if row.url else f"--weights {row.file}")
    place = cached_file(row.url) if row.url else None
    file = place if place is not None and place.is_file() else None
    return Entry(row.arch, row.name, row.threat, options, row.accuracy, row.url, row.page, file)
