"""Sweep into a bucket behind a network that fails in every way, and count what holds.

    python benchmarks/faults/buckets.py > benchmarks/results/buckets.jsonl
    python benchmarks/tables.py

An S3 server and a network before it run in this process (`tests/s3.py`). A trial holds if the sweep ends with the
objects of an undisturbed one; or, where the fault does not go away, with an error of one line, after which the same
command without the fault ends with these objects. A creation, the writing of a partition and a removal are stopped at
each of their requests, and then resumed, overwritten or repaired. Failures go to stderr.
"""

from __future__ import annotations

import argparse
import http.client
import json
import logging
import os
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import obstore
import torch
from moto.server import ThreadedMotoServer
from PIL import Image
from torch import nn

import actstats
from actstats import remote
from actstats.data.preprocessing import Preprocessing
from actstats.errors import ActstatsError
from actstats.store import Store, bucket
from tests.s3 import BUCKET, Network, network, refused_after

URL = f"s3://{BUCKET}/s.zarr"
Fault = Callable[[str, str], tuple[int, str] | None]
Trial = tuple[str, Callable[[Network, "Bench"], str]]
"""What is tried, and a function that returns what went wrong, or an empty text."""
ERRORS = {
    500: "InternalError",
    502: "BadGateway",
    503: "SlowDown",
    504: "GatewayTimeout",
    429: "TooManyRequests",
}
"""Answers after which a request is tried again."""
REFUSALS = {403: "AccessDenied", 400: "ExpiredToken", 404: "NoSuchBucket"}
"""Answers that do not go away by themselves."""


class Bench:
    """A small sweep of three partitions, and the objects that it writes when nothing fails."""

    def __init__(self, folder: Path) -> None:
        rng = np.random.default_rng(0)
        for index in range(5):
            pixels = rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.png")
        torch.manual_seed(0)
        self._network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
        self._network(torch.zeros(1, 3, 16, 16))
        self._folder = folder
        self.sweep()
        self.expected = objects()

    def sweep(self, *, another: bool = False, **execution: bool) -> None:
        """Sweep into the bucket; `another` is a different sweep into the same store."""
        plan = actstats.plan(
            self._network, self._folder, URL, preprocessing=Preprocessing.imagenet(size=16, resize=16),
            device="cpu", metrics=["mean", "histogram"], partition_size=2, batch_size=1 if another else 2,
        )  # fmt: skip
        plan.run(workers=0, **execution)  # type: ignore[arg-type]

    def outcome(self, **execution: bool) -> str:
        """Sweep, and return what went wrong."""
        try:
            self.sweep(**execution)
        except ActstatsError as error:
            return f"refused: {error}"
        return self.compared()

    def compared(self) -> str:
        """Return how the objects in the bucket differ from those of an undisturbed sweep."""
        found = objects()
        if found != self.expected:
            return f"other objects: {sorted(found.items() ^ self.expected.items())[:3]}"
        return "; ".join(str(entry) for entry in Store.open(URL).damage())

    def stopped(self, **execution: bool) -> str:
        """Sweep, and return what went wrong unless it ends with an error of one line."""
        try:
            self.sweep(**execution)
        except ActstatsError as error:
            return "" if "\n" not in str(error) else f"several lines: {error}"
        return "it did not notice"


def objects() -> dict[str, int]:
    """Return a checksum of each object in the bucket, except those that hold dates and times."""
    store = obstore.store.from_url(URL, client_options={"allow_http": True})
    return {
        key: zlib.crc32(bytes(obstore.get(store, key).bytes()))
        for key in (meta["path"] for meta in obstore.list(store).collect())
        if key not in ("zarr.json", "manifest.json") and not key.startswith("provenance/c")
    }


def requests(server: Network, do: Callable[[], object]) -> int:
    """Return how many PUTs and POSTs it takes."""
    before = len(server.seen)
    do()
    return sum(method in ("PUT", "POST", "DELETE") for method, _ in server.seen[before:])


def none(method: str, path: str) -> None:
    """No fault."""


def every(count: int, status: int, code: str) -> Fault:
    """A fault of one request in `count`."""
    seen = iter(range(1 << 30))
    return lambda method, path: (status, code) if next(seen) % count == count - 1 else None


def first(count: int, status: int, code: str) -> Fault:
    """A fault of the first `count` requests."""
    seen = iter(range(1 << 30))
    return lambda method, path: (status, code) if next(seen) < count else None


def reset(server: Network) -> None:
    """Empty the bucket, and let the network work."""
    server.fault, server.cut_every = none, 0
    behind = http.client.HTTPConnection("127.0.0.1", server.port)
    for method, path in (("POST", "/moto-api/reset"), ("PUT", f"/{BUCKET}")):
        behind.request(method, path)
        behind.getresponse().read()
    behind.close()


def passing(fault: Fault, cut_every: int = 0) -> Callable[[Network, Bench], str]:
    """A trial with a fault that requests get over when they are repeated."""

    def trial(server: Network, bench: Bench) -> str:
        server.fault, server.cut_every = fault, cut_every
        return bench.outcome()

    return trial


def lasting(fault: Fault) -> Callable[[Network, Bench], str]:
    """A trial with a fault that stays until the user does something."""

    def trial(server: Network, bench: Bench) -> str:
        server.fault = fault
        if wrong := bench.stopped():
            return wrong
        server.fault = none
        return bench.outcome()

    return trial


def interrupted(puts: int, then: str, *, of_removal: bool = False) -> Callable[[Network, Bench], str]:
    """A trial in which a process ends after this many requests that write, and another one goes on."""

    def trial(server: Network, bench: Bench) -> str:
        if of_removal:
            bench.sweep(another=True)
        server.fault = writes_refused_after(puts)
        if wrong := bench.stopped(overwrite=of_removal):
            return wrong
        server.fault = none
        return bench.outcome(**({then: True} if then else {}))

    return trial


def writes_refused_after(count: int) -> Fault:
    """A fault like `refused_after`, of all requests that change something."""
    puts = refused_after(count)
    return lambda method, path: puts("PUT", path) if method in ("PUT", "POST", "DELETE") else None


def trials(server: Network, bench: Bench) -> Iterator[Trial]:
    """Yield all trials."""
    for status, code in ERRORS.items():
        for count in (5, 10, 20):
            yield f"{status} to one request in 5, 10, 20", passing(every(count, status, code))
        yield "five errors in a row at the start", passing(first(5, status, code))
    for count in (5, 10, 20):
        yield "connections cut, one in 5, 10, 20", passing(every(count, 0, ""))
        yield "bodies cut short, one in 5, 10, 20", passing(none, count)
    for status, code in REFUSALS.items():
        for count in (0, 1, 3, 10, 30):
            late = first_pass(count, status, code)
            yield "access denied, token expired, bucket gone, at five moments", lasting(late)
    reset(server)
    writes = requests(server, bench.sweep)
    for puts in range(1, writes):
        for then in ("", "overwrite", "repair"):
            what = "a sweep ends at any request; resumed, overwritten, repaired"
            yield what, interrupted(puts, then)
    reset(server)
    bench.sweep(another=True)
    removing = requests(server, lambda: bench.sweep(overwrite=True))
    for puts in range(1, removing):
        yield "`--overwrite` ends at any request; repeated", interrupted(puts, "overwrite", of_removal=True)


def first_pass(count: int, status: int, code: str) -> Fault:
    """A fault of all requests after the first `count`."""
    seen = iter(range(1 << 30))
    return lambda method, path: (status, code) if next(seen) >= count else None


def measure() -> None:
    """Run all trials, and print a JSON object per line with their numbers by kind."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--every", type=int, default=1, metavar="N", help="run one trial in N")
    arguments = parser.parse_args()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "faults", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    rows: dict[str, dict[str, int]] = {}
    with (
        mock.patch.object(remote, "PATIENCE", 20),
        mock.patch.object(bucket, "_ABANDONED", 0.1),  # of removals that nobody finishes
        network(moto.get_host_and_port()[1]) as server,
        tempfile.TemporaryDirectory() as folder,
    ):
        os.environ["AWS_ENDPOINT_URL"] = server.url
        reset(server)
        bench = Bench(Path(folder))
        for number, (what, trial) in enumerate(trials(server, bench)):
            if number % arguments.every:
                continue
            reset(server)
            wrong = trial(server, bench)
            row = rows.setdefault(what, {"tried": 0, "held": 0})
            row["tried"] += 1
            row["held"] += not wrong
            if wrong:
                print(f"{what} ({number}): {wrong}", file=sys.stderr, flush=True)
    moto.stop()
    for what, row in rows.items():
        print(json.dumps({"what": what, **row}))


if __name__ == "__main__":
    measure()
