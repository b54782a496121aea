"""What `open_sweep` gives of a store: record, results, top images, network and images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from numpy.typing import NDArray

import actstats
from actstats.errors import ActstatsError
from actstats.store.manifest import UnitAxis
from actstats.store.sweep import Sweep
from tests.conftest import SmallNet

SMALL = actstats.Preprocessing.imagenet(size=32, resize=36)
UNITS = {"first": 5, "second": 11}
SETTINGS = {"layers": list(UNITS), "batch_size": 4, "partition_size": 4, "top_k": 3, "device": "cpu"}


def network() -> tuple[torch.nn.Module, actstats.Preprocessing]:
    return SmallNet(), SMALL


def swept(images: Path, store: Path, **more: object) -> Path:
    actstats.sweep(f"{__name__}:network", images, store, **{**SETTINGS, **more})  # type: ignore[arg-type]
    return store


@pytest.fixture(scope="module")
def store(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return swept(photographs, tmp_path_factory.mktemp("swept") / "s.zarr")


@pytest.fixture(scope="module")
def sweep(store: Path) -> Sweep:
    return actstats.open_sweep(store, trust=True)


@pytest.fixture(scope="module")
def inputs(photographs: Path) -> torch.Tensor:
    """What torchvision makes of the images, in the order of its `ImageFolder`."""
    steps = torchvision.transforms
    normal = steps.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    transform = steps.Compose([steps.Resize(36), steps.CenterCrop(32), steps.ToTensor(), normal])
    return torch.stack([image for image, _ in torchvision.datasets.ImageFolder(photographs, transform)])


@pytest.fixture(scope="module")
def maps(inputs: torch.Tensor) -> dict[str, NDArray[np.float32]]:
    """The maps of both layers [image, unit, row, column], by plain torch."""
    model = SmallNet().eval()
    with torch.inference_mode():
        first = model.first(inputs)
        return {"first": first.numpy(), "second": model.second(first).numpy()}


def test_the_record_and_the_results_of_a_layer(sweep, store, maps):
    assert sweep.path == store
    assert sweep.axis == {"first": slice(0, 5), "second": slice(5, 16)}
    assert (sweep.manifest.units, sweep.manifest.data.images, sweep.manifest.partitions) == (16, 14, 4)
    assert sweep.manifest.arch == f"{__name__}:network"
    assert repr(sweep) == f"<Sweep: {__name__}:network over 14 images, 2 layers, 16 units>"
    assert "4 of 4 complete" in sweep._repr_html_()
    for name, expected in maps.items():
        found = sweep.dataset["mean"].isel(unit=sweep.axis[name])
        assert set(found["layer"].values) == {name}
        np.testing.assert_allclose(found.values, expected.mean((2, 3)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("layer", "channel"), [("first", 0), ("first", 4), ("second", 10)])
def test_the_top_images_of_a_unit_and_where_its_maximum_is(sweep, maps, layer, channel):
    of_unit = maps[layer][:, channel]
    order = np.argsort(-of_unit.max((1, 2)), kind="stable")[:3]
    found = sweep.top(f"{layer}/{channel}")
    assert [each.rank for each in found] == [1, 2, 3]
    assert [each.image for each in found] == order.tolist()
    assert [each.path for each in found] == [sweep.images().paths[index] for index in order]
    assert [each.label for each in found] == [
        int(index >= 7) for index in order
    ]  # seven cats, then seven dogs
    for each in found:
        assert each.value == pytest.approx(of_unit[each.image].max(), rel=1e-4)
        assert each.value == pytest.approx(of_unit[each.image, each.row, each.column], rel=1e-4)
    assert sweep.top(sweep.manifest.unit(f"{layer}/{channel}")) == found


def test_top_images_are_those_of_the_complete_partitions(photographs, tmp_path, maps):
    half = actstats.open_sweep(swept(photographs, tmp_path / "half.zarr", part=(1, 2)))
    there = [4, 5, 6, 7, 12, 13]
    of_unit = maps["second"][there, 7].max((1, 2))
    found = half.top("second/7")
    assert [each.image for each in found] == [there[index] for index in np.argsort(-of_unit)[:3]]


def test_fewer_images_than_ranks(photographs, tmp_path):
    few = actstats.open_sweep(swept(photographs, tmp_path / "few.zarr", limit=2, top_k=5))
    assert sorted(each.image for each in few.top("first/1")) == [0, 1]


@pytest.mark.parametrize(
    ("unit", "message"),
    [
        ("first", "unit 'first' is not of the form LAYER/CHANNEL, such as first/0"),
        ("first/x", "unit 'first/x' is not of the form LAYER/CHANNEL"),
        ("first/-1", "unit 'first/-1' is not of the form LAYER/CHANNEL"),
        ("", "unit '' is not of the form LAYER/CHANNEL"),
        ("frist/0", "no layer 'frist' was swept; did you mean first?"),
        ("classifier/0", "no layer 'classifier' was swept"),
        ("first/5", "layer first has no channel 5; its channels are 0 to 4"),
    ],
)
def test_a_unit_that_was_not_swept(sweep, unit, message):
    with pytest.raises(ActstatsError) as error:
        sweep.top(unit)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_the_images_are_those_that_were_swept(sweep, photographs, tmp_path, inputs):
    images = sweep.images()
    assert (len(images), images.classes) == (14, ["cat", "dog"])
    assert images is sweep.images()
    assert sweep.images(photographs).paths == images.paths
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "0.png").write_bytes((photographs / "cat" / "00.png").read_bytes())
    with pytest.raises(
        ActstatsError, match=r"names or sizes .*; pass the location of the original images"
    ) as error:
        sweep.images(tmp_path)
    assert "\n" not in str(error.value)
    assert sweep.preprocessing == SMALL
    assert not sweep.chain


def test_the_network_is_the_one_that_was_swept(sweep, store, inputs, maps):
    loaded = sweep.network()
    assert loaded is sweep.network()
    expected = SmallNet().state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.model.state_dict().items())
    with torch.inference_mode():
        np.testing.assert_allclose(loaded.model.first(inputs), maps["first"], rtol=1e-5, atol=1e-6)
    untrusted = actstats.open_sweep(store)
    with pytest.raises(ActstatsError, match="which is not called without permission") as error:
        untrusted.network()
    assert "\n" not in str(error.value)
    assert untrusted.network(arch=f"{__name__}:network").identity == loaded.identity


def test_the_layers_that_were_swept(sweep):
    layers, places = sweep.layers()
    assert [(layer.name, layer.units) for layer in layers] == list(UNITS.items())
    assert places == [slice(0, 5), slice(5, 16)]
    assert sweep.layers(["second"])[1] == [slice(5, 16)]
    with pytest.raises(ActstatsError, match="layer classifier was not swept into this store"):
        sweep.layers(["classifier"])


def test_a_sweep_without_top_images_or_complete_partitions(photographs, tmp_path):
    without = actstats.open_sweep(swept(photographs, tmp_path / "m.zarr", metrics=["mean"], limit=2))
    with pytest.raises(ActstatsError, match="has no top images; sweep again with the metric top"):
        without.top("first/0")
    plan = actstats.plan(f"{__name__}:network", photographs, tmp_path / "new.zarr", **SETTINGS)
    with plan.opened(actstats.Execution()):
        pass  # creates the store
    with pytest.raises(ActstatsError, match=r"no partition of .* is complete yet; rerun its sweep to resume"):
        actstats.open_sweep(tmp_path / "new.zarr").top("first/0")


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda path: None, "no store at"),
        (lambda path: path.mkdir(), "is not a store of actstats: it is not a Zarr v3 group"),
        (lambda path: path.write_text("{}"), "is not a store of actstats"),
    ],
    ids=["nothing", "an empty folder", "a file"],
)
def test_a_path_without_a_store(tmp_path, made, message):
    made(tmp_path / "x.zarr")
    with pytest.raises(ActstatsError, match=message) as error:
        actstats.open_sweep(tmp_path / "x.zarr")
    assert "\n" not in str(error.value)


def test_units_of_layers_follow_each_other_on_the_axis():
    axis = UnitAxis({"conv1": 64, "block/0.conv": 1, "fc": 1000})
    assert axis == {"conv1": slice(0, 64), "block/0.conv": slice(64, 65), "fc": slice(65, 1065)}
    assert list(axis) == ["conv1", "block/0.conv", "fc"]
    assert axis.total == 1065
    assert np.concatenate([np.arange(1065)[place] for place in axis.values()]).tolist() == list(range(1065))
    assert (UnitAxis({}), UnitAxis({}).total) == ({}, 0)


def test_the_axis_of_a_store_is_that_of_its_coordinates(sweep):
    names, channels = sweep.dataset["layer"].values, sweep.dataset["channel"].values
    for name, place in sweep.axis.items():
        assert set(names[place]) == {name}
        assert channels[place].tolist() == list(range(UNITS[name]))
    assert len(names) == sweep.axis.total
    unit = sweep.manifest.unit("second/10")
    assert (str(unit), unit.index, unit.height, unit.width) == ("second/10", 15, 13, 13)
