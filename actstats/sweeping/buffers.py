"""Partitions and the buffers they are computed into: hooks fill them on the device, a writer empties them.

On a GPU no method here waits for the device: results are copied to pinned memory behind the kernels, and only
`Finished.arrays`, called by the writer's thread, waits for that copy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actstats.errors import ActstatsError
from actstats.layers import Layer
from actstats.metrics import Chosen, Output, State
from actstats.store import Schema
from actstats_kernels import ops
from actstats_kernels.bins import FREQUENCY_BINS, HISTOGRAM_BINS, resolved
from actstats_kernels.reference import MOMENTS


@dataclass(frozen=True)
class Plan:
    """What every partition of a sweep computes, and where."""

    schema: Schema
    chosen: Chosen
    device: torch.device
    bitround: int | None = None

    @property
    def slices(self) -> list[slice]:
        """Each layer's place on the unit axis."""
        ends = np.cumsum([layer.units for layer in self.schema.layers]).tolist()
        return [slice(end - layer.units, end) for end, layer in zip(ends, self.schema.layers, strict=True)]


def schema_of(
    chosen: Chosen, layers: Sequence[Layer], images: int, partition_size: int, top_k: int, per_image: bool
) -> Schema:
    """Return what a sweep of these metrics over these layers stores.

    Raises:
        ActstatsError: two metrics want different lengths of one dimension.
    """
    outputs = [output for output in chosen.outputs if per_image or not output.per_image]
    sizes: dict[str, int] = {}
    for name, metric in chosen.custom.items():
        for dim, size in metric.sizes(layers).items():
            if sizes.setdefault(dim, size) != size:
                raise ActstatsError(
                    f"metric {name} has a dimension {dim!r} of length {size}, another has {sizes[dim]}"
                )
    return _with_wide_counts(
        Schema(tuple(outputs), tuple(layers), images, min(partition_size, images), top_k, sizes)
    )


def _with_wide_counts(schema: Schema) -> Schema:
    """Count in u8 where a partition's counts could overflow u4."""
    if histogram_dtype(schema) == torch.int32:
        return schema
    wide = tuple(replace(o, dtype="uint64") if o.name == "histogram" else o for o in schema.outputs)
    return replace(schema, outputs=wide)


class Buffers:
    """What one partition is computed into, on the device: made once, then used by partition after partition.

    Two serve a whole sweep in turn, as one is filled while the other is written. Taken and given back with every
    partition, memory of this size leaves gaps that nothing else fits, and a long sweep needs more than a short one.
    """

    def __init__(self, plan: Plan) -> None:
        schema, device, wanted = plan.schema, plan.device, set(plan.chosen.builtin)
        images, units = schema.partition_size, schema.units
        needs_maximum = bool(wanted & {"maximum", "top"})
        self.moments = self.argmax = self.histogram = self.power = None
        self._sums: list[tuple[Tensor, float]] = []
        if needs_maximum or any(name in wanted for name in MOMENTS):
            self.moments = torch.empty(len(MOMENTS), images, units, device=device)
        if needs_maximum:
            self.argmax = torch.empty(images, units, dtype=torch.int32, device=device)
        if "histogram" in wanted:
            self.histogram = torch.empty(units, HISTOGRAM_BINS, dtype=histogram_dtype(schema), device=device)
            self._sums.append((self.histogram, 0))
        if "power_spectrum" in wanted:
            self.power = torch.empty(units, FREQUENCY_BINS, dtype=torch.float64, device=device)
            self._sums.append((self.power, 0))
        self.custom: dict[str, Tensor] = {}
        for metric in plan.chosen.custom.values():
            for output in metric.outputs:
                lengths = [images if dim == "image" else schema.lengths[dim] for dim in dims_held(output)]
                self.custom[output.name] = torch.empty(lengths, dtype=computing_dtype(output), device=device)
                if not output.per_image:
                    self._sums.append((self.custom[output.name], output.neutral))

    def begin(self) -> None:
        """Forget the partition before: set what is summed to where it starts. Rows by image are written over."""
        for total, start in self._sums:
            total.fill_(start)


class Partition:
    """One partition in the making. Rows are readable images, packed; unreadable ones appear in `finish`."""

    def __init__(self, plan: Plan, buffers: Buffers, index: int, start: int, stop: int) -> None:
        """Begin partition `index` of images [start, stop) in `buffers`, which nothing else may use any more."""
        self.plan, self.index, self.start, self.stop = plan, index, start, stop
        self.status = np.zeros(stop - start, dtype=np.int8)
        self._readable: list[NDArray[np.int64]] = []
        self._rows = slice(0, 0)
        self._slices = plan.slices
        buffers.begin()
        self._moments, self._argmax = buffers.moments, buffers.argmax
        self._histogram, self._power, self._custom = buffers.histogram, buffers.power, buffers.custom
        self._states = [
            [
                State(layer, {o.name: self._custom[o.name][place] for o in metric.outputs if not o.per_image})
                for metric in plan.chosen.custom.values()
            ]
            for layer, place in zip(plan.schema.layers, self._slices, strict=True)
        ]

    @property
    def filled(self) -> int:
        """How many readable images have been taken so far."""
        return self._rows.stop

    def begin_batch(self, readable: NDArray[np.int64]) -> None:
        """Say which images of the dataset the maps of the next forward pass belong to."""
        self._readable.append(readable - self.start)
        self._rows = slice(self._rows.stop, self._rows.stop + len(readable))

    def update(self, layer: int, maps: Tensor) -> None:
        """Take the maps [N, C, H, W] of one layer for the batch that was begun."""
        rows, units = self._rows, self._slices[layer]
        if self._moments is not None or self._histogram is not None or self._power is not None:
            ops.accumulate(
                maps,
                None if self._moments is None else self._moments[:, rows, units],
                None if self._argmax is None else self._argmax[rows, units],
                None if self._histogram is None else self._histogram[units],
                None if self._power is None else self._power[units],
            )
        for (name, metric), state in zip(self.plan.chosen.custom.items(), self._states[layer], strict=True):
            values = metric.update(maps, state) or {}
            expected = {output.name for output in metric.outputs if output.per_image}
            if values.keys() != expected:
                raise ActstatsError(
                    f"metric {name} returned {sorted(values)} for layer {state.layer.name}; "
                    f"its per-image outputs are {sorted(expected)}"
                )
            for key, value in values.items():
                target = self._custom[key][rows, units]
                if value.shape != target.shape:
                    raise ActstatsError(
                        f"metric {name} returned {key!r} of shape {tuple(value.shape)} for layer "
                        f"{state.layer.name}; it must be {tuple(target.shape)}"
                    )
                target.copy_(value)

    def finish(self) -> Finished:
        """Rank the partition and start bringing everything to host memory. Call once, after the last batch."""
        filled, wanted, k = self.filled, self.plan.chosen.builtin, self.plan.schema.top_k
        found: dict[str, Tensor] = {}
        if self._moments is not None:
            stored = {output.name for output in self.plan.schema.outputs}
            found |= {n: self._moments[i, :filled] for i, n in enumerate(MOMENTS) if n in stored}
            if self._argmax is not None and "argmax" in stored:
                found["argmax"] = self._argmax[:filled]
        if "top" in wanted and self._moments is not None and self._argmax is not None:
            maxima = self._moments[MOMENTS.index("maximum"), :filled]
            ranked = ops.top_k(maxima, self._argmax[:filled], k)
            found |= dict(zip(("top_value", "top_image", "top_position"), ranked, strict=True))
        if self._histogram is not None:
            found["histogram"] = self._histogram
        if self._power is not None:
            found["power_spectrum"] = self._power
        for output in self.plan.schema.outputs:
            if output.name in self._custom:
                values = self._custom[output.name]
                found[output.name] = values[:filled] if output.per_image else values
        event = None
        if self.plan.device.type == "cuda":
            found = {name: _to_pinned(values) for name, values in found.items()}
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(self.plan.device))  # which may not be the current device
        readable = np.concatenate([np.empty(0, dtype=np.int64), *self._readable])
        return Finished(self.plan, self.index, self.start, self.status, readable, found, event)


@dataclass(frozen=True)
class Finished:
    """A partition's results on their way to the store."""

    plan: Plan
    index: int
    start: int
    status: NDArray[np.int8]
    readable: NDArray[np.int64]
    tensors: Mapping[str, Tensor]
    copied: torch.cuda.Event | None

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return each variable's values as the store takes them, rows of unreadable images filled in."""
        if self.copied is not None:
            self.copied.synchronize()
        found: dict[str, NDArray[Any]] = {}
        for output in self.plan.schema.outputs:
            values = self.tensors[output.name].numpy().astype(output.dtype, copy=False)
            if output.name == "power_spectrum":
                values = self._without_unresolved(values)
            elif output.name == "top_image":
                rows = np.append(self.readable, -1)  # index -1, no image, stays -1
                values = np.where(values < 0, -1, rows[values] + self.start)
            elif output.per_image:
                values = self._with_unreadable(output, values)
                if self.plan.bitround is not None and output.dtype == "float32":
                    values = bitround(values, self.plan.bitround)
            found[output.name] = values
        return found

    def _with_unreadable(self, output: Output, values: NDArray[Any]) -> NDArray[Any]:
        if len(self.readable) == len(self.status):
            return values
        whole = np.full((len(self.status), *values.shape[1:]), output.missing, dtype=values.dtype)
        whole[self.readable] = values
        return whole

    def _without_unresolved(self, power: NDArray[np.float64]) -> NDArray[np.float64]:
        power = power.copy()
        for layer, place in zip(self.plan.schema.layers, self.plan.slices, strict=True):
            power[place, ~resolved(layer.height, layer.width)] = np.nan
        return power


def dims_held(output: Output) -> tuple[str, ...]:
    """Return the dimensions that a partition's buffer has: all but `partition`."""
    return output.dims if output.per_image else output.dims[1:]


def computing_dtype(output: Output) -> torch.dtype:
    """Return the dtype that an output is computed in: its own, but for unsigned ones, which torch cannot add."""
    dtype = np.dtype(output.dtype)
    if dtype.kind == "u" and dtype.itemsize > 1:
        return torch.int64
    return torch.from_numpy(np.empty(0, dtype)).dtype


def histogram_dtype(schema: Schema) -> torch.dtype:
    """Return the dtype of a partition's counts: i32 if they cannot overflow it, i64 otherwise."""
    positions = max(layer.height * layer.width for layer in schema.layers)
    return torch.int32 if schema.partition_size * positions < 2**31 else torch.int64


def bitround(values: NDArray[np.float32], keep: int) -> NDArray[np.float32]:
    """Return f32 `values` rounded to `keep` of the 23 mantissa bits, so that they compress better.

    To nearest, ties to even; relative error at most 2^-(keep + 1). Infinities and NaN are as they were.
    Source: Klöwer et al. 2021, doi:10.1038/s43588-021-00156-2.
    """
    from numcodecs import BitRound

    rounded = np.asarray(BitRound(keepbits=keep).encode(values)).view(np.float32).reshape(values.shape)
    return np.where(np.isfinite(values), rounded, values)


def _to_pinned(values: Tensor) -> Tensor:
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values, non_blocking=True)
    return host
