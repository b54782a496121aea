"""Which output of a network stands for which class of the images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder

from actstats import ActstatsError, Loaded, Preprocessing, open_source
from actstats.analysis.shape_bias import cues_of
from actstats.probing.cues import cue_accuracy
from actstats.probing.forward import Passes
from actstats.probing.imagenet import SYNSETS
from actstats.probing.readout import match_outputs

PLAIN = Preprocessing(None, 8, "bilinear", (0, 0, 0), (1, 1, 1))


class ByLevel(nn.Module):
    """Output k is the greatest where the red channel is k, or 10 times green plus red where there are more."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 1, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([1.0, 10.0, 100.0])[None, :, None, None])
        self.outputs = outputs

    def forward(self, x: Tensor) -> Tensor:
        level = (self.conv(x).mean((1, 2, 3)) * 255 / 20).double()
        return -((level[:, None] - torch.arange(self.outputs)) ** 2)


def level(number: int) -> Image.Image:
    return Image.new("RGB", (8, 8), tuple(20 * (number // 10**digit % 10) for digit in range(3)))


def folders(root: Path, names: dict[str, int]) -> Path:
    """A folder for each name, whose image shows a number."""
    for name, number in names.items():
        (root / name).mkdir(parents=True)
        level(number).save(root / name / "x.png")
    return root


def accuracy(outputs: int, images: Any, classes: Sequence[str] | None = None) -> float:
    network = Loaded.of(ByLevel(outputs).eval(), PLAIN)
    passes = Passes(64, "cpu", 0)
    table = cue_accuracy({"net": network}, open_source(images), [], classes=classes, passes=passes)
    return float(table["accuracy"].iloc[0])


FASHION = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]


class Fashion(Dataset):
    classes = FASHION
    targets = [index % 10 for index in range(30)]  # noqa: RUF012

    def __len__(self) -> int:
        return 30

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return level(index % 10), index % 10


def test_the_order_that_a_data_set_states_is_that_of_the_outputs():
    assert accuracy(10, Fashion()) == 1
    assert accuracy(10, Fashion(), FASHION) == 1
    assert accuracy(10, Fashion(), FASHION[::-1]) == 0  # names decide where both have them
    with pytest.raises(ActstatsError, match="cannot be matched"):
        accuracy(11, Fashion())


def test_folders_that_are_numbers_are_outputs(tmp_path):
    numbers = {str(number): number for number in range(120)}
    assert accuracy(120, folders(tmp_path / "whole", numbers)) == 1
    some = {str(number): number for number in (3, 40, 7)}
    assert accuracy(120, folders(tmp_path / "some", some)) == 1
    padded = {f"{number:03}": number for number in range(120)}
    assert accuracy(120, folders(tmp_path / "padded", padded)) == 1
    from_one = {f"{number + 1:03}": number for number in range(120)}
    assert accuracy(120, folders(tmp_path / "from one", from_one)) == 1


def test_numbers_that_may_count_otherwise_are_asked_for(tmp_path):
    from_one = folders(tmp_path / "one", {str(number + 1): number for number in range(12)})
    sorted_as_text = ImageFolder(folders(tmp_path / "zero", {str(number): number for number in range(12)}))
    for images, outputs in ((from_one, 12), (from_one, 20), (sorted_as_text, 12)):
        with pytest.raises(
            ActstatsError, match=r"not clear which of the .* outputs each is: name the outputs"
        ):
            accuracy(outputs, images)
    assert accuracy(12, from_one, [str(number + 1) for number in range(12)]) == 1
    assert accuracy(12, sorted_as_text, [str(number) for number in range(12)]) == 1


def test_folders_of_other_names_are_matched_if_only_spelling_differs(tmp_path):
    images = folders(tmp_path / "a", {"1-cat": 2, "2-hot_dog": 0, "3.Polar Bear": 1})
    assert accuracy(3, images, ["hot dog", "polar-bear", "Cat"]) == 1
    with pytest.raises(ActstatsError, match="cannot be matched"):
        accuracy(3, images, ["hot dog", "bear", "cat"])
    assert accuracy(3, folders(tmp_path / "b", {"x": 0, "y": 1, "z": 2})) == 1  # by position


def test_a_thousand_folders_of_other_names_are_not_taken_to_be_in_the_order_of_imagenet(tmp_path):
    source = open_source(folders(tmp_path / "a", {"cat": 1, "dog": 2}))
    source.classes = [f"class {index:04}" for index in range(1000)]
    with pytest.raises(ActstatsError, match="not named after ImageNet's synsets"):
        match_outputs(1000, source)
    source.classes = [SYNSETS[404], SYNSETS[3]]
    readout, at = match_outputs(1000, source)
    assert at == [404, 3]
    assert readout.names[404] == SYNSETS[404]


def test_either_of_two_outputs_of_one_name_is_right(tmp_path):
    (tmp_path / "crane").mkdir()
    level(0).save(tmp_path / "crane" / "bird.png")
    level(2).save(tmp_path / "crane" / "machine.png")
    (tmp_path / "dog").mkdir()
    level(1).save(tmp_path / "dog" / "dog.png")
    assert accuracy(3, tmp_path, ["crane", "dog", "crane"]) == 1


def test_categories_may_contain_underscores_and_hyphens():
    names = ["cat", "hot_dog", "t-shirt", "dog"]
    pairs = [(shape, texture) for shape in names for texture in names]
    paths = [f"{shape}/0001_x_{shape}{n}-{texture}{n}.png" for n, (shape, texture) in enumerate(pairs)]
    assert cues_of(paths) == pairs
    assert cues_of([path.partition("/")[2] for path in paths]) == pairs
    assert cues_of(["img_2020-05.png", "x-.png", "-y.png", "n01440764_10026.JPEG"]) == [None] * 4
    assert cues_of(["cat7-bear1.png"], ["dog"]) == [("cat", "bear")]
