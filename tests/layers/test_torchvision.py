"""The presets on networks that everybody knows, with random weights and small images."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import nn

from actstats.layers import Layer, Probe, probe, select, watch


def structure(arch: str) -> nn.Module:
    """The network with all weights 0, which spares the time of drawing them."""
    options = {"init_weights": False} if arch in {"googlenet", "inception_v3"} else {}
    # RegNet computes its widths with tensors.
    with torch.device("cpu" if arch.startswith("regnet") else "meta"):
        model = torchvision.models.get_model(arch, weights=None, **options)
    model = model.to_empty(device="cpu").eval()
    for tensor in model.state_dict().values():
        tensor.zero_()
    return model


def small_vit() -> nn.Module:
    return torchvision.models.VisionTransformer(112, 16, 3, 2, 16, 32).eval()


def small_swin() -> nn.Module:
    return torchvision.models.SwinTransformer([4, 4], 12, [2, 2], [2, 4], [7, 7]).eval()


def shuffle_net() -> nn.Module:
    return torchvision.models.shufflenet_v2_x0_5().eval()


@pytest.fixture(scope="module")
def probed() -> Callable[..., Probe]:
    """`probed(arch, size)`, each network probed once."""
    done: dict[tuple[str, int], Probe] = {}

    def once(arch: str, size: int = 64) -> Probe:
        if (arch, size) not in done:
            done[arch, size] = probe(structure(arch), torch.rand(2, 3, size, size))
        return done[arch, size]

    return once


def names(layers: list[Layer]) -> list[str]:
    return [layer.name for layer in layers]


def test_googlenet(probed):
    layers = select(probed("googlenet", 224), ["conv"])
    assert len(layers) == 57
    assert sum(layer.units for layer in layers) == 7280
    assert {layer.kind for layer in layers} == {"BasicConv2d"}
    assert names(layers)[:5] == [
        "conv1",
        "conv2",
        "conv3",
        "inception3a.branch1",
        "inception3a.branch2.0",
    ]
    first, last = layers[0], layers[-1]
    assert (first.units, first.height, first.width) == (64, 112, 112)
    assert (last.name, last.height) == ("inception5b.branch4.1", 7)
    blocks = [
        "conv1",
        "conv2",
        "conv3",
        *(f"inception{b}" for b in ["3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"]),
    ]
    assert names(select(probed("googlenet", 224), ["block"])) == blocks
    assert names(select(probed("googlenet", 224), ["paper"])) == blocks


def test_resnet_50(probed):
    layers = select(probed("resnet50"), ["conv"])
    assert len(layers) == 53
    assert names(layers)[:6] == [
        "relu",
        "layer1.0.relu:0",
        "layer1.0.relu:1",
        "layer1.0.bn3",
        "layer1.0.downsample",
        "layer1.1.relu:0",
    ]
    assert sum(layer.units for layer in layers) == 26_560
    blocks = select(probed("resnet50"), ["block"])
    assert [layer.kind for layer in blocks] == ["Bottleneck"] * 16
    assert names(select(probed("resnet50"), ["paper"])) == ["conv1", "layer1", "layer2", "layer3", "layer4"]


def test_alexnet(probed):
    expected = [f"features.{i}" for i in (1, 4, 7, 9, 11)]
    assert names(select(probed("alexnet"), ["conv"])) == expected
    assert names(select(probed("alexnet"), ["paper"])) == expected


def test_vit_falls_back_to_its_blocks_as_a_grid_without_the_class_token():
    result = probe(small_vit(), torch.rand(2, 3, 112, 112))
    assert result.default == "block"
    layers = select(result, ["conv"])
    assert [layer.kind for layer in layers] == ["EncoderBlock"] * 3
    assert {(layer.units, layer.height, layer.width, layer.prefix) for layer in layers} == {(16, 7, 7, 1)}
    assert "uses its weights" in result.never_ran["encoder.layers.encoder_layer_0.self_attention.out_proj"]


def test_convnext_follows_the_norm_behind_the_permutation(probed):
    layers = select(probed("convnext_tiny"), ["conv"])
    assert len(layers) == 22
    assert names(layers)[:2] == ["features.0", "features.1.0.block.2"]
    norm = layers[1]
    assert (norm.kind, norm.axes, norm.units, norm.height) == ("LayerNorm", "nhwc", 96, 16)
    assert len(select(probed("convnext_tiny"), ["block"])) == 18


@pytest.mark.parametrize(
    ("arch", "convolutions", "blocks"),
    [
        ("densenet121", 120, 7),
        ("efficientnet_b0", 81, 18),
        ("mnasnet0_5", 52, 16),
        ("mobilenet_v2", 52, 19),
        ("mobilenet_v3_small", 52, 13),
        ("regnet_y_400mf", 85, 16),
        ("shufflenet_v2_x0_5", 56, 16),
        ("squeezenet1_1", 26, 8),
        ("vgg11_bn", 8, 0),
    ],
)
def test_every_convolution_and_block(probed, arch, convolutions, blocks):
    """As many layers as the network has convolutions."""
    result = probed(arch)
    count = sum(isinstance(module, nn.Conv2d) for module in structure(arch).modules())
    assert count == convolutions
    assert sum("conv" in c.presets for c in result.candidates) == convolutions
    assert sum("block" in c.presets for c in result.candidates) == blocks


def test_inception_v3_has_its_single_modules_among_its_blocks(probed):
    layers = select(probed("inception_v3", 96), ["block"])
    assert {"Mixed_6a", "Mixed_7a"} <= set(names(layers))
    assert len(layers) == 16


def test_densenet_stops_where_the_output_is_concatenated(probed):
    chosen = names(select(probed("densenet121"), ["conv"]))
    assert chosen[:3] == [
        "features.relu0",
        "features.denseblock1.denselayer1.relu2",
        "features.denseblock1.denselayer1.conv2",
    ]


def test_swin_maps_are_channels_last():
    result = probe(small_swin(), torch.rand(2, 3, 112, 112))
    layers = select(result, ["block"])
    assert [layer.kind for layer in layers] == ["SwinTransformerBlock"] * 4
    assert {layer.axes for layer in layers} == {"nhwc"}
    assert [(layer.units, layer.height) for layer in layers] == [(12, 28), (12, 28), (24, 14), (24, 14)]


@pytest.mark.parametrize(
    ("network", "size"),
    [
        (lambda: torchvision.models.googlenet(init_weights=False).eval(), 64),
        (lambda: torchvision.models.efficientnet_b0().eval(), 64),
        (lambda: torchvision.models.resnet18().eval(), 64),
        (small_vit, 112),
        (small_swin, 112),
    ],
    ids=["googlenet", "efficientnet", "resnet", "vit", "swin"],
)
def test_watched_maps_are_what_a_plain_hook_sees(network, size):
    """All layers at once, cloned by hooks of the test's own; tokens and channels-last maps rearranged by hand."""
    model, images = network(), torch.rand(3, 3, size, size)
    layers = select(probe(model, images), ["all", "conv", "block"])
    seen: dict[str, list[torch.Tensor]] = {}

    def remember(name):
        def hook(module, args, output):
            output = output[0] if isinstance(output, tuple) else output
            seen.setdefault(name, []).append(output.clone())

        return hook

    handles = [m.register_forward_hook(remember(n or "(model)")) for n, m in model.named_modules()]
    watched: dict[int, torch.Tensor] = {}
    with torch.inference_mode(), watch(model, layers, lambda i, maps: watched.update({i: maps.clone()})):
        model(images)
    for handle in handles:
        handle.remove()
    assert sorted(watched) == list(range(len(layers)))
    for index, layer in enumerate(layers):
        maps, output = watched[index], seen[layer.module][layer.call]
        assert maps.shape == (3, layer.units, layer.height, layer.width), layer.name
        if layer.axes == "ntc":
            output = output[:, 1:].mT.reshape(maps.shape)
        elif layer.axes == "nhwc":
            output = output.movedim(-1, 1)
        assert torch.equal(maps, output.reshape(maps.shape)), layer.name


@pytest.mark.parametrize("network", [small_vit, small_swin, shuffle_net])
def test_a_change_of_the_image_shows_at_its_own_place(network):
    """Rows are rows and columns columns: a bright spot moves the maps of the earliest layers most where it is."""
    torch.manual_seed(0)
    model = network()
    images = torch.rand(1, 3, 112, 112)
    changed = images.clone()
    # In the middle of a window of 28 x 28 pixels, over which attention spreads it.
    changed[..., 90:106, 34:50] += 3
    layers = select(probe(model, images), ["all"])[:12]
    watched: list[list[torch.Tensor]] = [[], []]
    for index, batch in enumerate([images, changed]):
        with (
            torch.inference_mode(),
            watch(model, layers, lambda _, maps, i=index: watched[i].append(maps.clone())),
        ):
            model(batch)
    for layer, before, after in zip(layers, *watched, strict=True):
        if min(layer.height, layer.width) < 7:
            continue
        difference = (after - before).abs().mean((0, 1))
        row, column = divmod(int(difference.argmax()), layer.width)
        assert abs((row + 0.5) / layer.height - 98 / 112) < 0.15, layer.name
        assert abs((column + 0.5) / layer.width - 42 / 112) < 0.15, layer.name
