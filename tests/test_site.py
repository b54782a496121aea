"""The documentation as a site: it builds without a warning, and is read and searched from disk without a network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs", reason="mkdocs is not installed (extra `docs`)")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return folder


def test_the_site_is_searched_from_disk_and_asks_for_nothing(browser, site):
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.set_default_timeout(60_000)
    messages, requests = [], []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    for name in ("index.html", "studies/pair.html"):
        page.goto((site / name).as_uri())
        page.get_by_role("textbox", name="Search").fill("receptive field")
        page.locator(".md-search-result__link").first.wait_for(state="attached")
        links = page.locator(".md-search-result__link").evaluate_all("links => links.map(l => l.href)")
        assert any("report.html" in link for link in links)
    page.close()
    assert messages == []
    assert {url.partition(":")[0] for url in requests} == {"file"}
