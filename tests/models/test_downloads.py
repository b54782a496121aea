"""Downloads: resumed, checked, whole or not there, and none where none are allowed."""

import hashlib
import json
import threading
from pathlib import Path

import pytest

from actstats.errors import ActstatsError
from actstats.models.downloads import Fetched, cached_file, fetch
from actstats.support import cache_folder
from tests.models.server import Server

DATA = bytes(range(256)) * 20_000
DIGEST = hashlib.sha256(DATA).hexdigest()
PATH = "/models/net.pt"


@pytest.fixture
def url(server: Server) -> str:
    server.files[PATH] = DATA
    return server.url(PATH)


def fails(url: str, **options: object) -> str:
    with pytest.raises(ActstatsError) as caught:
        fetch(url, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def only_files(cache: Path) -> set[str]:
    return {path.name for path in cache.rglob("*") if path.is_file()}


def test_a_file_comes_once(server: Server, url: str, cache: Path) -> None:
    assert fetch(url) == Fetched(cached_file(url), DIGEST)
    assert cached_file(url).read_bytes() == DATA
    assert cached_file(url).is_relative_to(cache)
    assert only_files(cache) == {"net.pt", "net.pt.json"}
    assert fetch(url, sha256=DIGEST.upper()[:12], offline=True).sha256 == DIGEST
    assert server.seen == [(PATH, None)]


def test_it_goes_on_where_the_connection_broke(server: Server, url: str) -> None:
    server.drops = [1_000_000, 2_000_000]
    assert fetch(url).sha256 == DIGEST
    assert server.seen == [(PATH, None), (PATH, "bytes=1000000-"), (PATH, "bytes=3000000-")]


def test_it_goes_on_in_the_next_run(server: Server, url: str) -> None:
    server.drops = [1_000_000, 0, 0, 0]
    message = fails(url)
    assert "the connection ended after 1,000,000 of 5,120,000 bytes" in message
    assert "rerun the same command to resume" in message
    assert not cached_file(url).is_file()
    assert fetch(url).sha256 == DIGEST
    assert server.seen[-1] == (PATH, "bytes=1000000-")


@pytest.mark.parametrize("ranges", [True, False])
def test_a_server_that_cannot_resume(server: Server, url: str, ranges: bool) -> None:
    server.drops, server.ranges, server.versions = [1_000_000], ranges, ranges
    assert fetch(url).sha256 == DIGEST
    assert cached_file(url).read_bytes() == DATA


def test_a_file_that_changes_between_the_halves(server: Server, url: str) -> None:
    server.drops = [1_000_000, 0, 0, 0]
    fails(url)
    server.files[PATH] = DATA[::-1]
    assert fetch(url).path.read_bytes() == DATA[::-1]


def test_a_part_that_is_longer_than_the_file(server: Server, url: str) -> None:
    server.drops = [1_000_000, 0, 0, 0]
    fails(url)
    cached_file(url).with_name("net.pt.part").write_bytes(DATA + b"more")
    assert fetch(url).sha256 == DIGEST


def test_another_checksum(server: Server, url: str, cache: Path) -> None:
    message = fails(url, sha256="0" * 64)
    assert f"its SHA-256 is {DIGEST}, not 000000" in message
    assert only_files(cache) == set()
    fetch(url)
    assert f"is {DIGEST}, not 0000" in fails(url, sha256="0" * 64)


def test_a_file_that_is_no_longer_what_came_first(server: Server, url: str) -> None:
    fetch(url).path.unlink()
    server.files[PATH] = b"another"
    assert "is not the file that was first downloaded" in fails(url)
    assert not cached_file(url).is_file()


def test_a_file_put_there_by_hand(server: Server, url: str) -> None:
    place = cached_file(url)
    place.parent.mkdir(parents=True)
    place.write_bytes(b"by hand")
    assert fetch(url, offline=True).sha256 == hashlib.sha256(b"by hand").hexdigest()
    assert json.loads(place.with_name("net.pt.json").read_text())["url"] == url
    assert server.seen == []


def test_offline_asks_nobody(server: Server, url: str) -> None:
    message = fails(url, offline=True)
    assert "is not in the cache and `offline=True`" in message
    assert str(cached_file(url)) in message
    assert server.seen == []


def test_what_servers_answer(server: Server, url: str, cache: Path) -> None:
    assert "the server returned 404 Not Found; do this" in fails(server.url("/nothing"), advice="do this")
    server.type = "text/html; charset=utf-8"
    assert "returned a web page" in fails(url)
    assert "failed: [Errno 111] Connection refused" in fails("http://127.0.0.1:9/a.pt")
    assert only_files(cache) == set()
    assert "is not the URL of a file" in fails("ftp://127.0.0.1/a.pt")


def test_a_server_that_is_busy_is_asked_again(server: Server, url: str) -> None:
    server.busy = [429, 503, 500]
    assert fetch(url).path.read_bytes() == DATA
    assert server.seen == [(PATH, None)] * 4


def test_a_server_that_stays_busy_ends_it(server: Server, url: str) -> None:
    server.busy = [503] * 20
    assert "the server returned 503 Service Unavailable; do this" in fails(url, advice="do this")
    assert len(server.seen) == 6


def test_two_at_once_get_the_same(server: Server, url: str, cache: Path) -> None:
    found: list[Fetched] = []
    threads = [threading.Thread(target=lambda: found.append(fetch(url))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [Fetched(cached_file(url), DIGEST)] * 4
    assert server.seen == [(PATH, None)]
    assert only_files(cache) == {"net.pt", "net.pt.json"}


def test_a_cache_that_cannot_be_written(server: Server, url: str, cache: Path) -> None:
    cache.write_text("a file in the place of the folder")
    assert "cannot write" in fails(url)


def test_addresses_lie_apart_and_inside(cache: Path) -> None:
    addresses = [
        "https://a.org/x/net.pt",
        "https://b.org/x/net.pt",
        "https://a.org/y/net.pt",
        "https://a.org/y/net.pt?v=1",
        "https://a.org/y/net.pt?v=2",
        "https://a.org:8080/y/net.pt",
        "https://a.org/../../../../etc/passwd",
        "https://a.org/%2e%2e/%2e%2e/etc/shadow",
        "https://a.org/",
    ]
    places = [cached_file(address) for address in addresses]
    assert len(set(places)) == len(places)
    assert all(place.resolve().is_relative_to(cache_folder().resolve()) for place in places)
