"""Sweeps of networks as people write them: their values are those of plain hooks, and they are left as they were."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr
from torch import Tensor, nn

import actstats
from actstats import ActstatsError


def images(count: int = 5) -> Tensor:
    torch.manual_seed(1)
    return torch.rand(count, 3, 16, 16)


def swept(model: nn.Module, store, *layers: str, count: int = 5, **options) -> xr.Dataset:
    options = {"batch_size": 3, "partition_size": 5, "device": "cpu", "workers": 0, **options}
    actstats.sweep(model, images(count), store, layers=layers, **options)
    return xr.open_zarr(store).load()


def means(model: nn.Module, *layers: str, batch_size: int = 3) -> dict[str, np.ndarray]:
    """Mean of each map by plain hooks on a copy of the network, in batches as in the sweep."""
    model, seen = copy.deepcopy(model).eval(), {name: [] for name in layers}

    def keep(name: str):
        return lambda _module, _args, out: seen[name].append(out.detach().clone().flatten(2).mean(-1))

    for name in layers:
        model.get_submodule(name).register_forward_hook(keep(name))
    with torch.no_grad():
        for part in images().split(batch_size):
            model(part)
    return {name: torch.cat(parts).numpy() for name, parts in seen.items()}


def assert_means(dataset: xr.Dataset, expected: dict[str, np.ndarray]) -> None:
    for name, values in expected.items():
        found = dataset["mean"].values[:, dataset["layer"].values == name]
        np.testing.assert_allclose(found, values, atol=1e-5, err_msg=name)


class LeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.fc = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3), nn.Linear(8 * 144, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.two(F.relu(self.one(x))))
        return self.fc(x.view(x.size(0), -1))


def test_view_after_a_convolution_runs_on_contiguous_images_and_the_manifest_says_so(tmp_path):
    model = LeNet()
    with pytest.warns(UserWarning, match="cannot run on images in channels_last"):
        found = swept(model, tmp_path / "x.zarr", "one", "two")
    assert_means(found, means(model, "one", "two"))
    assert found.attrs["memory_format"] == "contiguous"
    assert model.training
    assert model.two.weight.is_contiguous()


def test_other_networks_are_swept_in_channels_last_and_their_manifest_is_silent(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = swept(model, tmp_path / "x.zarr", "all", fingerprint="seeded")
    assert "memory_format" not in found.attrs
    assert all("calls" not in layer for layer in found.attrs["layers"])


class Caching(nn.Module):
    """Builds a grid in its first pass and writes to it in place, as relative positions of transformers are."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.proj = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(2, 4)
        self.register_buffer("grid", torch.zeros(1, 1, 1, 2), persistent=False)
        self.kept: dict[int, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        if self.grid.shape[1] == 1:
            grid = torch.zeros(1, 16, 16, 2)
            grid[..., 0] = torch.arange(16.0)
            self.grid = grid
        if len(x) not in self.kept:
            self.kept[len(x)] = torch.ones(len(x), 4, 16, 16)
        position = self.proj(self.grid.expand(len(x), -1, -1, -1)).permute(0, 3, 1, 2)
        return self.conv(x) * self.kept[len(x)] + position


def test_a_network_that_caches_tensors_can_be_trained_after_a_sweep(tmp_path):
    model = Caching()
    found = swept(model, tmp_path / "x.zarr", "conv:0", "(model)")
    assert_means(found, means(model, "conv"))
    assert (model.grid.shape[1], model.kept) == (1, {})
    model(images()).sum().backward()
    assert model.proj.weight.grad is not None


def test_a_network_that_fails_in_a_sweep_is_left_as_it_was(tmp_path):
    class Failing(Caching):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) == 3:
                raise ValueError("three")
            return super().forward(x)

    model = Failing()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ActstatsError, match="three"):
        swept(model, tmp_path / "x.zarr", "conv:0")
    assert model.training
    assert (model.grid.shape[1], model.kept) == (1, {})
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name])
        assert value.is_contiguous()


class Routed(nn.Module):
    """Bright images skip a layer; the images of the probe do not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        dim = x.mean((1, 2, 3)) < 0.9
        x = self.first(x)
        out = x.clone()
        out[dim] = self.second(x[dim])
        return out


def test_an_image_that_skips_a_layer_stops_the_sweep(tmp_path):
    data = images()
    data[1] = 1
    with pytest.raises(ActstatsError, match="layer second returned maps of 2 images in a forward pass of 3"):
        actstats.sweep(Routed(), data, tmp_path / "x.zarr", layers=["second"], batch_size=3, device="cpu")
    assert not xr.open_zarr(tmp_path / "x.zarr").completed.values.any()


def test_dropout_left_on_is_refused(tmp_path):
    class Dropping(LeNet):
        def forward(self, x: Tensor) -> Tensor:
            return self.two(F.dropout(self.one(x)))

    with pytest.raises(ActstatsError, match=r"layer 'two' cannot be swept: .* random numbers in eval mode"):
        swept(Dropping(), tmp_path / "x.zarr", "two")
    assert not (tmp_path / "x.zarr").exists()
    model = Dropping()
    assert_means(swept(model, tmp_path / "one.zarr", "one"), means(model, "one"))


@pytest.mark.compiler
@pytest.mark.slow
def test_compiled_short_batches_of_a_network_with_batch_statistics_are_not_padded(tmp_path):
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU(), nn.Conv2d(4, 2, 3))
    found = swept(model, tmp_path / "x.zarr", "1", "3", compile=True, on_note=lambda _: None)
    assert found.attrs["compile"] is True
    assert_means(found, means(model, "1", "3"))


def test_one_image_in_the_last_batch(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    found = swept(model, tmp_path / "x.zarr", "0", "2", batch_size=4)
    assert_means(found, means(model, "0", "2", batch_size=4))


def test_a_stored_layer_called_like_a_preset_is_found_again(tmp_path):
    model = Caching()
    swept(model, tmp_path / "x.zarr", "conv:0", fingerprint="seeded")
    plan = actstats.plan(
        model, images(), tmp_path / "x.zarr", layers=["conv:0"], device="cpu", fingerprint="seeded"
    )
    assert [layer.name for layer in plan.layers()[0]] == ["conv"]
