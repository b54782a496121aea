"""The background writer: one thread that puts finished partitions into the store while the next one runs."""

from __future__ import annotations

import threading
from types import TracebackType

from actstats.store import Store
from actstats.sweeping.buffers import Finished


class Writer:
    """Writes partitions in its own thread, one at a time; at most one more is kept, so memory stays bounded.

    Used as a context manager: leaving it waits for the partition that is being written, also on Ctrl-C, so that
    work which is complete is kept. An error of the thread is raised in the caller's next call, or on leaving.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def put(self, finished: Finished) -> None:
        """Begin to write a partition; wait first for the one before it.

        Raises:
            ActstatsError: the partition before it could not be written.
        """
        self._wait()
        self._thread = threading.Thread(target=self._write, args=(finished,), name="actstats-writer")
        self._thread.start()

    def check(self) -> None:
        """Raise the error that stopped the thread, if any; never waits."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _wait(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def _write(self, finished: Finished) -> None:
        try:
            self._store.write(finished.index, finished.arrays(), finished.status)
        except BaseException as error:  # raised again in the caller's thread
            self._error = error

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._wait()
        elif self._thread is not None:
            self._thread.join()
