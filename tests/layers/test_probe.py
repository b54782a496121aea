"""Probing and choosing layers in small networks that are hard to hook."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from actstats.errors import ActstatsError
from actstats.layers import probe, select_layers
from tests.layers import networks

IMAGES = torch.rand(2, 3, 8, 8)


def chosen(model: nn.Module, *selectors: str, images: torch.Tensor = IMAGES) -> list[str]:
    return [layer.name for layer in select_layers(model, images, selectors or ("conv",))]


def test_each_call_of_a_reused_module_is_a_layer():
    model = networks.Reused()
    assert chosen(model) == ["relu:0", "conv:0", "relu:1"]
    assert chosen(model, "relu") == ["relu:0", "relu:1"]
    assert chosen(model, "relu:1") == ["relu:1"]
    assert chosen(model, "relu:1", "stem", "stem:0", "relu") == ["stem", "relu:0", "relu:1"]


def test_no_layer_has_maps_that_are_overwritten_before_they_are_returned():
    """The default is the ReLU that writes over the norm's output; `all` has both, seen at their own times."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2))
    assert chosen(model) == ["2"]
    assert chosen(model, "all") == ["0", "1", "2", "3"]


@pytest.mark.parametrize("activation", ["relu", "clamp", "swish", "hard swish", "none"])
def test_the_chain_ends_at_the_module_that_returns_it(activation):
    model = nn.ModuleDict({"a": networks.InsideOut(activation), "b": networks.InsideOut(activation, 4)})
    model.forward = lambda x: model["b"](model["a"](x))  # type: ignore[method-assign]
    assert chosen(model) == ["a", "b"]


def test_a_function_between_modules_leaves_the_last_module_before_it():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.norm, self.two = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return self.two(torch.relu_(self.norm(self.one(x))))

    assert chosen(Functional()) == ["norm", "two"]


def test_branches():
    assert chosen(networks.Branches()) == ["left", "right.1", "last.1"]
    assert chosen(networks.Branches(), "block") == ["left", "right.1"]


def test_an_output_read_twice_is_its_own_end():
    assert chosen(networks.Preactivated()) == ["stem", "conv"]


def test_a_norm_in_plain_arithmetic_is_followed():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), networks.WrittenOutNorm(), nn.GELU(), nn.Conv2d(4, 4, 1))
    assert chosen(model) == ["2", "3"]


def test_a_norm_after_the_activation_is_another_step():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))
    assert chosen(model) == ["1", "3"]


def test_all_has_each_value_once():
    inner = nn.Sequential(nn.Identity(), nn.Conv2d(3, 4, 1), nn.Dropout(), nn.ReLU(inplace=True))
    model = nn.Sequential(nn.Identity(), inner, nn.Flatten())
    assert chosen(model, "all") == ["1.1", "1"]


def test_a_network_without_convolution_or_block_says_so():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    with pytest.raises(ActstatsError, match=r"'conv' matches nothing: .* no convolution"):
        chosen(model)
    (layer,) = select_layers(model, IMAGES, ["all"])
    assert (layer.name, layer.units, layer.height, layer.width) == ("1", 5, 1, 1)
    assert layer.maps(torch.zeros(7, 5)).shape == (7, 5, 1, 1)


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_tokens_are_seen_as_their_grid(prefix):
    model, images = networks.Tokens(prefix), torch.rand(2, 3, 12, 20)
    result = probe(model, images)
    assert result.default == "block"
    layers = select_layers(model, images)
    assert [layer.name for layer in layers] == ["blocks.0", "blocks.1", "blocks.2"]
    assert {(i.units, i.height, i.width, i.prefix, i.axes) for i in layers} == {(8, 3, 5, prefix, "ntc")}
    output = torch.rand(4, prefix + 15, 8)
    maps = layers[0].maps(output)
    assert maps.data_ptr() == output[:, prefix:].data_ptr()
    for row in range(3):
        for column in range(5):
            assert torch.equal(maps[:, :, row, column], output[:, prefix + row * 5 + column])
    (attention,) = select_layers(model, images, ["blocks.0.attention"])
    assert (attention.height, attention.width) == (3, 5)


def test_tokens_without_a_grid_are_one_row():
    model = nn.Sequential(nn.Flatten(1), nn.Unflatten(1, (6, 32)), nn.Linear(32, 4))
    (layer,) = select_layers(model, IMAGES, ["2"])
    assert (layer.units, layer.height, layer.width) == (4, 1, 6)


def test_windows_are_refused_and_what_is_around_them_is_not():
    result = probe(networks.Windows(), IMAGES)
    assert result.refused.keys() == {"inner"}
    axes = {c.layer.name: c.layer.axes for c in result.candidates}
    assert axes == {"conv": "nchw", "mixed": "nhwc", "outer": "nhwc", "(model)": "nhwc"}
    with pytest.raises(
        ActstatsError, match=r"'inner' cannot be hooked: it returns \[8, 16, 6\] for 2 images"
    ):
        select_layers(networks.Windows(), IMAGES, ["inner"])


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        ("integers", r"'integers' cannot be hooked: it returns torch.int64"),
        ("mapping", r"'mapping' cannot be hooked: it returns a dict"),
        ("constant", r"does not depend on the image"),
        ("split", r"the first axis is not the batch axis"),
        ("cubes", r"unit, row and column axes cannot be identified"),
        ("auxiliary", r"'auxiliary' never ran: the model does not call it in eval mode"),
        ("auxiliary.0", r"'auxiliary.0' never ran: auxiliary, which holds it"),
        ("aux*", r"pattern 'aux\*' matches nothing that can be hooked: layer 'auxiliary' never ran"),
        ("conv:1", r"conv is called once in a forward pass; calls are counted from 0"),
        ("realu", r"no layer matches 'realu'; did you mean relu"),
        ("xyzzy", r"no layer matches 'xyzzy'; `actstats layers` lists"),
        ("paper", r"'paper' supports only AlexNet, GoogLeNet, ResNet-50"),
        ("block", r"no repeated blocks"),
    ],
)
def test_what_cannot_be_hooked_is_refused_by_name(selector, message):
    with pytest.raises(ActstatsError, match=message) as caught:
        select_layers(networks.Odd(), IMAGES, ["conv", selector])
    assert "\n" not in str(caught.value)


def test_no_selector_is_an_error():
    with pytest.raises(ActstatsError, match="no layers were selected"):
        select_layers(networks.Odd(), IMAGES, [])


def test_the_first_of_a_tuple_is_the_layer():
    (layer,) = select_layers(networks.Odd(), IMAGES, ["pair"])
    assert (layer.units, layer.height, layer.width) == (4, 8, 8)


def test_patterns_and_order():
    model = networks.Branches()
    assert chosen(model, "*.bn", "left.conv") == ["left.conv", "left.bn", "right.1.bn"]
    assert chosen(model, "right*") == ["right.0", "right.1.conv", "right.1.bn", "right.1", "right"]
    assert chosen(model, "l?ft", "right.[0]") == ["left", "right.0"]


def test_a_shared_module_goes_by_its_first_name():
    shared = nn.Conv2d(3, 3, 1)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU())
    assert chosen(model, "all") == ["0:0", "1", "0:1", "3"]


def test_the_model_is_left_as_it_was():
    model = networks.Branches().train()
    model.left.eval()
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    probe(model, torch.rand(1, 3, 8, 8))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert model(torch.rand(2, 3, 8, 8)).requires_grad


def test_a_model_that_fails_on_the_example_is_one_line_and_left_as_it_was():
    model = networks.Branches().train()
    with pytest.raises(
        ActstatsError, match=r"the model fails on an example of shape \[2, 5, 8, 8\]: .*channels"
    ):
        probe(model, torch.rand(2, 5, 8, 8))
    assert all(module.training for module in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
