"""Partitions and their buffers on the device, which hooks fill and a writer reads.

On a GPU, results are copied to pinned memory asynchronously. Only `PartitionResult.arrays`, called in the writer's
thread, waits for the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actstats.data import NO_LABEL
from actstats.errors import ActstatsError, reason_of
from actstats.metrics import (
    BUFFERS,
    BUILTINS,
    PAIRS,
    Chosen,
    ImageBatch,
    Metric,
    Output,
    Rows,
    State,
    takes_batch,
)
from actstats.store import Schema
from actstats_kernels import ops
from actstats_kernels.bins import MOMENTS


@dataclass(frozen=True)
class PartitionLayout:
    """The statistics that every partition of a sweep computes, and their device."""

    schema: Schema
    chosen: Chosen
    device: torch.device
    bitround: int | None = None
    labels: NDArray[np.int64] | None = None
    """Class of each image of the whole sweep, [image]; None if the images have no labels."""


class Buffers:
    """Buffers on the device that hold the results of one partition, and are reused for later partitions.

    A sweep alternates between two, filling one while the other is being written. Allocating them anew for every
    partition would fragment the memory, so that long sweeps would need more than short ones.
    """

    def __init__(self, layout: PartitionLayout) -> None:
        """Allocate the buffers of the chosen built-in statistics and of the custom metrics."""
        schema = layout.schema
        lengths = {**schema.lengths, "image": schema.partition_size, "moment": len(MOMENTS)}
        wide = any(output.dtype == "uint64" and output.name in BUFFERS for output in schema.outputs)
        self._sums: list[tuple[Tensor, float]] = []

        def allocate(dims: tuple[str, ...], dtype: torch.dtype, start: float | None) -> Tensor:
            buffer = torch.empty([lengths[dim] for dim in dims], dtype=dtype, device=layout.device)
            if start is not None:
                self._sums.append((buffer, start))
            return buffer

        needed = {buffer for name in layout.chosen.builtin for buffer in BUILTINS[name].buffers}
        self.kernel: dict[str, Tensor] = {}
        for name in BUFFERS:
            if name in needed:
                kind = BUFFERS[name]
                count = torch.int64 if wide else torch.int32
                dtype = count if kind.dtype == "count" else getattr(torch, kind.dtype)
                self.kernel[name] = allocate(kind.dims, dtype, kind.start)
        rows = (len(PAIRS), schema.partition_size, schema.units)
        self.pairs = torch.empty(rows, device=layout.device) if layout.chosen.paired else None
        self.custom: dict[str, Tensor] = {}
        for metric in layout.chosen.custom.values():
            for output in metric.outputs:
                start = None if output.per_image else output.neutral
                self.custom[output.name] = allocate(_dims_held(output), _computing_dtype(output), start)

    @property
    def nbytes(self) -> int:
        """Total size of the buffers."""
        pairs = () if self.pairs is None else (self.pairs,)
        return sum(buffer.nbytes for buffer in (*self.kernel.values(), *pairs, *self.custom.values()))

    def begin(self) -> None:
        """Reset the sums for the next partition. Rows of images need no reset, as they are overwritten."""
        for total, start in self._sums:
            total.fill_(start)


class KeptMaps:
    """The clean maps of one batch by layer, kept until other passes over the same images are compared with them.

    The memory is reused for later batches.
    """

    def __init__(self) -> None:
        self._memory: dict[int, Tensor] = {}
        self._count = 0

    def keep(self, layer: int, maps: Tensor) -> None:
        """Copy the maps [N, C, H, W] of a layer, which the network may change later."""
        memory = self._memory.get(layer)
        self._count = len(maps)
        if memory is None or len(memory) < len(maps) or memory.dtype != maps.dtype:
            with torch.inference_mode(False):  # written again and again, whatever the mode of the pass
                memory = self._memory[layer] = torch.empty_like(maps)
        memory[: len(maps)].copy_(maps)

    def __getitem__(self, layer: int) -> Tensor:
        """Return the maps of a layer for the current batch."""
        return self._memory[layer][: self._count]


class Partition:
    """A partition being computed. Its rows are the readable images; `PartitionResult.arrays` inserts the others."""

    def __init__(self, layout: PartitionLayout, buffers: Buffers, index: int) -> None:
        """Begin partition `index` in `buffers`, which must not be in use elsewhere."""
        self.layout, self.index = layout, index
        self.start, self.stop = layout.schema.bounds(index)
        self.status = np.zeros(self.stop - self.start, dtype=np.int8)
        self._readable: list[NDArray[np.int64]] = []
        self._rows = slice(0, 0)
        self._images: tuple[Tensor, Tensor] | None = None
        self._asking = {name for name, metric in layout.chosen.custom.items() if takes_batch(metric)}
        self._slices = list(layout.schema.axis.values())
        self._outputs = {o.name: o for metric in layout.chosen.custom.values() for o in metric.outputs}
        self._ranges: dict[str, Tensor] = {}
        buffers.begin()
        self._kernel, self._pairs, self._custom = buffers.kernel, buffers.pairs, buffers.custom
        self._states = [
            [
                State(
                    layer,
                    {o.name: self._custom[o.name][place] for o in metric.outputs if not o.per_image},
                    self._note_range,
                )
                for metric in layout.chosen.custom.values()
            ]
            for layer, place in zip(layout.schema.layers, self._slices, strict=True)
        ]

    def begin_batch(self, readable: NDArray[np.int64]) -> None:
        """Set the images of the next forward pass, by their indices in the dataset."""
        self._readable.append(readable - self.start)
        self._rows = slice(self._rows.stop, self._rows.stop + len(readable))
        if self._asking:
            labels = self.layout.labels
            known = np.full(len(readable), NO_LABEL) if labels is None else labels[readable]
            self._images = self._on_device(readable), self._on_device(known)

    def update(self, layer: int, maps: Tensor, clean: Tensor | None = None) -> None:
        """Add the maps [N, C, H, W] of one layer for the current batch, and compare them with the `clean` ones."""
        if self._kernel:
            ops.accumulate(maps, *(self._part(name, layer) for name in BUFFERS))
        if self._pairs is not None and clean is not None:
            ops.compare(clean, maps, self._pairs[:, self._rows, self._slices[layer]])
        for (name, metric), state in zip(self.layout.chosen.custom.items(), self._states[layer], strict=True):
            self._update_custom(name, metric, state, maps, self._slices[layer])

    def finish(self) -> PartitionResult:
        """Rank the top images and start copying all results to host memory. Call once, after the last batch."""
        schema, filled = self.layout.schema, self._rows.stop
        rows = {
            name: buffer.narrow(BUFFERS[name].dims.index("image"), 0, filled)
            if "image" in BUFFERS[name].dims
            else buffer
            for name, buffer in self._kernel.items()
        }
        stored = {output.name: output for output in schema.outputs}
        found: dict[str, Tensor] = {}
        for name in self.layout.chosen.builtin:
            found |= BUILTINS[name].finish(rows, schema.top_k)
        if self._pairs is not None:
            found |= zip(PAIRS, self._pairs[:, :filled], strict=True)
        for name, values in self._custom.items():
            if name in stored:
                found[name] = values[:filled] if stored[name].per_image else values
        found = {name: values for name, values in found.items() if name in stored}
        event, ranges = None, self._ranges
        if self.layout.device.type == "cuda":
            found = {name: _to_pinned(values) for name, values in found.items()}
            ranges = {name: _to_pinned(values) for name, values in ranges.items()}
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            # By default, `record` uses the current device, which may be another one.
            event.record(torch.cuda.current_stream(self.layout.device))
        readable = np.concatenate([np.empty(0, dtype=np.int64), *self._readable])
        return PartitionResult(
            self.layout,
            self.index,
            self.status,
            Rows(schema.layers, readable, self.start),
            found,
            ranges,
            event,
        )

    def _part(self, name: str, layer: int) -> Tensor | None:
        """Return the slice of a built-in buffer for this batch and layer, or None if it is not computed."""
        buffer = self._kernel.get(name)
        if buffer is None:
            return None
        units = self._slices[layer]
        where = {"image": self._rows, "unit": units}
        return buffer[tuple(where.get(dim, slice(None)) for dim in BUFFERS[name].dims)]

    def _asked(self, name: str, layer: str) -> dict[str, ImageBatch]:
        """Return the optional arguments that a metric's `update` accepts."""
        if name not in self._asking:
            return {}
        assert self._images is not None
        return {"batch": ImageBatch(*self._images, layer)}

    def _on_device(self, values: NDArray[np.int64]) -> Tensor:
        found = torch.from_numpy(values.astype(np.int64))
        if self.layout.device.type == "cuda":
            found = found.pin_memory()  # for an asynchronous copy
        return found.to(self.layout.device, non_blocking=True)

    def _update_custom(self, name: str, metric: Metric, state: State, maps: Tensor, units: slice) -> None:
        layer = state.layer.name
        try:
            # Copy the maps, so that in-place operations in a metric do not affect the next layer.
            values = metric.update(maps.clone(), state, **self._asked(name, layer))
        except (ActstatsError, torch.OutOfMemoryError, MemoryError):
            raise
        except (Exception, SystemExit) as error:
            raise ActstatsError(f"metric {name} failed in layer {layer}: {reason_of(error)}") from error
        values = {} if values is None else values
        expected = {output.name for output in metric.outputs if output.per_image}
        if not isinstance(values, Mapping):
            raise ActstatsError(
                f"metric {name} returned a {type(values).__name__} for layer {layer}; update() must return a dict "
                "from outputs to tensors, or None"
            )
        if values.keys() != expected:
            raise ActstatsError(
                f"metric {name} returned {sorted(map(str, values))} for layer {layer}; "
                f"it must return its per-image outputs {sorted(expected)}"
            )
        for key, value in values.items():
            target = self._custom[key][self._rows, units]
            if not isinstance(value, Tensor) or value.shape != target.shape:
                what = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise ActstatsError(
                    f"metric {name} returned {key!r} {what} for layer {layer}; "
                    f"it must be a tensor of shape {tuple(target.shape)}"
                )
            self._note_range(key, value)
            target.copy_(value)

    def _note_range(self, name: str, value: Tensor) -> None:
        """Keep the lowest and highest value of an output on the device if its dtype may not hold them."""
        output = np.dtype(self._outputs[name].dtype)
        if not _may_exceed(value.dtype, output) or not value.numel():
            return
        value = value.detach().double()
        if output.kind == "f":
            value = value.where(value.isfinite(), 0)  # NaN and infinities can be stored.
        # `aminmax`, `minimum` and `maximum` return NaN if there is one.
        low, high = (extreme.to(self.layout.device) for extreme in value.aminmax())
        known = self._ranges.get(name)
        if known is not None:
            low, high = torch.minimum(known[0], low), torch.maximum(known[1], high)
        self._ranges[name] = torch.stack([low, high])


@dataclass(frozen=True)
class PartitionResult:
    """Results of a partition, ready to be written to the store."""

    layout: PartitionLayout
    index: int
    status: NDArray[np.int8]
    rows: Rows
    tensors: Mapping[str, Tensor]
    ranges: Mapping[str, Tensor]
    """Lowest and highest value, f64 [2], of outputs whose dtype may not hold what a metric passed."""
    copied: torch.cuda.Event | None

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the values of each variable as stored, including the rows of unreadable images.

        Raises:
            ActstatsError: a custom metric's output has a value beyond its dtype.
        """
        if self.copied is not None:
            self.copied.synchronize()
        metrics = {o.name: (name, o) for name, m in self.layout.chosen.custom.items() for o in m.outputs}
        for name, extremes in self.ranges.items():
            _require_held(*metrics[name], extremes.numpy())
        transforms = {
            name: transform
            for builtin in self.layout.chosen.builtin
            for name, transform in (BUILTINS[builtin].stored or {}).items()
        }
        found: dict[str, NDArray[Any]] = {}
        for output in self.layout.schema.outputs:
            values = self.tensors[output.name].numpy()
            if output.name in metrics:
                _require_held(*metrics[output.name], values)
            values = values.astype(output.dtype, copy=False)
            if output.name in transforms:
                values = transforms[output.name](values, self.rows)
            if output.per_image:
                values = self._with_unreadable(output, values)
                if self.layout.bitround is not None and output.dtype == "float32":
                    values = bitround(values, self.layout.bitround)
            found[output.name] = values
        return found

    def _with_unreadable(self, output: Output, values: NDArray[Any]) -> NDArray[Any]:
        readable = self.rows.readable
        if len(readable) == len(self.status):
            return values
        whole = np.full((len(self.status), *values.shape[1:]), output.missing, dtype=values.dtype)
        whole[readable] = values
        return whole


def bitround(values: NDArray[np.float32], keep: int) -> NDArray[np.float32]:
    """Round f32 `values` to `keep` of the 23 mantissa bits, so that they compress better.

    Rounds to nearest, ties to even, with a relative error of at most 2^-(keep + 1). Infinities and NaN are unchanged.
    Source: Klöwer et al. 2021, doi:10.1038/s43588-021-00156-2.
    """
    from numcodecs import BitRound

    rounded = np.asarray(BitRound(keepbits=keep).encode(values)).view(np.float32).reshape(values.shape)
    return np.where(np.isfinite(values), rounded, values)


def _dims_held(output: Output) -> tuple[str, ...]:
    """Return the dimensions of an output's buffer: all except `partition`."""
    return output.dims if output.per_image else output.dims[1:]


def _computing_dtype(output: Output) -> torch.dtype:
    """Return the dtype in which an output is computed.

    It is wider than that of the output for accumulators, whose sums would overflow unseen, and for unsigned integers,
    which torch cannot add.
    """
    dtype = np.dtype(output.dtype)
    if (dtype.kind == "u" and dtype.itemsize > 1) or (dtype.kind in "iu" and not output.per_image):
        return torch.int64
    if dtype == np.float16 and not output.per_image:
        return torch.float32
    return torch.from_numpy(np.empty(0, dtype)).dtype


def _may_exceed(value: torch.dtype, output: np.dtype[Any]) -> bool:
    """Return whether tensors of dtype `value` may hold numbers that an output of dtype `output` cannot."""
    if output.kind == "b" or value == torch.bool or value.is_complex:
        return False
    if value.is_floating_point:
        return output.kind != "f" or torch.finfo(value).max > float(np.finfo(output).max)
    given = torch.iinfo(value)
    if output.kind == "f":
        return given.max > float(np.finfo(output).max)
    held = np.iinfo(output)
    return given.min < held.min or given.max > held.max


def _require_held(metric: str, output: Output, values: NDArray[Any]) -> None:
    """Raise `ActstatsError` unless an output can hold all values, apart from NaN and infinities in floats."""
    held = np.dtype(output.dtype)
    if held == values.dtype or held.kind == "b" or values.dtype.kind == "b":
        return
    if held.kind == "f":
        with np.errstate(over="ignore"):
            lost = np.isfinite(values) & ~np.isfinite(values.astype(held))
        limits: Any = np.finfo(held)
    else:
        limits = np.iinfo(held)
        # A NaN fails both comparisons.
        lost = ~((values >= limits.min) & (values <= limits.max))
    if lost.any():
        beyond = values[lost]
        worst = beyond[np.abs(beyond).argmax()]  # a NaN if there is one
        raise ActstatsError(
            f"metric {metric}: a value of output {output.name!r} is {worst:g}, which "
            f"{output.dtype} cannot hold ({limits.min:g} to {limits.max:g}); declare another dtype"
        )


def _to_pinned(values: Tensor) -> Tensor:
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values, non_blocking=True)
    return host
