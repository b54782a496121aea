"""Reports whose units are paired by match: beside a unit stands its counterpart, in any number of networks."""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from actstats import open_dataset
from actstats.analysis import compare_matched, match, smoothness
from actstats.errors import ActstatsError
from actstats.report import compare, write_report
from tests.analysis.made import PREPROCESSING, make_store
from tests.browser import saved_lines
from tests.cli.conftest import actstats, output_of
from tests.report.conftest import parts_of

IMAGES, UNITS = 200, 12
ORDERS = [np.random.default_rng(7).permutation(UNITS), np.random.default_rng(8).permutation(UNITS)]
LOST = 3
"""Units of S, the first of each layer, that the second network lacks."""


def maps(seed: int) -> list[np.ndarray]:
    """Maps of two layers; each image excites each unit by another amount."""
    rng = np.random.default_rng(seed)
    strength = rng.gamma(1.0, 1.0, (2, IMAGES, UNITS, 1, 1))
    texture = 1 + 0.5 * rng.random((2, 1, UNITS, 6, 6))
    return list((strength * texture).astype(np.float32))


def stored(path: Path, layers: list[np.ndarray], **options: object) -> Path:
    named = {f"layer{at}": found for at, found in enumerate(layers)}
    weights = {"source": "module", "sha256": path.stem * 32}
    size = PREPROCESSING | {"crop": 6, "resize": 6}
    labels = np.arange(IMAGES) % 3
    make_store(
        path, named, labels, partition_size=64, **{"weights": weights, "preprocessing": size} | options
    )
    return path


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """S; R, which has S's units in another order, smoothed, but for three; and a network that has none of them."""
    folder, standard, other = tmp_path_factory.mktemp("paired"), maps(0), maps(1)
    robust = []
    for layer, replaced, order in zip(standard, other, ORDERS, strict=True):
        smooth = layer.mean((2, 3), keepdims=True) * (1 + np.linspace(-0.5, 0.5, 6, dtype=np.float32))
        smooth = np.repeat(smooth, 6, 2)
        smooth[:, :LOST] = replaced[:, :LOST]
        robust.append(smooth[:, order])
    return [
        stored(folder / f"{n}.zarr", found) for n, found in (("s", standard), ("r", robust), ("n", maps(2)))
    ]


def expected() -> np.ndarray:
    """The index in R of each unit of S; -1 for those that R lacks."""
    found = np.concatenate([np.argsort(order) + UNITS * at for at, order in enumerate(ORDERS)])
    found[np.r_[:LOST, UNITS : UNITS + LOST]] = -1
    return found


def test_counterparts_are_in_the_page_and_in_the_findings(stores, tmp_path):
    report = write_report(stores, tmp_path / "report.html", names=["S", "R", "N"])
    content, arrays = parts_of(report.page)["overview"]
    assert content["pairing"] == "match"
    np.testing.assert_array_equal(arrays["counterpart:0:1"], expected())
    backwards = np.full(2 * UNITS, -1)
    backwards[expected()[expected() >= 0]] = np.flatnonzero(expected() >= 0)
    np.testing.assert_array_equal(arrays["counterpart:1:0"], backwards)
    assert (arrays["counterpart:0:2"] == -1).all()
    assert (arrays["held:0:1"][expected() >= 0] > 0.99).all()
    found = {finding.claim: finding for finding in report.findings}
    counted = found["Units of S with a counterpart"]
    assert counted.values == ["", f"{2 * (UNITS - LOST)} of {2 * UNITS}", f"0 of {2 * UNITS}"]
    smoother = found["R's counterparts are smoother than S's units"]
    assert [said.network for said in smoother.comparisons] == ["R", "N"]
    assert smoother.comparisons[0].verdict == "agrees"
    assert smoother.comparisons[0].delta == -1
    assert smoother.comparisons[1].difference == "0 matched units are too few to compare"
    # By index the pairs are no counterparts, and the page says so.
    by_index = write_report(stores, tmp_path / "index.html", pair="index")
    assert any("not functions" in note for note in by_index.notes)
    assert not any("counterpart" in finding.claim for finding in by_index.findings)
    with pytest.raises(ActstatsError, match="`pair=` must be one of match, index"):
        compare(stores, pair="both")


def test_a_file_of_matches_gives_what_matching_now_gives(stores, tmp_path):
    files = []
    for name, store in zip("rn", stores[1:], strict=True):
        files.append(tmp_path / f"{name}.csv")
        output_of(f"analyze match {stores[0]} {store} --by unit --out {files[-1]}")
    given = shlex.join(map(str, stores))
    now = json.loads(actstats(f"compare {given} --json").stdout)["findings"]
    then = json.loads(actstats(f"compare {given} --json --matches {files[0]} --matches {files[1]}").stdout)[
        "findings"
    ]
    for one, other in zip(now, then, strict=True):
        if one["claim"].startswith("Units of s"):  # the files say nothing of the other direction
            one["comparisons"] = other["comparisons"] = []
        assert one == other
    result = actstats(f"compare {given} --matches {files[0]}")
    assert result.exit_code == 1
    assert "--matches has no matches of s's units in n over the stores' images" in result.stderr
    result = actstats(f"compare {shlex.quote(str(stores[0]))} --matches {files[0]}")
    assert result.exit_code == 1
    assert "--matches pairs the units of two stores or more: omit it for one store" in result.stderr


def test_stores_of_other_images_are_compared_without_pairs(stores, tmp_path):
    paths = [f"other{index}.png" for index in range(IMAGES)]
    other = stored(tmp_path / "o.zarr", maps(3), paths=paths)
    compared = compare([stores[0], other])
    assert compared.pairing.found == {}
    assert any("are not paired: " in note and "images" in note for note in compared.notes)
    content, _ = parts_of(write_report([stores[0], other], tmp_path / "report.html").page)["overview"]
    assert content["pairing"] == ""


def test_each_of_many_stores_is_matched_with_the_first_one(stores):
    few, many = compare(stores), compare([*stores, *stores[1:]])
    assert few.pairing.found.keys() == {(a, b) for a in range(3) for b in range(3) if a != b}
    assert many.pairing.found.keys() == {pair for at in range(1, 5) for pair in ((0, at), (at, 0))}
    assert many.notes[-1] == "Units are matched with those of s (1) only, as there are 5 stores."
    for pair in ((0, 1), (1, 0), (0, 2)):
        assert many.pairing.found[pair].identical(few.pairing.found[pair])
    assert [line.values[1] for line in many.findings] == [line.values[1] for line in few.findings]


def test_paired_statistics_are_those_of_counterparts(stores):
    s, r = (open_dataset(store) for store in stores[:2])
    one, other = (smoothness(found)[["total_variation", "roughness"]].compute() for found in (s, r))
    counterpart = match(s, r)["counterpart"].values
    table = compare_matched(one, other, counterpart, ["roughness", "total_variation"], resamples=200)
    assert table["layer"].tolist() == ["layer0", "layer1"] * 2
    assert (table["pairs"] == UNITS - LOST).all()
    here = np.flatnonzero(counterpart[:UNITS] >= 0)
    d = other["total_variation"].values[counterpart[here]] - one["total_variation"].values[here]
    row = table.iloc[2]
    assert row["difference"] == pytest.approx(np.median(d))
    assert row["difference_low"] <= row["difference"] <= row["difference_high"]
    assert row["delta"] == pytest.approx(np.sign(d).mean())
    assert row["delta_low"] <= row["delta"] <= row["delta_high"] <= 0
    none = compare_matched(one, other, np.full(2 * UNITS, -1), ["roughness"], within_layers=False)
    assert none["pairs"].tolist() == [0]
    assert none[["difference", "delta", "delta_low"]].isna().all(axis=None)


def test_a_unit_stands_beside_its_counterpart(stores, tmp_path, opened):
    page = write_report(stores[:2], tmp_path / "report.html", names=["S", "R"]).page
    unit, there = 5, int(expected()[5])
    report = opened(page, f"#/unit/{unit}")
    report.wait_for_selector("table.values")
    hints = report.locator(".side .hint").all_inner_texts()
    assert hints[0] == "This unit"
    assert re.fullmatch(rf"Counterpart layer0/{there}, r (1|0\.99\d*)", hints[1])
    rows = list(csv.DictReader(saved_lines(report, f"Save as CSV: layer0/{unit} measures")))
    rough = smoothness(open_dataset(stores[1]))["roughness"].values
    (row,) = (row for row in rows if row["measure"] == "roughness")
    assert float(row["R"]) == pytest.approx(rough[there], rel=2**-9)
    # The link leads to the counterpart's own page, beside which stands the unit.
    report.locator(".side.store1 .hint a").click()
    report.arrive(f"#/unit/{there}?of=1")
    report.wait_for_selector("table.values")
    assert report.heading() == f"layer0 / {there}"
    assert report.locator(".side.store0 .hint").inner_text().startswith(f"Counterpart layer0/{unit}, r")
    # One without a counterpart says so, and shows nothing in its place.
    report.goto(page.as_uri() + "#/unit/0")
    report.wait_for_selector("table.values")
    assert report.locator(".side.store1 .hint").inner_text().startswith("No counterpart")
    assert report.locator(".side.store1 .images").count() == 0
    # A layer's list holds the units of the network that is chosen; the scatter those with counterparts.
    report.goto(page.as_uri() + "#/layer/0")
    report.wait_for_selector("figure:nth-child(2) svg")
    pairs = list(csv.DictReader(saved_lines(report, "Save as CSV: layer0 roughness unit by unit")))
    assert [pair["counterpart in R"] for pair in pairs] == [
        f"layer0/{at}" if at >= 0 else "" for at in expected()[:UNITS]
    ]
    report.locator("#base").select_option("R")
    report.arrive("#/layer/0?of=1")
    assert f"layer0/{unit}, r" in report.locator(f".card[data-unit='{there}'] .pairs").inner_text()
    report.locator("#order").select_option("best matched first")
    last = report.locator(".card").last.get_attribute("data-unit")
    assert int(last) not in expected()
    assert report.complaints == []


@pytest.mark.parametrize("where", ["", "#/layer/1", "#/unit/5"])
def test_three_networks_have_a_column_each_and_fit_a_phone(stores, tmp_path, opened, where):
    page = write_report(stores, tmp_path / "report.html", names=["S", "R", "N"]).page
    report = opened(page, where, viewport={"width": 360, "height": 740})
    report.wait_for_selector(".plot svg")
    assert report.evaluate("document.documentElement.scrollWidth") == 360
    if where == "":
        assert report.locator(".plot .box").count() == 3 * 2
        assert report.locator(".findings thead th").count() == 4
    else:
        report.wait_for_selector(".cards, .sides")
        assert report.locator(".sides .side").count() == (3 if "unit" in where else 0)
        script = "n => getComputedStyle(document.querySelector('.store' + n)).getPropertyValue('--store')"
        colours = {report.evaluate(script, n) for n in range(3)}
        assert len(colours) == 3
    assert report.complaints == []
