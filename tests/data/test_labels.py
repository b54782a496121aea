"""Which class each image has: layouts of folders, names in Parquet files, and what data sets say about themselves."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    random_split,
)
from torchvision.datasets import CIFAR10, FashionMNIST, ImageFolder

import actstats
from actstats import ActstatsError, open_source
from actstats.data import Source
from actstats.data.dataset import item_of
from tests.data.images import encoded, picture, write_folder, write_tar

PICTURE = encoded(picture())
PICTURES = [Image.fromarray(np.full((9, 9, 3), 20 * index, np.uint8)) for index in range(12)]


def folder(root: Path, names: list[str]) -> Path:
    return write_folder(root, dict.fromkeys(names, PICTURE))


def error_of(images: Any, **options: Any) -> str:
    with pytest.raises(ActstatsError) as caught:
        open_source(images, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def notes_of(source: Source) -> list[str]:
    return list(getattr(source, "notes", ()))


SYNSETS = ["n01443537", "n01629819", "n01641577"]
TINY = [f"train/{synset}/images/{synset}_{n}.JPEG" for synset in SYNSETS for n in range(2)]
LAYOUTS: list[tuple[list[str], list[str]]] = [
    (TINY, [name.split("/")[1] for name in TINY]),
    ([*TINY, "test/images/test_0.JPEG"], [*("" for _ in range(1)), *(name.split("/")[1] for name in TINY)]),
    (["cat/frames/1.png", "dog/frames/1.png", "x.png"], ["cat", "dog", ""]),
    (["images/1.png", "images/2.png"], ["", ""]),
    (["train/images/1.png", "val/images/2.png"], ["", ""]),
    (["train/cat/1.png", "val/cat/2.png"], ["cat", "cat"]),
    (["images/1.png", "text/2.png"], ["images", "text"]),
    (["art/cat/1.png", "art/dog/2.png", "clip/dog/3.png"], ["cat", "dog", "dog"]),
    (["bus/1.png", "train/2.png"], ["bus", "train"]),
    (["10/a.png", "2/b.png", "9/c.JPG"], ["10", "2", "9"]),
    (["Äpfel/1.png", "Zebra/2.PNG"], ["Zebra", "Äpfel"]),
]


@pytest.mark.parametrize(("names", "expected"), LAYOUTS, ids=[names[0] for names, _ in LAYOUTS])
def test_the_class_of_an_image_is_the_folder_that_tells_classes_apart(tmp_path, names, expected):
    for source in (
        open_source(folder(tmp_path / "set", names)),
        open_source(write_tar(tmp_path / "set.tar", dict.fromkeys(names, PICTURE))),
    ):
        found = [source.classes[label] if label >= 0 else "" for label in source.labels]
        assert found == expected
        assert source.classes == sorted(set(expected) - {""}, key=int if names[0] == "10/a.png" else None)


def test_a_linked_class_folder_counts_and_a_limit_keeps_all_classes(tmp_path):
    folder(tmp_path / "elsewhere", ["1.png"])
    root = folder(tmp_path / "set", ["cat/images/1.png", "dog/images/1.png"])
    (root / "elk").mkdir()
    (root / "elk" / "images").symlink_to(tmp_path / "elsewhere")
    assert open_source(root).classes == ["cat", "dog", "elk"]
    assert open_source(root, limit=1).classes == ["cat", "dog", "elk"]


def test_the_validation_images_of_tiny_imagenet_have_the_classes_of_its_annotations(tmp_path):
    root = folder(tmp_path / "tiny", [*TINY, "val/images/val_0.JPEG", "val/images/val_1.JPEG"])
    alone = open_source(root / "val")
    assert (alone.labels.tolist(), alone.classes) == ([-1, -1], [])
    rows = [f"val_0.JPEG\t{SYNSETS[2]}\t0\t32\t44\t62", f"val_1.JPEG\t{SYNSETS[0]}\t0\t0\t1\t1", ""]
    (root / "val" / "val_annotations.txt").write_text("\n".join(rows))
    whole, alone = open_source(root), open_source(root / "val")
    assert [whole.classes[label] for label in whole.labels[-2:]] == [SYNSETS[2], SYNSETS[0]]
    assert (alone.labels.tolist(), alone.classes) == ([1, 0], [SYNSETS[0], SYNSETS[2]])


def test_a_limit_between_the_images_of_a_sample_keeps_their_label(tmp_path):
    names = [name for n in range(3) for name in (f"{n}.left.png", f"{n}.right.png", f"{n}.cls")]
    files = {name: name[:1].encode() if name.endswith("cls") else PICTURE for name in names}
    path = write_tar(tmp_path / "a.tar", files)
    for limit in range(1, 7):
        assert open_source(path, limit=limit).labels.tolist() == [0, 0, 1, 1, 2, 2][:limit]


# Parquet


def parquet(path: Path, labels: list[int | None], classes: list[str] | None) -> Path:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pa.table({"image": [PICTURE] * len(labels), "label": labels})
    if classes is not None:
        features = {"label": {"names": classes, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(exist_ok=True)
    pq.write_table(table, path)
    return path


def test_parquet_files_that_number_classes_differently_are_refused(tmp_path):
    parquet(tmp_path / "set" / "0.parquet", [0, 1], ["cat", "dog"])
    parquet(tmp_path / "set" / "1.parquet", [0, 1], ["dog", "cat"])
    assert "class 0 is 'dog' in 1.parquet and 'cat' in 0.parquet" in error_of(tmp_path / "set")
    parquet(tmp_path / "set" / "1.parquet", [2, 1], ["cat", "dog", "elk"])
    source = open_source(tmp_path / "set")
    assert (source.labels.tolist(), source.classes) == ([0, 1, 2, 1], ["cat", "dog", "elk"])
    parquet(tmp_path / "set" / "1.parquet", [2, 1], None)
    source = open_source(tmp_path / "set")
    assert (source.labels.tolist(), source.classes) == ([0, 1, 2, 1], [])
    parquet(tmp_path / "set" / "1.parquet", [None, None], None)
    assert open_source(tmp_path / "set").classes == ["cat", "dog"]


def test_a_label_without_a_class_is_none_and_the_others_stay(tmp_path):
    notes: list[str] = []
    path = parquet(tmp_path / "a.parquet", [0, 1, -100, None, 7], ["cat", "dog"])
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    options: Any = {"preprocessing": actstats.Preprocessing(None, 8), "on_note": notes.append}
    actstats.sweep(net, str(path), tmp_path / "s", **options)
    dataset = actstats.open_dataset(tmp_path / "s")
    assert dataset["label"].values.tolist() == [0, 1, -1, -1, -1]
    assert dataset.attrs["data"]["classes"] == ["cat", "dog"]
    assert any("images stored without a class: 1; their labels, up to 7," in note for note in notes)


# Hugging Face


def hugging_face(labels: list[int | None]) -> Any:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["dog", "cat"])}
    )
    return datasets.Dataset.from_dict({"image": PICTURES[: len(labels)], "label": labels}, features=features)


@pytest.mark.parametrize("labels", [[0, 1, 1, 0], [0, None, 1, 0], [0, -1, 1, 0]])
def test_labels_of_a_hugging_face_dataset_may_have_nulls(labels):
    source = open_source(hugging_face(labels))
    assert source.labels.tolist() == [-1 if label is None else label for label in labels]
    assert source.classes == ["dog", "cat"]
    picked = open_source(hugging_face(labels).select([2, 1]))
    assert picked.labels.tolist() == source.labels[[2, 1]].tolist()


def test_columns_of_a_hugging_face_dataset(tmp_path):
    datasets = pytest.importorskip("datasets")
    data = hugging_face([0, 1, 1, 0])
    relabelled = data.with_transform(lambda rows: {**rows, "label": [1 - label for label in rows["label"]]})
    source = open_source(relabelled)
    assert source.labels.tolist() == [-1] * 4
    assert "item 0 of the Dataset has the label 1, while the dataset lists 0" in notes_of(source)[0]
    two = data.rename_column("label", "fine")
    two = two.add_column("coarse", [0] * 4).cast_column("coarse", two.features["fine"])
    assert "of the columns fine, coarse, rename one to 'label'" in notes_of(open_source(two))[0]
    assert open_source(two.rename_column("fine", "label")).labels.tolist() == [0, 1, 1, 0]
    numbers = data.cast_column("label", datasets.Value("int64"))
    assert (open_source(numbers).labels.tolist(), open_source(numbers).classes) == ([0, 1, 1, 0], [])
    assert "cannot be read by index" in error_of(data.to_iterable_dataset())
    assert "several parts (train, test): pass one" in error_of(datasets.DatasetDict(train=data, test=data))


# torch and torchvision


@pytest.fixture
def by_class(tmp_path) -> Path:
    """Three classes of two images, each image of its own grey."""
    for index in range(6):
        path = tmp_path / "set" / "abc"[index // 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PICTURES[index].save(path)
    return tmp_path / "set"


def of_items(data: Any) -> list[int]:
    return [int(data[index][1]) for index in range(len(data))]


def sort_by_name(data: ImageFolder) -> None:
    data.samples.sort(key=lambda sample: sample[0][-5:])


def relabel(data: ImageFolder) -> None:
    data.samples = [(path, 2 - target) for path, target in data.samples]


def cut(data: ImageFolder) -> None:
    data.samples = [sample for sample in data.samples if sample[1]]


def map_targets(data: ImageFolder) -> None:
    data.target_transform = lambda target: min(target, 1)


@pytest.mark.parametrize("change", [sort_by_name, relabel, cut, map_targets])
def test_labels_of_an_image_folder_are_those_of_its_items(by_class, change):
    data = ImageFolder(by_class)
    plain = open_source(data)
    change(data)
    source = open_source(data)
    assert source.labels.tolist() == of_items(data)
    assert source.paths == [path[-7:] for path, _ in data.samples]
    if change in (relabel, map_targets):
        assert source.classes == []
        assert source.fingerprint != plain.fingerprint


class Grouped(ImageFolder):
    def find_classes(self, directory: Any) -> tuple[list[str], dict[str, int]]:
        return ["x", "y"], {"c": 0, "a": 1, "b": 1}


class Merged(ImageFolder):
    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, target = super().__getitem__(index)
        return image, min(target, 1)


class Inverted(ImageFolder):
    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, target = super().__getitem__(index)
        return ImageOps.invert(image), target


class Forwarding(Dataset):
    """A wrapper that passes all it does not know on to the data set, and reads it backwards."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["data"], name)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        return self.data[len(self) - 1 - index]


def test_code_of_the_caller_is_not_taken_for_that_of_a_library(by_class):
    source = open_source(Grouped(by_class))
    assert (source.labels.tolist(), source.classes) == ([1, 1, 1, 1, 0, 0], ["x", "y"])
    source = open_source(Merged(by_class))
    assert source.labels.tolist() == [-1] * 6
    assert notes_of(source)
    assert source.fingerprint.startswith("unnamed-")
    source = open_source(Inverted(by_class))
    assert source.labels.tolist() == [0, 0, 1, 1, 2, 2]  # as its items say
    assert source.fingerprint.startswith("unnamed-")
    source = open_source(Forwarding(ImageFolder(by_class)))
    assert source.labels.tolist() == [-1] * 6
    assert source.fingerprint.startswith("unnamed-")


class Part(Subset):
    """A part with its own transform and labels, as many write it."""

    def __init__(self, data: Any, indices: Any, change: Any = None, relabel: Any = None) -> None:
        super().__init__(data, indices)
        self.change, self.relabel = change or (lambda image: image), relabel or (lambda label: label)

    def __getitem__(self, index: Any) -> Any:
        image, label = self.dataset[self.indices[index]]
        return self.change(image), self.relabel(label)

    def __getitems__(self, indices: list[int]) -> Any:
        return [self[index] for index in indices]


def test_a_store_is_not_filled_with_two_versions_of_a_subset(by_class, tmp_path):
    whole = ImageFolder(by_class)
    swapped = Part(whole, range(6), relabel=lambda label: 2 - label)
    assert open_source(swapped).labels.tolist() in (of_items(swapped), [-1] * 6)
    net = nn.Sequential(nn.Conv2d(3, 1, 1)).eval()
    options: Any = {"preprocessing": actstats.Preprocessing(None, 8), "partition_size": 3}
    actstats.sweep(net, Part(whole, range(6)), tmp_path / "s", part=(0, 2), **options)
    with pytest.raises(ActstatsError, match="already exists"):
        actstats.sweep(net, Part(whole, range(6), ImageOps.invert), tmp_path / "s", **options)


CHANGES: dict[str, Callable[[ImageFolder], None]] = {
    "transform": lambda data: setattr(data, "transform", ImageOps.invert),
    "loader": lambda data: setattr(
        data, "loader", lambda path: ImageOps.invert(Image.open(path).convert("RGB"))
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_the_fingerprint_changes_with_the_pixels(by_class, what):
    data = ImageFolder(by_class)
    before = open_source(data)
    assert open_source(ImageFolder(by_class)).fingerprint == before.fingerprint
    CHANGES[what](data)
    after = open_source(data)
    assert after.fingerprint != before.fingerprint
    assert not after.fingerprint.startswith("unnamed-")
    assert (
        open_source(Subset(data, [3])).fingerprint
        != open_source(Subset(ImageFolder(by_class), [3])).fingerprint
    )


def test_images_that_differ_each_time_have_no_fingerprint(by_class):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        noisy = torchvision.transforms.Compose(
            [torchvision.transforms.ToTensor(), lambda image: image + torch.rand(1)]
        )
        source = open_source(ImageFolder(by_class, noisy))
    assert source.fingerprint.startswith("unnamed-")
    assert "another image each time" in notes_of(source)[0]


def test_parts_keep_the_labels_of_their_items(by_class):
    whole = ImageFolder(by_class)
    plain = [image for image, _ in whole]
    for data in (
        random_split(whole, [2, 4], torch.Generator().manual_seed(0))[1],
        Subset(Subset(whole, [5, 3, 1]), [2, 0]),
        ConcatDataset([whole, Subset(whole, [0, 4])]),
    ):
        source = open_source(data)
        assert source.labels.tolist() == of_items(data)
        assert source.classes == ["a", "b", "c"]
    partly = open_source(ConcatDataset([whole, plain]))
    assert partly.labels.tolist() == [0, 0, 1, 1, 2, 2] + [-1] * 6
    other = ConcatDataset([whole, Grouped(by_class)])
    assert open_source(other).labels.tolist() == [-1] * 12
    assert "different classes" in notes_of(open_source(other))[0]


def made(kind: type, **attributes: Any) -> Any:
    """A data set of torchvision without its files."""
    data = object.__new__(kind)
    vars(data).update({"root": "", "transform": None, "target_transform": None, **attributes})
    return data


def test_data_sets_of_torchvision_keep_the_order_of_their_classes():
    rng = np.random.default_rng(0)
    mnist = made(
        FashionMNIST,
        data=torch.from_numpy(rng.integers(0, 256, (20, 28, 28), dtype=np.uint8)),
        targets=torch.arange(20) % 10,
    )
    source = open_source(mnist)
    assert source.classes[:3] == ["T-shirt/top", "Trouser", "Pullover"]
    assert source.labels.tolist() == of_items(mnist)
    mnist.target_transform = lambda target: target // 5
    assert open_source(mnist).labels.tolist() == of_items(mnist)
    assert open_source(mnist).classes == []
    cifar = made(CIFAR10, data=rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8), targets=[3, 0, 1, 2])
    cifar.classes = ["ship", "cat", "deer", "bird"]
    before = open_source(cifar)
    assert (before.labels.tolist(), before.classes) == ([3, 0, 1, 2], cifar.classes)
    cifar.targets = [0, 0, 1, 2]
    assert open_source(cifar).fingerprint != before.fingerprint


class Items(Dataset):
    """Images of one grey each, with whatever is given as their items' labels."""

    def __init__(self, labels: list[Any], targets: Any = None, classes: Any = ()) -> None:
        self.labels_of_items, self.targets, self.classes = labels, targets, classes

    def __len__(self) -> int:
        return len(self.labels_of_items)

    def __getitem__(self, index: int) -> Any:
        label = self.labels_of_items[index]
        return PICTURES[index] if label is None else {"image": PICTURES[index], "label": label}


@pytest.mark.parametrize(
    ("labels", "targets", "expected"),
    [
        ([0, 1, 0], [0, 1, 0], [0, 1, 0]),
        ([0, 1, 1], [0, 1, 0], [-1, -1, -1]),
        (["u", "v", "u"], [0, 1, 0], [0, 1, 0]),
        (["u", "u", "u"], [0, 1, 0], [-1, -1, -1]),
        ([torch.tensor(0), torch.tensor(1)], [torch.tensor(0), torch.tensor(1)], [0, 1]),
        ([torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])], [0, 1], [0, 1]),
        ([np.array([1, 0]), np.array([1, 0])], [0, 1], [-1, -1]),
        ([0, -1, 1], [0, None, 1], [0, -1, 1]),
        ([0, -100, 1], np.array([0, -100, 1]), [0, -1, 1]),
        ([None, None], [1, 0], [1, 0]),
        ([0.5, 0.25], [0.5, 0.25], [-1, -1]),
        ([0, 1], {"a": 0}, [-1, -1]),
        ([0, 1], [[0], [1]], [-1, -1]),
        ([0, 1], ["u", "v"], [-1, -1]),
        ([0, 1], None, [-1, -1]),
        ([0, 1], [0, 1, 0], [-1, -1]),
    ],
)
def test_labels_that_a_data_set_lists_are_compared_with_its_items(labels, targets, expected):
    source = open_source(Items(labels, targets, classes=np.array(["u", "v"])))
    assert source.labels.tolist() == expected


TENSORS = TensorDataset(
    torch.arange(12.0).view(12, 1, 1, 1).expand(12, 3, 8, 8).clone(), torch.arange(12) % 3
)
IN_ORDER: dict[str, Callable[[], DataLoader[Any]]] = {
    "plain": lambda: DataLoader(TENSORS, batch_size=5),
    "drop_last": lambda: DataLoader(TENSORS, batch_size=5, drop_last=True),
    "a part": lambda: DataLoader(TENSORS, sampler=SequentialSampler(range(4))),
    "batches of a part": lambda: DataLoader(
        TENSORS, batch_sampler=BatchSampler(SequentialSampler(range(7)), 3, True)
    ),
    "without batches": lambda: DataLoader(TENSORS, batch_size=None),
    "own collate": lambda: DataLoader(
        TENSORS, batch_size=5, collate_fn=lambda items: (torch.stack([2 * image for image, _ in items]), None)
    ),
    "own items of a batch": lambda: DataLoader(Batched(*TENSORS.tensors), batch_size=4),
}
OTHERWISE: dict[str, tuple[Callable[[], DataLoader[Any]], str]] = {
    "random batches": (
        lambda: DataLoader(TENSORS, batch_sampler=BatchSampler(RandomSampler(TENSORS), 3, False)),
        "uses a RandomSampler",
    ),
    "batches of chosen": (
        lambda: DataLoader(TENSORS, batch_sampler=BatchSampler(SubsetRandomSampler([1, 5]), 3, False)),
        "uses a SubsetRandomSampler",
    ),
    "distributed": (
        lambda: DataLoader(TENSORS, sampler=DistributedSampler(TENSORS, 2, 0, shuffle=False)),
        "uses a DistributedSampler",
    ),
    "a list": (lambda: DataLoader(TENSORS, sampler=[3, 1]), "uses a list"),
    "too many": (lambda: DataLoader(TENSORS, sampler=SequentialSampler(range(40))), "its dataset only 12"),
    "all dropped": (lambda: DataLoader(TENSORS, batch_size=40, drop_last=True), "drops its only batch"),
    "own loader": (lambda: Backwards(TENSORS), "makes batches in its own way"),
    "mixing": (
        lambda: DataLoader(TENSORS, batch_size=3, collate_fn=lambda items: mixed([image for image, _ in items])),
        "other images for a batch than for each image alone",
    ),
    "failing": (lambda: DataLoader(TENSORS, batch_size=3, collate_fn=lambda items: items[5]), "collate_fn of the"),
}  # fmt: skip


class Batched(TensorDataset):
    def __getitems__(self, indices: list[int]) -> Any:
        return [(100 - self.tensors[0][index], self.tensors[1][index]) for index in indices]


class Backwards(DataLoader):
    def __iter__(self) -> Any:
        return reversed(list(super().__iter__()))


def mixed(images: list[Tensor]) -> tuple[Tensor, None]:
    batch = torch.stack(images)
    return (batch + batch.flip(0)) / 2, None


@pytest.mark.parametrize("kind", IN_ORDER)
def test_the_images_of_a_loader_are_swept(tmp_path, kind):
    net = nn.Sequential(nn.Conv2d(3, 1, 1, bias=False)).eval()
    nn.init.constant_(net[0].weight, 1 / 3)
    items = [batch[0] for batch in IN_ORDER[kind]()]
    expected = torch.cat([item if item.ndim == 4 else item[None] for item in items])[:, 0, 0, 0]
    actstats.sweep(net, IN_ORDER[kind](), tmp_path / "s", fingerprint="x")
    np.testing.assert_allclose(
        actstats.open_dataset(tmp_path / "s")["mean"].values[:, 0], expected, rtol=1e-6
    )


@pytest.mark.parametrize("kind", OTHERWISE)
def test_a_loader_of_other_images_is_refused(kind):
    loader, message = OTHERWISE[kind]
    assert message in error_of(loader())


def test_a_source_of_the_caller_must_have_a_label_and_a_class_for_each_image():
    fields: dict[str, Any] = {"kind": "own", "spec": "own", "fingerprint": "x", "paths": ["a", "b"]}

    class Own(SimpleNamespace):
        def __len__(self) -> int:
            return 2

        def image(self, index: int) -> Image.Image:
            return PICTURES[index]

    good = Own(**fields, labels=np.array([0, -1]), classes=["cat"])
    assert open_source(good) is good
    assert "from -100 to 0" in error_of(Own(**fields, labels=np.array([0, -100]), classes=["cat"]))
    assert "from 0 to 1" in error_of(Own(**fields, labels=np.array([0, 1]), classes=["cat"]))
    assert "a path and an integer label for each" in error_of(Own(**fields, labels=np.zeros(2), classes=[]))


# Samples


def test_a_sample_has_a_share_for_each_class(tmp_path):
    sizes = {"a": 30, "b": 15, "c": 5}
    root = folder(tmp_path / "set", [f"{name}/{n}.png" for name, size in sizes.items() for n in range(size)])
    whole = open_source(root)
    sample = open_source(root, sample=10)
    assert Counter(sample.classes[label] for label in sample.labels) == {"a": 6, "b": 3, "c": 1}
    assert sample.paths == [path for path in whole.paths if path in set(sample.paths)]  # in order
    assert sample.fingerprint == open_source(root, sample="10:0").fingerprint
    others = [open_source(root, sample=f"10:{seed}") for seed in range(1, 9)]
    assert len({source.fingerprint for source in (whole, sample, *others)}) == 10
    assert len({tuple(source.paths) for source in (sample, *others)}) == 9
    assert set(sample.paths) < set(open_source(root, sample=20).paths)
    assert len(open_source(root, sample=99)) == 50
    # Two images of three classes: never the same two classes only because they come first.
    pairs = {tuple(open_source(root, sample=f"1:{seed}").labels) for seed in range(40)}
    assert pairs == {(0,)}  # the largest class has the largest share of one image
    assert "exclude each other" in error_of(root, sample=5, limit=5)


def test_an_unlabelled_sample_is_uniform(tmp_path):
    root = folder(tmp_path / "set", [f"{n:02}.png" for n in range(20)])
    drawn = Counter(path for seed in range(200) for path in open_source(root, sample=f"5:{seed}").paths)
    assert len(drawn) == 20
    # 200 draws with a chance of a quarter: six standard deviations are 37.
    assert all(abs(count - 50) < 37 for count in drawn.values())


@pytest.mark.parametrize("sample", [0, -3, True, 2.5, "", "5:", "5:x", "a", "5:1:2", "٣"])
def test_what_is_no_sample_is_refused(sample):
    assert "must be N or N:SEED" in error_of("demo", sample=sample)


def test_samples_of_all_kinds_of_source_are_what_the_source_has(tmp_path):
    names = [f"{name}/{n}.png" for name in ("cat", "dog") for n in range(4)]
    files = {name: encoded(picture(seed=index)) for index, name in enumerate(names)}
    rows = parquet(tmp_path / "a.parquet", [0, 1] * 4, ["cat", "dog"])
    for images in (
        write_folder(tmp_path / "set", files),
        write_tar(tmp_path / "set.tar", files),
        rows,
        "demo",
        open_source("demo", limit=32),
        hugging_face([0, 1] * 4),
        TENSORS,
        DataLoader(
            TENSORS, batch_size=4, collate_fn=lambda items: (torch.stack([-image for image, _ in items]),)
        ),
    ):
        whole, sample = open_source(images), open_source(images, sample="4:1")
        indices = [whole.paths.index(path) for path in sample.paths]
        assert len(indices) == 4
        assert sample.labels.tolist() == whole.labels[indices].tolist()
        assert sample.classes == whole.classes
        assert type(whole).__name__ != "FolderSource" or hasattr(sample, "read")
        for index, at in enumerate(indices):
            if sample.kind == "dataset" and images is not None and not hasattr(images, "features"):
                assert torch.equal(item_of(sample, index), item_of(whole, at))
            else:
                np.testing.assert_array_equal(np.asarray(sample.image(index)), np.asarray(whole.image(at)))
        with pytest.raises(ActstatsError, match="the sample 4:1 already"):
            open_source(sample, sample=3)


def test_a_sweep_of_a_sample_is_resumed_and_reopened_as_such(tmp_path, photographs):
    net = nn.Sequential(nn.Conv2d(3, 2, 1)).eval()
    options: Any = {"preprocessing": actstats.Preprocessing(None, 32), "partition_size": 3}
    store = tmp_path / "s"
    actstats.sweep(net, photographs, store, sample="6:3", part=(0, 2), **options)
    for other in ({"sample": "6:4"}, {"limit": 6}, {}):
        with pytest.raises(ActstatsError, match="holds another sweep"):
            actstats.sweep(net, photographs, store, **other, **options)
    assert actstats.sweep(net, photographs, store, sample="6:3", **options).complete
    dataset = actstats.open_dataset(store)
    assert dataset.attrs["data"]["sample"] == "6:3"
    assert Counter(dataset["label"].values.tolist()) == {0: 3, 1: 3}
    plan = actstats.open_sweep(store)
    for images in (plan.images(), actstats.open_sweep(store).images(data=open_source(photographs))):
        assert images.paths == dataset["path"].values.tolist()
    for index, path in enumerate(plan.images().paths):
        pixels = np.asarray(Image.open(io.BytesIO((photographs / path).read_bytes())).convert("RGB"))
        np.testing.assert_array_equal(np.asarray(plan.images().image(index)), pixels)
