"""The errors that a user can meet: each is one line that names what is wrong and what to do."""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path


class ActstatsError(Exception):
    """A problem the user can act on; its text is one line, fit to be printed as it is."""


class StrictError(ActstatsError):
    """An image cannot be read, and the caller wants to stop at the first of these."""


class ManifestMismatchError(ActstatsError):
    """A store holds another sweep than the one asked for."""


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """Return a phrase that offers the known names nearest to `name`, or an empty string.

    >>> nearest("googlnet", ["googlenet", "alexnet", "vgg16"])
    '; did you mean googlenet?'
    """
    found = difflib.get_close_matches(name, list(known), n=count, cutoff=0.6)
    return f"; did you mean {', '.join(found)}?" if found else ""


def first(names: Sequence[str], count: int = 3) -> str:
    """Return the first few names, for a message.

    >>> first(["conv1", "conv2", "conv3", "fc"])
    'conv1, conv2, conv3, ...'
    """
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def one_line(error: BaseException, most: int | None = None) -> str:
    r"""Return what an exception says in one line, or its type if it says nothing; at most `most` characters of it.

    >>> one_line(ValueError("two\n  lines")), one_line(KeyError())
    ('two lines', 'KeyError')
    """
    return " ".join(str(error).split())[:most] or type(error).__name__


def reason_of(error: BaseException) -> str:
    """Return what an exception of someone else's code says, in one line, with the place that raised it in
    brackets.
    """
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if not Path(frame.filename).is_relative_to(Path(__file__).parent)]
    place = f" ({Path(inside[-1].filename).name}:{inside[-1].lineno})" if inside else ""
    said = next(iter(str(error).splitlines()), "")
    if isinstance(error, SystemExit):
        said = f"it ended the program with sys.exit({said})"
    elif type(error).__name__ not in said:
        said = f"{type(error).__name__}: {said}" if said else type(error).__name__
    return said + place
