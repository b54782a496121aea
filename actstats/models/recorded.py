"""Validate what a store records about its network before using it, as a stranger may have written it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from actstats.attributes import entries_of
from actstats.data.preprocessing import Preprocessing
from actstats.data.transform import Transform, preprocessing_from
from actstats.errors import ActstatsError

MOST_CLASSES: Final = 100_000
"""Largest number of classes accepted without a tensor that confirms it. ImageNet-21k has 21,843."""
_LARGEST_IMAGE: Final = 2048
"""Largest image side accepted for a vision transformer, whose position embedding grows with its square."""
_LONGEST: Final = 4096
"""Maximum number of characters in a name, path or URL."""
_ARCH: Final = re.compile(r"(timm/)?[\w.-]{1,200}|[\w.]{1,200}:[\w.]{1,200}", re.ASCII)
_SOURCE: Final = re.compile(
    r"none|factory|file:.+|torchvision:[\w.]+|timm:[\w.-]+|robust:[\w./-]+|demo:[rs]|url:https?://\S+|hf://\S+",
    re.DOTALL,
)
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _up_to(most: int, least: int = 1) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and least <= value <= most


def _like(pattern: re.Pattern[str]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and len(value) <= _LONGEST and bool(pattern.fullmatch(value))


_TEXT: Final = _like(re.compile(r"[^\0]+"))
_WEIGHTS: Final[Mapping[str, Callable[[Any], bool]]] = {
    "source": _like(_SOURCE),
    "sha256": _like(_SHA256),
    "file_sha256": _like(_SHA256),
    "seed": _up_to(2**63 - 1, 0),
    "part": _TEXT,
    "prefix": _like(re.compile(r"[^\0]*")),
    "path": _TEXT,
    "resolved": _TEXT,
}
_BUILDER: Final[Mapping[str, Callable[[Any], bool]]] = {
    "num_classes": _up_to(MOST_CLASSES),
    "image_size": _up_to(_LARGEST_IMAGE),
    "aux_logits": _is_bool,
    "init_weights": _is_bool,
    "transform_input": _is_bool,
}


def read_record(attrs: Mapping[str, Any]) -> tuple[str, dict[str, Any], Preprocessing | Transform]:
    """Return `arch`, `weights` and the preprocessing from the attributes of a store.

    Raises:
        ActstatsError: an entry is missing, of the wrong type, out of bounds, or an unknown argument of a builder; or
            the network was a module of the caller, which has no recorded name.
    """
    attrs = entries_of(attrs)
    arch, record = attrs.get("arch"), attrs.get("weights")
    if not isinstance(arch, str) or not isinstance(record, Mapping):
        raise ActstatsError("the store does not say which network was swept: `arch` or `weights` is missing")
    arguments = record.get("builder")
    if arguments is None:
        raise ActstatsError(
            f"the network was passed as a {arch[:80]!r} object, which cannot be rebuilt by name"
        )
    if not _ARCH.fullmatch(arch):
        raise _damaged("arch", arch)
    if not isinstance(arguments, Mapping):
        raise _damaged("weights.builder", arguments)
    for name, value in arguments.items():
        if name not in _BUILDER or not _BUILDER[name](value):
            raise _damaged(f"weights.builder.{name}", value)
    needed = {"source", "sha256"} | _needed_by(record)
    for name, fits in _WEIGHTS.items():
        if (name in needed or name in record) and not fits(record.get(name)):
            raise _damaged(f"weights.{name}", record.get(name))
    preprocessing = attrs.get("preprocessing")
    if not isinstance(preprocessing, Mapping):
        raise _damaged("preprocessing", preprocessing)
    return arch, dict(record), preprocessing_from(preprocessing)


def _needed_by(record: Mapping[str, Any]) -> set[str]:
    source = str(record.get("source"))
    if source in ("none", "factory"):
        return {"seed"}
    return {"resolved"} if source.startswith("file:") else {"file_sha256"}


def _damaged(name: str, value: Any) -> ActstatsError:
    try:
        text = repr(value)
    except ValueError:  # an integer with more digits than Python converts
        text = "a number"
    return ActstatsError(f"the store has an invalid {name}: {text if len(text) <= 80 else f'{text[:77]}...'}")
