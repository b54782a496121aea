"""The libraries behind some distortions, which are installed by an extra."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from actstats.errors import ActstatsError


@contextmanager
def needs(package: str, what: str) -> Iterator[None]:
    """Turn a missing `package` into the line that says how to install it."""
    try:
        yield
    except ImportError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        raise ActstatsError(f"{what} needs {package}; pip install 'actstats[distort]'") from None
