"""What users of torch have in memory: datasets, loaders and transforms, swept and held against hooks of their own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
import xarray as xr
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset
from torchvision import transforms as T

import actstats
from actstats.data import NO_LABEL
from tests.conftest import SmallNet, photograph

MEASURES: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda maps: maps.mean((-2, -1)),
    "variance": lambda maps: maps.var((-2, -1), correction=0),
    "maximum": lambda maps: maps.amax((-2, -1)),
    "total_variation": lambda maps: maps.diff(dim=-1).abs().sum((-2, -1)) + maps.diff(dim=-2).abs().sum((-2, -1)),
}  # fmt: skip


def network(channels: int = 3) -> nn.Module:
    """Two layers of 4 and 6 units."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3, stride=2), nn.ReLU()
        ).eval()


def hold(store: Path, net: nn.Module, inputs: Iterable[Tensor]) -> xr.Dataset:
    """Compare a store of `network` with hooks on the same inputs, and return it."""
    maps: dict[str, list[Tensor]] = {"1": [], "3": []}
    handles = [
        net.get_submodule(name).register_forward_hook(lambda *args, name=name: maps[name].append(args[2]))
        for name in maps
    ]
    with torch.inference_mode():
        for one in inputs:
            net(one[None])
    for handle in handles:
        handle.remove()
    dataset = xr.open_zarr(store).load()
    assert list(dict.fromkeys(dataset["layer"].values.tolist())) == list(maps)
    for name, measure in MEASURES.items():
        expected = np.concatenate([measure(torch.cat(found).double()).numpy() for found in maps.values()], 1)
        np.testing.assert_allclose(dataset[name], expected, rtol=2e-4, atol=1e-5, err_msg=name)
    assert dataset["histogram"].sum() == sum(tensor.numel() for found in maps.values() for tensor in found)
    return dataset


def error_of(*args: Any, **options: Any) -> str:
    with pytest.raises(actstats.ActstatsError) as caught:
        actstats.sweep(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Photographs(Dataset):
    """Twelve PIL images with labels, of which some may be damaged; nothing tells one list of them from another."""

    classes = ("cat", "dog")

    def __init__(self, transform: Callable[[Image.Image], Any] | None = None, damaged: int = -1) -> None:
        self.transform, self.damaged = transform, damaged

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if index == self.damaged:
            raise OSError("image file is truncated")
        image = photograph(index)
        return (image if self.transform is None else self.transform(image)), index % 2


PICTURES = [photograph(index) for index in range(12)]
COMPOSE = T.Compose([T.Resize((40, 56)), T.ToTensor(), T.Normalize((0.5,) * 3, (0.2, 0.3, 0.4))])


def test_tensors_of_13_channels(tmp_path):
    images, labels = torch.randn(10, 13, 20, 24), torch.arange(10) % 3
    actstats.sweep(network(13), TensorDataset(images, labels), tmp_path / "s", partition_size=4, batch_size=3)
    found = hold(tmp_path / "s", network(13), images)
    np.testing.assert_array_equal(found["label"], labels)
    assert found.attrs["preprocessing"]["shape"] == [13, 20, 24]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_bare_tensor_of_floats(tmp_path, channels):
    images = torch.rand(5, channels, 20, 24)
    actstats.sweep(network(channels), images, tmp_path / "s")
    found = hold(tmp_path / "s", network(channels), images)
    np.testing.assert_array_equal(found["label"], [NO_LABEL] * 5)


def test_bytes_as_tensors(tmp_path):
    images = torch.randint(0, 256, (6, 13, 20, 24), dtype=torch.uint8)
    said = error_of(network(13), images, tmp_path / "s")
    assert "uint8" in said
    assert "preprocessing" in said
    assert not (tmp_path / "s").exists()
    actstats.sweep(network(13), images, tmp_path / "s", preprocessing=lambda image: image / 255)
    hold(tmp_path / "s", network(13), images / 255)

    class Scaling(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.float() / 255)

    actstats.sweep(Scaling(*network(13)), images, tmp_path / "own")  # it takes bytes by itself
    hold(tmp_path / "own", Scaling(*network(13)), images)


def test_bytes_in_three_colours_are_images(tmp_path):
    images = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in PICTURES])
    preprocessing = actstats.Preprocessing.imagenet(32, 36)
    actstats.sweep(network(), images, tmp_path / "s", preprocessing=preprocessing)
    found = hold(tmp_path / "s", network(), map(preprocessing, PICTURES))
    assert found.attrs["preprocessing"] == preprocessing.to_dict()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_with_workers(tmp_path, workers):
    loader = DataLoader(Photographs(COMPOSE), batch_size=5, num_workers=workers)
    summary = actstats.sweep(network(), loader, tmp_path / "s", fingerprint="photographs", partition_size=7)
    assert summary.complete
    found = hold(tmp_path / "s", network(), map(COMPOSE, PICTURES))
    assert found.attrs["batch_size"] == 5
    assert found.sizes["partition"] == 2


def test_workers_of_a_loader_report_damaged_images_and_errors(tmp_path):
    loader = DataLoader(Photographs(damaged=3), num_workers=2)
    summary = actstats.sweep(network(), loader, tmp_path / "s", preprocessing=COMPOSE, batch_size=4)
    assert summary.failures == {"03": "image file is truncated"}
    found = xr.open_zarr(tmp_path / "s").load()
    assert found["status"].values.tolist() == [0, 0, 0, 2] + [0] * 8
    assert found["mean"].isnull().any("unit").values.tolist() == [False] * 3 + [True] + [False] * 8

    def fails(image: Image.Image) -> Tensor:
        if image.getpixel((0, 0)) == PICTURES[7].getpixel((0, 0)):
            raise KeyError("seven")
        return COMPOSE(image)

    said = error_of(network(), loader, tmp_path / "t", preprocessing=fails)
    assert "KeyError: 'seven' (test_datasets.py:" in said


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_what_cannot_be_sent_to_workers_is_read_without_them(tmp_path, method):
    data = Photographs(lambda image: COMPOSE(image))
    loader = DataLoader(data, num_workers=2, multiprocessing_context=method)
    options = {"fingerprint": "photographs", "batch_size": 5}
    with pytest.warns(UserWarning, match=f"start by {method}: .*lambda.* use multiprocessing_context='fork'"):
        assert actstats.sweep(network(), loader, tmp_path / "s", **options).complete
    hold(tmp_path / "s", network(), map(COMPOSE, PICTURES))


def test_a_worker_that_dies_is_one_line(tmp_path):
    parent = os.getpid()

    class Fatal(Photographs):
        def __getitem__(self, index):
            return super().__getitem__(index) if os.getpid() == parent else os._exit(1)

    said = error_of(
        network(),
        DataLoader(Fatal(COMPOSE), num_workers=1, multiprocessing_context="fork"),
        tmp_path / "s",
        fingerprint="fatal",
    )
    assert said.startswith("the DataLoader's worker processes, which start by fork, ended: ")
    assert said.endswith("use num_workers=0")


def test_the_order_and_the_collate_function_of_a_loader(tmp_path):
    data = Photographs(COMPOSE)
    said = error_of(network(), DataLoader(data, shuffle=True), tmp_path / "s")
    assert "RandomSampler" in said
    batched = [[0, 1], [5]]
    assert "list" in error_of(network(), DataLoader(data, batch_sampler=batched), tmp_path / "s")

    def doubled(items: list[tuple[Tensor, int]]) -> dict[str, Tensor]:
        labels = torch.tensor([label for _, label in items])
        return {"labels": labels, "pixel_values": torch.stack([2 * image for image, _ in items])}

    chosen = Subset(data, [8, 2, 5])
    actstats.sweep(network(), DataLoader(chosen, collate_fn=doubled), tmp_path / "s")
    hold(tmp_path / "s", network(), [2 * COMPOSE(PICTURES[index]) for index in (8, 2, 5)])


def test_a_hugging_face_dataset_from_disk(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"label": datasets.ClassLabel(names=["cat", "dog"]), "picture": datasets.Image()}
    )
    columns = {"picture": PICTURES[:6], "label": [0, 1, 1, 0, 1, 0]}
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(tmp_path / "data")

    data = datasets.load_from_disk(tmp_path / "data")
    actstats.sweep(network(), data, tmp_path / "s", preprocessing=COMPOSE)
    found = hold(tmp_path / "s", network(), map(COMPOSE, PICTURES[:6]))
    np.testing.assert_array_equal(found["label"], columns["label"])
    assert found.attrs["data"]["classes"] == ["cat", "dog"]
    again = datasets.load_from_disk(tmp_path / "data")
    assert actstats.sweep(network(), again, tmp_path / "s", preprocessing=COMPOSE).partitions == 0
    said = error_of(network(), data.select(range(1, 6)), tmp_path / "s", preprocessing=COMPOSE)
    assert "data.fingerprint" in said

    data.set_transform(lambda batch: {"x": [COMPOSE(image) for image in batch["picture"]]})
    actstats.sweep(network(), data, tmp_path / "t")
    found = hold(tmp_path / "t", network(), map(COMPOSE, PICTURES[:6]))
    np.testing.assert_array_equal(found["label"], columns["label"])


def test_a_compose_over_a_folder(tmp_path, photographs):
    actstats.sweep(network(), photographs, tmp_path / "s", preprocessing=COMPOSE)
    source = actstats.open_source(photographs)
    found = hold(tmp_path / "s", network(), (COMPOSE(source.image(index)) for index in range(14)))
    assert "Normalize(mean=(0.5, 0.5, 0.5)" in found.attrs["preprocessing"]["function"]
    other = T.Compose([T.Resize((40, 56)), T.ToTensor()])
    assert "preprocessing.f" in error_of(network(), photographs, tmp_path / "s", preprocessing=other)


@pytest.mark.parametrize("kind", ["weights", "timm", "compose"])
def test_known_transforms_are_recorded_so_that_they_can_be_rebuilt(tmp_path, kind):
    transform: Any
    if kind == "weights":
        transform = torchvision.models.ResNet50_Weights.IMAGENET1K_V2.transforms()
    elif kind == "timm":
        timm = pytest.importorskip("timm")
        transform = timm.data.create_transform((3, 48, 48), crop_pct=0.9, interpolation="bicubic")
    else:
        mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
        transform = T.Compose([T.Resize(40), T.CenterCrop(32), T.ToTensor(), T.Normalize(mean, std)])
    actstats.sweep(network(), Photographs(), tmp_path / "s", preprocessing=transform)
    found = hold(tmp_path / "s", network(), map(transform, PICTURES))
    rebuilt = actstats.Preprocessing.from_dict(found.attrs["preprocessing"])
    assert torch.equal(rebuilt(PICTURES[3]), transform(PICTURES[3]))


def test_a_transform_of_timm_for_training_sizes(tmp_path):
    timm = pytest.importorskip("timm")
    transform = timm.data.create_transform((3, 48, 64), crop_mode="squash", interpolation="bilinear")
    actstats.sweep(network(), PICTURES, tmp_path / "s", preprocessing=transform)
    hold(tmp_path / "s", network(), map(transform, PICTURES))


def test_a_hugging_face_processor(tmp_path):
    transformers = pytest.importorskip("transformers")
    processor = transformers.ViTImageProcessor(size={"height": 40, "width": 56})
    actstats.sweep(network(), PICTURES, tmp_path / "s", preprocessing=processor)
    inputs = processor(PICTURES, return_tensors="pt")["pixel_values"]
    hold(tmp_path / "s", network(), inputs)


def test_a_named_network_takes_images_by_its_own_weights_and_tensors_as_they_are(tmp_path):
    options: Any = {"weights": "none", "layers": ["features.1"], "metrics": ["mean"], "fingerprint": "x"}
    actstats.sweep("squeezenet1_1", Photographs(), tmp_path / "s", **options)
    actstats.sweep("squeezenet1_1", torch.rand(2, 3, 64, 64), tmp_path / "t", **options)
    first, second = (xr.open_zarr(tmp_path / name) for name in "st")
    assert first.attrs["preprocessing"]["crop"] == 224
    assert second.attrs["preprocessing"]["function"] == "none"


def test_an_image_folder_of_torchvision_has_its_paths_and_a_fingerprint(tmp_path, photographs):
    net = SmallNet().eval()
    for _ in range(2):  # the second time, the sweep is complete
        data = torchvision.datasets.ImageFolder(photographs, COMPOSE)
        summary = actstats.sweep(net, data, tmp_path / "s")
    assert summary.partitions == 0
    found = xr.open_zarr(tmp_path / "s")
    assert found["path"].values[0] == "cat/00.png"
    assert found.attrs["data"]["classes"] == ["cat", "dog"]
    np.testing.assert_array_equal(found["label"], data.targets)
    other = torchvision.datasets.ImageFolder(photographs, T.Compose([T.Resize((40, 56)), T.ToTensor()]))
    assert "data.fingerprint" in error_of(net, other, tmp_path / "s")


def test_parts_of_datasets_have_fingerprints_where_the_datasets_have(tmp_path):
    images = torch.rand(6, 3, 20, 24)
    data = TensorDataset(images, torch.tensor([0, 1, 2, 0, 1, 2]))
    open_source = actstats.open_source
    assert (
        open_source(data).fingerprint
        == open_source(TensorDataset(images.clone(), data.tensors[1])).fingerprint
    )
    marks = {
        open_source(part).fingerprint
        for part in (data, Subset(data, [0, 1]), Subset(data, [1, 0]), ConcatDataset([data, data]), images)
    }
    assert len(marks) == 5
    assert open_source(data, limit=2).fingerprint != open_source(data).fingerprint
    np.testing.assert_array_equal(open_source(Subset(data, [2, 4])).labels, [2, 1])
    np.testing.assert_array_equal(
        open_source(ConcatDataset([data, data]), limit=8).labels, [0, 1, 2, 0, 1, 2, 0, 1]
    )


def test_resuming_over_images_without_a_fingerprint_asks_for_it(tmp_path):
    net, store = network(), tmp_path / "s"
    notes: list[str] = []
    options: Any = {"partition_size": 4, "preprocessing": COMPOSE}
    actstats.sweep(net, Photographs(), store, part=(0, 2), on_note=notes.append, **options)
    mark = xr.open_zarr(store).attrs["data"]["fingerprint"]
    assert mark in notes[0]
    said = error_of(net, Photographs(), store, **options)
    assert f"fingerprint={mark!r}" in said
    assert actstats.sweep(net, Photographs(), store, fingerprint=mark, **options).complete
    hold(store, net, map(COMPOSE, PICTURES))
    options["preprocessing"] = T.Compose([*COMPOSE.transforms, lambda x: x / 2])
    assert "preprocessing" in error_of(net, Photographs(), store, fingerprint=mark, **options)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.rand(4, 3, 20, 24))


@pytest.mark.parametrize(
    ("data", "options", "said"),
    [
        (Stream(), {}, "cannot be read by index"),
        ([], {}, "is empty"),
        (["a.png"], {}, "has no image"),
        ([{"text": "a"}], {}, "has no image"),
        (PICTURES, {}, "needs `preprocessing=` for images"),
        (PICTURES, {"preprocessing": 3}, "is a int"),
        (PICTURES, {"preprocessing": lambda _: "x"}, "must return a tensor"),
        (PICTURES, {"preprocessing": lambda _: torch.zeros(5)}, "[channels, height, width]"),
        (PICTURES, {"preprocessing": T.ToTensor(), "distort": ["noise:0.1"]}, "distorting images needs"),
        (PICTURES, {"preprocessing": COMPOSE, "decode": "device"}, "decoding on the device needs"),
        (
            torch.rand(3, 13, 20, 24),
            {"preprocessing": actstats.Preprocessing.imagenet(32)},
            "float32 of shape",
        ),
        (torch.rand(2, 3, 4, 20, 24), {}, "videos and volumes are not supported"),
        ([torch.rand(3, 20, 24), torch.rand(3, 20, 25)], {"fingerprint": "x"}, "the inputs differ"),
        ("demo", {"fingerprint": "x"}, "have a fingerprint of their own"),
    ],
)
def test_what_cannot_be_swept_is_refused_in_one_line(tmp_path, data, options, said):
    assert said in error_of(network(), data, tmp_path / "s", **options)


def test_layers_of_five_axes_are_refused_before_anything_is_made(tmp_path):
    class Volume(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv3d(1, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x[:, None])

    said = error_of(Volume(), torch.rand(2, 8, 20, 24), tmp_path / "s", layers=["conv"])
    assert "[2, 4, 6, 18, 22]" in said
    assert not (tmp_path / "s").exists()
