"""Presets mean the same in networks that write the same thing in different ways."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from actstats.layers import probe, select


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
