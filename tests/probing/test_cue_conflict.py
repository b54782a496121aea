"""The cue-conflict test of networks that are known to go by one cue."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from actstats import Loaded, open_source
from actstats.analysis.shape_bias import shape_bias
from actstats.errors import ActstatsError
from actstats.probing.cue_conflict import decide
from actstats.probing.forward import Passes
from actstats.probing.imagenet import CATEGORIES
from actstats.probing.readout import Readout, forced_choice, output_count, readout_for
from tests.probing.probed import COLOURS, PLAIN, ByColour, ByPlace, stimulus, write_stimuli

CPU = Passes(device="cpu", workers=0)


@pytest.fixture(scope="module")
def stimuli(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stimuli(tmp_path_factory.mktemp("stimuli"))


class Goes(nn.Module):
    """A classifier that goes by shape or by texture; `outputs` says at which output each category is."""

    def __init__(self, by: str, outputs: list[int], count: int) -> None:
        super().__init__()
        self.inner = ByPlace() if by == "shape" else ByColour()
        self.outputs, self.count = outputs, count

    def forward(self, x: Tensor) -> Tensor:
        logits = torch.zeros(len(x), self.count)
        logits[:, self.outputs] = self.inner(x)
        return logits


@pytest.mark.parametrize("by", ["shape", "texture"])
@pytest.mark.parametrize(
    ("outputs", "count", "classes"),
    [([0, 1, 2], 3, ["bear", "bird", "dog"]), ([1, 2, 0], 4, ["dog", "bear", "bird", "ship"]),
     ([CATEGORIES[name][0] for name in COLOURS], 1000, None), ([0, 1, 2], 3, None)],
    ids=["own classes", "more classes", "ImageNet", "by position"],
)  # fmt: skip
def test_a_network_that_goes_by_one_cue_has_the_bias_for_it(stimuli, by, outputs, count, classes):
    loaded = Loaded.of(Goes(by, outputs, count), PLAIN)
    table = decide(loaded, open_source(stimuli), name="net", classes=classes, passes=Passes(4, "cpu"))
    assert len(table) == 9
    assert (table["response"] == table[by]).all()
    row = shape_bias(table).iloc[0]
    assert (row["observer"], row["trials"], row["shape_bias"]) == ("net", 6, float(by == "shape"))


def test_only_stimuli_of_known_categories_are_shown(stimuli, tmp_path):
    loaded = Loaded.of(Goes("shape", [0, 1, 2], 3), PLAIN)
    table = decide(loaded, open_source(stimuli), classes=["bear", "bird", "ship"], passes=CPU)
    assert sorted(zip(table["shape"], table["texture"], strict=True)) == [
        ("bear", "bear"), ("bear", "bird"), ("bird", "bear"), ("bird", "bird"),
    ]  # fmt: skip
    with pytest.raises(ActstatsError, match="1 of the stimuli's categories"):
        decide(loaded, open_source(stimuli), classes=["bear", "car", "ship"], passes=CPU)
    with pytest.raises(ActstatsError, match="2 class names were given, but the network has 3 outputs"):
        decide(loaded, open_source(stimuli), classes=["bear", "car"], passes=CPU)
    stimulus("bear", COLOURS["dog"]).save(tmp_path / "photograph.png")
    with pytest.raises(ActstatsError, match=r"no image of .* is named as a cue-conflict stimulus"):
        decide(loaded, open_source(tmp_path), passes=CPU)


def test_unreadable_stimuli_are_left_out_of_the_decisions(stimuli, tmp_path):
    (tmp_path / "bear1-dog1.png").write_bytes(b"no image")
    stimulus("dog", COLOURS["bear"]).save(tmp_path / "dog1-bear1.png")
    loaded = Loaded.of(Goes("shape", [0, 1, 2], 3), PLAIN)
    source = open_source(tmp_path)
    table = decide(loaded, source, classes=list(COLOURS), passes=CPU)
    assert table["imagename"].tolist() == ["dog1-bear1.png"]
    (tmp_path / "dog1-bear1.png").write_bytes(b"no image")
    with pytest.raises(
        ActstatsError, match=r"none of the 2 images .* can be read; bear1-dog1.png: not an image"
    ):
        decide(loaded, source, classes=list(COLOURS), passes=CPU)


def test_categories_are_compared_by_their_mean_probability():
    readout = Readout(("a", "b"), ((0, 1), (2,)))
    # The greatest output is one of a's in both, the greatest mean only in the second.
    probabilities = torch.tensor([[0.5, 0.1, 0.4], [0.5, 0.3, 0.2]])
    assert readout.decide(probabilities.log()).tolist() == [1, 0]
    # Equal means: the first. Single outputs: the greatest, of equals the first.
    assert readout.decide(torch.zeros(1, 3)).tolist() == [0]
    assert Readout(("a", "b"), ((2,), (0,))).decide(
        torch.tensor([[1.0, 9.0, 1.0], [2.0, 9.0, 1.0]])
    ).tolist() == [0, 1]


def test_the_readout_fits_the_classes_of_the_images():
    assert readout_for(1000, ["n02123045", "n01440764"]).names[281] == "n02123045"
    assert len(readout_for(1000, ["cat", "dog"]).names) == 16
    assert readout_for(2, ["dog", "cat"]).names == ("cat", "dog")
    assert forced_choice(1000, ["cat", "dog", "unicorn"]).names == tuple(CATEGORIES)
    with pytest.raises(ActstatsError, match=r"1000 outputs cannot be matched .*2 classes \(unicorn\)"):
        readout_for(1000, ["cat", "unicorn"])
    with pytest.raises(ActstatsError, match="no classifier: it returns"):
        output_count(Loaded.of(nn.Conv2d(3, 2, 3), PLAIN), torch.device("cpu"))
