"""Accuracy with one cue gone, of a network that goes by colour and one that goes by place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from actstats import ActstatsError, Loaded, open_source
from actstats.data.source import Subset
from actstats.distort import parse
from actstats.probing.cues import Version, cue_accuracy
from actstats.probing.forward import Passes, halves
from actstats.probing.networks import open_network, parse_network
from tests.probing.probed import COLOURS, PLAIN, ByColour, ByPlace, stimulus, write_stimuli

CPU = Passes(device="cpu", workers=0)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Colour and place both tell the class; and a second folder, where only the place does."""
    root = tmp_path_factory.mktemp("cues")
    for name, colour in COLOURS.items():
        for number in range(6):
            for folder, shown, ending in (("clean", colour, "png"), ("styled", (1, 1, 1), "jpg")):
                path = root / folder / name / f"{number}.{ending}"
                path.parent.mkdir(parents=True, exist_ok=True)
                stimulus(name, shown, number).save(path)
    return root


@pytest.fixture
def networks() -> dict[str, Loaded]:
    return {"colour": Loaded.of(ByColour(), PLAIN), "place": Loaded.of(ByPlace(), PLAIN)}


def test_images_are_matched_by_their_path_without_the_suffix(tmp_path, networks):
    for number, name in enumerate(COLOURS):
        for stem in ("a.1", "a.2"):
            wrong = list(COLOURS)[(number + (stem == "a.2")) % 3]
            for folder, suffix in (("clean", "png"), ("styled", "jpg")):
                (tmp_path / folder / name).mkdir(parents=True, exist_ok=True)
                stimulus(wrong, COLOURS[wrong]).save(
                    tmp_path / folder / name / f"{stem}.{suffix}", quality=95
                )
    styled = Version("styled", source=open_source(tmp_path / "styled"))
    table = cue_accuracy(networks, open_source(tmp_path / "clean"), [styled], correct_only=True, passes=CPU)
    # Of each class the first image is right and the second is not.
    assert table["images"].tolist() == [3] * 4
    assert table["accuracy"].tolist() == [1.0] * 4
    stimulus("bear", COLOURS["bear"]).save(tmp_path / "clean" / "bear" / "a.1.bmp")
    with pytest.raises(ActstatsError, match=r"2 clean images are named bear/a\.1, with different suffixes"):
        cue_accuracy(networks, open_source(tmp_path / "clean"), [styled], correct_only=True, passes=CPU)


class Undefined(ByColour):
    """Returns NaN for the class of images in which the second colour is the brightest."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits.masked_fill((logits.argmax(1) == 1)[:, None] & (torch.arange(3) == 2), torch.nan)


@pytest.mark.parametrize("learned", [False, True])
def test_outputs_that_are_nan_are_no_decision(images, learned):
    source = open_source(images / "clean")
    networks = {"undefined": Loaded.of(Undefined(), PLAIN)}
    taught = Subset(source, [i for i in range(len(source)) if source.labels[i] != 1]) if learned else None
    table = cue_accuracy(networks, source, [], learn_from=taught, passes=CPU)
    if learned:  # the class that is never defined was not taught
        assert (table["images"].item(), table["correct"].item()) == (12, 12)
        said = "excluded, as the network does not know their class"
    else:
        assert (table["images"].item(), table["correct"].item()) == (18, 12)
        said = "counted as wrong, as an output of the network is NaN"
    assert table.attrs["notes"] == [f"undefined, clean: 6 of 18 images {said}"]


def test_each_network_fails_where_its_cue_is_gone(images, networks):
    versions = [
        Version("scramble:30", parse(["scramble:30"])),
        Version("greyscale", parse(["greyscale"])),
        Version("styled", source=open_source(images / "styled")),
    ]
    seen = []
    table = cue_accuracy(
        networks,
        open_source(images / "clean"),
        versions,
        passes=Passes(5, "cpu", 0, on_progress=lambda progress: seen.append((progress.done, progress.total))),
    )
    assert table["version"].tolist() == [
        v for v in ("clean", "scramble:30", "greyscale", "styled") for _ in range(2)
    ]
    by = table.set_index(["version", "network"])
    assert by.loc[("clean", "colour"), "accuracy"] == by.loc[("clean", "place"), "accuracy"] == 1
    assert by.loc[("scramble:30", "colour"), "accuracy"] == 1
    assert by.loc[("scramble:30", "place"), "accuracy"] < 0.8
    assert by.loc[("greyscale", "colour"), "accuracy"] == pytest.approx(1 / 3)
    assert by.loc[("greyscale", "place"), "accuracy"] == by.loc[("styled", "place"), "accuracy"] == 1
    assert by.loc[("styled", "colour"), "accuracy"] == pytest.approx(1 / 3)
    assert by.loc[("greyscale", "colour"), "change"] == pytest.approx(-2 / 3)
    assert by.loc[("greyscale", "place"), "difference"] == pytest.approx(2 / 3)
    assert by.loc[("greyscale", "place"), "p"] == 2 * 0.5**12
    assert np.isnan(by.loc[("greyscale", "colour"), "p"])
    assert (table["images"] == 18).all()
    assert ((table["low"] <= table["accuracy"]) & (table["accuracy"] <= table["high"])).all()
    assert len(seen) == 8 * 4
    assert seen[3] == (18, 18)


def test_crossed_stimuli_are_not_independent(networks, tmp_path):
    """Nine stimuli of three shapes and three textures: who goes by colour is right where both agree."""
    table = cue_accuracy(networks, open_source(write_stimuli(tmp_path / "stimuli")), [], passes=CPU)
    assert table["correct"].tolist() == [3, 9]
    # As many are right of each shape and of each texture, so that the variance is that of the nine by themselves.
    half = stats.t.ppf(0.975, 2) * np.sqrt(2 / 9 / 8) / (2 / 9)
    ends = [1 / (1 + np.exp(-(np.log(1 / 2) + sign * half))) for sign in (-1, 1)]
    assert table.loc[0, ["low", "high"]].tolist() == pytest.approx(ends)
    assert table["p"][1] == pytest.approx(2 * stats.t.sf(2 / 3 / np.sqrt(2 / 9 / 8), 2))
    unnumbered = tmp_path / "unnumbered"
    for path in (tmp_path / "stimuli").rglob("*.png"):
        to = unnumbered / path.parent.name / path.name.replace("1-", "-").replace("2.", ".")
        to.parent.mkdir(parents=True, exist_ok=True)
        path.rename(to)
    table = cue_accuracy(networks, open_source(unnumbered), [], passes=CPU)
    assert table["p"][1] == 2 * 0.5**6
    assert any("do not number the images of shape and texture" in note for note in table.attrs["notes"])


def test_only_images_that_all_get_right_count(images, networks, tmp_path):
    # Seven more images, of which the colours mislead; two cannot be read.
    for folder in ("clean", "styled"):
        (tmp_path / folder / "bear").mkdir(parents=True)
        for number in range(7):
            stimulus("bear", COLOURS["dog" if number else "bear"], number).save(
                tmp_path / folder / f"bear/{number}.png"
            )
        (tmp_path / folder / "dog").mkdir()
        (tmp_path / folder / "bird").mkdir()
        stimulus("dog", COLOURS["dog"], 9).save(tmp_path / folder / "dog" / "9.png")
        (tmp_path / folder / "bird" / "8.png").write_bytes(b"none")
    source = open_source(tmp_path / "clean")
    styled = Version("styled", source=open_source(tmp_path / "styled"))
    every = cue_accuracy(networks, source, [styled], passes=CPU)
    assert every["images"].tolist() == [8] * 4
    assert every["correct"].tolist() == [2, 8, 2, 8]
    chosen = cue_accuracy(
        networks,
        source,
        [styled, Version("noise", parse(["noise:0.01"]))],
        correct_only=True,
        passes=CPU,
    )
    assert chosen["images"].tolist() == [2] * 6
    assert chosen["accuracy"].tolist() == [1.0] * 6


def test_what_cannot_be_compared_is_said_in_one_line(images, networks):
    source = open_source(images / "clean")
    with pytest.raises(ActstatsError, match="no network"):
        cue_accuracy({}, source, [])
    with pytest.raises(ActstatsError, match="have the name 'clean'"):
        cue_accuracy(networks, source, [Version("clean")])
    with pytest.raises(ActstatsError, match="needs images of at least"):
        cue_accuracy(networks, source, [Version("s", parse(["scramble:31"]))], passes=CPU)
    with pytest.raises(ActstatsError, match="cannot be matched"):
        cue_accuracy(networks, source, [], classes=["a", "b", "c"], passes=CPU)


def test_networks_are_named_by_one_word(tmp_path):
    assert parse_network("resnet50") == ("resnet50", "default", None)
    assert parse_network("timm/vit_tiny=https://host/a=b.pth+robust") == (
        "timm/vit_tiny", "https://host/a=b.pth", "default",
    )  # fmt: skip
    for spec in ("", "=x", "+robust", "resnet50+robust="):
        with pytest.raises(ActstatsError, match="names no network"):
            parse_network(spec)
    loaded = open_network("squeezenet1_1=none")
    assert loaded.identity["arch"] == "squeezenet1_1"
    with pytest.raises(ActstatsError, match="is not a store"):
        open_network(str(tmp_path))


def test_a_network_of_other_classes_learns_them_from_other_images(images):
    class Turned(ByColour):
        """Says the classes in outputs of its own, whose greatest is of no class."""

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([torch.full((len(x), 1), 99.0), -super().forward(x)], 1)

    source = open_source(images / "clean")
    taught, tested = halves(source)
    assert sorted([*taught.paths, *tested.paths]) == sorted(source.paths)
    assert np.bincount(taught.labels).tolist() == [3, 3, 3]
    found = cue_accuracy(
        {"net": Loaded.of(Turned(), PLAIN)},
        tested,
        [Version("greyscale", parse(["greyscale"]))],
        learn_from=taught,
        passes=CPU,
    )
    assert found["images"].tolist() == [len(tested)] * 2
    assert found["accuracy"].tolist() == [1.0, pytest.approx(1 / 3)]


def test_nothing_is_learned_from_images_of_one_class(images, networks):
    source = open_source(images / "clean")
    one = Subset(source, np.flatnonzero(source.labels == 0).tolist())
    with pytest.raises(ActstatsError, match="fewer than two classes"):
        cue_accuracy(networks, source, [], learn_from=one, passes=CPU)
