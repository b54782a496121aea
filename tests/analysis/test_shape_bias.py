"""Shape bias from recorded decisions: the published files' format in all its variants, the counts, the intervals."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from actstats.analysis.inference import crossed_interval, paired_p
from actstats.analysis.shape_bias import (
    COLUMNS,
    compare_shape_bias,
    cues,
    read_decisions,
    shape_bias,
    stimulus_images,
    write_decisions,
)
from actstats.errors import ActstatsError

NAMES = ("airplane", "bear", "cat")


def trials(observer: str, said: dict[tuple[str, str], str], prefix: str = "") -> pd.DataFrame:
    """One trial for each pair of shape and texture, with the response to it."""
    rows = [
        (observer, 1, number, "NaN", response, shape, 0, f"{prefix}{shape}{number}-{texture}2.png")
        for number, ((shape, texture), response) in enumerate(said.items(), 1)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def by_shape(texture_wins: int = 0) -> dict[tuple[str, str], str]:
    """All pairs decided by shape, but for the first so many that have a conflict."""
    said = {(shape, texture): shape for shape in NAMES for texture in NAMES}
    conflicts = [pair for pair in said if pair[0] != pair[1]]
    return said | {pair: pair[1] for pair in conflicts[:texture_wins]}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "decisions"
    folder.mkdir()
    for number in (1, 2):
        table = trials(f"subject-0{number}", by_shape(number - 1), "0001_s5n_s01_0_cat_00_")
        table.to_csv(folder / f"subject-{number}.csv", index=False)
    trials("net", by_shape(5)).to_csv(folder / "net.csv", index=False)
    return folder


def overall(paths: list[Path]) -> dict[str, tuple[int, ...]]:
    """Decisions for shape, texture and neither of each observer."""
    table = shape_bias(read_decisions(paths))
    table = table[table["category"] == "all"].set_index("observer")
    return {name: tuple(row) for name, row in table[["shape", "texture", "other"]].T.items()}


TRUTH = {"humans": (11, 1, 0), "net": (1, 5, 0), "subject-01": (6, 0, 0), "subject-02": (5, 1, 0)}


def test_folder_files_and_archives_hold_the_same(files, tmp_path):
    assert overall([files]) == TRUTH
    assert overall(sorted(files.glob("*.csv"))) == TRUTH
    for mode, name in (("w:gz", "all.tar.gz"), ("w", "all.tar")):
        with tarfile.open(tmp_path / name, mode) as archive:
            archive.add(files, "any/place")
        assert overall([tmp_path / name]) == TRUTH


@pytest.mark.parametrize(
    "options",
    [{"quoting": 1}, {"columns": COLUMNS[::-1]}, {"columns": ["imagename", "subj", "object_response"]},
     {"encoding": "utf-8-sig"}, {"lineterminator": "\r\n"}, {"float_format": "%.3f"}],
    ids=["quotes", "order", "only what is needed", "byte order mark", "line ends", "floats"],
)  # fmt: skip
def test_variants_of_the_format_read_alike(files, tmp_path, options):
    read = pd.read_csv(files / "net.csv").assign(rt=0.5, extra="x")
    read.to_csv(tmp_path / "net.csv", index=False, **options)
    assert overall([tmp_path / "net.csv"]) == {"net": TRUTH["net"]}


def test_responses_that_are_no_category_count_for_neither(tmp_path):
    table = trials(
        "net", {("cat", "bear"): "", ("bear", "cat"): "na", ("cat", "dog"): "Cat", ("bear", "dog"): "oven"}
    )
    table.to_csv(tmp_path / "net.csv", index=False, na_rep="NaN")
    assert overall([tmp_path / "net.csv"]) == {"net": (1, 0, 3)}


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(st.sampled_from(["subject-01", "subject-02", "net"]), *[st.sampled_from(NAMES)] * 3),
        min_size=1,
    )
)
def test_the_counts_are_those_of_a_plain_loop(drawn):
    table = pd.DataFrame(drawn, columns=["observer", "response", "shape", "texture"])
    conflicts = [row for row in drawn if row[2] != row[3]]
    if not conflicts:
        with pytest.raises(ActstatsError, match="none of the"):
            shape_bias(table)
        return
    for row in shape_bias(table).itertuples():
        mine = [
            t for t in conflicts
            if (t[0] == row.observer or (row.observer == "humans" and t[0] != "net"))
            and row.category in ("all", t[2])
        ]  # fmt: skip
        shape, texture = sum(t[1] == t[2] for t in mine), sum(t[1] == t[3] for t in mine)
        assert (row.trials, row.shape, row.texture, row.other) == (
            len(mine), shape, texture, len(mine) - shape - texture,
        )  # fmt: skip
        if shape + texture:
            assert row.shape_bias == shape / (shape + texture)
            assert row.low - 1e-12 <= row.shape_bias <= row.high + 1e-12
        else:
            assert np.isnan(row.shape_bias)
            assert np.isnan(row.low)


CATEGORIES = ("bear", "bird", "boat", "bottle", "car", "cat", "chair", "dog")


def crossed_trials(rng: np.random.Generator, shapes: int, textures: int, number: int) -> np.ndarray:
    """The shape image and the texture image of each trial, of different categories (number modulo 8)."""
    cells = [(s, t) for s in range(shapes) for t in range(textures) if s % 8 != t % 8]
    return np.array(cells)[np.sort(rng.permutation(len(cells))[:number])]


def recorded(stimuli: np.ndarray, said: np.ndarray, observer: str = "net") -> pd.DataFrame:
    """Decisions (1: shape, 2: texture, 0: neither) on stimuli, named by their images."""
    shape, texture = (np.array(CATEGORIES)[stimuli[:, at] % 8] for at in (0, 1))
    names = [f"{a}{s}-{b}{t}.png" for a, b, (s, t) in zip(shape, texture, stimuli, strict=True)]
    return pd.DataFrame({
        "observer": observer, "response": np.choose(said, ["oven", shape, texture]), "shape": shape,
        "texture": texture, "imagename": names,
    })  # fmt: skip


def clustered(scores: np.ndarray, *factors: np.ndarray) -> float:
    """The variance of a sum of scores clustered by several factors, by the definition: over pairs that share any.

    Each part of the inclusion and exclusion counts the pairs of trials that agree in all its factors.
    """
    total, alone = 0.0, []
    for subset in range(1, 2 ** len(factors)):
        chosen = [factor for at, factor in enumerate(factors) if subset >> at & 1]
        alike = np.ones((len(scores), len(scores)), dtype=bool)
        for factor in chosen:
            alike &= factor[:, None] == factor
        clusters = len(set(zip(*chosen, strict=True)))
        part = scores @ alike @ scores * clusters / (clusters - 1)
        total += part if len(chosen) % 2 else -part
        alone += [part] * (len(chosen) == 1)
    return max(total, *alone)


def logit_interval(share: float, variance: float, clusters: int) -> tuple[float, float]:
    half = stats.t.ppf(0.975, clusters - 1) * np.sqrt(variance) / (share * (1 - share))
    middle = np.log(share / (1 - share))
    return tuple(1 / (1 + np.exp(-(middle + sign * half))) for sign in (-1, 1))


def drawn(rng: np.random.Generator, stimuli: np.ndarray, middle: float = -0.5) -> np.ndarray:
    """Decisions with random effects of shape images (s.d. 0.8) and textures (1.4) on the logit; 60 % are decided."""
    by_shape = rng.normal(0, 0.8, stimuli[:, 0].max() + 1)[stimuli[:, 0]]
    by_texture = rng.normal(0, 1.4, stimuli[:, 1].max() + 1)[stimuli[:, 1]]
    shape = rng.random(len(stimuli)) < 1 / (1 + np.exp(-middle - by_shape - by_texture))
    return np.where(rng.random(len(stimuli)) < 0.6, np.where(shape, 1, 2), 0)


def test_intervals_are_clustered_by_shape_image_and_texture_image():
    rng = np.random.default_rng(0)
    stimuli = crossed_trials(rng, 40, 16, 300)
    said = drawn(rng, stimuli)
    row = shape_bias(recorded(stimuli, said)).iloc[0]
    kept, hits = stimuli[said > 0], said[said > 0] == 1
    share = hits.mean()
    variance = clustered((hits - share) / len(hits), *kept.T)
    assert variance > 2 * share * (1 - share) / len(hits)
    assert row["clusters"] == 16
    assert (row["low"], row["high"]) == pytest.approx(logit_interval(share, variance, 16))


def test_intervals_of_people_are_clustered_by_person_too():
    rng = np.random.default_rng(1)
    stimuli = crossed_trials(rng, 24, 16, 100)
    people = [drawn(rng, stimuli, middle) for middle in (-2, 0, 0, 1, 2)]
    table = shape_bias(
        pd.concat([recorded(stimuli, said, f"subject-0{at}") for at, said in enumerate(people)])
    )
    row = table.iloc[0]
    said = np.concatenate(people)
    hits, decided = said[said > 0] == 1, said > 0
    person = np.repeat(np.arange(5), len(stimuli))[decided]
    share = hits.mean()
    variance = clustered((hits - share) / len(hits), *np.tile(stimuli.T, 5)[:, decided], person)
    assert row["clusters"] == 5
    assert (row["low"], row["high"]) == pytest.approx(logit_interval(share, variance, 5))
    # Of the humans together; each person has as few shape images of a category.
    few = "of fewer than 10 shape images, texture images or people (`clusters`), and may be too narrow"
    for intervals, rows in {
        "intervals": table[table["category"] == "all"],
        "intervals of single categories": table[table["category"] != "all"],
    }.items():
        count = rows["clusters"].between(1, 9).sum()
        assert count > 0
        assert f"{count} of {len(rows)} {intervals} are {few}" in table.attrs["notes"]
    assert len(table.attrs["notes"]) == 2


def test_observers_are_compared_on_the_stimuli_that_both_were_shown():
    rng = np.random.default_rng(2)
    stimuli = crossed_trials(rng, 40, 16, 400)
    # Both decide much alike.
    one = drawn(rng, stimuli)
    two = np.where(rng.random(len(one)) < 0.2, rng.integers(0, 3, len(one)), one)
    decisions = pd.concat([recorded(stimuli, one, "a"), recorded(stimuli[50:], two[50:], "b")])
    row = compare_shape_bias(decisions).iloc[0]
    one, two, common = one[50:], two[50:], stimuli[50:]
    shares = [(said == 1).sum() / (said > 0).sum() for said in (one, two)]
    deviation = [
        ((said == 1) - share * (said > 0)) / (said > 0).sum()
        for said, share in zip((one, two), shares, strict=True)
    ]
    half = stats.t.ppf(0.975, 15) * np.sqrt(clustered(deviation[0] - deviation[1], *common.T))
    difference = shares[0] - shares[1]
    assert (row["observer"], row["other"], row["stimuli"], row["clusters"]) == ("a", "b", 350, 16)
    assert (row["difference"], row["low"], row["high"]) == pytest.approx(
        (difference, difference - half, difference + half)
    )
    alone = shape_bias(decisions).set_index("category").loc["all"]
    assert row["high"] - row["low"] < 0.7 * np.hypot(*(alone["high"] - alone["low"]))


def test_paired_decisions_are_tested_with_their_clusters():
    rng = np.random.default_rng(6)
    stimuli = crossed_trials(rng, 40, 16, 400)
    before = drawn(rng, stimuli) == 1
    # What is lost is lost with the texture.
    after = before & ~np.isin(stimuli[:, 1], (0, 5))
    change = after.astype(float) - before
    variance = clustered((change - change.mean()) / 400, *stimuli.T)
    expected = 2 * stats.t.sf(-change.mean() / np.sqrt(variance), 15)
    lost = int((before & ~after).sum())
    assert paired_p(before, after, []) == pytest.approx(2 * 0.5**lost)
    assert expected > 0.05 > 2 * 0.5**lost
    assert paired_p(before, after, stimuli.T) == pytest.approx(expected)
    assert paired_p(before, before, stimuli.T) == 1


def wilson(share: float, n: int) -> tuple[float, float]:
    z = stats.norm.ppf(0.975)
    centre, half = share + z**2 / (2 * n), z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return (centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n)


def test_decisions_for_one_cue_alone_have_an_interval():
    stimuli = crossed_trials(np.random.default_rng(3), 40, 16, 200)
    said = np.ones(200, dtype=int)
    table = shape_bias(recorded(stimuli, said)).iloc[0]
    assert (table["low"], table["high"]) == pytest.approx(wilson(1, 16))
    # As many clusters as there are trials per texture: a difference to one who decides by texture alone.
    both = pd.concat([recorded(stimuli, said), recorded(stimuli, said + 1, "other")])
    row = compare_shape_bias(both).iloc[0]
    low = 1 - np.hypot(1 - wilson(1, 16)[0], wilson(0, 16)[1])
    assert (row["difference"], row["low"], row["high"]) == pytest.approx((1, low, 1))


def test_a_factor_of_one_level_is_left_out():
    rng = np.random.default_rng(4)
    stimuli = np.stack([np.arange(1, 101) * 8, np.full(100, 1)], 1)
    said = rng.integers(1, 3, 100)
    row = shape_bias(recorded(stimuli, said)).iloc[0]
    share = (said == 1).mean()
    # No two trials share a shape image, so that its clusters are the trials.
    variance = share * (1 - share) / 99
    assert row["clusters"] == 100
    assert (row["low"], row["high"]) == pytest.approx(logit_interval(share, variance, 100))


@pytest.mark.parametrize("names", [None, "cat-bear.png", "photo.png"])
def test_intervals_where_names_do_not_identify_the_stimuli_are_wilsons(names):
    table = pd.DataFrame(
        {"observer": "net", "response": ["cat"] * 8 + ["bear"] * 2, "shape": "cat", "texture": "bear"}
    )
    if names is not None:
        table = table.assign(imagename=names, trial=[str(at) for at in range(10)])
    found = shape_bias(table)
    assert found["clusters"].tolist() == [0, 0]
    assert (found["low"][0], found["high"][0]) == pytest.approx(wilson(0.8, 10))
    assert any("shown to net do not number the images" in note for note in found.attrs["notes"])
    people = pd.concat([table.assign(observer=f"subject-{at}", response=said) for at, said in enumerate(
        (["cat"] * 10, ["cat"] * 5 + ["bear"] * 5, ["cat"] * 9 + ["bear"])
    )])  # fmt: skip
    pooled = shape_bias(people).iloc[0]
    deviation = np.array([10 - 8, 5 - 8, 9 - 8]) / 30
    assert pooled["clusters"] == 3
    assert (pooled["low"], pooled["high"]) == pytest.approx(
        logit_interval(0.8, (deviation**2).sum() * 3 / 2, 3)
    )
    difference = compare_shape_bias(people).iloc[0]
    assert difference["stimuli"] == 0
    assert np.isnan([difference["difference"], difference["low"], difference["high"]]).all()


@pytest.mark.parametrize(("shapes", "textures", "number"), [(80, 24, 600), (160, 48, 600), (160, 48, 1200)])
def test_95_percent_intervals_cover_the_bias_of_95_percent_of_networks(shapes, textures, number):
    """Crossed trials with random effects of shape images and textures; a network's true bias is the mean over all."""
    rng = np.random.default_rng(5)
    networks = 4000
    stimuli = crossed_trials(rng, shapes, textures, number)
    truth = (1 / (1 + np.exp(0.5 - np.hypot(0.8, 1.4) * rng.normal(size=4_000_000)))).mean()
    covered = 0
    for _ in range(networks):
        said = drawn(rng, stimuli)
        kept = said > 0
        interval = crossed_interval(said[kept] == 1, [factor[kept] for factor in stimuli.T])
        covered += interval.low <= truth <= interval.high
    assert 0.93 <= covered / networks <= 0.97


def test_written_decisions_read_back(tmp_path):
    table = pd.DataFrame(
        {"observer": "net", "response": ["cat", "bear"], "shape": "cat", "texture": "bear",
         "imagename": ["cat1-bear1.png", "cat2-bear1.png"]}
    )  # fmt: skip
    write_decisions(table, tmp_path / "net.csv")
    assert (tmp_path / "net.csv").read_text().splitlines()[:2] == [
        "subj,session,trial,rt,object_response,category,condition,imagename",
        "net,1,1,NaN,cat,cat,0,cat1-bear1.png",
    ]
    assert overall([tmp_path / "net.csv"]) == {"net": (1, 1, 0)}
    with pytest.raises(ActstatsError, match="cannot write"):
        write_decisions(table, tmp_path / "nowhere" / "net.csv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n", "no column subj, object_response, imagename"),
        ("", "is not a CSV table"),
        ("subj,object_response,imagename\n", "no rows"),
        (
            "subj,object_response,imagename\nx,cat,cat1.png\n",
            "1 of 1 image names do not state shape and texture",
        ),
        ("subj,object_response,imagename\nx,cat\x00,\xff", "do not state shape"),
    ],
)
def test_what_is_no_table_of_decisions_is_said_in_one_line(tmp_path, content, message):
    file = tmp_path / "x.csv"
    file.write_text(content)
    with pytest.raises(ActstatsError, match=message) as caught:
        read_decisions([file])
    assert "\n" not in str(caught.value)


def test_what_is_not_there_or_there_twice_is_said(files, tmp_path):
    with pytest.raises(ActstatsError, match=r"did you mean net\.csv"):
        read_decisions([files / "ned.csv"])
    with pytest.raises(ActstatsError, match=r"trial 1 of net, session 1, occurs twice.*net\.csv"):
        read_decisions([files, files / "net.csv"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ActstatsError, match=r"contains no \.csv file"):
        read_decisions([tmp_path / "empty"])
    with pytest.raises(ActstatsError, match="no decisions were given"):
        read_decisions([])
    whole = tmp_path / "cut.tar.gz"
    with tarfile.open(whole, "w:gz") as archive:
        archive.add(files, "any")
    whole.write_bytes(whole.read_bytes()[:-200])
    with pytest.raises(ActstatsError, match="complete tar file"):
        read_decisions([whole])


@pytest.mark.parametrize("numbered", [False, True])
def test_an_observer_whose_decisions_are_given_twice_is_refused(numbered):
    table = pd.DataFrame({
        "observer": "net", "response": ["cat", "dog"], "shape": "cat", "texture": "dog",
        "imagename": ["cat1-dog1.png", "cat2-dog1.png"],
    })  # fmt: skip
    recorded = table.assign(session="1", trial=["1", "2"]) if numbered else table
    assert shape_bias(recorded)["trials"].tolist() == [2, 2]
    with pytest.raises(
        ActstatsError, match="decisions of the observer 'net' were given twice, or two observers"
    ):
        shape_bias(pd.concat([recorded, table]))
    assert shape_bias(pd.concat([recorded, table.assign(observer="other")]))["trials"].tolist() == [2] * 4


def test_one_image_may_be_shown_in_several_trials():
    table = pd.DataFrame({
        "observer": "subject-01", "response": ["cat", "dog"], "shape": "cat", "texture": "dog",
        "imagename": "cat1-dog1.png", "session": "1", "trial": ["1", "2"],
    })  # fmt: skip
    assert shape_bias(table)["trials"].tolist() == [2, 2]


@pytest.mark.parametrize(
    ("name", "images"),
    [
        ("0001_s5n_s01_0_cat_00_cat7-bear12.png", ("cat7", "bear12")),
        ("cat/Cat7_2 - Bear1.JPEG", ("cat7_2", "bear1")),
        ("cat7-bear1", ("cat7", "bear1")),
        ("cat-bear1.png", None),
        ("cat7-bear.png", None),
        ("bobcat7-bear1.png", None),
    ],
)
def test_names_state_the_images_of_a_stimulus(name, images):
    assert stimulus_images([name], ["cat"], ["bear"]) == [images]


def test_names_of_images_tell_their_cues():
    assert cues("cat/cat7-bear1.png") == ("cat", "bear")
    assert cues("0001_s5n_dnn_0_airplane_00_airplane1-bicycle2.png") == ("airplane", "bicycle")
    assert cues("polar bear10-dog2.png") == ("polar bear", "dog")
    for name in ("photo.png", "a-b-c.png", "12-13.png", "cat7.png"):
        assert cues(name) is None
