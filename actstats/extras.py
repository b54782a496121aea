"""The libraries that are installed by an extra, and what to say where one is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from actstats.errors import ActstatsError


@contextmanager
def needs(package: str, what: str, extra: str) -> Iterator[None]:
    """Turn a missing `package` into the line that says how to install it.

    Raises:
        ActstatsError: an import inside did not find it; the text names the extra that brings it.
    """
    try:
        yield
    except ImportError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        raise ActstatsError(f"{what} needs {package}; pip install 'actstats[{extra}]'") from None


def require_extra(module: str, extra: str, purpose: str) -> Any:
    """Import and return an optional library; raises as `needs`."""
    with needs(module.partition(".")[0], purpose, extra):
        return import_module(module)
