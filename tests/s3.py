"""An S3 server on this machine (moto's), and before it a network that fails as real ones do."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

BUCKET = "bucket-of-tests"


class Network(ThreadingHTTPServer):
    """Passes requests on to the server at `port`, and answers back; with port 0, nothing is there.

    `refused_every` n: one request in n is answered 503 instead; `down_until`: connections are dropped before that
    time (`time.monotonic`). `cut_every` n: the body of one GET in n is cut in half, each range once, with a
    Content-Length that agrees, as by a proxy that gave up. `answers`: the status and the code of an error for paths
    with this ending. `fault`: asked for each request, by its method and path; it returns the status and the code of
    an error, status 0 to drop the connection, or None.
    `held` is the ending of a path: a PUT there waits until another one arrives, for a minute at most. `seen` are the
    method and the path of each request.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.port = port
        self.refused_every = 0
        self.cut_every = 0
        self.bodies = 0
        self.cut: set[tuple[str, str | None]] = set()
        self.answers: dict[str, tuple[int, str]] = {}
        self.fault: Callable[[str, str], tuple[int, str] | None] = lambda method, path: None
        self.down_until = 0.0
        self.seen: list[tuple[str, str]] = []
        self.refused = self.dropped = 0
        self.writing = threading.Lock()
        self.held = ""
        self.met = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of connections that were dropped."""


class Handler(BaseHTTPRequestHandler):
    server: Network
    protocol_version = "HTTP/1.1"

    def handle_any(self) -> None:
        server = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        server.seen.append((self.command, self.path))
        if server.held and self.command == "PUT" and self.path.endswith(server.held):
            if sum(m == "PUT" and path.endswith(server.held) for m, path in list(server.seen)) > 1:
                server.met.set()
            server.met.wait(60)
        if time.monotonic() < server.down_until:
            server.dropped += 1
            self.close_connection = True
            return
        if server.refused_every and len(server.seen) % server.refused_every == 0:
            server.refused += 1
            self.answer(
                503, {}, b"<Error><Code>SlowDown</Code><Message>Please reduce your rate</Message></Error>"
            )
            return
        if (fault := server.fault(self.command, self.path)) is not None:
            status, code = fault
            if not status:
                self.close_connection = True
                return
            self.answer(status, {}, f"<Error><Code>{code}</Code><Message>No</Message></Error>".encode())
            return
        for ending, (status, code) in server.answers.items():
            if self.path.partition("?")[0].endswith(ending):
                self.answer(status, {}, f"<Error><Code>{code}</Code><Message>No</Message></Error>".encode())
                return
        if not server.port:
            self.answer(404, {}, b"<Error><Code>NoSuchBucket</Code><Message>No such bucket</Message></Error>")
            return
        # S3 decides on a condition and writes in one step; moto does it in two.
        with server.writing if self.command == "PUT" else contextlib.nullcontext():
            behind = http.client.HTTPConnection("127.0.0.1", server.port)
            behind.request(self.command, self.path, body, dict(self.headers))
            found = behind.getresponse()
            data, headers = found.read(), dict(found.getheaders())
            behind.close()
        if self.command == "GET" and "?" not in self.path and found.status < 300:
            server.bodies += 1
            asked = self.path, self.headers.get("Range")
            if server.cut_every and server.bodies % server.cut_every == 0 and asked not in server.cut:
                server.cut.add(asked)
                data = data[: len(data) // 2]
        self.answer(found.status, headers, data)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any  # noqa: N815

    def answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
        self.send_response_only(status)
        length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(data))
        for name, value in headers.items():
            if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            with suppress(ConnectionError):
                self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


def refused_after(puts: int) -> Callable[[str, str], tuple[int, str] | None]:
    """A fault that lets this many PUTs through and refuses all others, as if the process had ended there."""
    left = itertools.count(puts, -1)
    return lambda method, path: (403, "AccessDenied") if method == "PUT" and next(left) <= 0 else None


@contextmanager
def network(port: int) -> Iterator[Network]:
    """A network to the server at `port`, while it is needed."""
    server = Network(port)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="session")
def s3_port() -> Iterator[int]:
    """The port of an S3 server."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()[1]
    server.stop()


@pytest.fixture
def s3(s3_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Network]:
    """A network to an S3 server with one empty bucket, in this process's environment."""
    with network(s3_port) as server:
        for name, value in {
            "AWS_ENDPOINT_URL": server.url,
            "AWS_ACCESS_KEY_ID": "tests",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            monkeypatch.setenv(name, value)
        behind = http.client.HTTPConnection("127.0.0.1", s3_port)
        for method, path in (("POST", "/moto-api/reset"), ("PUT", f"/{BUCKET}")):
            behind.request(method, path)
            behind.getresponse().read()
        yield server
