"""The manifest: everything that decides a sweep's numbers, as JSON in the store's attributes.

Two sweeps may share a store only if their manifests agree in all that can change a number. What cannot (when, where
the files lay, on which machine) is recorded too, under names that `differences` passes over.
"""

from __future__ import annotations

import datetime
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

FORMAT = 1
"""Version of the store's layout."""

_INFORMATIVE = frozenset({"created", "machine", "data.spec", "weights.path", "weights.resolved", "selectors"})
_VERSIONS = ("actstats", "torch", "torchvision", "triton", "numba", "zarr")


def versions() -> dict[str, str]:
    """Return the versions of the packages that take part in a sweep; those not installed are left out."""
    found = {"python": platform.python_version()}
    for name in _VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, str]:
    """Return where and when the store was made, for the record."""
    return {"system": platform.platform(), "processor": platform.machine()}


def build(**parts: Any) -> dict[str, Any]:
    """Return a manifest of `parts`, with the format's number, versions, machine and date."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"actstats": FORMAT, **parts, "versions": versions(), "machine": machine(), "created": now}


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
    """Return one phrase for each entry in which the two manifests' sweeps would differ; empty if they agree.

    >>> differences({"arch": "alexnet"}, {"arch": "vgg16"})
    ["arch is 'alexnet' there and 'vgg16' here"]
    """
    before, after = flatten(old), flatten(new)
    return [
        _phrase(name, before.get(name), after.get(name))
        for name in sorted(before.keys() | after.keys())
        if not _is_informative(name) and before.get(name) != after.get(name)
    ]


def _is_informative(name: str) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:end]) in _INFORMATIVE for end in range(1, len(parts) + 1))


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
