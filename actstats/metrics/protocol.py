"""What a metric is: outputs declared with their dimensions and merge rule, and one `update` for each batch."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from actstats.errors import ActstatsError

if TYPE_CHECKING:
    from torch import Tensor

    from actstats.layers import Layer

MERGES = ("sum", "min", "max", "rank")
"""How accumulators of two partitions become one. "rank" is the built-in top-k's (`actstats.merge`)."""


@dataclass(frozen=True)
class Output:
    """One variable of the dataset.

    Args:
        name: the variable's name, a Python identifier.
        dims: `("image", "unit", ...)` for one value an image and unit, or `("partition", "unit", ...)` for an
            accumulator over the images of a partition. Further dimensions get their length from `Metric.sizes`.
        dtype: a NumPy dtype name.
        units: the physical unit, as xarray's `units` attribute.
        description: one line, as xarray's `long_name`.
        merge: how accumulators of two partitions become one: "sum", "min" or "max".

    Raises:
        ActstatsError: a name, dimension or merge rule that cannot be stored.
    """

    name: str
    dims: tuple[str, ...] = ("image", "unit")
    dtype: str = "float32"
    units: str = ""
    description: str = ""
    merge: str = "sum"

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ActstatsError(
                f"a metric's output is named {self.name!r}; the name must be a Python identifier"
            )
        if self.dims[:2] not in (("image", "unit"), ("partition", "unit")):
            raise ActstatsError(
                f"output {self.name!r} has dims {self.dims}; they must begin with "
                "('image', 'unit') or ('partition', 'unit')"
            )
        if self.merge not in MERGES:
            raise ActstatsError(f"output {self.name!r} has merge={self.merge!r}; choose sum, min or max")
        if np.dtype(self.dtype).kind not in "fiub":
            raise ActstatsError(f"output {self.name!r} has dtype {self.dtype!r}; it must be a number's")

    @property
    def per_image(self) -> bool:
        """Whether there is one value for each image, not one for each partition."""
        return self.dims[0] == "image"

    @property
    def missing(self) -> float | int:
        """What an element holds where nothing was computed: NaN, or -1, or 0 for an unsigned dtype."""
        kind = np.dtype(self.dtype).kind
        return float("nan") if kind == "f" else -1 if kind == "i" else 0

    @property
    def neutral(self) -> float | int:
        """What an accumulator starts from: the neutral element of `merge`."""
        dtype = np.dtype(self.dtype)
        if self.merge == "sum":
            return 0
        if dtype.kind == "f":
            return float("inf") if self.merge == "min" else float("-inf")
        limits = np.iinfo(dtype)
        return int(limits.max if self.merge == "min" else limits.min)


@dataclass
class State:
    """What one metric sees of one layer in one partition: the layer, and the accumulators by name.

    `state["name"]` is the accumulator of that output, a tensor [units, ...] on the activation's device that holds the
    merge rule's neutral element at the partition's start. Change it in place, or assign a new tensor.
    """

    layer: Layer
    accumulators: dict[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.accumulators:
            known = ", ".join(self.accumulators) or "none"
            raise ActstatsError(
                f"a metric asked for the accumulator {name!r} in layer {self.layer.name}, but declares {known}"
            )
        return self.accumulators[name]

    def __setitem__(self, name: str, value: Tensor) -> None:
        # The accumulator is a view of the partition's buffer: the values must land there.
        target = self[name]
        if value is target:
            return
        shape = tuple(getattr(value, "shape", ()))
        if shape != tuple(target.shape):
            raise ActstatsError(
                f"a metric set the accumulator {name!r} in layer {self.layer.name} to shape {shape}; "
                f"it has {tuple(target.shape)}"
            )
        target.copy_(value)


@dataclass(frozen=True)
class ImageBatch:
    """The images that the maps of one `Metric.update` belong to, in their order.

    Attributes:
        indices: of each image along the dataset's axis `image`, int64 [N], on the activation's device.
        labels: class of each, int64 [N], on the activation's device; -1 where it is not known.
        layer: name of the layer.
    """

    indices: Tensor
    labels: Tensor
    layer: str


class Metric:
    """The base of a user's metric. Set `outputs`, write `update`; `sizes` only if there are further dimensions.

    One object serves all layers and the whole sweep, so it holds no state of its own: what a metric remembers of a
    partition lives in `state`, which the engine writes to the store and starts afresh for the next partition.
    That is what lets a sweep resume, and several machines share one store.
    """

    outputs: ClassVar[Sequence[Output]] = ()

    def sizes(self, layers: Sequence[Layer]) -> dict[str, int]:
        """Return the length of each dimension beyond image, partition and unit."""
        return {}

    def update(self, activation: Tensor, state: State) -> Mapping[str, Tensor] | None:
        """Take one batch of one layer's activation maps.

        An `update` with a third parameter of the name `batch` is also given the images' indices and labels, an
        `ImageBatch`.

        Args:
            activation: [N, C, H, W], of the model's dtype and device, N readable images; possibly strided. It is a
                copy, so it may be changed in place.
            state: the layer and this partition's accumulators.

        Returns:
            For each per-image output its values, [N, C, ...]; None if there are none.
        """
        raise NotImplementedError


def takes_batch(metric: Metric) -> bool:
    """Return whether a metric's `update` asks for the batch, by a parameter of that name."""
    return "batch" in inspect.signature(metric.update).parameters
