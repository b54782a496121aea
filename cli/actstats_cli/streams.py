"""Standard streams that do not stop a command when they are closed, full or no longer read."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast


class Unfailing:
    """A text stream that drops what cannot be written, such as on a full disk or after its reader has exited."""

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
        """Flush as much as can be written."""
        with suppress(OSError):
            self._stream.flush()


def open_closed_streams() -> None:
    """Open `/dev/null` in place of closed standard streams, so that no other file gets their descriptors."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            if os.open(os.devnull, os.O_RDWR) != number:  # `open` returns the lowest free descriptor
                raise
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w")


@contextmanager
def unfailing_stderr() -> Iterator[None]:
    """Ignore errors of writing to stderr inside the block."""
    stream = sys.stderr
    sys.stderr = cast(TextIO, Unfailing(stream))
    try:
        yield
    finally:
        with suppress(OSError):  # otherwise Python fails to flush it at exit, and changes the exit status
            stream.flush()
            sys.stderr = stream
