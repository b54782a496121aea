"""The errors that a user can meet: each is one line that names what is wrong and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class ActstatsError(Exception):
    """A problem the user can act on; its text is one line, fit to be printed as it is."""


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
