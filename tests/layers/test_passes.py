"""Forward passes that are not like the one that was probed, and networks that call themselves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from actstats.errors import ActstatsError
from actstats.layers import select_layers, watch


class Switched(nn.Module):
    """A convolution whose input and use depend on `way`."""

    def __init__(self, way: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.relu, self.way = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), way

    def forward(self, x: Tensor) -> Tensor:
        match self.way:
            case "tiles":
                return self.relu(self.stem(torch.cat([x, x.flip(-1)]))).unflatten(0, (2, -1)).mean(0)
            case "route":
                bright = x.mean((1, 2, 3)) > 0.5
                out = x.new_zeros(len(x), 4, *x.shape[2:])
                out[bright] = self.stem(x[bright])
                return self.relu(out)
            case "exit":
                return self.relu(x[:, :1].expand(-1, 4, -1, -1))
            case "chunks":
                return self.relu(torch.cat([self.stem(part) for part in x.split(2)]))
            case "more":
                return self.relu(self.stem(self.relu(x)))
            case "none":
                return self.stem(x)
            case "mirror":
                return self(x, "inner") + self(x.flip(-1), "inner")
        return self.relu(self.stem(x))

    def __call__(self, x: Tensor, way: str | None = None) -> Tensor:
        before, self.way = self.way, self.way if way is None else way
        try:
            return super().__call__(x)
        finally:
            self.way = before


def images(count: int = 5) -> Tensor:
    torch.manual_seed(1)
    return torch.rand(count, 3, 6, 6) * torch.linspace(0.5, 1.5, count)[:, None, None, None]


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("tiles", "layer stem returned maps of 10 images in a forward pass of 5"),
        ("route", r"layer stem returned maps of [1-4] images in a forward pass of 5"),
        ("exit", "layer stem did not run"),
        ("chunks", "layer stem returned maps of 2 images in a forward pass of 5"),
        ("more", r"layer relu returned \[5, 3, 6, 6\]|layer relu: relu was called 2 times .* but 1 times"),
        ("none", "layer relu did not run"),
    ],
)
def test_a_pass_that_differs_from_the_probed_one_is_refused_by_layer(way, message):
    model = Switched().eval()
    layers = select_layers(model, images(2), ["stem", "relu"])
    assert [layer.name for layer in layers] == ["stem", "relu"]
    model.way = way
    with (
        torch.no_grad(),
        watch(model, layers, lambda *_: None),
        pytest.raises(ActstatsError, match=message) as caught,
    ):
        model(images())
    assert "\n" not in str(caught.value)


class Repeating(nn.Module):
    """A recurrent convolution that runs `times` times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.step, self.times = nn.Conv2d(3, 3, 3, padding=1), times

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            x = torch.tanh(self.step(x))
        return x


@pytest.mark.parametrize("times", [1, 2, 4, 5])
def test_a_module_that_is_called_more_or_less_often_is_refused(times):
    model = Repeating(3).eval()
    layers = select_layers(model, images(2), ["step:0"])
    assert [layer.calls for layer in layers] == [3]
    model.times = times
    with (
        torch.no_grad(),
        watch(model, layers, lambda *_: None),
        pytest.raises(
            ActstatsError, match=f"layer step:0: step was called {times} times .* but 3 times when"
        ),
    ):
        model(images())


def test_a_network_that_calls_itself_has_all_its_calls_in_order():
    model = Switched("mirror").eval()
    layers = select_layers(model, images(2), ["stem", "relu", "(model)"])
    names = [layer.name for layer in layers]
    assert names == ["stem:0", "relu:0", "(model):0", "stem:1", "relu:1", "(model):1", "(model):2"]
    seen: dict[str, Tensor] = {}
    with torch.no_grad(), watch(model, layers, lambda i, maps: seen.update({names[i]: maps.clone()})):
        for count in (5, 3):
            seen.clear()
            out = model(images(count))
    plain = [model.stem(x) for x in (images(3), images(3).flip(-1))]
    for number, expected in enumerate(plain):
        assert torch.equal(seen[f"stem:{number}"], expected)
        assert torch.equal(seen[f"relu:{number}"], expected.relu())
    assert torch.equal(seen["(model):2"], out)
    assert torch.equal(out, plain[0].relu() + plain[1].relu())


def test_a_module_inside_that_calls_itself_is_numbered_as_it_returns():
    class Halving(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x, depth=2):
            return self.conv(x) if not depth else self(x, depth - 1) + 1

    torch.manual_seed(0)
    model = nn.Sequential(Halving()).eval()
    layers = select_layers(model, images(2), ["0"])
    assert [layer.name for layer in layers] == ["0:0", "0:1", "0:2"]
    seen: list[Tensor] = []
    with torch.no_grad(), watch(model, layers, lambda _, maps: seen.append(maps.clone())):
        model(images())
        expected = model[0].conv(images())
    for number, maps in enumerate(seen):
        torch.testing.assert_close(maps, expected + number)


def test_a_pass_that_fails_inside_does_not_count_for_the_next():
    model = Switched("mirror").eval()
    layers = select_layers(model, images(2), ["stem:0", "stem:1"])
    failing = True

    def once(index: int, maps: Tensor) -> None:
        nonlocal failing
        if failing:
            failing = False
            raise RuntimeError("inside")

    with torch.no_grad(), watch(model, layers, once):
        with pytest.raises(RuntimeError, match="inside"):
            model(images())
        model(images())
        model(images(2))
