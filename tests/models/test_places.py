"""Several networks in one file, and wrappers between names: one rule, a prefix to choose, or one line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from actstats.errors import ActstatsError
from actstats.models import load_from_manifest, load_model
from tests.models.layouts import prefixed

ARCH = "squeezenet1_1"


def network(seed: int, classes: int = 5) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torchvision.models.squeezenet1_1(weights=None, num_classes=classes).eval()


@pytest.fixture(scope="module")
def state() -> Mapping[str, Tensor]:
    return network(1).state_dict()


@pytest.fixture(scope="module")
def other() -> Mapping[str, Tensor]:
    return network(2).state_dict()


def refusal(weights: str | Path) -> str:
    with pytest.raises(ActstatsError) as caught:
        load_model(ARCH, weights)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def holds(weights: str | Path, state: Mapping[str, Tensor], prefix: str | None = None) -> None:
    loaded = load_model(ARCH, weights)
    record = json.loads(json.dumps({**loaded.identity, "preprocessing": loaded.preprocessing.to_dict()}))
    assert record["weights"].get("prefix") == prefix
    for model in (loaded.model, load_from_manifest(record, trust=True)[0]):
        found = model.state_dict()
        assert found.keys() == state.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def wrapped(model: nn.Module, how: str) -> nn.Module:
    if how == "features":  # as PyTorch's ImageNet example does for AlexNet and VGG
        model.features = nn.DataParallel(model.features)
    elif how == "twice":
        model = nn.DataParallel(nn.DataParallel(model))
    elif how == "outside and inside":
        model.features = nn.DataParallel(model.features)
        model = nn.DataParallel(model)
    elif how == "each part compiled":
        model.features = nn.Sequential(*(torch.compile(part) for part in model.features))
    else:  # a wrapper around each convolution
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Conv2d):
                    setattr(module, name, nn.Sequential(nn.Sequential(child)))
    return model


@pytest.mark.parametrize(
    ("how", "prefix"),
    [
        ("features", None),
        ("twice", "module.module."),
        ("outside and inside", "module."),
        ("each part compiled", None),
        ("each convolution", None),
    ],
)
def test_wrappers_between_names(
    tmp_path: Path, state: Mapping[str, Tensor], how: str, prefix: str | None
) -> None:
    torch.save({"state_dict": wrapped(network(1), how).state_dict(), "epoch": 3}, tmp_path / "a.pth.tar")
    holds(tmp_path / "a.pth.tar", state, prefix)


PAIRS = {
    "MoCo": ("module.encoder_q.", "module.encoder_k."),
    "an average in Lightning": ("model.", "ema_model.module."),
    "an average beside": ("", "ema."),
    "teacher and student": ("student.backbone.", "teacher.backbone."),
    "the other order": ("a.", "z."),
}


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_networks_that_differ_are_chosen_between_by_their_prefix(
    tmp_path: Path, state: Mapping[str, Tensor], other: Mapping[str, Tensor], pair: str, kind: str
) -> None:
    first, second = PAIRS[pair]
    content = prefixed(first, state) | prefixed(second, other) | {"queue": torch.zeros(8, 4)}
    path = tmp_path / f"a.{kind}"
    if kind == "safetensors":
        save_file({name: tensor.clone() for name, tensor in content.items()}, path)
    else:
        torch.save({"state_dict": content, "epoch": 3}, path)
    message = refusal(path)
    assert "several times, with different weights" in message
    for prefix in (first, second):
        assert f"{path.name}#prefix={prefix}" in message
    if pair == "an average beside":  # its first has other names that no network needs
        del content["queue"]
        torch.save(content, tmp_path / "b.pth")
        path = tmp_path / "b.pth"
    holds(f"{path}#prefix={first}", state, first)
    holds(f"{path}#prefix={second}", other, second)
    if second.count(".") > 1:  # its beginning is enough
        holds(f"{path}#prefix={second.split('.')[0] if pair != 'MoCo' else second[:-1]}", other, second)
    assert "no weights of the network under the prefix 'none.', but " in refusal(f"{path}#prefix=none")


def test_equal_copies_are_one_network(tmp_path: Path, state: Mapping[str, Tensor]) -> None:
    torch.save(prefixed("long.name.", state) | prefixed("short.", state), tmp_path / "a.pth")
    holds(tmp_path / "a.pth", state, "short.")


def test_another_network_beside_does_not_matter(tmp_path: Path, state: Mapping[str, Tensor]) -> None:
    # A generator and a discriminator, an incomplete copy, and one of another width: only one of them fits.
    half = {name: tensor for name, tensor in state.items() if "12" not in name}
    wide = {name: torch.zeros(*tensor.shape, 2) for name, tensor in state.items()}
    content = prefixed("D.", state) | {"G.up.weight": torch.zeros(3), **prefixed("copy.", half)}
    torch.save({"state_dict": content | prefixed("C.", wide), "optimizer": {"state": {}}}, tmp_path / "a.pth")
    holds(tmp_path / "a.pth", state, "D.")


def test_an_average_without_counters_is_a_copy(tmp_path: Path) -> None:
    model = torchvision.models.mnasnet0_5(weights=None, num_classes=2).eval()
    state = model.state_dict()
    average = {f"ema.{name}": tensor + 1 for name, tensor in state.items() if tensor.is_floating_point()}
    torch.save(prefixed("net.", state) | average, tmp_path / "a.pth")
    with pytest.raises(ActstatsError, match=r"under ema\. and under net\."):
        load_model("mnasnet0_5", tmp_path / "a.pth")


def test_the_number_of_classes_does_not_choose(tmp_path: Path, state: Mapping[str, Tensor]) -> None:
    small = network(4, 3).state_dict()
    torch.save(prefixed("a.", state) | prefixed("b.", small), tmp_path / "a.pth")
    assert "different weights" in refusal(tmp_path / "a.pth")
    assert load_model(ARCH, f"{tmp_path / 'a.pth'}#prefix=b").identity["num_classes"] == 3


def test_a_file_without_wrappers_for_a_network_that_has_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "wrapping.py").write_text(
        "import torch\nfrom torch import nn\nfrom actstats import Preprocessing\n"
        "def make():\n"
        "    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.DataParallel(nn.Conv2d(4, 2, 1)))\n"
        "    return nn.DataParallel(net), Preprocessing.imagenet(32, 32)\n"
    )
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1))
    torch.save({"state_dict": plain.state_dict()}, tmp_path / "a.pth")
    found = load_model("wrapping:make", tmp_path / "a.pth").model.state_dict()
    assert torch.equal(found["module.1.module.weight"], plain[1].weight)


def test_pruned_weights_are_refused_with_what_to_do(tmp_path: Path, state: Mapping[str, Tensor]) -> None:
    from torch.nn.utils import prune, spectral_norm
    from torch.nn.utils.parametrizations import weight_norm

    for number, change in enumerate((prune.random_unstructured, weight_norm, spectral_norm)):
        model = network(1)
        arguments = ("weight", 0.5) if change is prune.random_unstructured else ()
        change(model.features[0], *arguments)
        torch.save(model.state_dict(), tmp_path / f"{number}.pth")
        message = refusal(tmp_path / f"{number}.pth")
        assert "features.0.weight is computed from features.0." in message


NORMALISERS: list[tuple[Any, Any, Any, Any]] = [
    ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ((123.675, 116.28, 103.53), (1.0, 1.0, 1.0), (0.485, 0.456, 0.406), (1 / 255,) * 3),
    ((0.0, 0.0, 0.0), (255.0, 255.0, 255.0), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    ((0.5, 0.5, 0.5), (1.0, 1.0, 1.0), (0.5, 0.5, 0.5), (1.0, 1.0, 1.0)),
]


@pytest.mark.parametrize(("mean", "std", "centre", "spread"), NORMALISERS)
def test_a_normaliser_for_pixels_up_to_255(
    tmp_path: Path, state: Mapping[str, Tensor], mean: Any, std: Any, centre: Any, spread: Any
) -> None:
    inside = {"normalize.mean": torch.tensor(mean).view(1, 3, 1, 1), "normalize.std": torch.tensor(std)}
    torch.save(prefixed("model.", state) | inside, tmp_path / "a.pth")
    preprocessing = load_model(ARCH, tmp_path / "a.pth").preprocessing
    assert preprocessing.mean == pytest.approx(centre, rel=1e-6)
    assert preprocessing.std == pytest.approx(spread, rel=1e-6)
    white = preprocessing(Image.new("RGB", (300, 300), "white"))
    scale = 255 if max(mean) > 1 or min(std) > 1 else 1
    expected = (scale - torch.tensor(mean)) / torch.tensor(std)
    torch.testing.assert_close(white[:, 0, 0], expected, rtol=1e-4, atol=1e-4)


def test_a_normaliser_for_no_images(tmp_path: Path, state: Mapping[str, Tensor]) -> None:
    for number, (mean, std) in enumerate((((0.5,) * 3, (2.0,) * 3), ((300.0,) * 3, (60.0,) * 3))):
        inside = {"normalize.mean": torch.tensor(mean), "normalize.std": torch.tensor(std)}
        torch.save(prefixed("model.", state) | inside, tmp_path / f"{number}.pth")
        assert "neither from 0 to 1 nor from 0 to 255" in refusal(tmp_path / f"{number}.pth")


@pytest.mark.parametrize("how", ["scripted", "traced"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_weights_of_a_torchscript_file(tmp_path: Path, how: str) -> None:
    model = torchvision.models.resnet18(weights=None, num_classes=3).eval()
    example = torch.zeros(1, 3, 64, 64)
    script = torch.jit.script(model) if how == "scripted" else torch.jit.trace(model, example)
    script.save(tmp_path / "a.pt")
    found = load_model("resnet18", tmp_path / "a.pt").model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())
    torch.jit.freeze(torch.jit.script(model)).save(tmp_path / "b.pt")
    assert "TorchScript program without weights" in refusal(tmp_path / "b.pt")


def test_files_of_other_kinds_are_named(tmp_path: Path) -> None:
    from torch.package import PackageExporter

    model = nn.Conv2d(3, 4, 3)
    torch.export.save(torch.export.export(model, (torch.zeros(1, 3, 8, 8),)), tmp_path / "exported.pt2")
    with PackageExporter(tmp_path / "package.pt") as exporter:
        exporter.extern("**")
        exporter.save_pickle("model", "model.pkl", model)
    kinds = {
        "exported.pt2": "an exported program",
        "package.pt": "a torch.package archive",
    }
    for name, start, kind in [
        ("keras.pth", b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        ("onnx.pth", b"\x08\x0a\x12\x07pytorch", "an ONNX file"),
        ("page.pth", b"\n<!DOCTYPE html><html>", "a web page"),
        ("lfs.pth", b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        ("packed.pth", b"\x1f\x8b\x08\x00", "compressed with gzip"),
    ]:
        (tmp_path / name).write_bytes(start + bytes(600))
        kinds[name] = kind
    for name, kind in kinds.items():
        assert kind in refusal(tmp_path / name)
