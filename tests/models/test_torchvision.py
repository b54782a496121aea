"""Networks by name: weights from anywhere, fitted or refused in one line, and rebuilt from their record."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from actstats.data.preprocessing import Preprocessing
from actstats.errors import ActstatsError
from actstats.models import Loaded, architectures, load_from_manifest, load_model
from actstats.models import torchvision_zoo as zoo
from actstats.models.checkpoints import read_checkpoint, state_sha256


def _manifest(loaded: Loaded) -> dict[str, Any]:
    return json.loads(json.dumps({**loaded.identity, "preprocessing": loaded.preprocessing.to_dict()}))


def _same_outputs(left: nn.Module, right: nn.Module, shape: tuple[int, ...]) -> bool:
    images = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return torch.equal(left(images), right(images))


def _error(arch: str, weights: str | Path) -> str:
    with pytest.raises(ActstatsError) as caught:
        load_model(arch, weights)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_architectures_are_torchvisions_classifiers() -> None:
    names = architectures()
    assert {"alexnet", "googlenet", "resnet50", "vit_b_16", "convnext_tiny", "swin_t"} <= set(names)
    assert not [name for name in names if "rcnn" in name or "quantized" in name]


def test_every_published_set_of_weights_is_understood() -> None:
    for arch in architectures():
        for member in zoo.weight_sets(arch).values():
            preset, ours = member.transforms(), zoo.preprocessing_of(member)
            assert vars(preset)["crop_size"] == [ours.crop]
            # The hash in the name is how a file is known again, and how a download is verified.
            assert len(zoo._hash_prefix(member)) >= 8


@pytest.mark.parametrize("arch", ["googlenet", "squeezenet1_1"])
def test_random_weights_are_drawn_from_their_seed_alone(arch: str) -> None:
    before = torch.random.get_rng_state()
    loaded, again, other = (load_model(arch, "none", seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert loaded.identity == again.identity
    assert loaded.identity["weights"]["sha256"] != other.identity["weights"]["sha256"]
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert not [name for name, _ in loaded.model.named_modules() if name.lower().startswith("aux")]
    model, preprocessing = load_from_manifest(_manifest(loaded), trust=True)
    assert preprocessing == loaded.preprocessing
    assert _same_outputs(model, loaded.model, (3, 80, 80))


@pytest.mark.parametrize("arch", ["googlenet", "inception_v3"])
def test_random_inceptions_do_not_fade(arch: str) -> None:
    loaded = load_model(arch, "none")
    with torch.inference_mode():
        assert 0.01 < loaded.model(torch.randn(1, 3, 80, 80)).std() < 100


def _saved(path: Path, arch: str, wrap: Any = dict, **arguments: Any) -> nn.Module:
    """Write random weights of `arch`, under `wrap`; return the network in eval mode."""
    torch.manual_seed(7)
    model = torchvision.models.get_model(arch, weights=None, **arguments).eval()
    if path.suffix == ".safetensors":
        save_file(model.state_dict(), path)
    else:
        torch.save(wrap(model.state_dict()), path)
    return model


@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        ("a.pth", lambda state: state),
        ("a.pt", dict),
        ("a.pth", lambda state: {"epoch": 3, "state_dict": state}),
        ("a.pth", lambda state: {"model": state, "optimizer": {}}),
        ("a.pth", lambda state: {"module." + key: value for key, value in state.items()}),
        ("a.safetensors", None),
    ],
)
def test_local_files(tmp_path: Path, name: str, wrap: Any) -> None:
    model = _saved(tmp_path / name, "squeezenet1_1", wrap, num_classes=11)
    loaded = load_model("squeezenet1_1", str(tmp_path / name))
    assert loaded.identity["num_classes"] == 11
    assert loaded.identity["weights"]["source"] == f"file:{name}"
    assert loaded.identity["weights"]["sha256"] == state_sha256(model)
    assert loaded.preprocessing == zoo.preprocessing_of(zoo.weight_sets("squeezenet1_1")["DEFAULT"])
    assert _same_outputs(loaded.model, model, (3, 32, 32))
    assert _same_outputs(load_from_manifest(_manifest(loaded), trust=True)[0], model, (3, 32, 32))


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_a_network_that_asks_for_its_version(tmp_path: Path, name: str) -> None:
    # MNASNet refuses a state dict that lacks it, as plain dicts and safetensors files do.
    model = _saved(tmp_path / name, "mnasnet0_5")
    assert _same_outputs(load_model("mnasnet0_5", tmp_path / name).model, model, (3, 32, 32))


def test_data_parallel_keeps_the_versions_of_modules(tmp_path: Path) -> None:
    # MNASNet refuses a state dict without its version, which lies under the prefix too.
    model = torchvision.models.mnasnet0_5(weights=None).eval()
    torch.save(nn.DataParallel(model).state_dict(), tmp_path / "a.pth")
    assert _same_outputs(load_model("mnasnet0_5", tmp_path / "a.pth").model, model, (3, 32, 32))


@pytest.mark.parametrize(
    ("arch", "aux_logits"), [("googlenet", True), ("googlenet", False), ("inception_v3", True)]
)
def test_auxiliary_heads_in_a_file_are_left_out(tmp_path: Path, arch: str, aux_logits: bool) -> None:
    arguments = {"aux_logits": aux_logits, "init_weights": False, "transform_input": True, "num_classes": 5}
    model = _saved(tmp_path / "a.pth", arch, **arguments)
    loaded = load_model(arch, tmp_path / "a.pth")
    assert loaded.identity["num_classes"] == 5
    assert not [key for key in loaded.model.state_dict() if key.lower().startswith("aux")]
    assert _same_outputs(loaded.model, model, (3, 80, 80))
    assert _same_outputs(load_from_manifest(_manifest(loaded), trust=True)[0], model, (3, 80, 80))


def test_old_names_of_densenet(tmp_path: Path) -> None:
    def with_old_names(state: dict[str, Any]) -> dict[str, Any]:
        return {key.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): state[key] for key in state}

    model = _saved(tmp_path / "a.pth", "densenet121", with_old_names)
    assert _same_outputs(load_model("densenet121", tmp_path / "a.pth").model, model, (3, 32, 32))


def test_a_transformers_file_tells_the_size_of_its_images(tmp_path: Path) -> None:
    sets = zoo.weight_sets("vit_b_16")
    for member in sets.values():
        crop = zoo.preprocessing_of(member).crop
        state = {
            "encoder.pos_embedding": torch.zeros(1, (crop // 16) ** 2 + 1, 8),
            "conv_proj.weight": torch.zeros(8, 3, 16, 16),
        }
        torch.save(state, tmp_path / "b.pth")
        found = zoo.set_of_file(read_checkpoint(tmp_path / "b.pth"), sets)
        assert zoo.preprocessing_of(found).crop == crop


def test_a_published_file_is_known_by_its_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # resnet50's two published sets are resized differently; the file pretends to be the older one.
    sets = zoo.weight_sets("resnet50")
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pth")
    checkpoint = read_checkpoint(tmp_path / "a.pth")
    monkeypatch.setattr(
        zoo, "_hash_prefix", lambda member: checkpoint.sha256[:8] if member.name.endswith("V1") else None
    )
    assert zoo.preprocessing_of(zoo.set_of_file(checkpoint, sets)).resize == 256
    assert zoo.preprocessing_of(sets["DEFAULT"]).resize == 232


def test_a_file_may_bring_its_preprocessing(tmp_path: Path) -> None:
    own = Preprocessing(None, 64, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    model = torchvision.models.squeezenet1_1(weights=None)
    save_file(model.state_dict(), tmp_path / "a.safetensors", {"preprocessing": json.dumps(own.to_dict())})
    assert load_model("squeezenet1_1", tmp_path / "a.safetensors").preprocessing == own
    save_file(model.state_dict(), tmp_path / "b.safetensors", {"preprocessing": "{]"})
    assert "preprocessing" in _error("squeezenet1_1", tmp_path / "b.safetensors")


def test_weights_of_another_architecture(tmp_path: Path) -> None:
    _saved(tmp_path / "a.pth", "squeezenet1_1")
    message = _error("resnet18", tmp_path / "a.pth")
    assert "does not fit resnet18: 122 missing (conv1.weight, bn1.weight, bn1.bias, ...)" in message
    assert "52 unexpected (features.0.weight, features.0.bias" in message
    assert "features.0.weight: [64, 3, 3, 3] in the file, [96, 3, 7, 7] in the network" in _error(
        "squeezenet1_0", tmp_path / "a.pth"
    )


class _Foreign:
    """Something that to unpickle would run code of this module."""


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    for name, data in (
        ("a.pth", b"junk"),
        ("b.safetensors", b"junk"),
        ("c.pt", b""),
        ("d.pth", pickle.dumps([1, 2], protocol=2)),
    ):
        (tmp_path / name).write_bytes(data)
        assert name in _error("resnet18", tmp_path / name)
    torch.save({"state_dict": {}, "note": _Foreign()}, tmp_path / "e.pth")
    message = _error("resnet18", tmp_path / "e.pth")
    assert "holds no state dict" in message
    assert "it also holds tests.models.test_torchvision._Foreign, which was not run" in message
    torch.save([torch.zeros(1)], tmp_path / "f.pth")
    assert "holds no state dict" in _error("resnet18", tmp_path / "f.pth")
    assert "did you mean f.pth, " in _error("resnet18", tmp_path / "ff.pth")
    (tmp_path / "g.pth").mkdir()
    assert "cannot read" in _error("resnet18", tmp_path / "g.pth")


def test_unknown_names() -> None:
    assert "did you mean googlenet" in _error("googlnet", "none")
    assert "did you mean IMAGENET1K_V2, IMAGENET1K_V1?" in _error("resnet50", "IMAGENET1K_V3")
    assert "it has default, IMAGENET1K_V1, none" in _error("alexnet", "qqq")


def test_a_failed_download_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    member = zoo.weight_sets("alexnet")["DEFAULT"]
    monkeypatch.setattr(type(member), "url", "http://127.0.0.1:9/alexnet-7be5be79.pth")
    message = _error("alexnet", "default")
    assert "download of http://127.0.0.1:9/alexnet-7be5be79.pth failed" in message
    assert "`weights=none`" in message


def test_published_weights_are_rebuilt_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As if downloaded before: torch.hub's folder holds the file.
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    member = zoo.weight_sets("googlenet")["DEFAULT"]
    file = tmp_path / "checkpoints" / member.url.rpartition("/")[2]
    model = _saved(file, "googlenet", aux_logits=True, init_weights=False, transform_input=True)
    for name in ("default", "GoogLeNet_Weights.IMAGENET1K_V1"):
        loaded = load_model("googlenet", name)
        assert loaded.identity["weights"]["source"] == "torchvision:GoogLeNet_Weights.IMAGENET1K_V1"
        assert _same_outputs(loaded.model, model, (3, 80, 80))
    assert _same_outputs(load_from_manifest(_manifest(loaded), trust=True)[0], model, (3, 80, 80))
    _saved(
        file,
        "googlenet",
        lambda state: {key: value + 1 for key, value in state.items()},
        aux_logits=True,
        init_weights=False,
    )
    with pytest.raises(ActstatsError, match="differ from the swept ones in their SHA-256"):
        load_from_manifest(_manifest(loaded), trust=True)


def test_a_file_that_changed_or_moved(tmp_path: Path) -> None:
    _saved(tmp_path / "a.pth", "squeezenet1_1", num_classes=3)
    manifest = _manifest(load_model("squeezenet1_1", tmp_path / "a.pth"))
    (tmp_path / "a.pth").rename(tmp_path / "b.pth")
    with pytest.raises(ActstatsError, match="no such weights file"):
        load_from_manifest(manifest, trust=True)
    load_from_manifest(manifest, weights=tmp_path / "b.pth")
    state = torch.load(tmp_path / "b.pth")
    next(iter(state.values())).add_(1)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(ActstatsError, match="differ from the swept ones in their SHA-256"):
        load_from_manifest(manifest, trust=True)


def test_a_module_of_the_callers_own() -> None:
    loaded = Loaded.of(nn.Sequential(nn.Conv2d(3, 2, 1), nn.Dropout()), Preprocessing.imagenet())
    assert loaded.identity["arch"] == "Sequential"
    with pytest.raises(ActstatsError, match="cannot be rebuilt by name"):
        load_from_manifest(_manifest(loaded), trust=True)


def test_checksums_tell_names_shapes_types_and_values_apart() -> None:
    def checksum(name: str, values: torch.Tensor) -> str:
        module = nn.Module()
        module.register_buffer(name, values)
        return state_sha256(module)

    same = checksum("a", torch.zeros(2, 3))
    assert same == checksum("a", torch.zeros(3, 2).T)
    others = [
        checksum("b", torch.zeros(2, 3)),
        checksum("a", torch.zeros(3, 2)),
        checksum("a", torch.zeros(2, 3, dtype=torch.int32)),
        checksum("a", torch.full((2, 3), -0.0)),
        checksum("a", torch.tensor(0.0)),
        checksum("a", torch.zeros(2, 3, dtype=torch.bfloat16)),
    ]
    assert same not in others
    assert len(set(others)) == len(others)
