"""Two example metrics: one value per image, and an accumulator.

They are installed as the entry points `kurtosis` and `unit_covariance`, so `actstats sweep --metrics mean,kurtosis`
finds them by name. The documentation walks through both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from actstats.layers import Layer
from actstats.metrics.protocol import Metric, Output, State


class Kurtosis(Metric):
    """Excess kurtosis of each map: 0 for a normal distribution, high for a unit that is active in few places.

    mean((x - mean)^4) / variance^2 - 3 over the positions of the map, with population moments (Fisher's definition,
    like `scipy.stats.kurtosis` with its defaults). NaN if the map is constant.
    """

    outputs = (
        Output("kurtosis", ("image", "unit"), units="1", description="excess kurtosis over positions"),
    )

    def update(self, activation: Tensor, state: State) -> Mapping[str, Tensor]:
        """Return the kurtosis of maps [N, C, H, W]."""
        x = activation.double()
        centred = x - x.mean((-2, -1), keepdim=True)
        variance = centred.square().mean((-2, -1))
        return {"kurtosis": centred.pow(4).mean((-2, -1)) / variance.square() - 3}


class UnitCovariance(Metric):
    """Sums that give the covariance between the units of a layer, over all images and positions.

    With n = covariance_count, s = covariance_sum and p = covariance_product after merging the partitions, the
    covariance of units i and j of one layer is p[i, j] / n - s[i] s[j] / n^2, j being j's channel in the layer.
    """

    outputs = (
        Output("covariance_product", ("partition", "unit", "other_channel"), "float64", units="activation^2"),
        Output("covariance_sum", ("partition", "unit"), "float64", units="activation"),
        Output("covariance_count", ("partition", "unit"), "int64", units="count"),
    )

    def sizes(self, layers: Sequence[Layer]) -> dict[str, int]:
        """Return the number of units of the widest layer; entries beyond a layer's own units stay 0."""
        return {"other_channel": max(layer.units for layer in layers)}

    def update(self, activation: Tensor, state: State) -> None:
        """Add the sums of maps [N, C, H, W]."""
        x = activation.movedim(1, 0).flatten(1).double()
        state["covariance_product"][:, : len(x)] += x @ x.T
        state["covariance_sum"] += x.sum(1)
        state["covariance_count"] += x.shape[1]
