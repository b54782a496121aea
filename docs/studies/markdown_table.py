"""Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence


def lines(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """Yield the lines of a table; floats have three digits."""
    yield _row(columns)
    yield _row(["---"] * len(columns))
    for row in rows:
        yield _row([f"{value:.3g}" if isinstance(value, float) else str(value) for value in row])


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """Yield the lines of a table under its title, with an empty line after each."""
    yield from (title, "")
    yield from lines(columns, rows)
    yield ""


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
