"""Checkpoints of training programs: the network's weights, and the normaliser of the file, once."""

import json
from pathlib import Path
from typing import Any

import dill
import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from actstats.data.preprocessing import Preprocessing
from actstats.errors import ActstatsError
from actstats.models import load_from_manifest, load_model
from actstats.models.checkpoints import read_checkpoint, unwrap
from actstats.models.checkpoints.layouts import renamed
from tests.conftest import photograph
from tests.models.layouts import MEAN, PLAIN, ROBUST, STD, attacked, normaliser, prefixed


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(5)
    return torchvision.models.squeezenet1_1(weights=None, num_classes=7).eval()


def error(arch: str, weights: str | Path, **options: Any) -> str:
    with pytest.raises(ActstatsError) as caught:
        load_model(arch, weights, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def logits(model: nn.Module, preprocessing: Preprocessing, image: Image.Image) -> torch.Tensor:
    with torch.no_grad():
        return model(preprocessing(image)[None])


@pytest.mark.parametrize("layout", ROBUST)
def test_the_normaliser_of_the_file_is_used_once(tmp_path: Path, network: nn.Module, layout: str) -> None:
    content = ROBUST[layout](network.state_dict())
    legacy = layout == "robustness, older"
    torch.save(content, tmp_path / "a.pt", pickle_module=dill, _use_new_zipfile_serialization=not legacy)
    loaded = load_model("squeezenet1_1", tmp_path / "a.pt")
    weights = loaded.identity["weights"]
    assert loaded.identity["num_classes"] == 7
    image = photograph(0, (300, 260))
    # As `robustness` does: to the centre, to [0, 1], then the normaliser of the file.
    steps = torchvision.transforms
    pixels = steps.Compose([steps.Resize(256), steps.CenterCrop(224), steps.ToTensor()])(image)
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (MEAN, STD))
    with torch.no_grad():
        expected = network(((pixels - mean) / std)[None])
    torch.testing.assert_close(logits(loaded.model, loaded.preprocessing, image), expected, rtol=0, atol=1e-5)
    assert any("Arguments" in name for name in weights.get("foreign", [])) == ("args" in content)
    manifest = json.loads(json.dumps({**loaded.identity, "preprocessing": loaded.preprocessing.to_dict()}))
    model, preprocessing = load_from_manifest(manifest, trust=True)
    assert torch.equal(logits(model, preprocessing, image), logits(loaded.model, loaded.preprocessing, image))


@pytest.mark.parametrize("layout", PLAIN)
def test_wrappers_are_taken_off(tmp_path: Path, network: nn.Module, layout: str) -> None:
    torch.save(PLAIN[layout](network.state_dict()), tmp_path / "a.pt")
    loaded = load_model("squeezenet1_1", tmp_path / "a.pt")
    state = network.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.model.state_dict().items())


def test_a_part_can_be_chosen(tmp_path: Path, network: nn.Module) -> None:
    state = network.state_dict()
    averaged = {name: tensor + 1 for name, tensor in state.items()}
    torch.save({"model": state, "model_ema": averaged, "epoch": 3, "odd": state}, tmp_path / "a.pt")
    for fragment, expected in (("", averaged), ("#model", state), ("#odd", state), ("#model_ema", averaged)):
        loaded = load_model("squeezenet1_1", f"{tmp_path / 'a.pt'}{fragment}")
        assert torch.equal(loaded.model.features[0].weight, expected["features.0.weight"])
        assert loaded.identity["weights"]["part"] == fragment[1:] or "model_ema"
        manifest = {**loaded.identity, "preprocessing": loaded.preprocessing.to_dict()}
        assert torch.equal(
            load_from_manifest(manifest, trust=True)[0].features[0].weight, expected["features.0.weight"]
        )
    message = error("squeezenet1_1", f"{tmp_path / 'a.pt'}#epoch")
    assert "its weights lie under model, model_ema, odd; choose with FILE#model" in message


@pytest.mark.parametrize("heads", [True, False])
def test_googlenet_of_robustness(tmp_path: Path, heads: bool) -> None:
    torch.manual_seed(6)
    model = torchvision.models.googlenet(
        weights=None, aux_logits=heads, init_weights=False, num_classes=5
    ).eval()
    old = {name.replace("branch4.1.", "branch4_conv."): value for name, value in model.state_dict().items()}
    assert heads == any(name.startswith("aux") for name in old)
    torch.save({"model": attacked(old)}, tmp_path / "a.pt", pickle_module=dill)
    loaded = load_model("googlenet", tmp_path / "a.pt")
    assert not loaded.model.transform_input  # which would be a second normaliser
    assert not [name for name in loaded.model.state_dict() if name.startswith("aux")]
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded.model(pixels), model(pixels))


def test_alexnet_of_robustness() -> None:
    # Its last layer stands apart there; the weights of a whole AlexNet would be half a gigabyte.
    with torch.device("meta"):
        wanted = set(torchvision.models.alexnet(weights=None).state_dict())
    theirs = {name.replace("classifier.6.", "last_layer.") for name in wanted}
    new = renamed([f"module.model.{name}" for name in theirs])
    assert {name.removeprefix("module.model.") for name in new.values()} == wanted


def test_two_normalisers(tmp_path: Path, network: nn.Module) -> None:
    state = network.state_dict()
    torch.save({"model": attacked(state) | normaliser("module.normalizer", std=(1, 1, 1))}, tmp_path / "a.pt")
    assert "it has two normalisers that differ" in error("squeezenet1_1", tmp_path / "a.pt")
    own = Preprocessing(None, 32)
    inside = {
        name: tensor.clone() for name, tensor in (normaliser("norm") | prefixed("model.", state)).items()
    }
    save_file(inside, tmp_path / "b.safetensors", {"preprocessing": json.dumps(own.to_dict())})
    assert "has two normalisers: mean [0.485" in error("squeezenet1_1", tmp_path / "b.safetensors")
    for mean, std in (((0, 0, 0), (1, 1, 1)), (torch.tensor(MEAN).tolist(), torch.tensor(STD).tolist())):
        agreeing = Preprocessing(None, 32, mean=tuple(mean), std=tuple(std))
        save_file(inside, tmp_path / "c.safetensors", {"preprocessing": json.dumps(agreeing.to_dict())})
        found = load_model("squeezenet1_1", tmp_path / "c.safetensors").preprocessing
        np.testing.assert_allclose([found.mean, found.std], [MEAN, STD], rtol=1e-6)
        assert (found.resize, found.crop) == (None, 32)
    save_file(normaliser("n", std=(1, 0, 1)) | inside, tmp_path / "d.safetensors")
    assert "not positive" in error("squeezenet1_1", tmp_path / "d.safetensors")


def test_a_network_that_normalises_itself_keeps_its_normaliser(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.tensor(MEAN))
            self.register_buffer("std", torch.tensor(STD))
            self.last_layer = nn.Linear(3, 2)  # as a layer of robustness's AlexNet is named, which is renamed

    torch.save(Net().state_dict(), tmp_path / "a.pt")
    checkpoint = unwrap(read_checkpoint(tmp_path / "a.pt"), Net().state_dict())
    assert checkpoint.normaliser is None
    assert set(checkpoint.state) == {"mean", "std", "last_layer.weight", "last_layer.bias"}


def test_metadata_of_safetensors(tmp_path: Path, network: nn.Module) -> None:
    own = Preprocessing(72, 64, "bicubic", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    names = [f"class {index}" for index in range(7)]
    notes = {
        "arch": "squeezenet1_1",
        "num_classes": "7",
        "preprocessing": json.dumps(own.to_dict()),
        "classes": json.dumps(names),
    }
    half = {name: tensor.half() for name, tensor in network.state_dict().items()}
    path = tmp_path / "a.safetensors"
    save_file(half, path, notes)
    loaded = load_model("squeezenet1_1", path)
    assert loaded.preprocessing == own
    assert loaded.identity["classes"] == names
    assert {tensor.dtype for tensor in loaded.model.state_dict().values()} == {torch.float32}
    assert "holds weights of squeezenet1_1, not of resnet18" in error("resnet18", path)
    save_file(half, path, {**notes, "num_classes": "8"})
    assert "has 7 classes, but 8 according to its metadata" in error("squeezenet1_1", path)
    save_file(half, path, {**notes, "classes": "[broken"})
    assert "no JSON under 'classes'" in error("squeezenet1_1", path)
