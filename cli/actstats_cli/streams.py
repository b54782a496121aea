"""The standard streams of a command: one that is closed, full or not read any more does not stop its work."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast


class Unfailing:
    """A text stream that drops what cannot be written: a full disk under it, or a reader that has gone."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write as much of the text as can be written."""
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Write what is waiting, as far as it can be written."""
        with suppress(OSError):
            self._stream.flush()


def open_closed_streams() -> None:
    """Open `/dev/null` in the place of a standard stream that is closed, so that no other file gets its number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            if os.open(os.devnull, os.O_RDWR) != number:  # the lowest number that is free, which this is
                raise
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w")


@contextmanager
def unfailing_stderr() -> Iterator[None]:
    """Let nothing that is said on stderr stop what is done inside the block."""
    stream = sys.stderr
    sys.stderr = cast(TextIO, Unfailing(stream))
    try:
        yield
    finally:
        with suppress(OSError):  # else Python fails to flush it on leaving, and changes the exit status
            stream.flush()
            sys.stderr = stream
