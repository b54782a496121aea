"""One heap for all threads, so that a long sweep needs no more memory than a short one."""

from __future__ import annotations

import ctypes
from typing import Final

_M_ARENA_MAX: Final = -8  # of glibc's malloc.h


def share_heap() -> None:
    """Make all threads that start from now on allocate from one heap, where the C library is glibc.

    It gives each thread a heap of its own otherwise, and what images and compressed chunks leave behind in each of
    them adds up: 5 % in 5,000 images. A program's own process is the place to decide that, not a library.
    """
    try:
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
    except (AttributeError, OSError, TypeError):  # another C library: musl, macOS, Windows
        return
