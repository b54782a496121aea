"""Shape bias from recorded decisions: the published files' format in all its variants, the counts, the intervals."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actstats.analysis.shape_bias import (
    COLUMNS,
    bias_interval,
    cues,
    read_decisions,
    shape_bias,
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


def test_intervals_are_wilsons_for_one_observer_and_over_observers_for_several():
    # Wilson's interval of 8 in 10, from its formula.
    z, n, p = 1.959963984540054, 10, 0.8
    centre, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    expected = ((centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n))
    assert bias_interval(np.array([8]), np.array([2])) == pytest.approx(expected)
    # Observers who agree leave no spread; such as disagree leave more than Wilson's of all their trials.
    assert bias_interval(np.full(5, 80), np.full(5, 20)) == pytest.approx((0.8, 0.8))
    low, high = bias_interval(np.array([100, 60, 100, 60]), np.array([0, 40, 0, 40]))
    assert low < 0.65
    assert high > 0.95


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


def test_names_of_images_tell_their_cues():
    assert cues("cat/cat7-bear1.png") == ("cat", "bear")
    assert cues("0001_s5n_dnn_0_airplane_00_airplane1-bicycle2.png") == ("airplane", "bicycle")
    assert cues("polar bear10-dog2.png") == ("polar bear", "dog")
    for name in ("photo.png", "a-b-c.png", "12-13.png", "cat7.png"):
        assert cues(name) is None
