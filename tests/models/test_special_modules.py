"""Quantised, scripted, traced and exported networks: swept where hooks are called, refused in one line elsewhere."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor, nn

import actstats
from actstats.errors import ActstatsError
from actstats.models.checkpoints import state_sha256

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def seeded(make: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return make()


def plain() -> nn.Sequential:
    body = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5)]
    return nn.Sequential(*body).eval()


def quantised() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(plain(), {nn.Linear}, dtype=torch.qint8)


class Partly(nn.Module):
    """A network with a scripted part."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Conv2d(3, 3, 3)
        self.part = torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
        self.after = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.part(self.before(x)))


IMAGES = seeded(lambda: torch.rand(4, 3, 16, 16))


def swept(network: nn.Module, store: Path, layers: list[str]) -> xr.Dataset:
    options: Any = {"batch_size": 2, "device": "cpu", "workers": 0, "layers": layers}
    actstats.sweep(network, IMAGES, store, **options)
    return xr.open_zarr(store).load()


def means(output: Tensor) -> np.ndarray:
    return output.flatten(2).mean(2).numpy() if output.ndim > 2 else output.numpy()


def refusal(network: Any, store: Path, layers: list[str]) -> str:
    with pytest.raises(ActstatsError) as caught:
        swept(network, store, layers)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_quantised_network_is_swept_and_its_checksum_follows_its_weights(tmp_path: Path) -> None:
    network = seeded(quantised)
    found = swept(network, tmp_path / "s.zarr", ["4"])
    with torch.no_grad():
        # By batches, as in the sweep: activations are quantised on the scale of their batch.
        expected = torch.cat([network(batch) for batch in IMAGES.split(2)])
    np.testing.assert_allclose(found["mean"], expected.numpy(), atol=1e-6)
    assert state_sha256(seeded(quantised)) == state_sha256(network) == found.attrs["weights"]["sha256"]
    assert state_sha256(quantised()) != state_sha256(network)


def test_the_checksum_covers_any_entry_of_a_state_dict() -> None:
    class Extra(nn.Module):
        def __init__(self, value: Any) -> None:
            super().__init__()
            self.value = value

        def get_extra_state(self) -> Any:
            return self.value

        def set_extra_state(self, state: Any) -> None:
            self.value = state

    sparse = torch.eye(3).to_sparse()
    values: list[Any] = [
        None,
        1,
        2.5,
        "a",
        b"a",
        ["a", "b"],
        ["ab"],
        {"a": torch.ones(2)},
        {"a": torch.zeros(2)},
    ]
    values += [sparse, 2 * sparse, torch.ones(2, dtype=torch.complex64).conj(), torch.qint8]
    marks = [state_sha256(Extra(value)) for value in values]
    assert len(set(marks)) == len(values)
    assert marks == [state_sha256(Extra(value)) for value in values]
    axis = {"axis": 0, "dtype": torch.qint8}
    channels = [
        torch.quantize_per_channel(torch.ones(2, 2), torch.tensor([0.1, scale]), torch.tensor([0, 0]), **axis)
        for scale in (0.1, 0.2)
    ]
    assert state_sha256(Extra(channels[0])) != state_sha256(Extra(channels[1]))
    assert state_sha256(Extra(object())) == state_sha256(Extra(object()))


@pytest.mark.parametrize("layer", ["before", "part", "after"])
def test_layers_around_a_scripted_part_and_its_own_output_are_swept(tmp_path: Path, layer: str) -> None:
    network = seeded(Partly).eval()
    expected = []
    with torch.no_grad():
        expected = {"before": network.before(IMAGES)}
        expected["part"] = network.part(expected["before"])
        expected["after"] = network.after(expected["part"])
    found = swept(network, tmp_path / "s.zarr", [layer])
    np.testing.assert_allclose(found["mean"], means(expected[layer]), atol=1e-5)


def test_a_layer_inside_a_script_is_refused_in_one_line(tmp_path: Path) -> None:
    network = seeded(Partly).eval()
    assert "part is TorchScript, which calls no hooks inside; select 'part'" in refusal(
        network, tmp_path / "s.zarr", ["part.0"]
    )


@pytest.mark.parametrize("how", ["traced", "scripted", "frozen", "traced around a script"])
def test_the_output_of_a_whole_script_is_swept(tmp_path: Path, how: str) -> None:
    network = seeded(plain)
    script = {
        "traced": lambda: torch.jit.trace(network, IMAGES),
        "scripted": lambda: torch.jit.script(network),
        "frozen": lambda: torch.jit.freeze(torch.jit.script(network)),
        "traced around a script": lambda: torch.jit.trace(seeded(Partly).eval(), IMAGES),
    }[how]()
    with torch.no_grad():
        expected = means(script(IMAGES))
    np.testing.assert_allclose(swept(script, tmp_path / "s.zarr", ["all"])["mean"], expected, atol=1e-5)
    if how != "frozen":
        inner = ["part" if how == "traced around a script" else "0"]
        assert "select '(model)'" in refusal(script, tmp_path / "t.zarr", inner)


def test_exported_networks(tmp_path: Path) -> None:
    network = seeded(plain)
    batch = {0: torch.export.Dim("n", min=1, max=64)}
    exported = torch.export.export(network, (IMAGES,), dynamic_shapes=(batch,))
    assert "ExportedProgram, not a torch module" in refusal(exported, tmp_path / "r.zarr", ["all"])
    assert "OrderedDict, not a torch module" in refusal(network.state_dict(), tmp_path / "r.zarr", ["all"])
    with torch.no_grad():
        expected = network(IMAGES).numpy()
    forms = {"all": exported.module()}
    with suppress(RuntimeError):  # torch 2.6 cannot do it
        forms["4"] = torch.export.unflatten(exported)
    for layer, form in forms.items():
        found = swept(form, tmp_path / f"{layer}.zarr", [layer])
        np.testing.assert_allclose(found["mean"], expected, atol=1e-5)


FACTORIES = """
import torch
from torch import nn
import actstats

SIZE = actstats.Preprocessing.imagenet(size=32, resize=36)

def make(last):
    body = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*body, last), SIZE

def normed():
    return make(nn.utils.parametrizations.weight_norm(nn.Linear(4, 5)))

def normed_before():
    return make(nn.utils.weight_norm(nn.Linear(4, 5)))

def spectral():
    return make(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 5)))

def pruned():
    from torch.nn.utils import prune
    return make(prune.random_unstructured(nn.Linear(4, 5), "weight", 0.5))

def lazy_free():
    return nn.Sequential(nn.ReLU()), SIZE
"""


@pytest.mark.parametrize("name", ["normed", "normed_before", "spectral", "pruned", "lazy_free"])
def test_a_factory_of_a_network_whose_weights_are_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "computed_weights", raising=False)
    Path("computed_weights.py").write_text(FACTORIES)
    loaded = actstats.load_model(f"computed_weights:{name}")
    assert loaded.identity.get("num_classes") == (None if name == "lazy_free" else 5)
    torch.save(loaded.model.state_dict(), "a.pt")
    if name != "lazy_free":
        again = actstats.load_model(f"computed_weights:{name}", "a.pt", seed=1)
        assert state_sha256(again.model) == state_sha256(loaded.model)
