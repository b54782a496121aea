"""Reads weights files in a process that may take little memory and time.

    python -m tests.hostile.reading < names

reads each file that a line names into a small network, and prints what came of it, a JSON object a line: `said` is
the error's line, or empty; `fault` the traceback of an error that is not actstats's own; `seconds` of processor time;
and the `megabytes` that it took beyond the process's own. A file that takes more than the limits ends the process.
"""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import nn

SECONDS = 20.0
"""Processor time for one file, of which a machine in use by others needs the more."""
MEMORY = 1 << 30
"""Bytes of addresses for all files, beyond those of a process that has torch loaded."""
ARCH = f"{__name__}:network"
_ROOT = Path(__file__).parents[2]


def network() -> nn.Module:
    """A network of nine weights: a convolution, a normalisation, and a layer of five classes."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 5))


def read_all(names: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Read one file after the other, within the limits."""
    from actstats.errors import ActstatsError
    from actstats.models import load_model

    load_model(ARCH, "none")
    _limit_memory()
    for name in names:
        _forget_peak()
        before, begun = _status("VmRSS"), time.process_time()
        found: dict[str, Any] = {"file": name, "said": ""}
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            load_model(ARCH, name)
        except ActstatsError as error:
            found["said"] = str(error)
        except Exception:
            found["fault"] = traceback.format_exc()
        signal.setitimer(signal.ITIMER_PROF, 0)
        found |= {"seconds": time.process_time() - begun, "megabytes": (_status("VmHWM") - before) / 1e3}
        yield found


def read_apart(names: Iterable[Path]) -> list[dict[str, Any]]:
    """Read files in processes of their own; where one ends at a file, `fault` says so, and another goes on."""
    left, found = [str(name) for name in names], []
    while left:
        child = subprocess.run(
            [sys.executable, "-m", __name__],
            input="\n".join(left),
            capture_output=True,
            text=True,
            cwd=_ROOT,
        )
        lines = [json.loads(line) for line in child.stdout.splitlines()]
        found += lines
        left = left[len(lines) :]
        if left:
            reason = f"ended with {child.returncode}: {child.stderr[-500:]}"
            found.append(
                {"file": left.pop(0), "said": "", "fault": reason, "seconds": SECONDS, "megabytes": 0}
            )
    return found


def _limit_memory() -> None:
    if Path("/proc/self/status").exists():
        most = _status("VmSize") * 1000 + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _status(name: str) -> int:
    """Return an entry of the process's status in kB; 0 where there is none, as on macOS."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)


def _forget_peak() -> None:
    peak = Path("/proc/self/clear_refs")
    if peak.exists():
        peak.write_text("5")


if __name__ == "__main__":
    for line in read_all(line.rstrip("\n") for line in sys.stdin):
        print(json.dumps(line), flush=True)
