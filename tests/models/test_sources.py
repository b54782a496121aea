"""Weights from everywhere, one line for each that cannot be had, and all of them back from their record."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

import actstats
from actstats.errors import ActstatsError
from actstats.models import Loaded, load_from_manifest, load_model, robust
from actstats.models.builders import Torchvision
from actstats.models.downloads import cached_file
from tests.models.layouts import attacked
from tests.models.server import Server

ARCH = "squeezenet1_1"


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(5)
    return torchvision.models.squeezenet1_1(weights=None).eval()


@pytest.fixture
def file(tmp_path: Path, network: nn.Module) -> Path:
    torch.save({"model": attacked(network.state_dict())}, tmp_path / "net.pt")
    return tmp_path / "net.pt"


def error(arch: str, weights: str | Path = "default", **options: Any) -> str:
    with pytest.raises(ActstatsError) as caught:
        load_model(arch, weights, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rebuilt(loaded: Loaded, **options: Any) -> nn.Module:
    """The network that the record of a sweep gives back, which has the same weights and preprocessing."""
    record = json.loads(json.dumps({**loaded.identity, "preprocessing": loaded.preprocessing.to_dict()}))
    named = record["arch"] if ":" in record["arch"] else None
    model, preprocessing = load_from_manifest(record, arch=named, trust=True, **options)
    assert preprocessing == loaded.preprocessing
    state = model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.model.state_dict().items())
    return model


def test_an_address(server: Server, file: Path) -> None:
    server.files["/net.pt"] = file.read_bytes()
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    url = server.url("/net.pt")
    assert "is not the file that was requested" in error(ARCH, f"{url}#sha256={'0' * 64}")
    assert "is not in the cache and `offline=True`" in error(ARCH, url, offline=True)
    loaded = load_model(ARCH, f"{url}#sha256={digest}")
    assert loaded.identity["weights"]["source"] == f"url:{url}"
    assert loaded.identity["weights"]["file_sha256"] == digest
    rebuilt(loaded, offline=True)
    cached_file(url).write_bytes(b"damaged")
    assert "is not the file that it should be: its SHA-256 is" in error(ARCH, url)
    cached_file(url).unlink()
    rebuilt(loaded)
    assert "did you mean" not in error(ARCH, server.url("/other.pt"))


def test_a_checksum_of_a_file(file: Path) -> None:
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    load_model(ARCH, f"{file}#model&sha256={digest[:16]}")
    assert f"its SHA-256 is {digest}" in error(ARCH, f"{file}#sha256={'1' * 64}")


def test_a_published_robust_checkpoint(
    server: Server, file: Path, monkeypatch: pytest.MonkeyPatch, network: nn.Module
) -> None:
    server.files["/net.pt"] = file.read_bytes()
    row = robust.RobustCheckpoint("net_l2_eps3", ARCH, "l2", 3.0, "net.pt", "page", server.url("/net.pt"))
    monkeypatch.setattr(robust, "registry", lambda: [row])
    loaded = load_model(ARCH, robust=True)
    weights = loaded.identity["weights"]
    assert (weights["source"], weights["threat_model"], weights["epsilon"]) == (
        "robust:net_l2_eps3",
        "l2",
        3.0,
    )
    assert torch.equal(loaded.model.features[0].weight, network.features[0].weight)
    assert loaded.preprocessing.resize == 256
    server.files.clear()
    rebuilt(load_model(ARCH, robust="l2:3", offline=True), offline=True)
    assert "no robust weights of squeezenet1_1 for linf:4 are known; available: l2:3" in error(
        ARCH, robust="linf:4"
    )
    assert "omit `robust=`" in error(ARCH, str(file), robust="default")
    assert "omit `robust=`" in error(ARCH, "none", robust="default")


def test_robust_checkpoints_without_an_address() -> None:
    message = error("googlenet", robust=True)
    for part in (
        "https://github.com/anguyen8/shape-bias",
        "`arch=googlenet` `weights=GoogleNet_R.pt`",
        "`weights=demo` `robust=True`",
    ):
        assert part in message
    assert "`arch=alexnet` `weights=alexnet-r.pt`" in error("alexnet", robust="l2")
    message = error("vgg19", robust=True)
    assert "no published robust weights of vgg19 are known; available for densenet161, " in message
    assert "is not a threat model" in error("resnet50", robust="l3:1")


def test_the_registry() -> None:
    rows = robust.registry()
    assert len({row.name for row in rows}) == len(rows) >= 60
    addresses = [row.url for row in rows if row.url]
    assert len(set(addresses)) == len(addresses)
    for row in rows:
        assert row.arch in actstats.models.architectures()
        assert robust.choose(row.arch, row.threat).threat == row.threat
        assert robust.by_name(row.name) == row
        assert row.url is None or row.url.endswith(row.file)
    assert robust.choose("resnet50", "default").file == "resnet50_l2_eps3.ckpt"
    assert robust.choose("wide_resnet50_2", "inf:4/255").file == "wide_resnet50_2_linf_eps4.0.ckpt"
    assert robust.choose("densenet161", "l2").file == "densenet_l2_eps3.ckpt"


def test_a_network_that_torchvision_has_no_name_for() -> None:
    # Without weights, which would be 900 MB.
    network = Torchvision("wide_resnet50_4").skeleton
    assert network.layer1[0].conv2.out_channels == 256
    assert network.fc.in_features == 2048
    assert "it has none, or give a file" in error("wide_resnet50_4", "IMAGENET1K_V1")


def test_the_embedded_pair() -> None:
    standard, adversarial = (
        load_model("googlenet", "demo", robust=robust, offline=True) for robust in (False, True)
    )
    for loaded, which in ((standard, "s"), (adversarial, "r")):
        assert loaded.identity["weights"]["source"] == f"demo:{which}"
        assert loaded.identity["num_classes"] == len(loaded.identity["classes"]) == 11
        assert loaded.preprocessing.crop == 64
        assert not loaded.model.transform_input
        rebuilt(loaded, offline=True)
    assert not torch.equal(standard.model.conv1.conv.weight, adversarial.model.conv1.conv.weight)
    assert "is a googlenet, not a resnet18" in error("resnet18", "demo")
    assert "has one robust network" in error("googlenet", "demo", robust="l2:3")


FACTORY = """
import torch
from actstats import Preprocessing

def plain():
    nn = torch.nn
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 6))

def with_preprocessing():
    return plain(), Preprocessing(None, 48)

def broken():
    raise ValueError("no\\ngood")

def wrong():
    return 3

number = 7
"""


def test_a_function_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("own_networks.py").write_text(FACTORY)
    loaded = load_model("own_networks:with_preprocessing", seed=4)
    assert loaded.preprocessing.crop == 48
    assert loaded.identity["num_classes"] == 6
    assert loaded.identity["weights"]["source"] == "factory"
    rebuilt(loaded)
    model = load_model("own_networks:plain").model
    assert not torch.equal(model[0].weight, loaded.model[0].weight)
    torch.save(prefixed_by_module(model), "a.pt")
    filled = load_model("own_networks:with_preprocessing", "a.pt")
    assert torch.equal(filled.model[0].weight, model[0].weight)
    rebuilt(filled)
    save_file(nn.Linear(2, 2).state_dict(), "b.safetensors")
    assert "does not fit own_networks:plain" in error("own_networks:plain", "b.safetensors")
    for name, part in (
        ("own_networks:broken", "fails: ValueError: no good"),
        ("own_networks:wrong", "returned int; it must return a torch module"),
        ("own_networks:number", "is not a function"),
        ("own_networks:absent", "has no attribute 'absent'"),
        ("no_such_module:x", "cannot import no_such_module"),
    ):
        assert part in error(name)
    assert "has no weights 'IMAGENET1K_V1'" in error("own_networks:plain", "IMAGENET1K_V1")


def prefixed_by_module(model: nn.Module) -> dict[str, torch.Tensor]:
    return nn.DataParallel(model).state_dict()


def test_timm(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    loaded = load_model("timm/resnet10t", "none", seed=3)
    assert (loaded.preprocessing.crop, loaded.preprocessing.resize) == (176, 201)
    assert loaded.preprocessing.interpolation == "bicubic"
    rebuilt(loaded)
    model = timm.create_model("resnet10t", num_classes=4)
    torch.save({"state_dict_ema": model.state_dict()}, tmp_path / "a.pth.tar")
    filled = load_model("timm/resnet10t", tmp_path / "a.pth.tar")
    assert filled.identity["num_classes"] == 4
    assert torch.equal(filled.model.fc.weight, model.fc.weight)
    rebuilt(filled)
    assert "timm has no model 'resnt10t'; did you mean resnet10t" in error("timm/resnt10t")
    assert "timm's weight sets are part of the model name" in error("timm/resnet10t", "a1_in1k")


def into_hub(cache: Path, repository: str, model: nn.Module) -> None:
    """Put a file into the hub's own cache, as if it was downloaded before."""
    folder = cache / "hub" / f"models--{repository.replace('/', '--')}"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    save_file(model.state_dict(), folder / "snapshots" / "abc" / "model.safetensors")


def test_the_hub(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: nn.Module) -> None:
    hub = pytest.importorskip("huggingface_hub")
    into_hub(cache, "owner/name", network)
    assert hub.try_to_load_from_cache("owner/name", "model.safetensors", cache_dir=cache / "hub")
    loaded = load_model(ARCH, "hf://owner/name/model.safetensors", offline=True)
    assert loaded.identity["weights"]["source"] == "hf://owner/name/model.safetensors"
    rebuilt(loaded, offline=True)
    assert "is not in the cache and `offline=True`" in error(
        ARCH, "hf://owner/name/other.safetensors", offline=True
    )
    assert "is not a file on the hub" in error(ARCH, "hf://owner/name")


def test_timms_published_weights_come_from_the_hub(cache: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(2)
    model = timm.create_model("resnet10t")
    into_hub(cache, "timm/resnet10t.c3_in1k", model)
    loaded = load_model("timm/resnet10t", offline=True)
    assert loaded.identity["weights"]["source"] == "timm:resnet10t"
    assert torch.equal(loaded.model.fc.weight, model.fc.weight)
    rebuilt(loaded, offline=True)
