"""Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """Yield the lines of a table under its title, with an empty line after each; floats have three digits."""
    yield from (title, "")
    yield _row(columns)
    yield _row(["---"] * len(columns))
    for row in rows:
        yield _row([f"{value:.3g}" if isinstance(value, float) else str(value) for value in row])
    yield ""


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
