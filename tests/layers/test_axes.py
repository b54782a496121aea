"""Labels of axes: whatever is done to an image's axes, maps that claim rows and columns have them right."""

from __future__ import annotations

import hypothesis.strategies as st
import torch
from hypothesis import given, settings
from torch import Tensor

from actstats.layers import probe
from actstats.layers.axes import Axes, identify_axes
from actstats.layers.coordinates import of_images, reshaped
from tests.layers.networks import Apply

N, C, H, W = 2, 3, 4, 6


def coded() -> Tensor:
    """Images whose every value tells its image, channel, row and column."""
    return torch.arange(N * C * H * W, dtype=torch.float32).reshape(N, C, H, W)


def permute(data: st.DataObject, x: Tensor) -> Tensor:
    return x.permute(0, *data.draw(st.permutations(range(1, x.ndim))))


def transpose(data: st.DataObject, x: Tensor) -> Tensor:
    return x.transpose(*data.draw(st.tuples(st.integers(1, x.ndim - 1), st.integers(1, x.ndim - 1))))


def merge(data: st.DataObject, x: Tensor) -> Tensor:
    if x.ndim < 3:
        return x
    at = data.draw(st.integers(1, x.ndim - 2))
    return x.flatten(at, at + 1)


def split(data: st.DataObject, x: Tensor) -> Tensor:
    at = data.draw(st.integers(1, x.ndim - 1))
    size = x.shape[at]
    first = data.draw(st.sampled_from([k for k in range(1, size + 1) if size % k == 0]))
    return x.unflatten(at, (first, size // first))


def prepend(data: st.DataObject, x: Tensor) -> Tensor:
    at = data.draw(st.integers(1, x.ndim - 1))
    extra = x.new_full((*x.shape[:at], data.draw(st.integers(1, 2)), *x.shape[at + 1 :]), -1.0)
    return torch.cat([extra, x] if data.draw(st.booleans()) else [x, extra], at)


def cut(data: st.DataObject, x: Tensor) -> Tensor:
    at = data.draw(st.integers(1, x.ndim - 1))
    start = data.draw(st.integers(0, min(2, x.shape[at] - 1)))
    return x.narrow(at, start, x.shape[at] - start)


def add_axis(data: st.DataObject, x: Tensor) -> Tensor:
    return x.unsqueeze(data.draw(st.integers(1, x.ndim)))


def drop_axis(data: st.DataObject, x: Tensor) -> Tensor:
    if x.ndim < 3:
        return x
    at = data.draw(st.integers(1, x.ndim - 1))
    return x.select(at, 0) if data.draw(st.booleans()) else x.amax(at)


MOVES = [permute, transpose, merge, split, prepend, cut, add_axis, drop_axis]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_maps_that_claim_a_grid_have_it(data):
    """Within a map rows change by one row and columns by one column, whatever moves went before."""
    made: list[Tensor] = []

    def moved(x: Tensor) -> Tensor:
        if made:  # the forward pass is run once, by the probe
            return made[0]
        for _ in range(data.draw(st.integers(1, 6))):
            x = data.draw(st.sampled_from(MOVES))(data, x)
        made.append(x)
        return x

    found = [c.layer for c in probe(Apply(moved), coded().contiguous()).candidates]
    if not found:
        return
    (layer,) = found
    maps = layer.maps(made[0])
    assert maps.shape == (N, layer.units, layer.height, layer.width)
    assert maps.untyped_storage().data_ptr() == made[0].untyped_storage().data_ptr()
    if "t" in layer.axes or {"h", "w"} <= set(layer.axes):
        real = maps.flatten(0, 1)
        real = real[real.amax((1, 2)) >= 0]  # without units that hold nothing but what was prepended
        assert (real >= 0).all()
        rows = (real // W) % H
        columns = real % W
        assert (rows == rows[:, :, :1]).all()
        assert (columns == columns[:, :1, :]).all()
        assert (rows.diff(dim=1) > 0).all()
        assert (columns.diff(dim=2) > 0).all()


def axes_after(*shapes: tuple[int, ...], images: int = N) -> Axes | str:
    """Return the axes of images that are viewed in each of `shapes` in turn."""
    coordinates, shape = of_images(shapes[0]), shapes[0]
    for after in shapes[1:]:
        coordinates, shape = reshaped(shape, coordinates, after), after
    return identify_axes(shape, coordinates, images)


def test_reshapes():
    image, maps, tokens = (N, C, H, W), Axes("nchw", C, H, W), Axes("nct", C, H, W)
    assert axes_after(image) == maps
    assert axes_after(image, (N, C, H * W)) == tokens
    assert axes_after(image, (N, C, H * W), image) == maps
    assert "cannot be identified" in str(axes_after(image, (N, C, H * W), (N, C, W, H)))
    assert axes_after((2, 3, 1, 1), (2, 3)) == Axes("nc", 3, 1, 1)
    assert axes_after(image, (N, C * H * W)) == Axes("nc", C * H * W, 1, 1)
    assert "batch axis" in str(axes_after(image, (N * C, H * W)))
    windows = (N, C, H // 2, 2, W // 2, 2)
    assert "cannot be identified" in str(axes_after(image, windows))
    assert axes_after(image, windows, image) == maps
    assert axes_after(image, (N * C * H, W), (N * C, H * W), image) == maps
