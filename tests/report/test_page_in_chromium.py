"""The page in a real Chromium: it opens without a complaint or a request, and does what a reader does with it."""

from __future__ import annotations

import csv
import re
import shutil
from xml.etree import ElementTree

import numpy as np
import pytest
import xarray

from actstats.analysis import smoothness
from actstats.analysis.plotting import COLOURS
from actstats.data.preprocessing import Preprocessing
from actstats.report import show, write_report
from tests.browser import network_requests, saved, saved_lines
from tests.report.conftest import HOSTILE, LAYERS, NAMES, swept


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
        "() => [...document.querySelectorAll('.images img')].every(i => i.complete && i.naturalWidth === 128)"
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


def test_activation_maps_lie_over_the_top_images_and_can_be_hidden(opened, stores, tmp_path):
    write_report(stores, tmp_path / "page.html", pair="index", maps=True)
    report = opened(tmp_path / "page.html", unit_address(0, 5))
    report.locator(".images img").first.wait_for()
    heat = report.locator(".images .heat")
    assert heat.count() == report.locator(".images .frame").count()
    strongest = heat.evaluate_all(
        "all => all.map((map) => map.getContext('2d').getImageData(0, 0, 14, 14).data"
        ".reduce((most, value, at) => (at % 4 === 3 ? Math.max(most, value) : most), 0))"
    )
    assert max(strongest) == round(0.75 * 255)
    assert heat.first.is_visible()
    report.keyboard.press("m")
    assert not report.locator("#maps").is_checked()
    assert heat.first.is_hidden()
    report.locator("#maps").check()
    assert heat.first.is_visible()
    assert report.complaints == []


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
    report.arrive("#/layer/0?page=3")
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
    report.locator("#order").select_option(index=1)
    report.wait_for_function(
        "() => [...document.querySelectorAll('.cards .values span:first-child')].every(value => value.textContent)"
    )
    values = report.locator(".cards .values span:first-child").all_inner_texts()
    numbers = [float(value) for value in values if value[0].isdigit()]
    assert numbers == sorted(numbers, reverse=True)
    before = report.locator("figcaption").first.inner_text()
    report.locator("#measure").select_option(index=3)
    assert report.locator("figcaption").first.inner_text() != before
    assert report.complaints == []


def test_the_address_holds_measure_order_and_page(opened, page):
    report = opened(page, "#/layer/0")
    steps = report.evaluate("history.length")
    report.locator("#measure").select_option("total variation")
    report.locator("#order").select_option(f"{NAMES[1]}, highest first")
    assert report.evaluate("location.hash") == "#/layer/0?measure=total_variation&order=r-high"
    assert report.evaluate("history.length") == steps  # Back leaves the layer, not the choice
    report.locator(".pages a", has_text="3").first.click()
    report.arrive("#/layer/0?measure=total_variation&order=r-high&page=3")
    assert report.locator(".range").first.inner_text().endswith("64 of 64 units")
    units = report.locator(".card").evaluate_all("cards => cards.map(card => card.dataset.unit)")
    assert len(units) == 64 - 2 * 24
    # The same address shows the same in another window, and what it leads to keeps the choice.
    other = opened(page, report.evaluate("location.hash"))
    assert other.locator(".card").evaluate_all("cards => cards.map(card => card.dataset.unit)") == units
    assert other.evaluate("document.querySelector('#measure').value") == "total variation"
    other.locator(".card").nth(1).click()
    other.arrive(f"#/unit/{units[1]}?measure=total_variation&order=r-high")
    other.keyboard.press("ArrowRight")
    other.arrive(f"#/unit/{units[2]}?measure=total_variation&order=r-high")
    other.keyboard.press("Escape")
    other.arrive("#/layer/0?measure=total_variation&order=r-high&page=3")
    assert other.focused() == units[2]
    for nonsense in (
        "#/layer/0?measure=none&order=&page=-1",
        "#/layer/0?page=999&x",
        "#/class/99",
        "#/unit/x",
    ):
        assert opened(page, nonsense).complaints == []


def test_the_search_finds_classes_and_bare_channels(opened, page):
    report = opened(page)

    def found(query: str) -> list[str]:
        report.keyboard.press("/")
        report.locator("#query:focus").wait_for()
        report.keyboard.type(query)
        assert report.locator("#query").input_value() == query
        names = report.locator("#results [role=option]").all_inner_texts()
        report.keyboard.press("Escape")
        report.locator("#search").wait_for(state="hidden")
        return [" ".join(name.split()) for name in names]

    assert found("70") == []  # no layer has so many
    assert found("20") == [f"{LAYERS[0]}/20 unit", f"{LAYERS[2]}/20 unit"]
    assert found("features.1/20") == [f"{LAYERS[0]}/20 unit"]
    assert found("CAT") == ["<b>cat class"]
    assert len(found("")) == len(LAYERS)
    report.keyboard.press("/")
    report.locator("#query:focus").wait_for()
    report.keyboard.type("cat")
    report.keyboard.press("Enter")
    report.arrive("#/class/" + str(report.evaluate("location.hash").rpartition("/")[2]))
    assert report.heading() == "<b>cat"
    totals = report.locator("tbody td").all_inner_texts()
    both = [int(number) for at, number in enumerate(totals) if at % 3]
    words = report.locator(".facts").inner_text()
    assert f"{sum(both[::2])} units of {NAMES[0]}" in words
    assert f"{sum(both[1::2])} units of {NAMES[1]}" in words
    report.locator(".cards .card").first.click()
    report.wait_for_selector(".sides")
    leading = report.locator(".bars tbody tr:first-child th").all_inner_texts()
    assert "<b>cat" in leading  # the class with the greatest mean, of the one network or the other
    assert report.complaints == []


def test_tables_and_charts_are_saved_as_csv_and_svg(opened, page, stores):
    report = opened(page)
    findings = list(csv.reader(saved_lines(report, "Save as CSV: findings")))
    assert findings[0] == ["Finding", "Measured by", *NAMES, "Difference", "Verdict"]
    assert {len(row) for row in findings} == {6}
    boxes = list(csv.DictReader(saved_lines(report, "Save as CSV: roughness by layer")))
    assert [row["layer"] for row in boxes] == [name for name in LAYERS for _ in NAMES]
    rough = smoothness(xarray.open_zarr(stores[1]))["roughness"].compute()
    expected = float(rough.isel(unit=rough["layer"].values == LAYERS[1]).median())
    assert float(boxes[3]["roughness_p50"]) == pytest.approx(expected, rel=2**-9)
    report.goto(page.as_uri() + "#/layer/1")
    report.wait_for_selector("figure:nth-child(3) svg")
    units = list(csv.reader(saved_lines(report, "Save as CSV: all measures of the units")))
    assert len(units) == 1 + 16
    assert len(units[0]) == 2 + 2 * report.locator("#measure option").count()
    drawings = [
        saved(report, button)
        for button in report.locator("figure button", has_text="SVG").evaluate_all(
            "b => b.map(b => b.ariaLabel)"
        )
    ]
    assert len(drawings) == 3
    for drawing in drawings:
        root = ElementTree.fromstring(drawing)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        # Everything is in the file: no style sheet, no variable of one, and the names of the stores.
        assert "class=" not in drawing
        assert "var(" not in drawing
        assert "".join(root.itertext()).count(NAMES[0][:5]) >= 1
    assert COLOURS["S"] == "#{:02x}{:02x}{:02x}".format(
        *map(int, re.search(r"rgb\((\d+), (\d+), (\d+)\)", drawings[2].partition("<circle")[2]).groups())
    )
    report.goto(page.as_uri() + unit_address(1, 3))
    report.wait_for_selector("table.values")
    top = list(csv.DictReader(saved_lines(report, f"Save as CSV: {LAYERS[1]}/3 top images {NAMES[0]}")))
    assert {row["path"] for row in top} <= set(HOSTILE)
    assert report.complaints == []


def test_each_measure_of_a_unit_has_its_percentile_in_the_layer(opened, page, stores):
    report = opened(page, unit_address(1, 3))
    report.wait_for_selector("table.values")
    rows = list(csv.DictReader(saved_lines(report, f"Save as CSV: {LAYERS[1]}/3 measures")))
    for number, (name, store) in enumerate(zip(NAMES, stores, strict=True)):
        values = smoothness(xarray.open_zarr(store))["roughness"].compute()
        layer = values.isel(unit=values["layer"].values == LAYERS[1]).values
        value, layer = layer[3], layer[~np.isnan(layer)]  # units that never vary have no roughness
        expected = 100 * ((layer < value).sum() + 0.5) / len(layer)
        assert float(rows[0][f"{name}, percentile in layer"]) == pytest.approx(expected)
        cell = report.locator("table.values tbody tr").first.locator(".percentile").nth(number)
        assert cell.inner_text() == f"{round(expected)} %"


def test_what_a_maximum_sees_is_said_of_each_image(opened, stores, tmp_path):
    page = write_report(stores[:1], tmp_path / "one.html").page
    report = opened(page, unit_address(2, 3))
    report.wait_for_selector(".images li")
    frames = report.locator(".images li").evaluate_all(
        "items => items.map(i => [i.ariaLabel, !!i.querySelector('.field')])"
    )
    assert frames
    for words, framed in frames:
        # A 3 x 3 kernel and a 3 x 3 pooling of stride 2, another 3 x 3: 15 pixels, fewer at the border.
        sizes = re.search(r"sees (\d+) . (\d+) of 40 . 40 pixels$", words)
        assert framed
        assert all(8 <= int(size) <= 15 for size in sizes.groups())
    # Where some positions see all of the image, the layer's line says how many.
    report.evaluate("location.hash = '#/layer/2'")
    report.arrive("#/layer/2")
    assert re.search(
        r"; positions see \d+ . \d+ \(at the border\) to \d+ . \d+ of 40 . 40 pixels",
        report.locator(".facts").inner_text(),
    )


def test_a_layer_of_many_units_makes_few_elements(opened, hostile, tmp_path):
    layers = ("features.12.squeeze", "features.12")
    wide = [swept(hostile, tmp_path / f"{seed}.zarr", seed, layers=layers) for seed in (0, 1)]
    page = write_report(wide, tmp_path / "wide.html", pair="index").page
    report = opened(page, "#/layer/1")
    report.locator(".cards .card img").first.wait_for()
    assert report.locator(".facts").inner_text().startswith("512 units")
    for _ in range(8):
        report.evaluate("scrollBy(0, 500)")
        report.wait_for_timeout(50)
    assert report.evaluate("document.querySelectorAll('*').length") < 1500
    assert report.locator(".pages a[aria-label='Page 22 of 22']").count() == 2
    assert report.complaints == []


def test_a_layer_says_how_many_of_its_positions_see_the_whole_image(opened, hostile, tmp_path):
    # With 55 pixels features.7 has 6 x 6 positions, the middle 2 x 2 of which see all, the corners 39 x 39.
    size = Preprocessing.imagenet(size=55, resize=60)
    layers = ("features.7", "features.9", "classifier.3")
    store = swept(hostile, tmp_path / "s.zarr", 0, layers=layers, preprocessing=size)
    page = write_report([store], tmp_path / "report.html").page
    report = opened(page, "#/layer/0")
    words = report.locator(".facts").inner_text()
    assert words.endswith(
        "; 4 of 36 positions see the whole image, the others at least 39 \N{MULTIPLICATION SIGN} 39 of "
        "55 \N{MULTIPLICATION SIGN} 55 pixels"
    )
    report.keyboard.press("ArrowRight")
    report.arrive("#/layer/1")
    assert report.locator(".facts").inner_text().endswith("; each position sees the whole image")
    report.keyboard.press("ArrowRight")
    report.arrive("#/layer/2")  # 1,000 maps of one position, which have no neighbours
    assert report.locator(".plots").inner_text() == "No unit of this layer has a value of roughness."
    assert report.locator(".cards .card").count() == 24
    # Beside each image stands what its own maximum sees, and a frame only where that is not everything.
    for channel in range(12):
        report.goto(page.as_uri() + f"#/unit/{channel}")
        report.wait_for_selector(".unit > *")
        for item in report.locator(".images li").all():
            whole = item.get_attribute("aria-label").endswith("sees the whole image")
            assert item.locator(".field").count() == (not whole)
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
        "() => [...document.querySelectorAll('.images img')].every(i => i.complete && i.naturalWidth === 128)"
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


def test_the_report_in_a_cell_of_a_notebook_can_be_clicked_through(stores, tmp_path, browser):
    embedded = show(*stores, names=NAMES, height=700)
    cell = tmp_path / "cell.html"
    cell.write_text(f"<!doctype html><meta charset=utf-8><p data-cell>{embedded._repr_html_()}")
    page = browser.new_page()
    page.set_default_timeout(60_000)
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.goto(cell.as_uri())
    report = page.frame_locator("iframe")
    report.locator(".plot a[href='#/layer/1']").click()
    report.locator("html[data-shown='#/layer/1']").wait_for()
    report.locator("main select").first.select_option(index=1)
    report.locator("html[data-shown^='#/layer/1?measure=']").wait_for()
    assert report.locator("#view h1").inner_text() == LAYERS[1]
    assert page.url == cell.as_uri()
    assert complaints == []
    page.close()
