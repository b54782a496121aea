"""Images in a dataset of the Hugging Face hub, of which a server on this machine has what is asked for."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow as pa
import pyarrow.parquet as pq

from tests.conftest import photograph

NAME = "data/train-0.parquet"


class Hub(BaseHTTPRequestHandler):
    """One dataset, owner/name, with one Parquet file; every fifth request is refused once."""

    protocol_version = "HTTP/1.1"
    data = b""
    seen = 0

    def do_GET(self) -> None:
        Hub.seen += 1
        path = self.path.partition("?")[0]
        if Hub.seen % 5 == 0 and "/resolve/" in path:
            self.answer(503, b"")
        elif path == f"/datasets/owner/name/resolve/main/{NAME}":
            first, last = map(int, re.findall(r"\d+", self.headers["Range"]))
            self.answer(206, self.data[first : last + 1])
        elif path.startswith("/api/datasets/owner/name/tree/main"):
            self.answer(200, json.dumps([self.entry()]).encode())
        elif path in ("/api/datasets/owner/name", "/api/datasets/owner/name/revision/main"):
            self.answer(200, json.dumps({"id": "owner/name", "sha": "0" * 40, "siblings": []}).encode())
        else:
            self.answer(404, b"")

    def do_POST(self) -> None:
        """Tell older versions of huggingface_hub of the paths that they ask for."""
        asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.answer(200, json.dumps([self.entry()] if NAME in asked.replace("%2F", "/") else []).encode())

    def entry(self) -> dict[str, object]:
        return {"type": "file", "path": NAME, "size": len(self.data), "oid": "0"}

    def answer(self, status: int, data: bytes) -> None:
        self.send_response(status)
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


PROGRAM = """
from actstats.data import open_source
source = open_source("hf://datasets/owner/name", limit=17)
print(len(source), source.paths[16], source.labels[:4].tolist())
print([source.image(index).getpixel((0, 0)) for index in range(17)])
try:
    open_source("hf://datasets/owner/other")
except Exception as error:
    print(error)
"""


def test_images_of_a_dataset_on_the_hub(tmp_path):
    images, rows = [photograph(index) for index in range(20)], []
    for index, image in enumerate(images):
        written = io.BytesIO()
        image.save(written, format="png")
        rows.append({"image": {"bytes": written.getvalue(), "path": f"{index}.png"}, "label": index % 3})
    table = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), table, row_group_size=4)
    Hub.data = table.getvalue()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={
                **os.environ,
                "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
                "HF_HOME": str(tmp_path),
                "ACTSTATS_CACHE": str(tmp_path),
            },
            capture_output=True,
            text=True,
        )
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0, done.stderr
    first, pixels, missing = done.stdout.splitlines()
    assert first == "17 train-0/0000016 [0, 1, 2, 0]"
    assert pixels == str([image.getpixel((0, 0)) for image in images[:17]])
    assert missing == "there is no hf://datasets/owner/other, or it needs a token (HF_TOKEN)"
