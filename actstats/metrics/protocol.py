"""The interface of metrics: outputs declared with dimensions and a merge rule, and `update` for each batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from actstats.errors import ActstatsError

if TYPE_CHECKING:
    from torch import Tensor

    from actstats.layers import Layer

MERGES = ("sum", "min", "max", "rank")
"""How the accumulators of two partitions are merged. "rank" is reserved for the built-in top-k (`actstats.merge`)."""


@dataclass(frozen=True)
class Output:
    """One variable of the dataset.

    Args:
        name: the variable's name, a Python identifier.
        dims: `("image", "unit", ...)` for one value per image and unit, or `("partition", "unit", ...)` for an
            accumulator over the images of a partition. `Metric.sizes` gives the length of further dimensions.
        dtype: name of a NumPy dtype.
        units: physical unit, stored as the `units` attribute of the variable.
        description: one line, stored as the `long_name` attribute of the variable.
        merge: how the accumulators of two partitions are merged: "sum", "min" or "max".

    Raises:
        ActstatsError: the name, dimensions, dtype or merge rule are invalid.
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
            raise ActstatsError(f"output {self.name!r} has dtype {self.dtype!r}; it must be numeric")

    @property
    def per_image(self) -> bool:
        """True if there is one value per image, False if there is one per partition."""
        return self.dims[0] == "image"

    @property
    def missing(self) -> float | int:
        """Fill value where nothing was computed: NaN for floats, -1 for signed integers, else 0."""
        kind = np.dtype(self.dtype).kind
        return float("nan") if kind == "f" else -1 if kind == "i" else 0

    @property
    def neutral(self) -> float | int:
        """Initial value of an accumulator: the neutral element of `merge`."""
        dtype = np.dtype(self.dtype)
        if self.merge == "sum":
            return 0
        if dtype.kind == "f":
            return float("inf") if self.merge == "min" else float("-inf")
        limits = np.iinfo(dtype)
        return int(limits.max if self.merge == "min" else limits.min)


@dataclass
class State:
    """State of a metric for one layer and one partition: the layer, and the accumulators by name.

    `state["name"]` is the accumulator of that output: a tensor [units, ...] on the activation's device, which holds
    the neutral element of the merge rule at the start of each partition. Modify it in place, or assign a new tensor.
    It is int64 for an integer output and at least float32 for a floating-point one, so that sums do not overflow.

    `on_set` is called with the name and value of each assignment.
    """

    layer: Layer
    accumulators: dict[str, Tensor] = field(default_factory=dict)
    on_set: Callable[[str, Tensor], None] | None = None

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.accumulators:
            known = ", ".join(self.accumulators) or "none"
            raise ActstatsError(
                f"a metric asked for the accumulator {name!r} in layer {self.layer.name}, but declares {known}"
            )
        return self.accumulators[name]

    def __setitem__(self, name: str, value: Tensor) -> None:
        # The accumulator is a view of the partition's buffer, so the values must be copied into it.
        target = self[name]
        if value is target:
            return
        shape = tuple(getattr(value, "shape", ()))
        if shape != tuple(target.shape):
            raise ActstatsError(
                f"a metric set the accumulator {name!r} in layer {self.layer.name} to shape {shape}; "
                f"it has {tuple(target.shape)}"
            )
        if self.on_set is not None:
            self.on_set(name, value)
        target.copy_(value)


@dataclass(frozen=True)
class ImageBatch:
    """The images that the maps passed to `Metric.update` belong to, in the same order.

    Attributes:
        indices: index of each image along the `image` dimension, int64 [N], on the activation's device.
        labels: class of each image, int64 [N], on the activation's device; -1 if unknown.
        layer: name of the layer.
    """

    indices: Tensor
    labels: Tensor
    layer: str


class Metric:
    """Base class for custom metrics. Set `outputs` and implement `update`.

    Implement `sizes` only if the outputs have further dimensions. One object serves all layers and the whole sweep,
    so it must not hold state of its own. Anything a metric accumulates over a partition belongs in `state`, which the
    engine writes to the store and resets for the next partition. This allows a sweep to resume, and several machines
    to share a store.
    """

    outputs: ClassVar[Sequence[Output]] = ()

    def sizes(self, layers: Sequence[Layer]) -> dict[str, int]:
        """Return the length of each dimension beyond image, partition and unit."""
        return {}

    def update(self, activation: Tensor, state: State) -> Mapping[str, Tensor] | None:
        """Process one batch of activation maps of one layer.

        If `update` has a third parameter named `batch`, it also receives an `ImageBatch` with the indices and labels
        of the images.

        Args:
            activation: maps [N, C, H, W] of N readable images, with the dtype and device of the model and any
                strides. This is a copy, so it may be modified in place.
            state: the layer and the accumulators of the current partition.

        Returns:
            The values [N, C, ...] of each per-image output by name; None if there are no such outputs.
        """
        raise NotImplementedError


def takes_batch(metric: Metric) -> bool:
    """Return whether the `update` of a metric has a parameter named `batch`."""
    return "batch" in inspect.signature(metric.update).parameters
