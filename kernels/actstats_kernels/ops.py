"""The custom ops: `actstats::accumulate` reads a batch of maps once, `actstats::compare` two batches, and
`actstats::top_k` ranks a partition.

The first two are numba kernels on a CPU (`actstats_kernels.cpu`) and Triton kernels on a GPU
(`actstats_kernels.gpu`), which are loaded on first use. They write into buffers owned by the caller, so that a sweep
allocates no memory per batch.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from actstats_kernels import ranking
from actstats_kernels.bins import FREQUENCY_BINS, HISTOGRAM_BINS, MOMENTS, PAIRED

_COUNTS: Final = (torch.int32, torch.int64)


def _check(
    x: Tensor,
    moments: Tensor | None,
    argmax: Tensor | None,
    histogram: Tensor | None,
    power: Tensor | None,
) -> None:
    """Raise `ValueError` unless `x` are maps and every buffer has room for their statistics.

    The kernels write to addresses that follow from the shape of `x`, so a buffer of another shape would be memory
    that belongs to something else.
    """
    if x.ndim != 4:
        raise ValueError(f"`x` is {_described(x)}; it must be maps [N, C, H, W]")
    images, units = x.shape[:2]
    for name, buffer, shape, dtypes in (
        ("moments", moments, (len(MOMENTS), images, units), (torch.float32,)),
        ("argmax", argmax, (images, units), (torch.int32,)),
        ("histogram", histogram, (units, HISTOGRAM_BINS), _COUNTS),
        ("power", power, (units, FREQUENCY_BINS), (torch.float64,)),
    ):
        if buffer is None:
            continue
        if buffer.shape != shape or buffer.dtype not in dtypes or buffer.device != x.device:
            raise ValueError(
                f"`{name}` is {_described(buffer)}; for maps {_described(x)} it must be {list(shape)} of "
                f"{' or '.join(str(dtype).removeprefix('torch.') for dtype in dtypes)} on {x.device}"
            )
    for name, buffer in (("histogram", histogram), ("power", power)):
        if buffer is not None and not buffer.is_contiguous():
            raise ValueError(f"`{name}` is not contiguous; its strides are {buffer.stride()}")


def _described(x: Tensor) -> str:
    return f"{list(x.shape)} of {str(x.dtype).removeprefix('torch.')} on {x.device}"


@torch.library.custom_op(
    "actstats::accumulate", mutates_args=("moments", "argmax", "histogram", "power"), device_types="cpu"
)
def accumulate(
    x: Tensor,
    moments: Tensor | None,
    argmax: Tensor | None,
    histogram: Tensor | None,
    power: Tensor | None,
) -> None:
    """Read maps `x` [N, C, H, W] (f32, f16 or bf16; any strides) once and update the buffers that are not None.

    No argument has a default, because torch 2.6 drops trailing defaults from a call and then looks up the buffers by
    position.

    Args:
        x: activation maps.
        moments: f32 [5, N, C], any strides. Overwritten with the statistics in `bins.MOMENTS`, in order.
        argmax: i32 [N, C], any strides. Overwritten with the flat position of the maximum.
        histogram: i32 or i64 [C, 520], contiguous. The counts are added to it.
        power: f64 [C, 18], contiguous. The radial power summed over the N maps is added to it.

    A map that contains a non-finite value has NaN moments and argmax -1, and is not added to `power` (see
    `actstats_kernels.reference`, which defines all statistics). The result does not depend on the number of
    threads, nor on a CPU on the memory format. On a GPU, sums over maps in another format differ in the last bits.

    Raises:
        ValueError: a buffer does not fit the maps. Nothing has been written.
    """
    from actstats_kernels import cpu

    _check(x, moments, argmax, histogram, power)
    cpu.accumulate(x, moments, argmax, histogram, power)


@accumulate.register_fake
def _(
    x: Tensor,
    moments: Tensor | None,
    argmax: Tensor | None,
    histogram: Tensor | None,
    power: Tensor | None,
) -> None:
    return None


@accumulate.register_kernel("cuda")
def _(
    x: Tensor,
    moments: Tensor | None,
    argmax: Tensor | None,
    histogram: Tensor | None,
    power: Tensor | None,
) -> None:
    from actstats_kernels import gpu

    _check(x, moments, argmax, histogram, power)
    gpu.accumulate(x, moments, argmax, histogram, power)


@torch.library.custom_op("actstats::compare", mutates_args=("pairs",), device_types="cpu")
def compare(clean: Tensor, changed: Tensor, pairs: Tensor) -> None:
    """Read the maps of the same images, `clean` and `changed` [N, C, H, W], once, and write what changed to `pairs`.

    The maps are f32, f16 or bf16 with any strides, each their own. `pairs`, f32 [2, N, C] with any strides, is
    overwritten with the statistics in `bins.PAIRED`, as defined by `reference.compare`. The result depends neither on
    the number of threads nor, on a CPU, on the memory format.

    Raises:
        ValueError: the arguments do not fit each other. Nothing has been written.
    """
    from actstats_kernels import cpu

    _check_pair(clean, changed, pairs)
    cpu.compare(clean, changed, pairs)


@compare.register_fake
def _(clean: Tensor, changed: Tensor, pairs: Tensor) -> None:
    return None


@compare.register_kernel("cuda")
def _(clean: Tensor, changed: Tensor, pairs: Tensor) -> None:
    from actstats_kernels import gpu

    _check_pair(clean, changed, pairs)
    gpu.compare(clean, changed, pairs)


def _check_pair(clean: Tensor, changed: Tensor, pairs: Tensor) -> None:
    if clean.ndim != 4 or clean.shape != changed.shape or clean.device != changed.device:
        raise ValueError(
            f"`clean` is {_described(clean)} and `changed` {_described(changed)}; both must be maps [N, C, H, W] of "
            "one shape on one device"
        )
    shape = (len(PAIRED), *clean.shape[:2])
    if pairs.shape != shape or pairs.dtype != torch.float32 or pairs.device != clean.device:
        raise ValueError(
            f"`pairs` is {_described(pairs)}; for maps {_described(clean)} it must be {list(shape)} of float32 on "
            f"{clean.device}"
        )


@torch.library.custom_op("actstats::top_k", mutates_args=(), device_types=("cpu", "cuda"))
def top_k(maximum: Tensor, position: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rank the rows of `maximum` f32 [P, U] for each unit, as defined by `reference.top_k`.

    `position` is i32 [P, U]. Returns value f32 [U, k], row i64 [U, k], position i32 [U, k].

    Raises:
        ValueError: the two differ in shape.
    """
    if maximum.ndim != 2 or maximum.shape != position.shape:
        raise ValueError(
            f"`maximum` and `position` must be [P, U], got {_described(maximum)} and {_described(position)}"
        )
    return ranking.top_k(maximum, position, k)


@top_k.register_fake
def _(maximum: Tensor, position: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    units = maximum.shape[1]
    return (
        maximum.new_empty((units, k), dtype=torch.float32),
        maximum.new_empty((units, k), dtype=torch.int64),
        maximum.new_empty((units, k), dtype=torch.int32),
    )


def statistics(x: Tensor) -> dict[str, Tensor]:
    """Return all statistics of maps `x` [N, C, H, W], with the fused kernel; keys as in `reference.statistics`.

    >>> import torch
    >>> statistics(torch.arange(6.0).reshape(1, 1, 2, 3))["total_variation"].item()
    13.0
    """
    units = x.shape[1]
    moments = x.new_empty((len(MOMENTS), x.shape[0], units), dtype=torch.float32)
    argmax = x.new_empty((x.shape[0], units), dtype=torch.int32)
    histogram = x.new_zeros((units, HISTOGRAM_BINS), dtype=torch.int64)
    power = x.new_zeros((units, FREQUENCY_BINS), dtype=torch.float64)
    accumulate(x, moments, argmax, histogram, power)
    named = dict(zip(MOMENTS, moments, strict=True))
    return {**named, "argmax": argmax, "histogram": histogram, "power_spectrum": power}
