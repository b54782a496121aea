"""Layers whose axes cannot be read off their shapes: a grid is claimed where there is one, and nowhere else."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import actstats
from actstats.errors import ActstatsError
from actstats.layers import Layer, probe, select_layers, watch
from tests.layers.networks import Apply

IMAGES = torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
ROWS, COLUMNS, WIDTH = 4, 6, 5
TOKENS = ROWS * COLUMNS


def tokens(x: Tensor) -> Tensor:
    """[N, 3, 8, 12] to [N, 24, 12]: patches of 2 x 2 pixels, in row-major order."""
    n = len(x)
    x = x.reshape(n, 3, ROWS, 2, COLUMNS, 2).permute(0, 2, 4, 1, 3, 5)
    return x.reshape(n, TOKENS, 12)


class OnTokens(nn.Module):
    """A linear layer on each patch, any function of the tokens, and another linear layer."""

    def __init__(self, function: Callable[..., Tensor], *modules: nn.Module) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.patch, self.last = nn.Linear(12, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.function, self.modules_used = function, nn.ModuleList(modules)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.patch(tokens(x)), *self.modules_used))


def seen(model: nn.Module, images: Tensor = IMAGES) -> dict[str, tuple[int, int, int, int]]:
    """Return units, height, width and prefix of each layer."""
    layers = [c.layer for c in probe(model.eval(), images).candidates]
    return {layer.name: (layer.units, layer.height, layer.width, layer.prefix) for layer in layers}


def hooked(model: nn.Module, name: str, images: Tensor = IMAGES) -> tuple[Layer, Tensor, Tensor]:
    """Return a layer, the maps that `watch` passes, and what a plain hook on its module sees."""
    (layer,) = select_layers(model.eval(), images, [name])
    maps: list[Tensor] = []
    outputs: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_hook(lambda m, i, o: outputs.append(o))
    with torch.inference_mode(), watch(model, [layer], lambda index, values: maps.append(values)):
        model(images)
    handle.remove()
    return layer, maps[0], outputs[0]


def place_of_patches(model: nn.Module, name: str) -> list[tuple[int, int]]:
    """Change each patch in turn, and return the position of the map that changes most."""
    (layer,) = select_layers(model.eval(), IMAGES, [name])
    images = IMAGES[:1].repeat(1 + TOKENS, 1, 1, 1)
    for at in range(TOKENS):
        row, column = divmod(at, COLUMNS)
        images[1 + at, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] += 1
    maps: list[Tensor] = []
    with torch.inference_mode(), watch(model, [layer], lambda index, values: maps.append(values)):
        model(images)
    change = (maps[0][1:] - maps[0][:1]).abs().sum(1).flatten(1)
    return [divmod(int(at), layer.width) for at in change.argmax(1)]


IN_ROWS = [divmod(at, COLUMNS) for at in range(TOKENS)]

CLASS = torch.ones(1, 1, WIDTH)
REGISTERS = torch.zeros(1, 3, WIDTH)


def beside(x: Tensor, before: int, after: int) -> Tensor:
    return torch.cat([x.new_ones(len(x), before, WIDTH), x, x.new_ones(len(x), after, WIDTH)], 1)


def inserted(x: Tensor) -> Tensor:
    x = torch.cat([CLASS.expand(len(x), -1, -1), x], 1)
    return torch.cat([x[:, :1], REGISTERS.expand(len(x), -1, -1), x[:, 1:]], 1)


def written(x: Tensor) -> Tensor:
    out = x.new_zeros(len(x), TOKENS + 2, WIDTH)
    out[:, 1:-1] = x
    return out


def scattered(x: Tensor) -> Tensor:
    out = x.new_zeros(len(x), TOKENS + 1, WIDTH)
    out[:, torch.arange(1, TOKENS + 1)] = x
    return out


@pytest.mark.parametrize(
    ("function", "prefix"),
    [
        (lambda x: beside(x, 1, 0), 1),
        (lambda x: beside(x, 0, 4), 0),
        (inserted, 4),
        (lambda x: torch.cat([inserted(x), x.new_ones(len(x), 2, WIDTH)], 1), 4),
        (lambda x: inserted(x)[:, 1:], 3),
        (lambda x: torch.cat([x.mean(1, keepdim=True), x], 1), 1),
        (lambda x: F.pad(x, (0, 0, 2, 0)), 2),
        (written, 1),
        (scattered, 1),
        (lambda x: torch.cat([t[:, None] for t in inserted(x).unbind(1)], 1), 4),
    ],
)
def test_tokens_before_and_after_a_grid_are_no_part_of_it(function, prefix):
    model = OnTokens(function)
    assert seen(model)["last"] == (WIDTH, ROWS, COLUMNS, prefix)
    _, maps, output = hooked(model, "last")
    expected = output[:, prefix : prefix + TOKENS].transpose(1, 2).reshape(2, WIDTH, ROWS, COLUMNS)
    assert torch.equal(maps, expected)
    assert place_of_patches(model, "last") == IN_ROWS


ORDER = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(1))


def in_windows(x: Tensor) -> Tensor:
    """Put tokens into windows of 2 x 2, one window after the other."""
    n, _, c = x.shape
    return x.view(n, 2, 2, 3, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(n, TOKENS, c)


def out_of_windows(x: Tensor) -> Tensor:
    n, _, c = x.shape
    return x.view(n, 2, 3, 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(n, TOKENS, c)


def unshuffled(x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    out[:, ORDER] = x
    return out


@pytest.mark.parametrize(
    ("there", "back"),
    [
        (lambda x: x[:, ORDER], lambda x: x[:, ORDER.argsort()]),
        (lambda x: x.index_select(1, ORDER), unshuffled),
        (
            lambda x: x.gather(1, ORDER[None, :, None].expand(len(x), -1, WIDTH)),
            lambda x: x.scatter(1, ORDER[None, :, None].expand(len(x), -1, WIDTH), x),
        ),
        (lambda x: x.roll(5, 1), lambda x: x.roll(-5, 1)),
        (lambda x: x.flip(1), lambda x: x.flip(1)),
        (in_windows, out_of_windows),
        (
            lambda x: x.unflatten(1, (ROWS, COLUMNS)).transpose(1, 2).flatten(1, 2),
            lambda x: x.unflatten(1, (COLUMNS, ROWS)).transpose(1, 2).flatten(1, 2),
        ),
        (
            lambda x: torch.stack([x[:, at] for at in ORDER.tolist()], 1),
            lambda x: torch.stack([x[:, at] for at in ORDER.argsort().tolist()], 1),
        ),
        (lambda x: x.sort(1).values, None),
        (lambda x: x.gather(1, x[..., :1].argsort(1).expand_as(x)), None),
        (lambda x: x + x.flip(1), None),
        (lambda x: torch.cat([x, x], 1)[:, 6 : TOKENS + 6], None),
    ],
)
def test_tokens_in_another_order_are_one_row_until_they_are_put_back(there, back):
    try:
        assert seen(OnTokens(there))["last"] == (WIDTH, 1, TOKENS, 0)
    except KeyError:
        pytest.fail("one row is known to be right")
    if back is not None:
        model = OnTokens(lambda x: back(there(x)))
        assert seen(model)["last"] == (WIDTH, ROWS, COLUMNS, 0)
        assert place_of_patches(model, "last") == IN_ROWS


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.cat([x, x[:, ::2]], 1),
        lambda x: torch.cat([x, x], 1),
        lambda x: torch.cat([x, F.avg_pool2d(x.transpose(1, 2).unflatten(2, (4, 6)), 2).flatten(2).mT], 1),
        lambda x: torch.cat([x, x.sort(1).values], 1),
    ],
)
def test_two_grids_in_one_sequence_are_one_row(function):
    units, height, _, prefix = seen(OnTokens(function))["last"]
    assert (units, height, prefix) == (WIDTH, 1, 0)


@pytest.mark.parametrize("branch_first", [False, True])
@pytest.mark.parametrize(
    "mixer",
    [
        nn.Conv1d(TOKENS, TOKENS, 1),
        nn.Sequential(Apply(lambda x: x.unsqueeze(-1)), nn.Conv2d(TOKENS, TOKENS, 1), nn.Flatten(2)),
        nn.Sequential(Apply(lambda x: x.mT), nn.Linear(TOKENS, TOKENS), Apply(lambda x: x.mT)),
        Apply(lambda x: torch.full((TOKENS, TOKENS), 0.1) @ x),
    ],
)
def test_units_stay_units_where_tokens_are_mixed(mixer, branch_first):
    def block(x: Tensor, mixer: nn.Module) -> Tensor:
        return mixer(x) + x if branch_first else x + mixer(x)

    model = OnTokens(block, mixer)
    layers = seen(model)
    assert layers["last"] == (WIDTH, ROWS, COLUMNS, 0)
    for units, height, width, _ in layers.values():
        assert units == WIDTH
        assert (height, width) in ((ROWS, COLUMNS), (1, TOKENS))
    _, maps, output = hooked(model, "last")
    assert torch.equal(maps.flatten(2), output.transpose(1, 2))


def test_a_convolution_over_tokens_alone_is_refused():
    """Neither of the axes of [N, tokens, channels] is known to be places after `Conv1d(tokens, ...)`."""
    model = OnTokens(lambda x, mixer: mixer(x), nn.Conv1d(TOKENS, 7, 1))
    with pytest.raises(
        ActstatsError, match=r"\[2, 7, 5\], whose unit, row and column axes cannot be identified"
    ):
        select_layers(model, IMAGES, ["modules_used.0"])


def test_tokens_before_the_batch_axis():
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 2)
        model = nn.Sequential(nn.Conv2d(3, 8, 2, 2), Apply(lambda x: x.flatten(2).permute(2, 0, 1)), encoder)
    layer, maps, output = hooked(model, "2.layers.1")
    assert output.shape == (TOKENS, 2, 8)
    assert (layer.axes, layer.units, layer.height, layer.width) == ("tnc", 8, ROWS, COLUMNS)
    assert layer.shape == (TOKENS, 8)
    assert torch.equal(maps, output.permute(1, 2, 0).reshape(2, 8, ROWS, COLUMNS))
    with pytest.raises(ActstatsError, match=r"returned \[25, 2, 8\], but \[24, N, 8\] was probed"):
        layer.maps(torch.zeros(25, 2, 8))


def test_a_sweep_of_tokens_before_the_batch_axis(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        norm = nn.LayerNorm(8)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 2, 2), Apply(lambda x: x.flatten(2).permute(2, 0, 1)), norm
        ).eval()
    images = torch.rand(5, 3, 8, 12, generator=torch.Generator().manual_seed(3))
    actstats.sweep(
        model, images, tmp_path / "s.zarr", layers=["2"], batch_size=2, partition_size=3, device="cpu"
    )
    dataset = actstats.open_dataset(tmp_path / "s.zarr").load()
    with torch.no_grad():
        maps = model(images).double().permute(1, 2, 0).reshape(5, 8, ROWS, COLUMNS).numpy()
    variation = np.abs(np.diff(maps, axis=2)).sum((2, 3)) + np.abs(np.diff(maps, axis=3)).sum((2, 3))
    np.testing.assert_allclose(dataset["mean"], maps.mean((2, 3)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(dataset["total_variation"], variation, rtol=1e-4)


def test_unfolded_maps_have_their_units_first():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Unfold(2, stride=2), nn.Fold((8, 12), 2, stride=2))
    maps = (4, 8, 12, 0)
    assert seen(model) == {"0": maps, "1": (16, ROWS, COLUMNS, 0), "2": maps, "(model)": maps}
    _, unfolded, output = hooked(model, "1")
    assert torch.equal(unfolded, output.reshape(2, 16, ROWS, COLUMNS))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.reshape(2, 4, 4, 2, 6, 2).permute(0, 1, 3, 5, 2, 4).reshape(2, 4, 4, 24),
        lambda x: x.reshape(2, 2, 2, 96).transpose(2, 3) @ x.reshape(2, 2, 2, 96),
        lambda x: torch.einsum("nchw,ncij->nchi", x, x),
    ],
    ids=["pixels by patches", "attention", "rows by rows"],
)
def test_axes_that_are_no_rows_and_columns_make_no_map(function):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.after = nn.Conv2d(3, 4, 1), nn.LazyConv2d(6, 1)

        def forward(self, x):
            return self.after(function(self.stem(x)))

    model = Net()
    with torch.no_grad():
        model(IMAGES)
    result = probe(model, IMAGES)
    assert {c.layer.name for c in result.candidates} == {"stem"}
    assert "cannot be identified" in result.refused["after"]


class SelectiveKernel(nn.Module):
    def __init__(self):
        super().__init__()
        self.paths = nn.ModuleList([nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(4, 6, 3, padding=2, dilation=2)])

    def forward(self, x):
        x = torch.stack([path(x) for path in self.paths], 1)
        return (x * x.mean((3, 4), keepdim=True).softmax(1)).sum(1)


class AlongRows(nn.Module):
    """An LSTM over the columns of each row, and another over the rows of each column."""

    def __init__(self):
        super().__init__()
        self.across, self.down = nn.LSTM(4, 3, batch_first=True), nn.GRU(3, 6, batch_first=True)

    def forward(self, x):
        n, _, h, w = x.shape
        x = self.across(x.permute(0, 2, 3, 1).reshape(n * h, w, 4))[0].view(n, h, w, 3)
        x = self.down(x.transpose(1, 2).reshape(n * w, h, 3))[0].view(n, w, h, 6)
        return x.permute(0, 3, 2, 1)


class Windowed(nn.Module):
    """Attention in windows of 4 x 4, after shifting by 2, with padding of the border."""

    def __init__(self):
        super().__init__()
        self.attention, self.inner = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 6)

    def forward(self, x):
        x = F.pad(x.permute(0, 2, 3, 1), (0, 0, 0, 4)).roll((-2, -2), (1, 2))
        n, h, w, c = x.shape
        x = x.view(n, h // 4, 4, w // 4, 4, c).transpose(2, 3).reshape(-1, 16, c)
        x = self.inner(self.attention(x, x, x)[0]).view(n, h // 4, w // 4, 4, 4, 6)
        x = x.transpose(2, 3).reshape(n, h, w, 6).roll((2, 2), (1, 2))
        return x[:, :, :-4].permute(0, 3, 1, 2)


class Masked(nn.Module):
    """Writes constants to elements that depend on the image, as in `x[x < 0] = 0`."""

    def forward(self, x):
        x = torch.cat([x, x[:, :2]], 1)
        x[x < 0] = 0
        x = x.masked_fill(x > 2, 2.0).masked_fill_(x > 1, torch.tensor(1.0)).abs_()
        bright = x.mean((1, 2, 3)) > 0
        x[bright, 1, 0, 0] = 5.0
        return x.scatter(1, torch.zeros_like(x[:, :1], dtype=torch.long), 0.5)


@pytest.mark.parametrize("module", [SelectiveKernel, AlongRows, Windowed, Masked])
def test_ordinary_maps_are_read_whatever_was_done_inside(module):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 1), module(), nn.BatchNorm2d(6))
    assert seen(model)["1"] == seen(model)["2"] == (6, 8, 12, 0)
    _, maps, output = hooked(model, "2")
    assert torch.equal(maps, output)


def test_a_mirrored_map_and_its_sum_with_the_map_are_maps():
    mirror = Apply(lambda x: x.flip(-1))
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), mirror, Apply(lambda x: x + x.flip(3)), nn.Conv2d(4, 4, 3, padding=1)
    )
    assert set(seen(model).values()) == {(4, 8, 12, 0)}
    _, maps, output = hooked(model, "1")
    assert torch.equal(maps, output)


@contextmanager
def seconds(limit: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError(f"no end within {limit} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(limit)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    "back",
    [
        lambda x: x.flatten(2).unflatten(2, x.shape[2:]),
        lambda x: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2),
        lambda x: x.unsqueeze(1).squeeze(1),
        lambda x: x.view(2, 4, -1).view(2, 2, 2, -1).view_as(x),
    ],
)
def test_a_view_that_leads_back_ends_and_the_chain_goes_on(back):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), Apply(back), nn.ReLU(), nn.Conv2d(4, 2, 1))
    with seconds(20):
        assert [layer.name for layer in select_layers(model, IMAGES)] == ["2", "3"]
        assert seen(model)["2"] == (4, 8, 12, 0)


@torch.library.custom_op("actstats_tests::turned", mutates_args=())
def turned(x: Tensor) -> Tensor:
    return x.flip(1).clone()


@torch.library.custom_op("actstats_tests::shifted", mutates_args=())
def shifted(x: Tensor) -> Tensor:
    return torch.cat([x[:, -1:], x[:, :-1]], 1).contiguous()


@torch.library.custom_op("actstats_tests::bent", mutates_args=())
def bent(x: Tensor) -> Tensor:
    return x / (1 + x.abs())


@torch.library.custom_op("actstats_tests::blended", mutates_args=())
def blended(x: Tensor) -> Tensor:
    return x.cumsum(1).flip(1) + x.mean(1, keepdim=True)


@torch.library.custom_op("actstats_tests::spread", mutates_args=())
def spread(x: Tensor) -> Tensor:
    return x.cumsum(1).cumsum(2) + x.mean((1, 2), keepdim=True)


@pytest.mark.parametrize(
    ("operation", "grid"),
    [
        (turned, (1, TOKENS)),
        (lambda x: turned(turned(x)), (ROWS, COLUMNS)),
        (shifted, (1, TOKENS)),
        (bent, (ROWS, COLUMNS)),
        (blended, (1, TOKENS)),
        (lambda x: x + blended(x), (ROWS, COLUMNS)),
    ],
)
def test_what_an_operation_of_ones_own_does_is_measured(operation, grid):
    assert seen(OnTokens(operation))["last"] == (WIDTH, *grid, 0)


def test_an_output_whose_axes_are_lost_names_the_operation():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), Apply(lambda x: spread(x.flatten(2).mT)))
    with pytest.raises(
        ActstatsError, match=r"cannot be identified \(they are lost in the operation spread\)"
    ):
        select_layers(model, IMAGES, ["1"])
