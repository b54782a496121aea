"""Pages in a real Chromium, and what they say and ask for there."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.machine import CHROMIUM, need

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

# Without a sandbox, as in a container; and with nothing that a browser does on its own in a network.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
FLAGS += ["--disable-quic", "--disable-sync", "--no-first-run"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, started once for a module."""
    need("browser")
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed (extra `browser`)"
    )
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@dataclass
class Opened:
    """A page, and everything that it said or asked for."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def __getattr__(self, name: str):
        return getattr(self.page, name)

    def heading(self) -> str:
        return self.page.locator("#view h1").inner_text()

    def arrive(self, where: str) -> None:
        """Wait until the page shows this address: a click changes the address first, and the view in a later turn."""
        self.page.wait_for_function("where => document.documentElement.dataset.shown === where", arg=where)

    def focused(self) -> str:
        return self.page.evaluate("document.activeElement.dataset.unit ?? document.activeElement.id")


@pytest.fixture
def opened(browser: Browser) -> Iterator[Callable[..., Opened]]:
    """A function that opens a page, at a place in it."""
    contexts: list[BrowserContext] = []

    def open_page(path: Path, where: str = "", **options: object) -> Opened:
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}} | options)
        contexts.append(context)
        report = Opened(context.new_page())
        report.page.set_default_timeout(60_000)
        report.page.on("console", lambda message: report.complaints.append(message.text))
        report.page.on("pageerror", lambda error: report.complaints.append(str(error)))
        report.page.on("dialog", lambda dialog: (report.complaints.append(dialog.message), dialog.dismiss()))
        report.page.on("request", lambda request: report.requests.append(request.url))
        report.page.goto(path.as_uri() + where)
        report.page.wait_for_selector("html[data-ready=yes]")
        return report

    yield open_page
    for context in contexts:
        context.close()


def network_requests(opened: Opened) -> list[str]:
    """The addresses that a page asked for and that are no part of it."""
    return [url for url in opened.requests if not url.startswith(("file:", "blob:"))]


def saved(report: Opened, label: str) -> str:
    """The text of the file that a button saves."""
    with report.expect_download() as download:
        report.get_by_label(label, exact=True).click()
    return Path(download.value.path()).read_text()


def saved_lines(report: Opened, label: str) -> io.StringIO:
    return io.StringIO(saved(report, label), newline="")
