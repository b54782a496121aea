"""Errors for users: each message is one line that says what is wrong and what to do."""

from __future__ import annotations

import difflib
import re
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path

from actstats.text import printable


class ActstatsError(Exception):
    """A problem that the user can fix. The message is a single line that a terminal shows as it is."""

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(re.sub(r"\s*[\r\n]\s*", " ", str(message))))


class UnavailableError(ActstatsError):
    """A file or a server cannot be reached at the moment. `reason` is the message without the advice at its end."""

    def __init__(self, reason: str, advice: str = "") -> None:
        super().__init__(reason + advice)
        self.reason = reason


class StrictError(ActstatsError):
    """An image cannot be read, and `strict` is set."""


class NotCachedError(ActstatsError):
    """A file would have to be downloaded, and `offline` forbids it."""


class ManifestMismatchError(ActstatsError):
    """A store holds a different sweep than the requested one."""


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """Return a phrase that suggests the known names closest to `name`, or an empty string.

    >>> nearest("googlnet", ["googlenet", "alexnet", "vgg16"])
    '; did you mean googlenet?'
    """
    names = difflib.get_close_matches(name, list(known), n=count, cutoff=0.6)
    return f"; did you mean {', '.join(names)}?" if names else ""


def first(names: Sequence[str], count: int = 3) -> str:
    """Return the first few names for a message.

    >>> first(["conv1", "conv2", "conv3", "fc"])
    'conv1, conv2, conv3, ...'
    """
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def listed(names: Sequence[str]) -> str:
    """Return all names for a message.

    >>> listed(["conv1", "conv2", "fc"]), listed(["fc"])
    ('conv1, conv2 and fc', 'fc')
    """
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def one_line(error: BaseException, most: int | None = None) -> str:
    r"""Return the message of an exception in one line of at most `most` characters, or its type if it is empty.

    >>> one_line(ValueError("two\n  lines")), one_line(KeyError())
    ('two lines', 'KeyError')
    """
    return " ".join(str(error).split())[:most] or type(error).__name__


def reason_of(error: BaseException) -> str:
    """Return the message of an exception from third-party code in one line, with the file and line that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if not Path(frame.filename).is_relative_to(Path(__file__).parent)]
    place = f" ({Path(inside[-1].filename).name}:{inside[-1].lineno})" if inside else ""
    said = next(iter(str(error).splitlines()), "")
    if isinstance(error, SystemExit):
        said = f"it called sys.exit({said})"
    elif type(error).__name__ not in said:
        said = f"{type(error).__name__}: {said}" if said else type(error).__name__
    return said + place
