"""Ablation: resumed passes equal whole ones, and a network whose one unit carries shape is found out."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from PIL import Image
from scipy import stats
from torch import Tensor, nn

from actstats import ActstatsError, Loaded, open_source, select_layers
from actstats.analysis.tables import write_table
from actstats.data.source import Subset
from actstats.layers import Layer
from actstats.probing.ablate import ablate_accuracy, ablate_decisions
from actstats.probing.controls import Control
from actstats.probing.forward import Passes
from actstats.probing.resume import Resumed, Whole, ablated, zeroed
from actstats.probing.unit_sets import (
    UnitSet,
    by_category,
    by_rank,
    complement,
    each_unit,
    read_units,
    units_named,
)
from tests.conftest import SmallNet
from tests.layers.networks import Branches, Reused, Tokens
from tests.probing.probed import COLOURS, PLAIN, ShapeUnit, stimulus, write_stimuli


@pytest.fixture(scope="module")
def stimuli(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stimuli(tmp_path_factory.mktemp("stimuli"))


@pytest.fixture
def shape_net() -> Loaded:
    return Loaded.of(ShapeUnit(), PLAIN)


def layers_of(loaded: Loaded, *names: str) -> list:
    return select_layers(loaded.model, torch.zeros(2, *loaded.preprocessing.shape), names)


def test_it_finds_the_one_unit_that_carries_shape(shape_net, stimuli):
    layers = layers_of(shape_net, "relu")
    found = ablate_decisions(
        shape_net, open_source(stimuli), layers, each_unit(layers), classes=list(COLOURS),
        at_once=3, passes=Passes(batch_size=4, device="cpu", workers=0),
    )  # fmt: skip
    assert found["ablation"].tolist() == ["intact", "relu/0", "relu/1", "relu/2", "relu/3"]
    assert found["trials"].tolist() == [6] * 5
    assert found["shape"].tolist() == [6, 6, 6, 6, 0]
    assert found["texture"].tolist() == [0, 0, 0, 0, 6]
    assert found["shape_bias"].tolist() == [1, 1, 1, 1, 0]
    assert found["bias_change"].tolist() == [0, 0, 0, 0, -1]
    assert found.set_index("ablation")["shape_change"].idxmin() == "relu/3"
    # The six stimuli are made of three images each of shapes and of textures: as much as three trials.
    assert found["p"].tolist() == [1, 1, 1, 1, 2 * 0.5**3]
    z2 = stats.norm.ppf(0.975) ** 2
    for row in found.itertuples():
        assert row.high - row.low == pytest.approx(z2 / (3 + z2))


def test_it_finds_the_units_that_carry_accuracy(shape_net, stimuli):
    layers = layers_of(shape_net, "relu")
    sets = [units_named(["relu/3"]), units_named(["relu/0", "relu/1", "relu/2"])]
    sets.append(complement(sets[0], layers))
    # The folders are the shapes.
    found = ablate_accuracy(
        shape_net, open_source(stimuli), layers, sets, passes=Passes(device="cpu", workers=0)
    )
    assert found["units"].tolist() == [0, 1, 3, 3]
    assert found["correct"].tolist() == [9, 3, 9, 9]
    assert found["change"].tolist() == [0, 3 / 9 - 1, 0, 0]
    assert found["lost"].tolist() == [0, 6, 0, 0]
    assert found["gained"].tolist() == [0, 0, 0, 0]
    assert found["ablation"].tolist()[-1] == "all but relu/3"


class Untraceable(nn.Module):
    """What it does depends on the values, which no tracing sees."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        return self.fc(x.mean((2, 3)) if x.sum() != 0 else x.amax((2, 3)))


class BatchOfImages(nn.Module):
    """It takes the number of images before the layer and uses it after: resumed, that would be wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4 * 18 * 18, 3)

    def forward(self, x: Tensor) -> Tensor:
        count = x.shape[0]
        return self.fc(self.inner(x).reshape(count, -1))


class Skipping(nn.Module):
    """A branch past the layer, changed in place after it; and a module that returns a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.inner = nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.inner(x)
        return (self.relu(x) + y).mean((2, 3))


def squeezenet() -> nn.Module:
    """SqueezeNet with random weights, none of whose outputs its last ReLU silences."""
    model = torchvision.models.squeezenet1_1(num_classes=7)
    nn.init.constant_(model.classifier[1].bias, 5.0)
    return model


@pytest.mark.parametrize(
    ("model", "names", "kind"),
    [
        (SmallNet(), ["first"], Resumed),
        (SmallNet(), ["second", "first"], Resumed),
        (Branches(), ["left", "right.1"], Resumed),
        (Branches(), ["last.0"], Resumed),
        (Reused(), ["conv:1"], Resumed),
        (Reused(), ["relu:0", "relu:1"], Resumed),
        (Tokens(), ["blocks.1"], Resumed),
        (Skipping(), ["inner"], Resumed),
        (Untraceable(), ["inner"], Whole),
        (BatchOfImages(), ["inner"], Whole),
        (SmallNet(), ["first", "first.1"], Whole),
        (squeezenet(), ["features.4"], Resumed),
        (torchvision.models.resnet18(num_classes=7), ["layer2.0", "layer2.0.relu:0"], Whole),
        (torchvision.models.resnet18(num_classes=7), ["layer2.0.relu:1"], Resumed),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)  # fmt: skip
@torch.inference_mode()
def test_resumed_passes_equal_whole_ones(model, names, kind):
    model = model.eval()
    images = torch.randn(5, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    layers = select_layers(model, images, names)
    assert len(layers) == len(names)
    way = ablated(model, layers, images)
    assert isinstance(way, kind)
    rng = np.random.default_rng(0)
    masks = {layer.name: torch.from_numpy(rng.random((3, layer.units)) < 0.5) for layer in layers}
    way.record(images)
    found = way.outputs(masks)
    # One at a time, with nothing but a hook.
    for k in range(3):
        handles, calls = [], {}
        for layer in layers:

            def hook(_m: nn.Module, _a: object, out: Tensor, layer=layer, k=k, calls=calls) -> Tensor | None:
                calls[layer.name] = calls.get(layer.name, -1) + 1
                if calls[layer.name] != layer.call:
                    return None
                out = out.clone()
                out.movedim(layer.axes.index("c"), 0)[masks[layer.name][k]] = 0
                return out

            handles.append(model.get_submodule(layer.module).register_forward_hook(hook))
        expected = model(images)
        for handle in handles:
            handle.remove()
        torch.testing.assert_close(found[k], expected.flatten(1), rtol=1e-4, atol=1e-5)
    assert (found != 0).any(-1).all()
    assert not torch.equal(found[0], found[1])


class Biased(nn.Module):
    """Adds a tensor of its own that has as many rows as some batch has images, and a number made from the images."""

    def __init__(self, rows: int, *, counted: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.stem, self.inner = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
            self.bias = nn.Parameter(torch.randn(rows, 4))
        self.counted = counted

    def forward(self, x: Tensor) -> Tensor:
        bias = (self.bias * 2).mean(0)[:, None, None]
        rows = self.bias + 1
        y = self.inner(self.stem(x)) + bias
        scale = x.new_ones(len(x), 1).sum() / len(x) if self.counted else 1.0
        return y.mean((2, 3)) @ (rows.T @ rows) * scale


@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 4, 5])
@torch.inference_mode()
def test_tensors_with_as_many_rows_as_images_are_not_taken_for_images(rows, counted):
    model = Biased(rows, counted=counted).eval()
    images = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    layers = select_layers(model, images, ["inner"])
    way = ablated(model, layers, images)
    masks = {"inner": torch.eye(4, dtype=torch.bool)}
    # The last batch of a pass may be of any size.
    for batch in (images, images[:4], images[:2], images[:1]):
        way.record(batch)
        outputs = way.outputs(masks)
        for unit in range(4):
            y = model.inner(model.stem(batch))
            y[:, unit] = 0
            expected = (y + (model.bias * 2).mean(0)[:, None, None]).mean((2, 3))
            matrix = (model.bias + 1).T @ (model.bias + 1)
            torch.testing.assert_close(outputs[unit], expected @ matrix, rtol=1e-4, atol=1e-4)


def test_what_comes_before_the_layer_runs_once_for_all_ablations(shape_net, stimuli):
    layers = layers_of(shape_net, "relu")
    seen = []
    shape_net.model.stem.register_forward_hook(lambda _m, _a, out: seen.append(len(out)))
    ablate_decisions(
        shape_net, open_source(stimuli), layers, each_unit(layers) * 5, classes=list(COLOURS),
        at_once=2, passes=Passes(batch_size=6, device="cpu", workers=0),
    )  # fmt: skip
    # The blank image that tells the outputs, the intact pass, comparisons of both ways, one and two images that tell
    # what has an axis of images, and the pass that counts.
    assert seen == [1, 6, 12, 1, 2, 6, 12, 6, 6]


def test_sets_of_units_from_tables():
    table = pd.DataFrame({
        "layer": ["a"] * 4 + ["b"] * 2, "channel": [0, 1, 2, 3, 0, 1], "detects": [1, 1, 1, 0, 1, 1],
        "concept_category": ["object", "color", "object", "object", "part", "part"],
        "roughness": [0.5, 0.1, np.nan, 0.3, 2.0, 1.0],
    })  # fmt: skip
    assert by_category(table) == [
        UnitSet("a:object", {"a": (0, 2)}), UnitSet("a:color", {"a": (1,)}), UnitSet("b:part", {"b": (0, 1)}),
    ]  # fmt: skip
    assert by_rank(table, "roughness", [0.5]) == [
        UnitSet("a:lowest 0.5 roughness", {"a": (1, 3)}), UnitSet("a:highest 0.5 roughness", {"a": (0, 3)}),
        UnitSet("b:lowest 0.5 roughness", {"b": (1,)}), UnitSet("b:highest 0.5 roughness", {"b": (0,)}),
    ]  # fmt: skip
    with pytest.raises(ActstatsError, match="no column 'rougness'; did you mean roughness"):
        by_rank(table, "rougness", [0.5])
    with pytest.raises(ActstatsError, match="share of the units is in"):
        by_rank(table, "roughness", [1.0])
    with pytest.raises(ActstatsError, match="no unit in the table detects"):
        by_category(table.assign(detects=False))


def test_names_in_a_table_of_units_stay_text(tmp_path):
    names = ["0.1", "0.10", "1e3", "null", "NA", "nan", "True"]
    table = pd.DataFrame({
        "layer": names, "channel": range(7), "roughness": [0.5, np.nan, 1, 2, 3, 4, 5],
        "concept_name": names[::-1], "concept_category": names, "detects": [True] * 6 + [False],
    })  # fmt: skip
    for suffix in (".csv", ".json", ".parquet"):
        write_table(table, tmp_path / f"units{suffix}")
        read = read_units(tmp_path / f"units{suffix}")
        pd.testing.assert_frame_equal(read, table, check_dtype=False)
        assert [chosen.name for chosen in by_category(read)] == [f"{name}:{name}" for name in names[:6]]
        assert {layer for chosen in by_rank(read, "roughness", [0.5]) for layer in chosen.units} == set(
            names
        ) - {"0.10"}


@pytest.mark.parametrize("channel", ["1.5", "-1", "x", ""])
def test_a_table_whose_channels_are_not_integers_is_refused(tmp_path, channel):
    (tmp_path / "units.csv").write_text(f"layer,channel\na,0\na,{channel}\n")
    with pytest.raises(ActstatsError, match="a channel is an integer from 0"):
        read_units(tmp_path / "units.csv")


def test_units_are_ranked_by_numbers(tmp_path):
    (tmp_path / "units.csv").write_text("layer,channel,kind\na,0,soft\na,1,hard\n")
    with pytest.raises(ActstatsError, match="ranked by numbers, which the column 'kind' does not hold"):
        by_rank(read_units(tmp_path / "units.csv"), "kind", [0.5])


def test_excluded_images_are_counted_in_a_note(shape_net, stimuli, tmp_path):
    layers = layers_of(shape_net, "relu")
    shutil.copytree(stimuli, tmp_path / "stimuli")
    stimulus("bear", COLOURS["dog"]).save(tmp_path / "stimuli" / "bear" / "bear1-truck1.png")
    (tmp_path / "stimuli" / "bear" / "bear1-dog2.png").write_bytes(b"no image")
    source = open_source(tmp_path / "stimuli")
    table = ablate_decisions(shape_net, source, layers, [units_named(["relu/3"])], classes=list(COLOURS))
    assert table["trials"].tolist() == [5, 5]
    assert table.attrs["notes"] == [
        "intact: 1 of 7 stimuli excluded, as the network does not know their class",
        "intact: 1 of 7 stimuli excluded, as they could not be read",
    ]
    # By their folders, the stimuli have three classes, of which two are learned.
    for name in ("bear", "dog"):
        (tmp_path / "two" / name).mkdir(parents=True)
        stimulus(name, COLOURS[name]).save(tmp_path / "two" / name / "0.png")
    table = ablate_accuracy(
        shape_net, source, layers, [units_named(["relu/3"])], learn_from=open_source(tmp_path / "two")
    )
    assert table["images"].tolist() == [6, 6]
    assert table.attrs["notes"] == [
        "intact: 3 of 10 images excluded, as the network does not know their class",
        "intact: 1 of 10 images excluded, as they could not be read",
    ]


@pytest.mark.parametrize("control", [None, Control(2)])
def test_images_of_unknown_classes_alone_are_refused(shape_net, stimuli, tmp_path, control):
    for name in ("bear", "dog"):
        (tmp_path / name).mkdir()
        stimulus(name, COLOURS[name]).save(tmp_path / name / "0.png")
    known = open_source(stimuli)
    others = [
        index for index, label in enumerate(known.labels) if known.classes[label] not in ("bear", "dog")
    ]
    with pytest.raises(
        ActstatsError, match=r"^none of the \d images of .* is of a class that the network knows"
    ):
        ablate_accuracy(
            shape_net, Subset(known, others), layers_of(shape_net, "relu"), [units_named(["relu/3"])],
            learn_from=open_source(tmp_path), control=control,
        )  # fmt: skip


def test_what_cannot_be_ablated_is_said_in_one_line(shape_net, stimuli, photographs, tmp_path):
    layers, source = layers_of(shape_net, "relu"), open_source(stimuli)
    for units, message in (
        (["relu/4"], "relu has 4 units, counted from 0, but no 4"),
        (["rely/0"], "no layer is named 'rely'; did you mean relu"),
        (["relu"], "a unit is named LAYER/CHANNEL"),
        ([], "no unit was named"),
    ):
        with pytest.raises(ActstatsError, match=message):
            ablate_decisions(shape_net, source, layers, [units_named(units)], classes=list(COLOURS))
    with pytest.raises(ActstatsError, match="no set of units"):
        ablate_accuracy(shape_net, source, layers, [])
    with pytest.raises(ActstatsError, match="3 outputs cannot be matched with the images' 2 classes"):
        ablate_accuracy(shape_net, open_source(photographs), layers, [units_named(["relu/1"])])
    Image.new("RGB", (30, 30)).save(tmp_path / "x.png")
    with pytest.raises(ActstatsError, match="has a class: accuracy needs a folder for each class"):
        ablate_accuracy(shape_net, open_source(tmp_path), layers, [units_named(["relu/1"])])


def test_units_of_tokens_before_the_batch_axis_are_set_to_zero():
    layer = Layer("norm", "norm", 0, "LayerNorm", 3, 2, 2, shape=(4, 3), axes="tnc")
    units_first = Layer("mixed", "mixed", 0, "Conv1d", 3, 1, 4, shape=(3, 4), axes="cnw")
    masks = torch.tensor([[True, False, False], [False, False, True]])
    output = torch.rand(4, 6, 3, generator=torch.Generator().manual_seed(0))
    expected = output.clone()
    expected[:, :3, 0] = 0
    expected[:, 3:, 2] = 0
    assert torch.equal(zeroed(output, layer, {"norm": masks}), expected)
    turned = zeroed(output.permute(2, 1, 0), units_first, {"mixed": masks})
    assert torch.equal(turned, expected.permute(2, 1, 0))
