"""Tell errors of the machine from damaged images, and try again after the former.

An image is unreadable only if its bytes were read and are found broken. If the machine or the network fails to read
it (no file descriptors, a disk or server that does not answer), it may be readable later: it is tried again, and then
recorded as missing, which the next run tries again.
"""

from __future__ import annotations

import errno
import http.client
import re
import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

from actstats.data.image import MISSING, UNREADABLE, ImageError
from actstats.errors import ActstatsError, UnavailableError, one_line

T = TypeVar("T")

WAITS: Final = (0.1, 0.4, 1.6, 6.4)
"""Seconds before each further try to read an image."""
_OUTAGE: Final = 30.0
"""Seconds without any success after which an image is no longer tried several times."""
_IN_A_ROW: Final = 32
"""Number of images in a row that the machine fails to read, after which it is not tried any longer."""
_GONE: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
_OF_THE_FILE: Final = (
    errno.EISDIR, errno.EINVAL, errno.ENXIO, errno.ESPIPE, errno.EFBIG, errno.EOVERFLOW, errno.EILSEQ,
)  # fmt: skip
"""Errors of what a file is or contains: a decoder that seeks to a negative offset raises EINVAL."""
_CLIENTS: Final = frozenset(
    {"aiohttp", "azure", "botocore", "fsspec", "google", "httpcore", "httpx", "huggingface_hub", "obstore"}
    | {"paramiko", "requests", "urllib", "urllib3"}
)
"""Packages whose exceptions are errors of a network."""
_NUMBER: Final = re.compile(r"\berrno\W{1,4}(\d{1,4})\b", re.IGNORECASE)


class MachineError(ImageError):
    """The machine or the network failed to read an image; the status is MISSING, so that a rerun tries it again."""


def image_error(error: Exception) -> ImageError:
    """Return the `ImageError` for an exception raised while reading or decoding an image.

    It is a `MachineError` for errors of the operating system and of network clients, MISSING for a file that does not
    exist, else UNREADABLE, with the type of the exception.

    >>> image_error(OSError(24, "Too many open files"))
    MachineError(1, 'cannot be read: Too many open files')
    >>> image_error(SyntaxError("broken PNG file")).status, image_error(FileNotFoundError()).status
    (2, 1)
    """
    if isinstance(error, ImageError):
        return error
    if isinstance(error, UnavailableError):
        return MachineError(MISSING, error.reason)
    number = _number(error)
    if number in _GONE or isinstance(error, FileNotFoundError) or _answer(error) in (404, 410):
        named = getattr(error, "filename", None)
        return ImageError(
            MISSING, "the file does not exist" + (f": {named}" if isinstance(named, str) else "")
        )
    if (number is not None and number not in _OF_THE_FILE) or _of_network(error):
        why = getattr(error, "strerror", None) or one_line(error, 160)
        return MachineError(MISSING, f"cannot be read: {why}")
    kind, text = type(error).__name__, one_line(error, 160)
    plain = type(error) is OSError or text == kind  # Pillow raises OSError for truncated images
    return ImageError(UNREADABLE, text if plain else f"{kind}: {text}")


def _number(error: Exception) -> int | None:
    """Return the error number of the operating system, or None; some libraries have it in the message only."""
    if isinstance(error, OSError) and isinstance(error.errno, int):
        return error.errno
    named = _NUMBER.search(str(error))
    return int(named[1]) if named and int(named[1]) in errno.errorcode else None


def _answer(error: Exception) -> int | None:
    """Return the status code of an HTTP error, or None."""
    answer = getattr(error, "code", None) or getattr(getattr(error, "response", None), "status_code", None)
    return answer if isinstance(answer, int) else None


def _of_network(error: Exception) -> bool:
    kinds = (ConnectionError, TimeoutError, http.client.HTTPException)
    return isinstance(error, kinds) or type(error).__module__.partition(".")[0] in _CLIENTS


class Patience:
    """Calls functions that read an image, again after errors of the machine.

    An image is tried five times. The threads of a process share one backoff: while the machine fails, no thread
    begins to read another image, and after 30 seconds without any success each image is tried once only.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._since: float | None = None
        """When the machine began to fail; None while it works."""
        self._until = 0.0
        self._in_a_row = 0
        self._stopped = False

    def __call__(self, read: Callable[[], T]) -> T:
        """Return what `read` returns.

        Raises:
            MachineError: the machine fails each time.
            ActstatsError: it has failed for 32 images in a row.
            Exception: any other exception that `read` raises.
        """
        self._pause()
        for wait in (*WAITS, None):
            try:
                result = read()
            except (OSError, MachineError, UnavailableError) as error:
                failure = image_error(error)
                if not isinstance(failure, MachineError):
                    self._works()
                    raise (failure if isinstance(error, OSError) else error) from None
                if wait is None or not self._fails(wait):
                    self._give_up(failure)
                    raise failure from (None if failure is error else error)
            except BaseException:
                self._works()
                raise
            else:
                self._works()
                return result
        raise AssertionError

    def stop(self) -> None:
        """End all waiting; functions that fail are not tried again."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _pause(self) -> None:
        if self._since is not None:
            with self._changed:
                while not self._stopped and (left := self._until - time.monotonic()) > 0:
                    self._changed.wait(left)

    def _works(self) -> None:
        if self._since is not None or self._in_a_row:
            with self._changed:
                self._since, self._until, self._in_a_row = None, 0.0, 0
                self._changed.notify_all()

    def _fails(self, wait: float) -> bool:
        """Wait after a failure; return False if the image is not to be tried again."""
        now = time.monotonic()
        with self._changed:
            if self._since is None:
                self._since = now
            if self._stopped or now - self._since > _OUTAGE:
                return False
            self._until = max(self._until, now + wait)
            self._changed.wait_for(lambda: self._stopped, wait)
            return not self._stopped

    def _give_up(self, failure: MachineError) -> None:
        with self._changed:
            self._in_a_row += 1
            if self._in_a_row >= _IN_A_ROW:
                raise ActstatsError(
                    f"{_IN_A_ROW} images in a row could not be read ({failure.message}); completed partitions are "
                    "kept: rerun the same command to resume"
                )
