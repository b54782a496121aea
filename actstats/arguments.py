"""Arguments of public functions, as users write them."""

from __future__ import annotations

from collections.abc import Iterable


def one_or_more(given: str | Iterable[str]) -> list[str]:
    """Return a list of names, of one name by itself or of several.

    >>> one_or_more("conv"), one_or_more(("conv", "block"))
    (['conv'], ['conv', 'block'])
    """
    return [given] if isinstance(given, str) else list(given)
