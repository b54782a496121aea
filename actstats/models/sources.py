"""Locate the weights file that the arguments `weights` and `robust`, or the record in a manifest, refer to."""

from __future__ import annotations

import dataclasses
import os
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from actstats.data.preprocessing import Preprocessing
from actstats.errors import ActstatsError
from actstats.identity import WeightsRecord
from actstats.models import robust
from actstats.models import torchvision_zoo as zoo
from actstats.models.builders import Builder
from actstats.models.downloads import fetch
from actstats.models.hub import hub_file, parse_address

_FILE_ENDINGS: Final = frozenset({".pth", ".pt", ".ckpt", ".bin", ".safetensors", ".tar", ".pkl", ".pickle"})
_SHA256: Final = re.compile(r"sha256=([0-9a-fA-F]{8,64})")
DEMO_ARCH: Final = "googlenet"


@dataclass(frozen=True)
class Located:
    """A weights file, and the record of its origin.

    `part` is the key to select in the file, `prefix` what precedes the names of the network there, `sha256` the
    expected beginning of the file's checksum. `published` is True if the weights are the architecture's own, which
    come with their `preprocessing`.
    """

    path: Path
    record: dict[str, Any]
    part: str | None = None
    sha256: str | None = None
    prefix: str | None = None
    preprocessing: Preprocessing | None = None
    published: bool = False


@dataclass(frozen=True)
class Within:
    """What follows the `#` of a weights file: the key in the file, the prefix of the names, and the checksum."""

    part: str | None = None
    prefix: str | None = None
    sha256: str | None = None


def locate(builder: Builder, weights: str, asked: str | None, *, offline: bool) -> Located:
    """Return the file for the arguments `weights` and `robust` (`asked`, None if not given), downloading it if
    needed.

    Raises `ActstatsError` if there is no such file or the arguments contradict each other.
    """
    spec, place = _split(weights)
    if asked is not None:
        if spec not in ("default", "demo"):
            raise ActstatsError(f"`weights={weights}` already selects the weights; omit `robust=`")
        if spec == "default":
            return _robust(robust.choose(builder.arch, asked), offline=offline)
        if asked != "default":
            raise ActstatsError(
                f"`weights=demo` has one robust network; use `robust=True`, not `robust={asked}`"
            )
    if spec == "demo":
        return _demo(builder.arch, "r" if asked else "s")
    if "://" in spec:
        return _remote(spec, place, offline=offline)
    if _is_file(spec):
        return _local(Path(spec), place)
    return _published(builder, spec, offline=offline)


def _published(builder: Builder, name: str, *, offline: bool) -> Located:
    found = builder.published(name, offline=offline)
    return Located(
        found.path,
        {"source": found.source},
        sha256=found.sha256,
        preprocessing=found.preprocessing,
        published=True,
    )


def relocate(builder: Builder, record: WeightsRecord, moved: str | Path | None, *, offline: bool) -> Located:
    """Return the file that a manifest's record refers to; `moved` is its new path, if it was moved.

    Raises `ActstatsError` if it is no longer available.
    """
    place = Within(record.part, record.prefix)
    kind, _, name = record.source.partition(":")
    if moved is not None:
        spec, given = _split(str(moved))
        same = given.part is None and given.prefix is None
        return _local(Path(spec), dataclasses.replace(place, sha256=given.sha256) if same else given)
    if kind in ("torchvision", "timm"):
        return _published(builder, name if kind == "torchvision" else "default", offline=offline)
    if kind == "robust":
        return _robust(robust.by_name(name), offline=offline)
    if kind == "demo":
        return _demo(builder.arch, name)
    if kind == "url":
        return _remote(name, dataclasses.replace(place, sha256=record.file_sha256), offline=offline)
    if kind == "hf":
        return _remote(record.source, place, offline=offline)
    return _local(Path(record.resolved or ""), place)


def _robust(row: robust.RobustCheckpoint, *, offline: bool) -> Located:
    if row.url is None:
        raise ActstatsError(robust.how_to_get(row))
    fetched = fetch(row.url, sha256=row.sha256, offline=offline, advice=zoo.NO_NETWORK)
    record = {"source": f"robust:{row.name}", "threat_model": row.norm, "epsilon": row.epsilon}
    return Located(fetched.path, record, sha256=fetched.sha256)


def demo_file(which: str) -> Path:
    """Return the path of the embedded weights; `which` is s (standard) or r (robust)."""
    return Path(str(files("actstats") / "demo" / "weights" / f"{DEMO_ARCH}-{which}.safetensors"))


def _demo(arch: str, which: str) -> Located:
    if arch != DEMO_ARCH:
        raise ActstatsError(f"`weights=demo` is a {DEMO_ARCH}, not a {arch}; use `arch={DEMO_ARCH}`")
    path = demo_file(which)
    if not path.is_file():
        raise ActstatsError(f"the embedded weights are missing: {path}; reinstall actstats")
    return Located(path, {"source": f"demo:{which}"})


def _remote(address: str, place: Within, *, offline: bool) -> Located:
    if address.startswith("hf://"):
        path = hub_file(*parse_address(address), offline=offline)
        return Located(path, {"source": address}, place.part, place.sha256, place.prefix)
    fetched = fetch(address, sha256=place.sha256, offline=offline)
    return Located(fetched.path, {"source": f"url:{address}"}, place.part, fetched.sha256, place.prefix)


def _local(path: Path, place: Within) -> Located:
    path = path.expanduser()
    record = {"source": f"file:{path.name}", "path": str(path), "resolved": str(path.resolve())}
    return Located(path, record, place.part, place.sha256, place.prefix)


def _split(weights: str) -> tuple[str, Within]:
    """Split `weights` at the `#`."""
    spec, mark, rest = weights.rpartition("#")
    if not mark or Path(weights).expanduser().exists():
        return weights, Within()
    part: str | None = None
    prefix: str | None = None
    sha256: str | None = None
    for piece in rest.split("&"):
        found = _SHA256.fullmatch(piece)
        if found:
            sha256 = found[1]
        elif piece.startswith("sha256="):
            raise ActstatsError(
                f"`weights=` has {piece!r} after its #; a SHA-256 is 8 to 64 hexadecimal digits"
            )
        elif piece.startswith("prefix="):
            prefix = piece.removeprefix("prefix=")
        elif piece:
            part = piece
    return spec, Within(part, prefix, sha256)


def _is_file(spec: str) -> bool:
    path = Path(spec).expanduser()
    return path.suffix in _FILE_ENDINGS or os.sep in spec or path.is_file()
