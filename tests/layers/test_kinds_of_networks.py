"""Presets mean the same in networks that write the same thing in different ways."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import actstats
from actstats.layers import probe, select
from tests.data.images import encoded, write_folder


def names(model: nn.Module, preset: str, size: int = 64) -> list[str]:
    found = select(probe(model.eval(), torch.zeros(2, 3, size, size)), preset)
    return [layer.name for layer in found]


class Scale(nn.Module):
    def __init__(self, units: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((units, 1, 1), 1e-5))

    def forward(self, x):
        return x * self.gamma


class FrozenNorm(nn.Module):
    """Batch normalisation with constant statistics, in plain arithmetic."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(units, 1, 1)), nn.Parameter(torch.zeros(units, 1, 1))

    def forward(self, x):
        return x * self.scale + self.shift


@pytest.mark.parametrize(
    ("after", "layer"),
    [
        ([Scale(4)], "0"),
        ([nn.BatchNorm2d(4), Scale(4)], "1"),
        ([nn.BatchNorm2d(4), Scale(4), nn.Identity()], "1"),
        ([FrozenNorm(4), nn.ReLU()], "(model)"),
        ([nn.GroupNorm(2, 4), nn.ReLU(), Scale(4)], "2"),
    ],
)
def test_conv_stops_before_a_learnt_scale_and_follows_a_normalisation(after, layer):
    assert names(nn.Sequential(nn.Conv2d(3, 4, 3), *after), "conv") == [layer]


@pytest.mark.parametrize(
    ("arch", "last"),
    [
        ("poolformer_s12", "stages.3.blocks.1.mlp.fc2"),
        ("efficientformer_l1", "stages.3.blocks.2.mlp.norm2"),
        ("convnext_atto", "stages.3.blocks.1.mlp.fc2"),
    ],
)
def test_conv_stops_before_the_layer_scale_of_timms_networks(arch, last):
    timm = pytest.importorskip("timm")
    assert names(timm.create_model(arch, pretrained=False), "conv", 224)[-1] == last


@pytest.mark.parametrize(
    ("arch", "blocks"),
    [
        ("resnet50", 16),
        ("resnetv2_50", 16),
        ("convnext_atto", 12),
        ("swin_tiny_patch4_window7_224", 15),  # 12 blocks and 3 mergers of patches
        ("vit_tiny_patch16_224", 12),
    ],
)
def test_blocks_of_timms_networks_are_residual_blocks_and_no_stages(arch, blocks):
    timm = pytest.importorskip("timm")
    found = names(timm.create_model(arch, pretrained=False), "block", 224)
    assert len(found) == blocks
    assert not [name for name in found if "norm" in name]


class Codebook(nn.Module):
    """A map of codes, the nearest of a table's entries, as a discrete tokenizer has; `decode` sees the entries."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.encode, self.decode = way, nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 6, 3, 1, 1)
        self.entries = nn.Embedding(32, 8)

    def forward(self, x):
        z = self.encode(x).movedim(1, -1)
        codes = (z[..., None, :] - self.entries.weight).square().sum(-1).argmin(-1)
        match self.way:
            case "embedding":
                z = self.entries(codes).movedim(-1, 1)
            case "index":
                z = self.entries.weight[codes].movedim(-1, 1)
            case "index, units first":
                z = self.entries.weight.T[:, codes].movedim(0, 1)
            case "select":
                z = (
                    self.entries.weight.index_select(0, codes.flatten())
                    .unflatten(0, codes.shape)
                    .movedim(-1, 1)
                )
        return self.decode(z)


@pytest.mark.parametrize("way", ["embedding", "index", "index, units first", "select"])
def test_codes_are_followed_to_the_entries_of_a_table(way):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Codebook(way).eval()
    encode, decode = select(probe(model, torch.zeros(2, 3, 16, 20)), ["encode", "decode"])
    assert (encode.axes, encode.units, encode.height, encode.width) == ("nchw", 8, 8, 10)
    assert (decode.axes, decode.units, decode.height, decode.width) == ("nchw", 6, 8, 10)


class Conditional(nn.Module):
    """A map grown from one vector for each image, which is a row of a table."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.paint = nn.Parameter(torch.arange(12.0).reshape(4, 3)), nn.Conv2d(3, 5, 3, padding=1)

    def forward(self, x):
        row = self.rows[(x.mean((1, 2, 3)) * 255).round().long()]
        return self.paint(row[:, :, None, None].expand(-1, -1, 6, 7))


def test_a_network_that_knows_only_the_images_of_the_data_is_probed_with_these(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Conditional().eval()
    images = [torch.full((3, 4, 4), number / 255) for number in (0, 0, 3, 1)]
    sweep = actstats.sweep(model, images, tmp_path / "s.zarr", layers=["paint"], metrics=["mean"], workers=0)
    assert sweep.complete
    with torch.no_grad():
        right = torch.stack([model(image[None]).mean((0, 2, 3)) for image in images])
    np.testing.assert_allclose(
        actstats.open_dataset(tmp_path / "s.zarr")["mean"], right, rtol=1e-5, atol=1e-6
    )


def test_such_a_network_is_probed_with_images_that_can_be_read(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Conditional().eval()
    plain = actstats.Preprocessing(resize=4, crop=4, mean=(0, 0, 0), std=(1, 1, 1))
    files = {f"{index:02}.png": b"no image" for index in range(9)}
    files |= {f"{number}.png": encoded(Image.new("RGB", (4, 4), (number,) * 3)) for number in (91, 92)}
    with pytest.raises(actstats.ActstatsError, match=r"index 9[12] is out of bounds"):
        actstats.plan(
            model, write_folder(tmp_path / "images", files), tmp_path / "s.zarr", preprocessing=plain
        )
    model.rows = nn.Parameter(torch.arange(300.0).reshape(100, 3))
    planned = actstats.plan(model, tmp_path / "images", tmp_path / "s.zarr", preprocessing=plain)
    assert [layer.name for layer in planned.manifest.layers] == ["paint"]
