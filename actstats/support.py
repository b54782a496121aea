"""Small helpers that every room may use: arguments as users write them, optional libraries, objects by name."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from html import escape
from importlib import import_module
from pathlib import Path
from typing import Any

from actstats.errors import ActstatsError


class URL(str):
    """A place that is not a path of this machine, such as `s3://bucket/x.zarr`."""

    __slots__ = ()

    @property
    def name(self) -> str:
        """Its last part.

        >>> URL("s3://bucket/x.zarr/").name
        'x.zarr'
        """
        return self.rstrip("/").rpartition("/")[2]


def located(place: str | Path) -> Path | URL:
    """Return a URL as it is and anything else as a path.

    >>> located("s3://bucket/x.zarr"), located("x.zarr").name
    ('s3://bucket/x.zarr', 'x.zarr')
    """
    return URL(place) if isinstance(place, str) and "://" in place else Path(place)


def on_this_machine(spec: str) -> str:
    """Return a place that a store names, unless it is a URL, which a store alone does not get opened.

    Raises `ActstatsError` for a URL.
    """
    if isinstance(located(spec), URL):
        raise ActstatsError(
            f"the images are at {spec}, which a store alone does not get opened; pass `data={spec}`"
        )
    return spec


def one_or_more(given: str | Iterable[str]) -> list[str]:
    """Return a list of names, of one name by itself or of several.

    >>> one_or_more("conv"), one_or_more(("conv", "block"))
    (['conv'], ['conv', 'block'])
    """
    return [given] if isinstance(given, str) else list(given)


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


def named_object(reference: str, role: str, form: str) -> object:
    """Return the object that `package.module:name` names; modules in the working directory are found too.

    >>> named_object("math:tau", "metric", "Class") > 6
    True

    Raises `ActstatsError`, which calls it a `role` and its second part a `form`, where there is none.
    """
    module_name, _, attribute = reference.partition(":")
    if not module_name or not attribute:
        raise ActstatsError(f"{role} {reference!r} is not of the form package.module:{form}")
    if (here := str(Path.cwd())) not in sys.path:
        # `python -m` and pytest put the working directory there; a console script does not.
        sys.path.append(here)
    try:
        found: object = import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, ValueError) as error:
        raise ActstatsError(f"{role} {reference!r}: cannot import {module_name}: {error}") from error
    except AttributeError as error:
        raise ActstatsError(f"{role} {reference!r}: {error}") from error
    return found


def cache_folder() -> Path:
    """Return the folder for downloads and what else can be made again: `ACTSTATS_CACHE`, or the user's cache."""
    chosen = os.environ.get("ACTSTATS_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "actstats"


def replace_file(path: Path, content: bytes) -> None:
    """Write a file beside its place and move it there, so that it is whole whenever it is seen."""
    beside = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    try:
        beside.write_bytes(content)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def keep_cached(file: Path, content: bytes) -> None:
    """Write a file of the cache if that is possible: without it, the next time only takes longer."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, content)
    except OSError:
        return


def sha256_of(file: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def html_facts(title: str, facts: Iterable[tuple[str, object]]) -> str:
    """Return a heading and a table of names and values, for `_repr_html_`; all of it is escaped.

    >>> html_facts("a < b", [("images", 3)])
    '<b>a &lt; b</b><table><tr><th style="text-align:left">images</th><td style="text-align:left">3</td></tr></table>'
    """
    left = ' style="text-align:left"'
    rows = (
        f"<tr><th{left}>{escape(name)}</th><td{left}>{escape(str(value))}</td></tr>" for name, value in facts
    )
    return f"<b>{escape(title)}</b><table>{''.join(rows)}</table>"
