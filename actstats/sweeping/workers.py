"""The workers of a dask cluster as its client sees them: present, silent, or dead."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final

from actstats.errors import ActstatsError
from actstats.sweeping.scheduler import address_of, ask, patience, require_scheduler
from actstats.sweeping.settings import Execution

DEATHS: Final = 5
"""Worker deaths, one after another or at one partition, after which something other than chance is the cause."""
TICK: Final = 1.0
"""Seconds between checks of which workers are present."""
_EVENTS: Final = "all"
"""Dask's topic of events at which workers join and leave."""


class Workers:
    """Tracks the workers of a cluster."""

    def __init__(self, execution: Execution) -> None:
        """Track the workers of the cluster of `execution.client`."""
        self._client: Any = execution.client
        self._execution = execution
        self.gpus: dict[str, bool] = {}
        """Whether each worker has a GPU."""
        self.silent: set[str] = set()
        """Workers that have not answered the scheduler, or been paused, for `patience()` seconds."""
        self._limits: dict[str, int] = {}
        """Bytes of memory that dask allows each worker, also those that have left; 0 for no limit."""
        self._heard: dict[str, tuple[float, float]] = {}
        """When each worker last answered, by the scheduler's clock, and the seconds watched since then."""
        self._asked = 0.0
        self._patience = patience()
        self._died: deque[str] = deque()
        self._last = ""
        self.generations = Generations()

    def look(self) -> set[str]:
        """Update the workers, and return those that have left since the last call.

        Raises:
            ActstatsError: the connection to the scheduler is lost, or the scheduler does not answer.
        """
        present = set(ask(self._client, "ncores", self.note))
        gone = self.gpus.keys() - present
        self.gpus = {name: gpu for name, gpu in self.gpus.items() if name in present}
        if present - self.gpus.keys() or time.monotonic() - self._asked >= self._patience / 10:
            self._listen()
        self.silent &= self.gpus.keys()
        for name in self.gpus:
            self.generations.join(name)
        return set(gone)

    def _listen(self) -> None:
        """Ask the scheduler when each worker last answered, and report those that fall silent."""
        known = ask(self._client, "identity", self.note)["workers"]
        # If this process or the scheduler was halted, only that has passed of which there is evidence.
        passed = min(time.monotonic() - self._asked, self._patience / 5) if self._asked else 0.0
        self._asked = time.monotonic()
        self.gpus = {name: bool(worker["resources"].get("GPU")) for name, worker in known.items()}
        self._limits |= {name: int(worker["memory_limit"] or 0) for name, worker in known.items()}
        heard = {}
        for name, worker in known.items():
            before, quiet = self._heard.get(name, (0.0, 0.0))
            idle = worker["last_seen"] == before or worker["status"] == "paused"
            heard[name] = worker["last_seen"], quiet + passed if idle else 0.0
        self._heard = heard
        silent = {name for name, (_, quiet) in heard.items() if quiet >= self._patience}
        for name in sorted(silent - self.silent):
            full = f"been paused, as its {self._limits[name] / 2**20:,.0f} MiB of memory are full,"
            what = full if known[name]["status"] == "paused" else "not answered"
            self.note(
                f"worker {name} has {what} for {self._patience:.0f} s; doing without it until it answers"
            )
        for name in sorted(self.silent & known.keys() - silent):
            self.note(f"worker {name} answers again")
        self.silent = silent

    def wait(self) -> dict[str, bool]:
        """Wait for a first worker, and return whether each has a GPU; report now and then that none has come.

        Raises:
            ActstatsError: as `look` and `require_hope`.
        """
        self.look()
        begun, next_note = time.monotonic(), 0.0
        while not self.gpus:
            waited = time.monotonic() - begun
            if waited >= next_note:
                since = f" for {waited:.0f} s" if waited >= TICK else ""
                self.note(
                    f"{address_of(self._client)} has no workers{since}; waiting for the first one (Ctrl-C to stop)"
                )
                next_note = max(self._patience, 2 * next_note)
            time.sleep(TICK)
            self.look()
            self.dead()
            self.require_hope()
        return self.gpus

    def note(self, text: str) -> None:
        """Report `text` to the caller."""
        self._execution.note(text)

    # Deaths, also of workers that join and die between two looks.

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Have the scheduler report every death inside the block."""
        require_scheduler(self._client)
        self._client.subscribe_topic(_EVENTS, self._take_event)
        try:
            yield
        finally:
            with suppress(Exception):  # the connection may be lost
                self._client.unsubscribe_topic(_EVENTS)

    def _take_event(self, event: tuple[float, Any]) -> None:
        """Record a death; called in dask's event loop thread."""
        what = event[1]
        if isinstance(what, Mapping) and what.get("action") == "remove-worker" and not what.get("expected"):
            self._died.append(what["worker"])

    def dead(self) -> list[str]:
        """Count and return the workers that have died since the last call, but not those that were retired."""
        names = [self._died.popleft() for _ in range(len(self._died))]
        for name in names:
            self.generations.die(name)
            self._last = name
        return names

    def require_hope(self) -> None:
        """Raise `ActstatsError` if `DEATHS` workers have died in a row, as the next ones will, too."""
        if self.generations.row < DEATHS:
            return
        limit = self._limits.get(self._last, 0)
        advice = (
            f"dask ends a worker at 95% of its memory limit, here {limit / 2**20:,.0f} MiB: start workers with a "
            "larger --memory-limit, or with --memory-limit 0"
            if limit
            else "find the cause in their logs"
        )
        raise ActstatsError(
            f"{DEATHS} workers died one after another without completing a partition, the last one was {self._last}; "
            f"{advice}, and rerun the same command"
        )


class Generations:
    """Counts workers that died one after another, in a row: each joined after the one before it had died.

    Workers that die together, such as preempted ones, count as one.
    """

    def __init__(self) -> None:
        self.row = 0
        self._born: dict[str, int] = {}

    def join(self, name: str) -> None:
        """Record a worker that is present."""
        self._born.setdefault(name, self.row)

    def die(self, name: str) -> None:
        """Record a death. A worker that nobody saw is taken to have joined after the last one."""
        if self._born.pop(name, self.row) == self.row:
            self.row += 1

    def reset(self) -> None:
        """Begin a new row, because a worker has completed something."""
        self.row = 0
        self._born = dict.fromkeys(self._born, 0)
