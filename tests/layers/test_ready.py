"""Networks are left as they were, and layers that do not repeat or that reorder images are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actstats.errors import ActstatsError
from actstats.layers import named_layers, notes_on, probe, select, select_layers
from actstats.layers.passes import ready

BLANK = torch.zeros(2, 3, 8, 8)


class Merging(nn.Conv2d):
    """A convolution that merges an adapter into its weights in eval mode, as loralib does."""

    def __init__(self) -> None:
        super().__init__(3, 3, 3, padding=1)
        self.adapter, self.merged = nn.Parameter(torch.randn_like(self.weight) / 7), False

    def train(self, mode: bool = True) -> Merging:
        super().train(mode)
        if mode == self.merged:
            self.weight.data += -self.adapter.data if mode else self.adapter.data
            self.merged = not mode
        return self


class Untidy(nn.Module):
    """Keeps everything that a forward pass can leave behind in a network."""

    def __init__(self) -> None:
        super().__init__()
        self.merging, self.norm, self.conv = Merging(), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("grid", torch.zeros(1), persistent=False)
        self.plain, self.passes = torch.zeros(2), 0
        self.by_size: dict[Any, Tensor] = {}
        self.seen: list[Tensor] = []
        self.handle = None

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.plain.add_(1)
        self.passes += 1
        if self.grid.ndim == 1:
            self.grid = torch.linspace(0, 1, x.shape[-1]).expand(x.shape[-2:]).clone()
        self.by_size.setdefault(x.shape, torch.ones(x.shape[-2:]))
        self.seen.append(x)
        self.last = self.merging(x)
        self.merging.weight.requires_grad_(False)
        self.conv.register_forward_hook(lambda *_: None)
        return self.conv(self.norm(self.last) + self.grid + self.by_size[x.shape])


def state(model: nn.Module) -> list[Any]:
    found: list[Any] = []
    for name, module in model.named_modules():
        found.append((name, module.training, sorted(module.__dict__), len(module._forward_hooks)))
        for key, value in [*module._parameters.items(), *module._buffers.items(), *module.__dict__.items()]:
            if isinstance(value, Tensor):
                numbers = value.detach().numpy().tobytes()
                memory = value.data_ptr(), value.stride(), value.requires_grad
                found.append((name, key, id(value), numbers, memory))
            elif isinstance(value, bool | int | list | dict) and not key.startswith("_"):
                found.append((name, key, repr(value)))
    return found


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("failing", [True, False])
def test_a_network_is_left_as_it_was(training, failing):
    torch.manual_seed(0)
    model = nn.Sequential(Untidy(), nn.ReLU()).train(training)
    if training:
        model[0].norm.eval()
        model[0].merging.adapter.grad = torch.ones_like(model[0].merging.adapter)
    before, random = state(model), torch.get_rng_state()
    if failing:
        with pytest.raises(ActstatsError, match="the model fails"):
            probe(model, torch.zeros(2, 4, 8, 8))
        with pytest.raises(RuntimeError, match="channels"), ready(model):
            model(torch.ones(3, 4, 8, 8))
    else:
        assert [layer.name for layer in select_layers(model, BLANK, ["all"])]
        with ready(model):
            assert model[0].merging.merged
            assert not any(module.training for module in model.modules())
            assert model[0].conv.weight.is_contiguous(memory_format=torch.channels_last)
            model(torch.ones(3, 3, 8, 8))
    assert state(model) == before
    assert torch.equal(torch.get_rng_state(), random)
    model[0].merging.weight.requires_grad_(True)
    model(torch.rand(2, 3, 8, 8)).sum().backward()


class Noisy(nn.Module):
    def __init__(self, way: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encode, self.decode, self.way = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3), way
        self.register_buffer("mean", torch.zeros(6, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        z = self.encode(x)
        match self.way:
            case "sampling":
                z = z + torch.randn_like(z)
            case "faint":
                z = z + 1e-6 * torch.randn_like(z)
            case "dropout":
                z = F.dropout(z, 0.1)
            case "masks":
                z = z[:, torch.randperm(6)]
            case "numpy":
                z = z * np.random.default_rng().random()
            case "momentum":
                self.mean = 0.9 * self.mean + 0.1 * z.mean((0, 2, 3))[:, None, None]
                z = z - self.mean
            case "sorted":
                z = z[z.mean((1, 2, 3)).argsort()]
            case "sorted down":
                z = z[z.mean((1, 2, 3)).argsort(descending=True)]
            case "reversed":
                z = z.flip(0)
            case "unused":
                torch.rand(3)
            case "seeded":
                z = z + torch.randn(z.shape, generator=torch.Generator().manual_seed(3))
            case "batch":
                z = (z - z.mean((0, 2, 3), keepdim=True)) / z.std((0, 2, 3), keepdim=True)
        return self.decode(z)


@pytest.mark.parametrize("way", ["sampling", "faint", "dropout", "masks", "numpy", "momentum"])
def test_a_layer_that_differs_between_two_passes_is_refused(way):
    model = Noisy(way).eval()
    assert [layer.name for layer in select_layers(model, BLANK, ["encode"])] == ["encode"]
    for selectors in (["all"], ["decode"], ["conv"]):
        with pytest.raises(
            ActstatsError, match=r"^layer 'decode' cannot be swept: it differs between two passes"
        ):
            select_layers(model, BLANK, selectors)


@pytest.mark.parametrize("way", ["sorted", "sorted down", "reversed"])
def test_a_layer_that_sees_the_images_in_another_order_is_refused(way):
    model = Noisy(way).eval()
    assert select_layers(model, BLANK, ["encode"])
    with pytest.raises(ActstatsError, match=r"^layer 'decode' cannot be swept: .* order of the images"):
        select_layers(model, BLANK, ["decode"])


@pytest.mark.parametrize("way", ["unused", "seeded", "batch", "none"])
@pytest.mark.parametrize("example", [BLANK, torch.linspace(-1, 1, 768).reshape(4, 3, 8, 8)])
def test_a_network_whose_values_repeat_is_not_refused(way, example):
    names = [layer.name for layer in select_layers(Noisy(way).eval(), example, ["encode", "decode"])]
    assert names == ["encode", "decode"]


class Viewing(nn.Module):
    def __init__(self, way: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.one, self.act, self.fc, self.way = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Linear(144, 5), way

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.way(self.act(self.one(x))))


def test_a_network_that_needs_contiguous_images_says_so_and_others_do_not():
    viewing = Viewing(lambda x: x.view(x.size(0), -1)).eval()
    probed = probe(viewing, BLANK)
    layers = select(probed, ["all"])
    assert not probed.channels_last
    assert [layer.name for layer in layers] == ["one", "act", "fc"]
    assert "the network cannot run on images in channels_last" in notes_on(probed, ["all"], layers)[0]
    assert viewing.one.weight.is_contiguous()
    flattening = probe(Viewing(lambda x: x.flatten(1)).eval(), BLANK)
    assert flattening.channels_last
    assert notes_on(flattening, ["all"], select(flattening, ["all"])) == []


class Functional(nn.Module):
    def __init__(self, activate: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.one, self.norm, self.two = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.act, self.activate = nn.ReLU(), activate

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.two(self.activate(self.norm(self.one(x)))))


@pytest.mark.parametrize(
    ("activate", "name"),
    [
        (F.relu, "relu"),
        (lambda x: F.relu(x, inplace=True), "relu"),
        (F.gelu, "gelu"),
        (F.hardswish, "hardswish"),
        (lambda x: x.clamp(min=0), "clamp"),
        (lambda x: x * torch.sigmoid(x), "arithmetic"),
    ],
)
def test_a_layer_before_the_activation_of_a_function_is_said(activate, name):
    probed = probe(Functional(activate).eval(), BLANK)
    layers = select(probed, ["conv"])
    assert [layer.name for layer in layers] == ["norm", "act"]
    (note,) = notes_on(probed, ["conv"], layers)
    assert (
        f"1 of 2 layers are before their activation, since hooks cannot see a function ({name} after norm)"
        in note
    )
    assert notes_on(probed, ["act"], select(probed, ["act"])) == []


def test_without_an_activation_nothing_is_said():
    probed = probe(Functional(lambda x: x).eval(), BLANK)
    assert notes_on(probed, ["conv"], select(probed, ["conv"])) == []


class Named(nn.Module):
    """A network with modules that are called like presets, and no repeated blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.block = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3), nn.Sequential(nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.conv(self.stem(x)))


def test_a_module_called_like_a_preset():
    model = Named().eval()

    def names(*selectors: str) -> list[str]:
        return [layer.name for layer in select_layers(model, BLANK, selectors)]

    assert names("conv") == ["stem", "block.0"]
    assert names("block") == ["block"]
    assert names("conv:0") == ["conv"]
    assert [layer.name for layer in named_layers(model, BLANK, ["conv", "block"])] == ["conv", "block"]
    probed = probe(model, BLANK)
    assert notes_on(probed, ["conv"], select(probed, ["conv"])) == [
        "'conv' is the preset; the module of that name is selected by 'conv:0'"
    ]
    assert notes_on(probed, ["block"], select(probed, ["block"])) == []
    with pytest.raises(ActstatsError, match="no layer matches 'paper'"):
        named_layers(model, BLANK, ["paper"])


def test_a_caller_in_inference_mode_gets_its_network_back():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).train()
    with torch.inference_mode():
        assert select_layers(model, BLANK, ["all"])
    model(torch.rand(2, 3, 8, 8)).sum().backward()
    assert model[0].weight.is_contiguous()
