"""The built-in statistics: their outputs, the kernel buffers they need, and how buffers become variables.

All of them are computed by one call of the fused kernel (`actstats_kernels.ops.accumulate`) per layer and batch,
which writes the buffers in `BUFFERS`. To add a statistic, define it in `actstats_kernels.reference`, implement it in
the kernels, and add one entry here: the engine, the store and the command line read everything else from that entry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from actstats.metrics.protocol import Output
from actstats_kernels.bins import MOMENTS, PAIRED, resolved

if TYPE_CHECKING:
    from torch import Tensor

    from actstats.layers import Layer


@dataclass(frozen=True)
class Buffer:
    """A buffer argument of the fused kernel, which holds the results of one partition on the device.

    Attributes:
        dims: names of the dimensions; the size of `image` is the number of readable images in a partition.
        dtype: name of a torch dtype, or `count`: int32, or int64 if the counts of a partition could overflow int32.
        start: initial value of sums in each partition; None if every row is overwritten.
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
"""Every buffer of the fused kernel, by argument name."""


@dataclass(frozen=True)
class Rows:
    """The layers and images that the values of a partition belong to, for `Builtin.stored`.

    Attributes:
        layers: the layers along the unit axis.
        readable: positions in the partition of the images that could be read, int64 [n].
        start: index of the first image of the partition.
    """

    layers: Sequence[Layer]
    readable: NDArray[np.int64]
    start: int


@dataclass(frozen=True)
class Builtin:
    """A built-in statistic.

    Attributes:
        outputs: variables that it stores.
        buffers: kernel buffers that it needs, as keys of `BUFFERS`.
        finish: function of those buffers, limited to the readable images, and k. Returns device tensors by output
            name and never synchronises with the device.
        stored: functions applied on the host before values are stored, by output name.
    """

    outputs: tuple[Output, ...]
    buffers: tuple[str, ...]
    finish: Callable[[Mapping[str, Tensor], int], dict[str, Tensor]]
    stored: Mapping[str, Callable[[NDArray[Any], Rows], NDArray[Any]]] | None = None

    def outputs_for(self, *, wide_counts: bool) -> tuple[Output, ...]:
        """Return the outputs, with uint64 counts if `wide_counts` (when uint32 could overflow)."""
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
    # Imported here because commands that do not need torch import this module.
    from actstats_kernels import ops

    ranked = ops.top_k(buffers["moments"][MOMENTS.index("maximum")], buffers["argmax"], k)
    return dict(zip(("top_value", "top_image", "top_position"), ranked, strict=True))


def _without_unresolved(power: NDArray[Any], rows: Rows) -> NDArray[Any]:
    """Return power [unit, frequency] with NaN in the bins that a unit's maps are too small to resolve."""
    shown = [resolved(layer.height, layer.width) for layer in rows.layers]
    return np.where(np.repeat(shown, [layer.units for layer in rows.layers], axis=0), power, np.nan)


def _image_indices(row: NDArray[Any], rows: Rows) -> NDArray[Any]:
    """Convert row numbers among the readable images to indices along `image`; -1 (no image) is kept."""
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
"""The built-in statistics by name."""

PAIRS: Final = dict(
    zip(
        PAIRED,
        (
            Output(
                "map_change",
                units="activation^2",
                description="mean over the map's positions of (changed - clean)^2",
            ),
            Output(
                "map_correlation",
                units="1",
                description="correlation over positions of the changed and the clean map, NaN if either is constant",
            ),
        ),
        strict=True,
    )
)
"""What a store of changed images has besides, by name: the rows of the kernel that compares two maps."""

DEFAULT: Final = tuple(BUILTINS)
"""The metrics that a sweep computes by default: all built-in statistics."""
