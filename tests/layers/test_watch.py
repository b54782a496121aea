"""Watching layers during forward passes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from actstats.errors import ActstatsError
from actstats.layers import select_layers, watch
from tests.layers import networks

IMAGES = torch.rand(2, 3, 8, 8)


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_maps_come_at_once_in_order_and_before_they_are_overwritten():
    model = networks.Reused().eval()
    layers = select_layers(model, IMAGES, ["all"])
    seen: list[tuple[int, Tensor, Tensor]] = []
    with torch.inference_mode(), watch(model, layers, lambda i, m: seen.append((i, m, m.clone()))):
        model(IMAGES)
        out = model(IMAGES)
    names = [layers[i].name for i, _, _ in seen]
    assert names == ["stem", "relu:0", "conv:0", "conv:1", "relu:1"] * 2
    stem, relu = seen[0], seen[1]
    assert (stem[2] < 0).any()
    assert stem[1].data_ptr() == relu[1].data_ptr()
    assert torch.equal(relu[2], stem[2].relu())
    assert torch.equal(out, seen[-1][2])
    assert hooks(model) == 0


def test_one_call_of_a_reused_module():
    model = networks.Reused().eval()
    layers = select_layers(model, IMAGES, ["relu:1"])
    seen: list[Tensor] = []
    with torch.inference_mode(), watch(model, layers, lambda _, m: seen.append(m.clone())):
        out = model(IMAGES)
    assert len(seen) == 1
    assert torch.equal(seen[0], out)


def test_the_hooks_are_gone_after_an_error_and_calls_are_counted_afresh():
    model = networks.Reused().eval()
    layers = select_layers(model, IMAGES, ["relu"])
    seen: list[int] = []

    def fail_once(index: int, maps: Tensor) -> None:
        seen.append(index)
        if len(seen) == 1:
            raise RuntimeError("in the middle of a pass")

    with torch.inference_mode(), watch(model, layers, fail_once):
        with pytest.raises(RuntimeError, match="in the middle"):
            model(IMAGES)
        model(IMAGES)
    assert seen == [0, 0, 1]
    with pytest.raises(RuntimeError, match="by hand"), watch(model, layers, fail_once):
        raise RuntimeError("by hand")
    assert hooks(model) == 0


def test_other_sizes_of_image_are_refused():
    model = networks.Reused().eval()
    layers = select_layers(model, IMAGES)
    message = r"layer relu:0 returned \[2, 4, 7, 7\], but \[N, 4, 6, 6\] was probed"
    with torch.inference_mode(), watch(model, layers, lambda i, m: None):
        model(torch.rand(5, 3, 8, 8))
        with pytest.raises(ActstatsError, match=message):
            model(torch.rand(2, 3, 9, 9))


def test_a_layer_that_stays_away_is_named():
    class Moody(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.other, self.skip = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), False

        def forward(self, x):
            x = self.conv(x)
            return x if self.skip else self.other(x)

    model = Moody()
    layers = select_layers(model, IMAGES)
    model.skip = True
    with (
        watch(model, layers, lambda i, m: None),
        pytest.raises(ActstatsError, match="layer other did not run"),
    ):
        model(IMAGES)


def test_layers_of_another_model_and_doubles_are_refused():
    layers = select_layers(networks.Reused(), IMAGES)
    with (
        pytest.raises(ActstatsError, match="has no module relu"),
        watch(networks.Branches(), layers, lambda i, m: None),
    ):
        pass
    model = networks.Reused()
    with pytest.raises(ActstatsError, match="given twice"), watch(model, [layers[0]] * 2, lambda i, m: None):
        pass
    assert hooks(model) == 0


def test_the_whole_model_is_a_layer_too():
    model = networks.Preactivated().eval()
    layers = select_layers(model, IMAGES, ["all"])
    assert layers[-1].name == "(model)"
    seen: dict[int, Tensor] = {}
    with torch.inference_mode(), watch(model, layers, lambda i, m: seen.update({i: m.clone()})):
        out = model(IMAGES)
    assert torch.equal(seen[len(layers) - 1], out)
