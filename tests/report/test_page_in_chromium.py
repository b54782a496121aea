"""The page in a real Chromium: it opens without a complaint or a request, and does what a reader does with it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.report.conftest import HOSTILE, LAYERS, NAMES

playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed (extra `browser`)"
)

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
# Without a sandbox, as in a container; and with nothing that a browser does on its own in a network.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
FLAGS += ["--disable-quic", "--disable-sync", "--no-first-run"]


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@dataclass
class Opened:
    """A page, and everything that it said or asked for."""

    page: playwright.Page
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
def opened(browser: playwright.Browser):
    contexts = []

    def open_page(path: Path, where: str = "", **options: object) -> Opened:
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}} | options)
        contexts.append(context)
        found = Opened(context.new_page())
        found.page.set_default_timeout(60_000)
        found.page.on("console", lambda message: found.complaints.append(message.text))
        found.page.on("pageerror", lambda error: found.complaints.append(str(error)))
        found.page.on("dialog", lambda dialog: (found.complaints.append(dialog.message), dialog.dismiss()))
        found.page.on("request", lambda request: found.requests.append(request.url))
        found.page.goto(path.as_uri() + where)
        found.page.wait_for_selector("html[data-ready=yes]")
        return found

    yield open_page
    for context in contexts:
        context.close()


def network_requests(opened: Opened) -> list[str]:
    return [url for url in opened.requests if not url.startswith(("file:", "blob:"))]


def unit_address(layer: int, channel: int) -> str:
    """The address of a unit: the layers have 64, 16 and 64."""
    return f"#/unit/{[0, 64, 80][layer] + channel}"


def test_a_reader_clicks_a_layer_and_a_unit_and_goes_back(opened, page):
    report = opened(page)
    assert report.locator("#findings tbody tr").count() >= 8
    assert report.locator(".plot a[href^='#/layer/']").count() == len(LAYERS)
    assert report.locator(".plot .box").count() == 2 * len(LAYERS)

    report.locator(".plot a[href='#/layer/1']").click()
    report.arrive("#/layer/1")
    assert report.heading() == LAYERS[1]
    assert report.locator(".cards .card").count() == 16
    report.locator(".cards .card img").first.wait_for()
    assert report.locator("#view figure").count() == 3

    report.locator(".card[data-unit='67']").click()
    report.arrive("#/unit/67")
    assert report.heading() == f"{LAYERS[1]} / 3"
    report.wait_for_function(
        "[...document.querySelectorAll('.images img')].every(i => i.complete && i.naturalWidth === 128)"
    )
    assert report.locator(".sides .side").count() == 2
    assert report.locator(".plots svg").count() == 2
    assert report.locator(".images .field").count() == report.locator(".images li").count() > 0

    report.go_back()
    report.wait_for_selector(".cards")
    assert report.focused() == "67"
    report.go_back()
    report.wait_for_selector("#findings")
    assert report.heading().startswith("squeezenet1_1")
    assert report.complaints == []
    assert report.requests == [
        page.as_uri(),
        *[url for url in report.requests[1:] if url.startswith("blob:")],
    ]


def test_everything_goes_by_keyboard(opened, page):
    report = opened(page)
    press = report.keyboard.press
    # The plot is one stop of the tab key; arrows move in it.
    report.locator(".plot a").first.focus()
    press("ArrowRight")
    press("Enter")
    report.wait_for_selector(".cards")
    assert report.heading() == LAYERS[1]
    # So are the cards.
    assert report.locator(".card[tabindex='0']").count() == 1
    report.locator(".card[tabindex='0']").focus()
    press("ArrowRight")
    press("ArrowRight")
    press("ArrowLeft")
    assert report.focused() == "65"
    press("End")
    assert report.focused() == "79"
    press("Home")
    press("Enter")
    report.wait_for_selector(".sides")
    press("ArrowRight")
    report.arrive("#/unit/65")
    press("ArrowLeft")
    press("ArrowLeft")  # over the layer's edge
    report.arrive("#/unit/63")
    press("r")
    assert not report.locator("#marks").is_checked()
    assert report.locator(".images .field").first.is_hidden()
    press("Escape")
    report.arrive("#/layer/0")
    press("Escape")
    report.wait_for_selector("#findings")

    press("/")
    assert report.focused() == "query"
    report.keyboard.type("EXPAND3X3")
    assert report.locator("#results [role=option]").count() == 1
    report.keyboard.type("/5")
    assert report.locator("#results [aria-selected=true]").inner_text().startswith(f"{LAYERS[2]}/5")
    press("Enter")
    report.arrive(unit_address(2, 5))
    press("/")
    report.keyboard.type("nothing like it")
    assert report.locator("#results [role=option]").count() == 0
    press("Escape")
    assert report.locator("#search").is_hidden()
    assert "unit" in report.evaluate("location.hash")
    assert report.complaints == []


def test_measure_and_order_change_what_is_shown(opened, page):
    report = opened(page, "#/layer/1")
    first = report.locator(".card").first
    assert first.get_attribute("data-unit") == "64"
    report.locator("#sort").select_option(index=1)
    report.wait_for_function(
        "[...document.querySelectorAll('.cards .values span:first-child')].every(value => value.textContent)"
    )
    values = report.locator(".cards .values span:first-child").all_inner_texts()
    numbers = [float(value) for value in values if value[0].isdigit()]
    assert numbers == sorted(numbers, reverse=True)
    before = report.locator("figcaption").first.inner_text()
    report.locator("#measure").select_option(index=3)
    assert report.locator("figcaption").first.inner_text() != before
    assert report.complaints == []


def test_names_of_files_classes_and_stores_are_only_text(opened, page):
    report = opened(page)
    assert NAMES[0] in report.locator(".stores").inner_text()
    report.goto(page.as_uri() + unit_address(0, 1))
    report.wait_for_selector(".images li")
    seen = report.evaluate("document.getElementById('view').innerText")
    words = " ".join(report.locator(".images li").evaluate_all("items => items.map(i => i.ariaLabel)"))
    assert any(name in words for name in HOSTILE)
    assert {folder for folder in ("<b>cat", "<script>alert(3)<", "]]>--!>") if folder in seen}
    assert report.locator("#view script, #view b b, [onerror], [onload], iframe").count() == 0
    assert report.complaints == []


def test_the_page_may_neither_make_markup_nor_connect(opened, page):
    report = opened(page)
    for script in (
        "document.body.innerHTML = '<img src=x>'",
        "document.body.insertAdjacentHTML('beforeend', '<i>')",
        "document.createElement('script').src = 'https://example.org/x.js'",
    ):
        assert (
            report.evaluate(f"(() => {{ try {{ {script} }} catch (error) {{ return error.name }} }})()")
            == "TypeError"
        )
    assert (
        report.evaluate("fetch('https://example.org').then(() => 'went out', () => 'refused')") == "refused"
    )
    assert network_requests(report) == []


def test_a_page_with_a_folder_loads_a_layer_when_it_is_looked_at(opened, page_with_folder):
    report = opened(page_with_folder, "#/layer/0")
    report.locator(".cards .card img").first.wait_for()
    loaded = {url.rpartition("/")[2] for url in report.requests}
    assert {"overview.js", "layer-0.js"} <= loaded
    assert not {"layer-1.js", "layer-2.js"} & loaded
    report.goto(page_with_folder.as_uri() + unit_address(2, 7))
    report.wait_for_selector(".images img")
    report.wait_for_function(
        "[...document.querySelectorAll('.images img')].every(i => i.complete && i.naturalWidth === 128)"
    )
    assert "layer-2.js" in {url.rpartition("/")[2] for url in report.requests}
    assert report.complaints == []
    assert network_requests(report) == []


def test_a_folder_that_is_gone_is_said(browser, page_with_folder, tmp_path):
    alone = tmp_path / page_with_folder.name
    shutil.copy(page_with_folder, alone)
    report = browser.new_page()
    report.goto(alone.as_uri())
    report.locator("#alarm:visible").wait_for()
    assert "overview.js is missing: keep the folder beside the page" in report.locator("#alarm").inner_text()
    assert report.locator("#findings tbody tr").count() >= 8  # which needs no script
    report.close()


CONTRAST = """() => {
    const channels = (text) => {
        const context = document.createElement("canvas").getContext("2d");
        context.fillStyle = text;
        context.fillRect(0, 0, 1, 1);
        return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
    };
    const luminance = (text) => {
        const linear = channels(text).map((c) => c / 255)
            .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
    };
    const style = (element) => getComputedStyle(element);
    const paper = luminance(style(document.body).backgroundColor);
    const ratio = (text) => ((Math.max(luminance(text), paper) + 0.05) / (Math.min(luminance(text), paper) + 0.05));
    return Object.fromEntries([...document.querySelectorAll(
        "h1, .how, .hint, .verdict, a:not(svg a), th, td, dt, .card .values span, svg text, .caption"
    )].filter((e) => e.checkVisibility()).map((e) => [
        `${e.tagName}.${e.getAttribute("class")}`, ratio(e instanceof SVGElement ? style(e).fill : style(e).color)
    ]));
}"""
"""The contrast of every kind of text with the page's background (WCAG 2.2, 1.4.3)."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("where", ["", "#/layer/2", unit_address(2, 3)])
def test_a_phone_shows_it_without_scrolling_sideways_in_light_and_dark(opened, page, scheme, where):
    report = opened(
        page, where, viewport={"width": 360, "height": 740}, color_scheme=scheme, device_scale_factor=2
    )
    report.wait_for_selector(".plot svg")
    assert report.evaluate("document.documentElement.scrollWidth") == 360
    background = report.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    ratios = report.evaluate(CONTRAST)
    assert len(ratios) > 5
    assert min(ratios.values()) >= 4.5, ratios
    assert report.complaints == []
