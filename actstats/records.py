"""Typed records of JSON that a stranger may have written, checked once against their types and bounds.

A record is a frozen dataclass. `parse` turns JSON into one, and refuses an entry that is missing, unknown, of another
type or out of bounds, so that code behind it can rely on every field. Bounds are annotations:

>>> @dataclass(frozen=True)
... class Point:
...     x: Whole
...     name: Text = ""
>>> parse(Point, {"x": 3})
Point(x=3, name='')
>>> parse(Point, {"x": -1})
Traceback (most recent call last):
    ...
actstats.records.InvalidError: invalid x: -1; it must be an integer from 0 to 9223372036854775807
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from actstats.errors import ActstatsError

R = TypeVar("R")
Check = Callable[[Any, str], Any]
"""Returns a value as its type; raises `InvalidError` with the name of an entry that does not have it."""

LONGEST: Final = 4096
"""Most characters in a name, path or URL."""
_MOST_ENTRIES: Final = 20_000
"""Most entries in an object. A manifest has digests of every variable, of which there may be 10,000."""


class InvalidError(ActstatsError):
    """An entry of a record does not have its type, or is out of bounds."""


@dataclass(frozen=True)
class Range:
    """Bounds of a number."""

    least: float
    most: float


@dataclass(frozen=True)
class Form:
    """What a text must match as a whole, and how to say so."""

    pattern: str
    described: str
    longest: int = LONGEST


@dataclass(frozen=True)
class Longest:
    """Most entries in a list or object."""

    entries: int


Whole = Annotated[int, Range(0, 2**63 - 1)]
Count = Annotated[int, Range(1, 2**31 - 1)]
Number = Annotated[float, Range(-math.inf, math.inf)]
Text = Annotated[str, Form(r"[^\0\ud800-\udfff]*", "text")]
Place = Annotated[str, Form(r"[^\0\ud800-\udc7f\udd00-\udfff]+", "a path or URL")]
"""A path may contain bytes that are not UTF-8, as Python decodes them."""
Name = Annotated[str, Form(r"[^\0\ud800-\udfff]+", "a name")]
Identifier = Annotated[str, Form(r"[^\W\d]\w*", "a Python identifier", 200)]
Texts = Annotated[tuple[Text, ...], Longest(1_000_000)]


def load(text: bytes | str) -> Any:
    """Return what a JSON text encodes.

    Raises:
        ValueError: it is not JSON, nests lists and objects too deeply, or an object has an entry twice.
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("it nests lists and objects too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ValueError("an object has an entry twice")
    return entries


def parse(kind: type[R], value: object, name: str = "") -> R:
    """Return JSON as a record of `kind`, a frozen dataclass.

    Args:
        kind: the dataclass. Fields without a default are required; a field's `metadata["key"]` is its name in JSON.
        value: the JSON.
        name: name of the record in messages; empty for a record that is not within another.

    Raises:
        InvalidError: an entry is missing, unknown, of another type, or out of bounds.
    """
    check: Check = _check_of(cast(Any, kind))
    record: R = check(value, name)
    return record


def invalid(name: str, value: object, needed: str) -> InvalidError:
    """Return the error for an entry that is not what it must be."""
    return InvalidError(f"invalid {name or 'record'}: {shortened(value)}; it must be {needed}")


def shortened(value: object, most: int = 60) -> str:
    """Return a value on a line of at most `most` characters, with other than printable characters escaped."""
    try:
        text = ascii(value)
    except (ValueError, RecursionError):  # Python prints neither long integers nor deep lists
        text = f"a {type(value).__name__}"
    return text if len(text) <= most else f"{text[: most - 3]}..."


@functools.cache
def _check_of(kind: Any) -> Check:
    """Return the check of a type."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _bounded(arguments[0], arguments[1])
    if origin is Literal:
        return _choice(arguments)
    if origin in (Union, types.UnionType):
        return _either(arguments)
    if origin is tuple:
        return _list(arguments)
    if origin is Mapping:
        return _mapping(arguments[1])
    if dataclasses.is_dataclass(kind):
        return _record(kind)
    if kind in (bool, type(None)):
        return _exactly(kind)
    raise TypeError(f"a record cannot have an entry of type {kind}")


def _exactly(kind: type) -> Check:
    needed = "null" if kind is type(None) else "true or false"

    def check(value: Any, name: str) -> Any:
        if type(value) is not kind:
            raise invalid(name, value, needed)
        return value

    return check


def _bounded(kind: Any, bound: Any) -> Check:
    if isinstance(bound, Form):
        pattern = re.compile(bound.pattern)

        def text(value: Any, name: str) -> Any:
            if type(value) is not str or len(value) > bound.longest or not pattern.fullmatch(value):
                raise invalid(name, value, f"{bound.described} of at most {bound.longest} characters")
            return value

        return text
    if isinstance(bound, Longest):
        entries = _check_of(kind)

        def limited(value: Any, name: str) -> Any:
            if isinstance(value, list | dict) and len(value) > bound.entries:
                raise InvalidError(
                    f"invalid {name}: it has {len(value):,} entries, more than {bound.entries:,}"
                )
            return entries(value, name)

        return limited
    kinds, noun = ((int,), "an integer") if kind is int else ((int, float), "a number")
    finite = math.isfinite(bound.least) and math.isfinite(bound.most)
    needed = f"{noun} from {bound.least} to {bound.most}" if finite else f"a finite {noun.split()[-1]}"

    def bounded(value: Any, name: str) -> Any:
        if type(value) not in kinds or not bound.least <= value <= bound.most:
            raise invalid(name, value, needed)
        try:
            number = value if kind is int else float(value)
        except OverflowError:  # an integer beyond all floats
            number = math.inf
        if not math.isfinite(number):
            raise invalid(name, value, needed)
        return number

    return bounded


def _choice(choices: tuple[Any, ...]) -> Check:
    needed = " or ".join(map(repr, choices))

    def check(value: Any, name: str) -> Any:
        if not any(type(value) is type(choice) and value == choice for choice in choices):
            raise invalid(name, value, needed)
        return value

    return check


def _either(kinds: tuple[Any, ...]) -> Check:
    optional = type(None) in kinds
    kinds = tuple(kind for kind in kinds if kind is not type(None))
    checks = [_check_of(kind) for kind in kinds]
    known = [set(_keys(kind)) if dataclasses.is_dataclass(kind) else set() for kind in kinds]

    def check(value: Any, name: str) -> Any:
        if optional and value is None:
            return None
        attempts = checks
        if len(checks) > 1 and isinstance(value, Mapping):  # the record that has most of these entries
            attempts = [max(zip(known, checks, strict=True), key=lambda pair: len(pair[0] & value.keys()))[1]]
        for attempt in attempts[:-1]:
            try:
                return attempt(value, name)
            except InvalidError:
                continue
        return attempts[-1](value, name)

    return check


def _keys(kind: Any) -> dict[str, dataclasses.Field[Any]]:
    """Return the fields of a record by their names in JSON, its own before inherited ones; those without `init` are
    no entries.
    """
    entries = [field for field in dataclasses.fields(kind) if field.init]
    entries.sort(key=lambda field: field.name not in kind.__annotations__)
    return {field.metadata.get("key", field.name): field for field in entries}


def _list(kinds: tuple[Any, ...]) -> Check:
    """Return the check of a list: of any length for `tuple[X, ...]`, of one length for `tuple[X, Y]`."""
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        each, length = _check_of(kinds[0]), None
    else:
        (each,) = {_check_of(kind) for kind in kinds}
        length = len(kinds)

    def check(value: Any, name: str) -> Any:
        if not isinstance(value, list | tuple) or (length is not None and len(value) != length):
            raise invalid(name, value, "a list" if length is None else f"a list of {length} entries")
        return tuple([each(item, f"{name}[{index}]") for index, item in enumerate(value)])

    return check


def _mapping(kind: Any) -> Check:
    each, key = _check_of(kind), _check_of(Name)

    def check(value: Any, name: str) -> Any:
        if not isinstance(value, Mapping):
            raise invalid(name, value, "an object")
        if len(value) > _MOST_ENTRIES:
            raise InvalidError(f"invalid {name}: it has {len(value):,} entries, more than {_MOST_ENTRIES:,}")
        return {
            key(entry, f"entry of {name}"): each(item, f"{name}.{entry}") for entry, item in value.items()
        }

    return check


def _record(kind: Any) -> Check:
    hints = get_type_hints(kind, include_extras=True)
    fields = {key: (field, _check_of(hints[field.name])) for key, field in _keys(kind).items()}
    required = [
        key
        for key, (field, _) in fields.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]

    def check(value: Any, name: str) -> Any:
        prefix = f"{name}." if name else ""
        if not isinstance(value, Mapping):
            raise invalid(name, value, "an object")
        for key in required:
            if key not in value:
                raise InvalidError(f"{prefix}{key} is missing")
        for key in value:
            if key not in fields:
                raise InvalidError(f"unknown entry {prefix}{shortened(key).strip(chr(39))}")
        entries = {fields[key][0].name: fields[key][1](item, f"{prefix}{key}") for key, item in value.items()}
        return kind(**entries)

    return check
