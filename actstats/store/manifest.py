"""The manifest: the record of a sweep, as JSON in the store's attributes.

It has three kinds of entries. What decides the numbers must agree for two sweeps to share a store
(`differences`). What should not, such as the release of Python, is told when it changes (`changes`). Where,
when and by which words a store was made is only for the record.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import json
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

FORMAT: Final = 2
"""Version of the store's layout that this version of actstats writes."""
READABLE: Final = (1, 2)
"""Versions that it reads. 1: chunks of 700 units, no checksums, no provenance, one folder per partition."""

_TOLD: Final = frozenset({"versions.python", "versions.zarr"})
_RECORDED: Final = frozenset(
    {
        "checksum",
        "created",
        "machine",
        "request",
        "data.spec",
        "data.resolved",
        "weights.path",
        "weights.resolved",
        "selectors",
    }
)
_PACKAGES: Final = ("actstats", "torch", "torchvision", "triton", "numba", "pillow", "zarr")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that take part in a sweep, as far as they are installed."""
    found = {name: _version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), **{name: text for name, text in found.items() if text}}


@functools.cache  # reading them takes longer than writing a small partition
def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def machine() -> dict[str, str]:
    """Return what machine this is, for the record."""
    return {"system": platform.platform(), "processor": platform.machine()}


def build(**parts: Any) -> dict[str, Any]:
    """Return a manifest of `parts`, with the format's number, versions, machine and date."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"actstats": FORMAT, **parts, "versions": versions(), "machine": machine(), "created": now}


def checksum(manifest: Mapping[str, Any]) -> str:
    """Return the SHA-256, in hex, of a manifest's entries but the checksum itself."""
    entries = {name: value for name, value in manifest.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def flatten(manifest: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return `{"weights.sha256": ..., ...}`: nested mappings under dotted names, lists as they are.

    >>> flatten({"a": {"b": 1}, "c": [2]})
    {'a.b': 1, 'c': [2]}
    """
    found: dict[str, Any] = {}
    for key, value in manifest.items():
        if isinstance(value, Mapping):
            found |= flatten(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return a phrase for each entry that keeps the two sweeps from sharing a store; empty if they may.

    >>> differences({"arch": "alexnet"}, {"arch": "vgg16"})
    ["arch is 'alexnet' there and 'vgg16' here"]
    """
    return [phrase for name, phrase in _changed(old, new) if not _within(name, _TOLD | _RECORDED)]


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return a phrase for each entry that changes no number, but is worth telling when it changed.

    >>> changes({"versions": {"python": "3.11.7"}}, {"versions": {"python": "3.11.9"}})
    ["versions.python is '3.11.7' there and '3.11.9' here"]
    """
    return [phrase for name, phrase in _changed(old, new) if _within(name, _TOLD)]


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, str]]:
    before, after = flatten(old), flatten(new)
    return [
        (name, _phrase(name, before.get(name), after.get(name)))
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def _within(name: str, entries: frozenset[str]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:end]) in entries for end in range(1, len(parts) + 1))


def _phrase(name: str, before: Any, after: Any) -> str:
    if isinstance(before, list) and isinstance(after, list):
        # Layers are entries with a name; a difference of two lists of 57 would fill the screen.
        first, second = (
            [x.get("name", x) if isinstance(x, Mapping) else x for x in xs] for xs in (before, after)
        )
        gone = [x for x in first if x not in second]
        added = [x for x in second if x not in first]
        if gone or added:
            sides = [f"only {side} {_few(xs)}" for side, xs in (("there", gone), ("here", added)) if xs]
            return f"{name} differ: {', '.join(sides)}"
        return f"{name} differ in order or details"
    return f"{name} is {_short(before)} there and {_short(after)} here"


def _few(items: list[Any], most: int = 3) -> str:
    shown = ", ".join(str(item) for item in items[:most])
    return shown + (f" and {len(items) - most} more" if len(items) > most else "")


def _short(value: Any) -> str:
    text = "absent" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
