"""A web server on this machine that keeps its word, or breaks it as real ones do."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """Serves `files` (path to bytes).

    `busy` is what the next requests are answered with instead of a file, each to be tried again at once;
    `drops` is after how many bytes each of the next connections breaks off; `ranges` whether it can resume;
    `versions` whether it says which version of a file it has. `seen` are the paths and ranges that were asked for.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.busy: list[int] = []
        self.drops: list[int] = []
        self.seen: list[tuple[str, str | None]] = []
        self.ranges = True
        self.versions = True
        self.type = "application/octet-stream"

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.seen.append((self.path, asked))
        if self.server.busy:
            self.send_response(self.server.busy.pop(0))
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = self.server.files.get(self.path)
        if data is None:
            self.send_error(404)
            return
        version = f'"{hash(data)}"'
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", asked or "")
        start, whole = 0, len(data)
        if found and self.server.ranges and self.headers.get("If-Range", version) == version:
            start = int(found[1])
            if start >= len(data):
                self.send_error(416)
                return
            data = data[: int(found[2]) + 1] if found[2] else data
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{whole}")
        else:
            self.send_response(200)
        if self.server.versions:
            self.send_header("ETag", version)
        self.send_header("Content-Type", self.server.type)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        end = start + self.server.drops.pop(0) if self.server.drops else len(data)
        with suppress(ConnectionError):  # it may have had enough
            self.wfile.write(data[start:end])
        if end < len(data):
            self.wfile.flush()
            self.connection.close()

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def serving() -> Iterator[Server]:
    server = Server()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
