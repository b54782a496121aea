"""Reports of several training runs of each kind of network."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from actstats.errors import ActstatsError
from actstats.report import compare, show, write_report
from tests.analysis.made import make_store
from tests.cli.conftest import actstats, output_of
from tests.report.conftest import parts_of

IMAGES, UNITS = 12, 6


def stored(path: Path, seed: int, *, smooth: float = 0.0, **options: object) -> Path:
    """The store of a network with two layers, whose maps are the smoother the more."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 1, 8)[:, None] * np.ones((1, UNITS, 8, 8))
    layers = {}
    for name in ("a", "b"):
        noise = rng.random((IMAGES, UNITS, 8, 8)) * (1 + 0.1 * rng.random())
        strength = rng.gamma(1.0, 1.0, (IMAGES, UNITS, 1, 1))
        layers[name] = (strength * (1 + smooth * ramp + (1 - smooth) * noise)).astype(np.float32)
    weights = {"source": "module", "sha256": f"{seed:064d}"}
    make_store(path, layers, np.arange(IMAGES) % 3, **{"weights": weights} | options)
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Three training runs of S and of R, whose maps are smoother; each with noise, too."""
    folder = tmp_path_factory.mktemp("runs")
    found: dict[str, list[Path]] = {"s": [], "r": [], "s-noisy": [], "r-noisy": []}
    for at in range(3):
        for kind, smooth in (("s", 0.0), ("r", 0.8)):
            seed = at + 10 * (kind == "r")
            found[kind].append(stored(folder / f"{kind}{at}.zarr", seed, smooth=smooth))
            noisy = folder / f"{kind}{at}-noisy.zarr"
            found[f"{kind}-noisy"].append(stored(noisy, seed, smooth=smooth, distort=["noise:0.1"]))
    return found


def test_groups_get_a_verdict_from_three_a_side_on(runs):
    compared = compare(runs["s"], against=runs["r"], noisy=[*runs["s-noisy"], *runs["r-noisy"]])
    assert compared.names == ["s0", "s1", "s2", "r0", "r1", "r2"]
    assert compared.columns == ["S (3 networks)", "R (3 networks)"]
    lines = {line.claim: line for line in compared.findings}
    smoother = lines["R's activation maps are smoother"]
    medians = [float(units["roughness"].median()) for units in compared.measured]
    for side, value in zip((medians[:3], medians[3:]), smoother.values, strict=True):
        assert value == f"{np.mean(side):.3g} ({min(side):.3g} to {max(side):.3g})"
    (said,) = smoother.comparisons
    assert (said.verdict, said.words, said.scope) == (
        "agrees",
        "as in the paper",
        "over 3 and 3 training runs",
    )
    assert [layer.layer for layer in said.by_layer] == ["a", "b"]
    assert "S against S" in said.difference
    assert any("under noise" in line.how for line in compared.findings)
    assert all(len(line.values) == 2 for line in compared.findings)
    assert not any("counterpart" in line.claim for line in compared.findings)


def test_training_runs_of_one_kind_do_not_differ(runs, tmp_path):
    others = [stored(tmp_path / f"t{at}.zarr", 30 + at) for at in range(3)]
    decided = [said for line in compare(runs["s"], against=others).findings for said in line.comparisons]
    assert not [said for said in decided if said.verdict in ("agrees", "differs")]


def test_fewer_runs_are_about_the_pair_or_undecided(runs):
    for stores, against, strongest in (
        (runs["s"][:1], runs["r"][:1], "this pair: "),
        (runs["s"][:1], runs["r"], "this pair: "),
        (runs["s"][:2], runs["r"][:2], "undecided"),
        ([runs["s"][0], *runs["r"][:2]], [], "this pair: "),
    ):
        found = compare(stores, against=against)
        decided = [said for line in found.findings for said in line.comparisons if said.verdict]
        assert decided
        for said in decided:
            if said.words != "not measured":
                assert said.words.startswith((strongest, "undecided"))
                assert said.scope.startswith("other training runs are not in it")
    alone, paired = compare([runs["s"][0]], against=runs["r"][:1]), compare([runs["s"][0], runs["r"][0]])
    assert alone.findings == paired.findings


def test_the_command_prints_groups_and_decisions_by_layer(runs):
    given = " ".join([*map(str, runs["s"]), *(f"--against {store}" for store in runs["r"])])
    names = " ".join(f"--name {name}" for name in "uvwxyz")
    found = json.loads(output_of(f"compare {given} {names} --json"))
    assert found["names"] == list("uvwxyz")
    assert found["against"] == [str(store) for store in runs["r"]]
    assert found["columns"] == ["S (3 networks)", "R (3 networks)"]
    (smoother,) = [line for line in found["findings"] if line["claim"] == "R's activation maps are smoother"]
    layers = smoother["comparisons"][0]["by_layer"]
    assert [(layer["layer"], layer["decision"]) for layer in layers] == [("a", "lower"), ("b", "lower")]
    assert all(layer["p"] < 0.05 and len(layer["medians_s"]) == 3 for layer in layers)
    lines = output_of(f"compare {given}").splitlines()
    assert re.split(r"  +", lines[0]) == [
        "finding",
        "S (3 networks)",
        "R (3 networks)",
        "difference",
        "verdict",
    ]
    assert any(line.endswith("as in the paper; over 3 and 3 training runs") for line in lines)
    # Of a pair, every verdict says what it leaves out.
    pair = output_of(f"compare {runs['s'][0]} {runs['r'][0]}").splitlines()
    verdicts = [line for line in pair if re.search("this pair|undecided", line)]
    assert verdicts
    assert all(line.endswith("other training runs are not in it") for line in verdicts)
    assert not [
        line for line in pair if "as in the paper" in line and "this pair: as in the paper" not in line
    ]
    by_layer = json.loads(output_of(f"compare {runs['s'][0]} {runs['r'][0]} --json"))["findings"][0][
        "comparisons"
    ][0]
    assert [layer["decision"] for layer in by_layer["by_layer"]] == ["lower", "lower"]
    assert by_layer["by_layer"][0]["delta_high"] < 0


def test_the_page_has_a_column_for_each_group(runs, tmp_path):
    report = write_report(runs["s"], tmp_path / "groups.html", against=runs["r"])
    text = report.page.read_text()
    content, arrays = parts_of(report.page)["overview"]
    assert [store["name"] for store in content["stores"]] == ["s0", "s1", "s2", "r0", "r1", "r2"]
    assert "S is s0, s1 and s2; R is r0, r1 and r2." in text
    assert "over 3 and 3 training runs" in text
    assert "Welch" in text
    for group in report.columns:
        assert f'title="{group}"' in text
    assert all(f"roughness:{store}" in arrays for store in range(6))
    assert not [name for name in arrays if re.fullmatch(r"best:[1-9]:[1-9]", name)]
    pair = write_report([runs["s"][0]], tmp_path / "pair.html", against=[runs["r"][0]]).page.read_text()
    chips = re.findall(r'<span class="verdict (\w+)">([^<]*)</span> <span class="scope">([^<]*)</span>', pair)
    assert [chip for chip in chips if chip[0] == "agrees"]
    for verdict, words, scope in chips:
        if words != "not measured":
            assert scope == "other training runs are not in it"
            assert words.startswith("this pair: ") or verdict == "open"
    assert show(*runs["s"], against=runs["r"]).report.columns == report.columns


@pytest.mark.parametrize("where", ["", "#/layer/1", "#/unit/5"])
def test_the_page_of_groups_opens_on_a_phone(runs, tmp_path, opened, where):
    page = write_report(runs["s"], tmp_path / "groups.html", against=runs["r"]).page
    report = opened(page, where, viewport={"width": 360, "height": 740})
    report.wait_for_selector(".plot svg")
    assert report.evaluate("document.documentElement.scrollWidth") == 360
    if where == "":
        assert report.locator(".findings thead th").count() == 5
        assert report.locator(".stores article").count() == 6
    assert report.complaints == []


def test_a_training_run_counts_once(runs, tmp_path):
    with pytest.raises(ActstatsError, match="s0 and r0 are of the same weights: groups of networks need"):
        compare(runs["s"], against=[stored(tmp_path / "r0.zarr", 0), *runs["r"][1:]])
    copy = stored(tmp_path / "copy.zarr", 1)
    result = actstats(f"compare {runs['s'][1]} {copy} --against {runs['r'][0]}")
    assert result.exit_code == 1
    assert "s1 and copy are of the same weights" in result.stderr
    with pytest.raises(ActstatsError, match="give a name for each of the 6 stores, not 2"):
        compare(runs["s"], against=runs["r"], names=["S", "R"])
    with pytest.raises(ActstatsError, match="give a noisy sweep for each of the 6 stores, not 3"):
        compare(runs["s"], against=runs["r"], noisy=runs["s-noisy"])
    with pytest.raises(ActstatsError, match="omit it for groups of networks"):
        compare(runs["s"], against=runs["r"], matches=["m.csv"])
