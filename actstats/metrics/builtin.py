"""The built-in metrics: what each stores. All are computed by one fused kernel call for each layer and batch."""

from __future__ import annotations

from typing import Final

from actstats.metrics.protocol import Output

_SCALAR = ("image", "unit")

BUILTINS: Final[dict[str, tuple[Output, ...]]] = {
    "mean": (Output("mean", _SCALAR, units="activation", description="mean over the map's positions"),),
    "variance": (
        Output(
            "variance",
            _SCALAR,
            units="activation^2",
            description="population variance over the map's positions",
        ),
    ),
    "maximum": (
        Output("maximum", _SCALAR, units="activation", description="greatest activation of the map"),
        Output(
            "argmax",
            _SCALAR,
            "int32",
            units="position",
            description="flat position row * width + column of the maximum, the lowest on ties",
        ),
    ),
    "active_fraction": (
        Output("active_fraction", _SCALAR, units="1", description="share of positions with activation > 0"),
    ),
    "total_variation": (
        Output(
            "total_variation",
            _SCALAR,
            units="activation",
            description="sum of absolute differences between vertical and horizontal neighbours",
        ),
    ),
    "power_spectrum": (
        Output(
            "power_spectrum",
            ("partition", "unit", "frequency"),
            "float64",
            units="activation^2",
            description="DFT power / (height * width)^2 in radial bins, summed over the partition's images",
        ),
    ),
    "histogram": (
        Output(
            "histogram",
            ("partition", "unit", "bin"),
            "uint32",
            units="count",
            description="how many activation values fall between bin_left and bin_right",
        ),
    ),
    "top": (
        Output(
            "top_value",
            ("partition", "unit", "rank"),
            units="activation",
            description="the greatest maxima of the partition's images",
            merge="rank",
        ),
        Output(
            "top_image",
            ("partition", "unit", "rank"),
            "int64",
            units="index",
            description="the image (index along `image`) of each top value; equal values: lowest image first",
            merge="rank",
        ),
        Output(
            "top_position",
            ("partition", "unit", "rank"),
            "int32",
            units="position",
            description="flat position row * width + column of each top value",
            merge="rank",
        ),
    ),
}
"""Each built-in metric's name, and the variables that it writes."""

DEFAULT: Final = tuple(BUILTINS)
