"""The built-in statistics: what each stores, the buffers it is computed in, and how those become its variables.

All of them come from one call of the fused kernel (`actstats_kernels.ops.accumulate`) per layer and batch,
which writes the buffers in `BUFFERS`. A new statistic is its definition (`actstats_kernels.reference`), its
kernels, and one entry here; the engine, the store and the command line read everything else from that entry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from actstats.metrics.protocol import Output
from actstats_kernels.bins import MOMENTS, resolved

if TYPE_CHECKING:
    from torch import Tensor

    from actstats.layers import Layer


@dataclass(frozen=True)
class Buffer:
    """An argument of the fused kernel that holds one partition's results on the device.

    Attributes:
        dims: its dimensions; `image` counts the readable images of a partition.
        dtype: a torch dtype by name, or `count`: int32, or int64 where a partition's counts could overflow that.
        start: what sums start from in each partition; None where every row is overwritten.
    """

    dims: tuple[str, ...]
    dtype: str
    start: float | None = None


BUFFERS: Final = {
    "moments": Buffer(("moment", "image", "unit"), "float32"),
    "argmax": Buffer(("image", "unit"), "int32"),
    "histogram": Buffer(("unit", "bin"), "count", start=0),
    "power": Buffer(("unit", "frequency"), "float64", start=0),
}
"""Every buffer of the fused kernel, by the name of its argument."""


@dataclass(frozen=True)
class Rows:
    """What the values of a partition belong to, for `Builtin.stored`.

    Attributes:
        layers: the layers along the unit axis.
        readable: positions in the partition of the images that could be read, int64 [n].
        start: index of the partition's first image.
    """

    layers: Sequence[Layer]
    readable: NDArray[np.int64]
    start: int


@dataclass(frozen=True)
class Builtin:
    """A built-in statistic.

    Attributes:
        outputs: the variables it stores.
        buffers: the kernel's buffers that it needs, keys of `BUFFERS`.
        finish: from those buffers, cut to the readable images, and k to the device's tensors by output. It
            never waits for the device.
        stored: what is done to an output's values on the host before they are stored, by output.
    """

    outputs: tuple[Output, ...]
    buffers: tuple[str, ...]
    finish: Callable[[Mapping[str, Tensor], int], dict[str, Tensor]]
    stored: Mapping[str, Callable[[NDArray[Any], Rows], NDArray[Any]]] | None = None

    def outputs_for(self, *, wide_counts: bool) -> tuple[Output, ...]:
        """Return the outputs, with counts in uint64 where uint32 could overflow."""
        if not wide_counts:
            return self.outputs
        counts = {name for name in self.buffers if BUFFERS[name].dtype == "count"}
        return tuple(replace(o, dtype="uint64") if o.name in counts else o for o in self.outputs)


def _moment(name: str, units: str, description: str) -> Builtin:
    row = MOMENTS.index(name)
    output = Output(name, ("image", "unit"), units=units, description=description)
    return Builtin((output,), ("moments",), lambda buffers, _: {name: buffers["moments"][row]})


def _maximum(buffers: Mapping[str, Tensor], _: int) -> dict[str, Tensor]:
    return {"maximum": buffers["moments"][MOMENTS.index("maximum")], "argmax": buffers["argmax"]}


def _top(buffers: Mapping[str, Tensor], k: int) -> dict[str, Tensor]:
    # Imported here: the declarations are read by commands that do without torch.
    from actstats_kernels import ops

    ranked = ops.top_k(buffers["moments"][MOMENTS.index("maximum")], buffers["argmax"], k)
    return dict(zip(("top_value", "top_image", "top_position"), ranked, strict=True))


def _without_unresolved(power: NDArray[Any], rows: Rows) -> NDArray[Any]:
    """Return power [unit, frequency] with NaN in the bins that a unit's maps are too small to resolve."""
    power = power.copy()
    stop = 0
    for layer in rows.layers:
        start, stop = stop, stop + layer.units
        power[start:stop, ~resolved(layer.height, layer.width)] = np.nan
    return power


def _image_indices(row: NDArray[Any], rows: Rows) -> NDArray[Any]:
    """Return indices along `image` for row numbers among the readable images; -1, no image, stays -1."""
    return np.where(row < 0, -1, np.append(rows.readable, -1)[row] + rows.start)


def _ranked(name: str, dtype: str, units: str, description: str) -> Output:
    return Output(name, ("partition", "unit", "rank"), dtype, units, description, merge="rank")


BUILTINS: Final[dict[str, Builtin]] = {
    "mean": _moment("mean", "activation", "mean over the map's positions"),
    "variance": _moment("variance", "activation^2", "population variance over the map's positions"),
    "maximum": Builtin(
        (
            Output("maximum", units="activation", description="greatest activation of the map"),
            Output(
                "argmax",
                dtype="int32",
                units="position",
                description="flat position row * width + column of the maximum, the lowest on ties",
            ),
        ),
        ("moments", "argmax"),
        _maximum,
    ),
    "active_fraction": _moment("active_fraction", "1", "share of positions with activation > 0"),
    "total_variation": _moment(
        "total_variation",
        "activation",
        "sum of absolute differences between vertical and horizontal neighbours",
    ),
    "power_spectrum": Builtin(
        (
            Output(
                "power_spectrum",
                ("partition", "unit", "frequency"),
                "float64",
                units="activation^2",
                description="DFT power / (height * width)^2 in radial bins, summed over the partition's images",
            ),
        ),
        ("power",),
        lambda buffers, _: {"power_spectrum": buffers["power"]},
        {"power_spectrum": _without_unresolved},
    ),
    "histogram": Builtin(
        (
            Output(
                "histogram",
                ("partition", "unit", "bin"),
                "uint32",
                units="count",
                description="number of activation values between bin_left and bin_right",
            ),
        ),
        ("histogram",),
        lambda buffers, _: {"histogram": buffers["histogram"]},
    ),
    "top": Builtin(
        (
            _ranked("top_value", "float32", "activation", "greatest maxima of the partition's images"),
            _ranked(
                "top_image",
                "int64",
                "index",
                "the image (index along `image`) of each top value; of equal values, the lowest image first",
            ),
            _ranked(
                "top_position", "int32", "position", "flat position row * width + column of each top value"
            ),
        ),
        ("moments", "argmax"),
        _top,
        {"top_image": _image_indices},
    ),
}
"""Each built-in statistic by name."""

DEFAULT: Final = tuple(BUILTINS)
"""What a sweep computes unless told otherwise: all of them."""
