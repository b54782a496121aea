"""Download files into the cache: with a progress bar, resumable, and verified by checksum.

The cache is the folder `ACTSTATS_CACHE`, by default `~/.cache/actstats`. A file is stored in it under its URL. A note
next to it records the checksum of the first download, so that later changes at the URL or on disk are detected.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import IO, Any, Final
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

from actstats.errors import ActstatsError, NotCachedError
from actstats.support import cache_folder, replace_file, sha256_of
from actstats.text import printable

_TIMEOUT: Final = 30.0
"""Seconds without a response after which a connection fails."""
_TRIES: Final = 3
"""Number of consecutive connections without any data after which a download is abandoned."""
_BUSY: Final = frozenset({408, 429, 500, 502, 503, 504})
"""HTTP status codes of a server that may recover soon."""
_PAUSES: Final = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds to wait before each retry of a busy server, unless its response says how long (`Retry-After`)."""
_LONGEST_PAUSE: Final = 60.0
_BLOCK: Final = 1 << 20


@dataclass(frozen=True)
class Fetched:
    """A file in the cache, and the SHA-256 recorded when it was first downloaded, in hex."""

    path: Path
    sha256: str


class _Interrupted(Exception):  # noqa: N818 - the download resumes after it
    """The connection ended before the end of the file."""


def cached_file(url: str) -> Path:
    """Return the path in the cache of the file at a URL, whether or not it has been downloaded.

    >>> cached_file("https://example.org/weights/a.pth").relative_to(cache_folder()).as_posix()
    'weights/example.org/weights/a.pth'
    """
    address = urlsplit(url)
    if address.scheme not in ("http", "https") or not address.hostname:
        raise ActstatsError(f"{url!r} is not the URL of a file; it must begin with https:// or http://")
    parts = [part for part in unquote(address.path).split("/") if part not in ("", ".", "..")]
    safe = [re.sub(r"[^\w.+=@-]", "_", part)[:150] for part in parts] or ["index"]
    if address.query:
        safe[-1] = f"{hashlib.sha256(address.query.encode()).hexdigest()[:8]}-{safe[-1]}"
    host = address.hostname if address.port is None else f"{address.hostname}_{address.port}"
    return cache_folder().joinpath("weights", host, *safe)


def fetch(url: str, *, sha256: str | None = None, offline: bool = False, advice: str = "") -> Fetched:
    """Return the file at a URL from the cache, downloading it if needed.

    `sha256` is the expected checksum of the file in hex, or its beginning. `advice` is appended to network errors.

    Raises `ActstatsError` if there is no such file or no network, `offline` forbids the download, or the checksum
    differs.
    """
    file = cached_file(url)
    if not file.is_file():
        if offline:
            raise NotCachedError(
                f"{url} is not in the cache and `offline=True` forbids the download; run once without it, "
                f"or put the file at {file}"
            )
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with _alone(_beside(file, ".part")) as part:
                if not file.is_file():  # another process may have downloaded it meanwhile
                    _download(url, part, _beside(file, ".part.json"), advice)
                    _accept(url, part, file, sha256)
        except OSError as error:
            raise ActstatsError(f"cannot write {error.filename or file}: {error.strerror or error}") from None
    known = _note(_beside(file, ".json")).get("sha256")
    if known is None:  # placed there by hand
        known = sha256_of(file)
        _remember(_beside(file, ".json"), {"url": url, "sha256": known})
    if sha256 and not known.startswith(sha256.lower()):
        raise ActstatsError(
            f"the SHA-256 of {file} is {known}, not {sha256}; delete the file to download it again"
        )
    return Fetched(file, known)


def _download(url: str, part: Path, note: Path, advice: str) -> None:
    """Download the whole file to `part`, which may already hold its beginning."""
    print(printable(f"downloading {url} to {part.with_suffix('')}"), file=sys.stderr)
    tries, pauses = _TRIES, iter(_PAUSES)
    while True:
        before = part.stat().st_size
        try:
            _receive(url, part, note)
        except _Interrupted as stop:
            tries = _TRIES if part.stat().st_size > before else tries - 1
            if tries > 0:
                continue
            advice = (
                "the partial file is kept, rerun the same command to resume"
                if part.stat().st_size
                else advice
            )
            raise ActstatsError(_failed(url, str(stop), advice)) from None
        except HTTPError as error:
            if error.code in _BUSY and (pause := next(pauses, None)) is not None:
                time.sleep(_asked_pause(error.headers, pause))
                continue
            reason = f"the server returned {error.code} {error.reason}"
            raise ActstatsError(_failed(url, reason, advice)) from None
        except (URLError, HTTPException, ConnectionError, TimeoutError) as error:
            reason = " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__
            raise ActstatsError(_failed(url, reason, advice)) from None
        else:
            return


def _asked_pause(headers: Message, pause: float) -> float:
    """Return how many seconds a server asks to wait, and `pause` where it names none."""
    asked = headers.get("Retry-After", "")
    return min(float(asked), _LONGEST_PAUSE) if asked.isdecimal() else pause


def _failed(url: str, reason: str, advice: str) -> str:
    return f"download of {url} failed: {reason}" + (f"; {advice}" if advice else "")


def _receive(url: str, part: Path, note: Path) -> None:
    """Open one connection and append the data received."""
    have, version = part.stat().st_size, _note(note).get("version")
    headers = {"User-Agent": "actstats"}
    if have and version:
        # If the file has changed since, the server ignores the range and sends all of it.
        headers |= {"Range": f"bytes={have}-", "If-Range": version}
    try:
        response = urlopen(Request(url, headers=headers), timeout=_TIMEOUT)
    except HTTPError as error:
        if error.code != 416 or not have:
            raise
        part.write_bytes(b"")  # The partial file is not the beginning of this one.
        raise _Interrupted("the file on the server is smaller than the partial download") from None
    with response:
        start = have if response.status == 206 else 0
        _refuse_page(url, response.headers)
        length = response.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        _remember(note, {"version": _version(response.headers)})
        with part.open("r+b") as file:
            file.seek(start)
            file.truncate()
            _copy(response, file, start, total)


def _copy(response: Any, file: IO[bytes], start: int, total: int | None) -> None:
    from tqdm import tqdm

    quiet = not sys.stderr.isatty()
    with tqdm(total=total, initial=start, unit="B", unit_scale=True, disable=quiet, leave=False) as bar:
        try:
            while block := response.read(_BLOCK):
                file.write(block)
                bar.update(len(block))
        except (HTTPException, ConnectionError, TimeoutError) as error:
            file.write(getattr(error, "partial", b""))
            raise _Interrupted(_stopped(file, total)) from None
    if total is not None and file.tell() < total:
        raise _Interrupted(_stopped(file, total))


def _stopped(file: IO[bytes], total: int | None) -> str:
    return (
        f"the connection ended after {file.tell():,}" + ("" if total is None else f" of {total:,}") + " bytes"
    )


def _refuse_page(url: str, headers: HTTPMessage) -> None:
    if headers.get_content_type() == "text/html":
        raise ActstatsError(
            f"{url} returned a web page, not a file; download it by hand, then use `weights=FILE`"
        )


def _version(headers: HTTPMessage) -> str | None:
    """Return a validator for If-Range that changes with the file, or None if the server sends none."""
    tag = headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified")


def _accept(url: str, part: Path, file: Path, sha256: str | None) -> None:
    """Verify a complete download, record its checksum, and rename it to `file`."""
    found = sha256_of(part)
    for expected, what in (
        (sha256, "that was requested"),
        (_note(_beside(file, ".json")).get("sha256"), "that was first downloaded"),
    ):
        if expected and not found.startswith(expected.lower()):
            part.unlink()
            _beside(file, ".part.json").unlink(missing_ok=True)
            raise ActstatsError(
                f"{url} is not the file {what}: its SHA-256 is {found}, not {expected}; the download was removed"
            )
    _remember(_beside(file, ".json"), {"url": url, "sha256": found, "bytes": part.stat().st_size})
    _beside(file, ".part.json").unlink(missing_ok=True)
    part.rename(file)


@contextmanager
def _alone(path: Path) -> Iterator[Path]:
    """Lock a file exclusively, creating it if needed."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        path.touch()  # the previous holder of the lock may have renamed it
        try:
            yield path
        finally:
            if path.exists() and not path.stat().st_size:
                path.unlink()


def _beside(file: Path, ending: str) -> Path:
    return file.with_name(file.name + ending)


def _note(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _remember(path: Path, content: Mapping[str, Any]) -> None:
    replace_file(path, json.dumps(content).encode())
