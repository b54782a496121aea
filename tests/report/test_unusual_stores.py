"""Reports of stores that are legal but unusual: few units, equal values, other treatments, missing images."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import actstats
from actstats.analysis import match, smoothness
from actstats.analysis.counterparts import match_table
from actstats.analysis.tables import write_table
from actstats.errors import ActstatsError
from actstats.report import compare, write_report
from actstats.report.findings import derive_findings
from actstats.report.verdicts import LEAST_PAIRS
from actstats.store.manifest import Manifest
from tests.analysis.made import PREPROCESSING, grating, make_store
from tests.report.conftest import LAYERS, parts_of, swept

IMAGES = 60
LABELS = np.arange(IMAGES) % 3


def textured(units: int, seed: int, size: int = 8, *, smooth: bool = False, shared: int = 0) -> np.ndarray:
    """Maps [IMAGES, units, size, size]; `shared` seeds how strongly each image excites each unit."""
    strength = np.random.default_rng(shared).gamma(1.0, 1.0, (IMAGES, units, 1, 1))
    rng = np.random.default_rng(seed)
    texture = 1 + 0.5 * rng.random((1, units, size, size))
    if smooth:
        texture = 1 + 0.5 * np.linspace(0, 1, size)[:, None] * np.ones((1, units, size, size))
    return (strength * texture * (1 + 0.01 * rng.random((IMAGES, units, 1, 1)))).astype(np.float32)


def stored(path: Path, layers: dict[str, np.ndarray], **options: object) -> Path:
    weights = {"source": "module", "sha256": path.stem * 16}
    make_store(path, layers, LABELS, **{"weights": weights, "preprocessing": PREPROCESSING} | options)
    return path


@pytest.mark.parametrize(
    ("networks", "reason"),
    [
        ((nn.Conv2d(3, 6, 1), nn.Conv2d(3, 6, 1)), "S has no kernel larger than 1 x 1"),
        ((nn.Linear(3, 6), nn.Linear(3, 6)), "no torch.nn.Conv2d"),
        (
            (nn.Conv2d(3, 6, 3), nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3))),
            "the stores have different layers",
        ),
        ((nn.Conv2d(3, 6, 3), "weights are gone"), "weights are gone"),
    ],
)
def test_kernels_that_cannot_be_compared_are_not_measured(tmp_path, networks, reason):
    units = smoothness(actstats.open_dataset(stored(tmp_path / "s.zarr", {"a": textured(6, 0)}))).load()
    lines = derive_findings([units, units], [], networks)
    (kernels,) = [line for line in lines if "kernels" in line.claim]
    assert kernels.comparisons[0].words == "not measured"
    assert reason in kernels.comparisons[0].difference


@pytest.mark.parametrize("units", [2, 4, LEAST_PAIRS - 1, LEAST_PAIRS])
def test_few_units_get_no_verdict(tmp_path, units):
    stores = [
        stored(tmp_path / f"{name}.zarr", {"a": textured(units, seed, smooth=seed > 0)})
        for seed, name in enumerate("sr")
    ]
    findings = {
        finding.claim: finding.comparisons[0] for finding in compare(stores).findings if finding.comparisons
    }
    layer, pairs = (
        findings["R's activation maps are smoother"],
        findings["R's counterparts are smoother than S's units"],
    )
    assert layer.words == ("this pair: as in the paper" if units >= 5 else "undecided")
    # All counterparts are smoother, so that the bootstrap interval has no width.
    assert pairs.words == ("this pair: as in the paper" if units >= LEAST_PAIRS else "undecided")
    if units < LEAST_PAIRS:
        assert pairs.difference == f"{units} matched units are too few to compare"


def test_values_of_matched_units_are_of_the_units_of_each_comparison(tmp_path):
    standard = textured(12, 0)
    other = textured(12, 1, shared=5)
    half = np.concatenate([textured(12, 2, smooth=True)[:, :6], other[:, 6:]], 1)
    stores = [
        stored(tmp_path / "s.zarr", {"a": standard}),
        stored(tmp_path / "r.zarr", {"a": half}),
        stored(tmp_path / "same.zarr", {"a": standard * 2}),
    ]
    rough = smoothness(actstats.open_dataset(stores[0]))["roughness"].values
    medians = [f"{np.median(rough[:6]):.3g}", f"{np.median(rough):.3g}"]
    claim = "R's counterparts are smoother than S's units"
    (two,) = [finding for finding in compare(stores[:2]).findings if finding.claim == claim]
    (three,) = [finding for finding in compare(stores).findings if finding.claim == claim]
    assert two.values[0] == three.values[0] == medians[0]
    assert two.values[1] == three.values[1]
    assert [comparison.first for comparison in three.comparisons] == medians


def test_a_noisy_sweep_is_one_with_noise_and_nothing_else(tmp_path):
    maps = {"a": textured(6, 0)}

    def made(name: str, **options: object) -> Path:
        return stored(tmp_path / f"{name}.zarr", maps, weights={"source": "module", "sha256": "0"}, **options)

    clean, noisy = made("clean"), made("noisy", distort=["noise:0.1"])
    assert "change" in compare([clean], noisy=[noisy]).measured[0]
    grey, grey_noisy = made("grey", distort=["greyscale"]), made("both", distort=["greyscale", "noise:0.1"])
    assert "change" in compare([grey], noisy=[grey_noisy]).measured[0]
    for of, other in ((clean, clean), (clean, grey), (clean, grey_noisy), (noisy, clean), (grey, noisy)):
        with pytest.raises(ActstatsError, match=r"not those of .* and noise"):
            compare([of], noisy=[other])
    for difference in ({"amp": "bf16"}, {"bitround": 7}, {"preprocessing": PREPROCESSING | {"resize": 9}}):
        other = made(next(iter(difference)), distort=["noise:0.1"], **difference)
        with pytest.raises(ActstatsError, match=f"more than noise: {next(iter(difference))}"):
            compare([clean], noisy=[other])


@pytest.mark.parametrize(
    ("difference", "words"),
    [
        ({"distort": ["noise:0.3"]}, "distortion (none and noise:0.3)"),
        ({"amp": "bf16"}, "amp (off and bf16)"),
        ({"bitround": 7}, "bitround"),
        ({"preprocessing": PREPROCESSING | {"resize": 9}}, "preprocessing"),
    ],
)
def test_what_stores_were_made_of_is_compared(tmp_path, difference, words):
    maps = {"a": textured(6, 0)}
    plain = [stored(tmp_path / f"{name}.zarr", maps) for name in "sr"]
    other = [stored(tmp_path / f"{name}.zarr", maps, **difference) for name in ("S", "R")]
    assert not [note for note in compare(plain).notes if "swept with different" in note]
    assert not [note for note in compare(other).notes if "swept with different" in note]
    (note,) = [note for note in compare([plain[0], other[1]]).notes if "swept with different" in note]
    assert note.startswith(f"s and R were swept with different {words}: what differs may be due to that")


def test_matches_are_of_images_as_they_were_seen(tmp_path):
    maps = [textured(6, seed) for seed in range(2)]
    weights = [{"weights": {"source": "module", "sha256": name * 16}} for name in "ab"]

    def made(folder: str, **options: object) -> list[Path]:
        (tmp_path / folder).mkdir()
        return [
            stored(tmp_path / folder / f"{name}.zarr", {"a": of}, **which | options)
            for name, of, which in zip("sr", maps, weights, strict=True)
        ]

    clean, noisy = made("clean"), made("noisy", distort=["noise:0.3"])
    table = match_table(match(*map(actstats.open_dataset, clean)))
    write_table(table, tmp_path / "clean.csv")
    assert compare(clean, matches=[tmp_path / "clean.csv"]).pairing.way == "match"
    with pytest.raises(ActstatsError, match="has no matches of s's units in r"):
        compare(noisy, matches=[tmp_path / "clean.csv"])
    # Tables of 0.1 have the fingerprint alone, and serve clean stores.
    write_table(table.assign(image_set=table["image_set"].str.partition("-")[0]), tmp_path / "old.csv")
    assert compare(clean, matches=[tmp_path / "old.csv"]).pairing.way == "match"
    with pytest.raises(ActstatsError, match="has no matches"):
        compare(noisy, matches=[tmp_path / "old.csv"])


def test_the_treatment_of_a_sweep_has_defaults_for_stores_of_before():
    before = dict.fromkeys(("arch", "device", "created"), "x") | {
        "actstats": 1, "preprocessing": PREPROCESSING, "selectors": ["all"], "metrics": ["mean"],
        "weights": {"source": "none", "sha256": "0" * 64, "seed": 0}, "outputs": ["mean"], "machine": {},
        "layers": [{"name": "a", "module": "a", "call": 0, "units": 1, "height": 2, "width": 2}],
        "data": {"spec": "x", "kind": "folder", "images": 1, "fingerprint": "x", "classes": []},
        "versions": {},
        "top_k": 1, "batch_size": 1, "partition_size": 1, "amp": "off", "bitround": None, "compression": "none",
    }  # fmt: skip
    assert Manifest.from_json(before).treatment == {
        "distortion": "none", "masks": None, "amp": "off", "bitround": None, "preprocessing": PREPROCESSING,
    }  # fmt: skip


def test_an_empty_name_is_refused(tmp_path):
    store = stored(tmp_path / "s.zarr", {"a": textured(6, 0)})
    with pytest.raises(ActstatsError, match="the name of a store must not be empty"):
        compare([store], names=[" "])


def test_medians_say_how_many_units_they_are_of(tmp_path):
    maps = textured(6, 0)
    maps[:, 2:] = 0
    store = stored(tmp_path / "s.zarr", {"a": maps})
    (roughness,) = [finding for finding in compare([store]).findings if finding.claim == "roughness"]
    assert roughness.values[0].endswith(" (2 of 6 units)")


@pytest.mark.parametrize("size", [5, 8, 32, 33])
def test_spectra_lie_at_the_frequencies_of_their_maps(tmp_path, size):
    waves = np.stack([grating(size, 1) * (1 + image) for image in range(IMAGES)])[:, None]
    other = np.stack([grating(16, 2) * (1 + image) for image in range(IMAGES)])[:, None]
    store = stored(tmp_path / "s.zarr", {"a": waves, "b": other})
    parts = parts_of(write_report([store], tmp_path / "r.html").page)
    content = parts["overview"][0]
    for at, frequency in enumerate((1 / size, 2 / 16)):
        power = parts[f"layer-{at}"][1]["spectrum:0"]
        peak = int(np.nanargmax(power[1:])) + 1
        drawn = content["layers"][at].get("frequency", content["frequency"])[peak]
        # A ring is 1/32 wide; the only coefficients of a small map in it lie at one frequency.
        assert drawn == pytest.approx(frequency, abs=1e-5 if size <= 32 else 1 / 64)


def test_the_images_that_are_left_are_shown(hostile, tmp_path):
    shutil.copytree(hostile, tmp_path / "images")
    store = swept(tmp_path / "images", tmp_path / "s.zarr", 0, layers=LAYERS[:1])
    sorted(path for path in (tmp_path / "images").rglob("*") if path.is_file())[0].unlink()
    report = write_report([store], tmp_path / "r.html")
    assert [note for note in report.notes if "8 of the 9 are there, and shown by their path" in note]
    assert sum(parts_of(report.page)["overview"][0]["pictures"]["kept"]) == 8
    images = list(torch.zeros(3, 3, 60, 60))
    other = write_report([store], tmp_path / "other.html", data=images)
    assert [note for note in other.notes if note.startswith("Images are not shown")]


# In a browser.


def test_layers_of_equal_values_show_their_colours(opened, tmp_path):
    stores = [
        stored(tmp_path / f"{name}.zarr", {f"l{at}": textured(1, 10 * seed + at) for at in range(6)})
        for seed, name in enumerate("sr")
    ]
    report = opened(write_report(stores, tmp_path / "r.html", pair="index").page)
    sides = report.evaluate(
        "[...document.querySelectorAll('.plot rect.box')].map(box => box.getBBox())"
        ".map(({ width, height }) => Math.min(width, height))"
    )
    assert len(sides) == 12
    assert min(sides) >= 5
    assert report.complaints == []


@pytest.mark.parametrize(
    "where", ["#/?of=9", "#/?of=length", "#/layer/0?of=map", "#/unit/99?order=n7-high", "#/?of=-1"]
)
def test_any_address_opens_the_page(opened, page, where):
    report = opened(page, where)
    assert report.complaints == []
    assert report.locator("#alarm").is_hidden()


@pytest.mark.parametrize("width", [390, 1200])
def test_long_names_do_not_widen_the_page(opened, stores, tmp_path, width):
    path = write_report(stores, tmp_path / "r.html", names=["S", "y" * 120]).page
    for where in ("", "#/layer/1", "#/class/0", "#/unit/3"):
        report = opened(path, where, viewport={"width": width, "height": 900})
        assert report.evaluate("document.documentElement.scrollWidth") <= width, where


def test_the_reason_why_a_unit_has_no_counterpart_is_its_own(opened, tmp_path):
    maps = [textured(8, 0), textured(8, 1, shared=5)]
    stores = [stored(tmp_path / f"{name}.zarr", {"a": of}) for name, of in zip("sr", maps, strict=True)]
    found = match(*map(actstats.open_dataset, stores))
    lonely = found["counterpart"].values < 0
    assert len(set(found["stable"].values[lonely].tolist())) == 2
    report = opened(write_report(stores, tmp_path / "r.html").page)
    reasons = zip(found["stable"].values.tolist(), found["reciprocal"].values.tolist(), strict=True)
    for unit, (stable, reciprocal) in enumerate(reasons):
        if found["counterpart"].values[unit] >= 0:
            continue
        report.evaluate("unit => { location.hash = `#/unit/${unit}` }", unit)
        report.arrive(f"#/unit/{unit}")
        hint = report.locator(".side.store1 .hint").first
        hint.wait_for()
        assert ("depends on the images" in hint.inner_text()) == (not stable)
        assert ("not each other's best match" in hint.inner_text()) == (stable and not reciprocal)


def test_the_mean_spectrum_of_one_network_is_drawn_where_the_other_is_dead(opened, tmp_path):
    stores = [
        stored(tmp_path / f"{name}.zarr", {"a": factor * textured(6, 0)})
        for name, factor in (("s", 0), ("r", 1))
    ]
    for order in (stores, stores[::-1]):
        report = opened(write_report(order, tmp_path / "r.html", pair="index").page, "#/layer/0")
        report.get_by_text("Mean power spectrum").wait_for()
        assert report.complaints == []


def test_the_dot_is_the_centre_of_its_frame(opened, hostile, tmp_path):
    # Unpadded convolutions: the map does not cover the image evenly.
    store = swept(hostile, tmp_path / "s.zarr", 0, layers=["features.0"])
    report = opened(write_report([store], tmp_path / "r.html").page, "#/unit/3")
    report.locator(".images .field").first.wait_for()
    apart = report.evaluate(
        """() => [...document.querySelectorAll(".images .frame")].map(frame => {
            const box = name => frame.querySelector(name)?.getBoundingClientRect();
            const [field, dot] = [box(".field"), box(".centre")];
            if (!field) return 0;
            const middle = box => [box.left + box.width / 2, box.top + box.height / 2];
            const [a, b] = [middle(field), middle(dot)];
            return Math.max(Math.abs(a[0] - b[0]), Math.abs(a[1] - b[1])) / frame.clientWidth * 40;
        })"""
    )
    assert max(apart) < 0.5  # pixels of the input
