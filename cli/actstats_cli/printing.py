"""Formatting of output: sizes, durations, tables, JSON."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

import click

from actstats.text import printable, printable_json

_FLAGS: Final = {"custom": "metric", "images": "data", "store": "out"}
"""Arguments whose command-line options have another name."""
ELSEWHERE: Final = "actstats.elsewhere"
"""Key of a context's `meta` for the arguments that only `actstats plan` has, each with its option."""


def with_flags(message: str) -> str:
    """Return an error message with arguments replaced by the corresponding command-line options.

    >>> with_flags("use another `batch_size=`, or `weights=none`")
    'use another --batch-size, or --weights none'
    >>> with_flags("pass `trust=True` and `per_image=False`")
    'pass --trust and --no-per-image'
    """
    context = click.get_current_context(silent=True)
    elsewhere = context.meta.get(ELSEWHERE, {}) if context else {}

    def flag(found: re.Match[str]) -> str:
        name = _FLAGS.get(found["name"], found["name"]).replace("_", "-")
        option = elsewhere.get(found["name"], f"--{name}")
        if found["value"] == "False":
            option = f"--no-{option[2:]}"
        value = "" if found["value"] in ("", "True", "False") else f" {found['value']}"
        return f"{option}{value}{' of actstats plan' if found['name'] in elsewhere else ''}"

    return re.sub(r"`(?P<name>[a-z_]+)=(?P<value>[^`]*)`", flag, message)


def say(text: str = "") -> None:
    """Print a line on stdout. Everything that commands print goes through here, `message` and `print_json`."""
    click.echo(printable(text))


def message(text: str) -> None:
    """Print a line on stderr; arguments that it names become options."""
    click.echo(printable(with_flags(text)), err=True)


def note(text: str) -> None:
    """Print a note about the result on stderr."""
    message(f"note: {text}")


def size(count: float) -> str:
    """Return a number of bytes in powers of 1000.

    >>> size(174720), size(9_600_000_000), size(12)
    ('175 kB', '9.60 GB', '12 B')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.{0 if unit == 'B' or count >= 99.95 else 1 if count >= 9.995 else 2}f} {unit}"
        count /= 1000
    return f"{count:,.3g} TB" if count < 999.5 else f"{count:,.0f} TB"


def duration(seconds: float) -> str:
    """Return a duration in its two largest units.

    >>> duration(0.42), duration(75), duration(7260), duration(float("inf"))
    ('0.4 s', '1 min 15 s', '2 h 01 min', 'unknown time')
    """
    if not math.isfinite(seconds):
        return "unknown time"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def count(number: int, noun: str) -> str:
    """Return "1 image", "7,280 units".

    >>> count(1, "image"), count(7280, "unit")
    ('1 image', '7,280 units')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def table(rows: Sequence[Sequence[str]], align: str) -> Iterator[str]:
    """Yield the lines of a table, its columns as wide as needed; `align` has "<" or ">" for each column.

    >>> list(table([["name", "units"], ["conv1", "64"]], "<>"))
    ['name   units', 'conv1     64']
    """
    shown = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    for row in shown:
        cells = (f"{cell:{side}{width}}" for cell, side, width in zip(row, align, widths, strict=True))
        yield "  ".join(cells).rstrip()


def print_json(value: Any) -> None:
    """Print one JSON object on stdout; numbers that are not finite become null, as JSON cannot represent them."""
    click.echo(printable_json(json.dumps(_finite(value), indent=2, ensure_ascii=False)))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
