"""The fused kernel: every statistic of a batch of maps in one pass, on all threads.

The maps are divided into tasks of 16 channels and a number of images that depends only on their size, so that the
result is the same for any number of threads. A thread takes the next task and reads its maps in pairs. It writes
moments to their place, adds counts with atomic integer additions, and stores the power in a sum that belongs to the
task. These sums are added in order at the end.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

import numba
import numpy as np
import torch
from numba import carray, cfunc, njit, types
from torch import Tensor

from actstats_kernels.bins import FREQUENCY_BINS, HISTOGRAM_BINS
from actstats_kernels.cpu import team
from actstats_kernels.cpu.moments import BFLOAT16, FLOAT16, FLOAT32, LANE_STARTS, MapBlock, read_map
from actstats_kernels.cpu.simd import (
    LANES,
    LINE,
    atomic_add,
    counted,
    double,
    fetch_add,
    fma,
    load_doubles,
    move,
    read,
    select,
    splat,
    store,
)
from actstats_kernels.cpu.spectrum import add_power, centre, row_pitch, tables

DTYPES: Final = {torch.float32: FLOAT32, torch.float16: FLOAT16, torch.bfloat16: BFLOAT16}
VALUES_A_TASK: Final = 1 << 14
"""Values per unit that a task reads, if there are that many: enough to make its own counts worthwhile."""
VALUES_A_THREAD: Final = 1 << 15
"""Number of values below which another thread costs more than it saves."""

_ARGUMENTS: Final = np.dtype(
    [
        (name, np.int64)
        for name in (
            "next_task", "next_slot", "tasks", "blocks", "group",
            "x", "dtype", "images", "channels", "height", "width",
            "stride_n", "stride_c", "stride_h", "stride_w",
            "moments", "moments_row", "moments_n", "moments_c",
            "argmax", "argmax_n", "argmax_c",
            "histogram", "histogram_wide", "lane_starts",
            "power", "plan_h", "plan_w", "rows", "ends",
            "scratch", "slot_bytes", "plane_bytes", "pitch", "depth",
        )
    ]
)  # fmt: skip
"""Arguments of the worker: addresses, and strides in bytes. An address of 0 means that the output is not wanted."""

_COUNTS_BYTES: Final = 4 * LANES * HISTOGRAM_BINS
_POWER_BYTES: Final = 8 * LANES * FREQUENCY_BINS


@njit(nogil=True, error_model="numpy")
def put(vector, address, stride, lanes, line):  # type: ignore[no-untyped-def]
    """Write the first `lanes` of a vector with a stride of `stride` bytes; `line` has room for a vector."""
    if stride == 4 and lanes == LANES:
        store(vector, address)
    else:
        store(vector, line)
        for c in range(lanes):
            move(line + 4 * c, address + c * stride)


@njit(nogil=True, error_model="numpy")
def _flush_counts(counts, histogram, wide, lanes):  # type: ignore[no-untyped-def]
    """Add a task's counts to `histogram`."""
    size = 8 if wide != 0 else 4
    for k in range(0, lanes * HISTOGRAM_BINS, 2):
        if read(counts + 4 * k) != 0:
            for at in range(k, k + 2):
                number = counted(counts + 4 * at)
                if number != 0:
                    atomic_add(histogram + size * at, number, wide)


@njit(nogil=True, error_model="numpy")
def _task(a, task, slot):  # type: ignore[no-untyped-def]
    """Run one task with the scratch memory at `slot`."""
    first_channel = (task % a.blocks) * LANES
    lanes = min(LANES, a.channels - first_channel)
    group = task // a.blocks
    start, stop = group * a.group, min((group + 1) * a.group, a.images)
    source = MapBlock(a.dtype, lanes, a.stride_c, a.stride_h, a.stride_w)
    power, line = slot, slot + _POWER_BYTES
    counts = line + LINE
    plane = counts + _COUNTS_BYTES
    found = plane + 2 * a.plane_bytes
    work = found + a.pitch
    measure = a.moments != 0 or a.argmax != 0 or a.power != 0
    zero, nan = splat(np.float32(0.0)), splat(np.float32(np.nan))
    if a.power != 0:
        for place in range(power, power + _POWER_BYTES, 2 * LINE):
            store(splat(np.float64(0.0)), place)
    if a.histogram != 0:
        for place in range(counts, counts + _COUNTS_BYTES, LINE):
            store(splat(np.int32(0)), place)
    for n in range(start, stop):
        odd = (n - start) & 1
        own = plane + odd * a.plane_bytes
        mean, variance, top, place, active, variation, flaw = read_map(
            source, a.x + n * a.stride_n + first_channel * a.stride_c, a.height, a.width,
            own, a.pitch, a.depth, measure, counts if a.histogram != 0 else 0, found, a.lane_starts,
        )  # fmt: skip
        finite = flaw == zero
        if a.moments != 0:
            cell = a.moments + n * a.moments_n + first_channel * a.moments_c
            put(select(finite, mean, nan), cell, a.moments_c, lanes, line)
            put(select(finite, variance, nan), cell + a.moments_row, a.moments_c, lanes, line)
            put(select(finite, top, nan), cell + 2 * a.moments_row, a.moments_c, lanes, line)
            put(select(finite, active, nan), cell + 3 * a.moments_row, a.moments_c, lanes, line)
            put(select(finite, variation, nan), cell + 4 * a.moments_row, a.moments_c, lanes, line)
        if a.argmax != 0:
            cell = a.argmax + n * a.argmax_n + first_channel * a.argmax_c
            put(select(finite, place, splat(np.int32(-1))), cell, a.argmax_c, lanes, line)
        if a.power != 0:
            dc = double(select(finite, mean, zero))
            store(fma(dc, dc, load_doubles(power)), power)
            centre(own, a.height, a.width, a.pitch, mean, finite)
            if n + 1 == stop and odd == 0:
                # Without a second image the imaginary part is 0.
                centre(own + a.plane_bytes, a.height, a.width, a.pitch, zero, zero > zero)
            if n + 1 == stop or odd == 1:
                add_power(
                    plane, a.plane_bytes, a.height, a.width, a.pitch,
                    a.plan_h, a.plan_w, a.rows, a.ends, work, power,
                )  # fmt: skip
    if a.histogram != 0:
        item = 8 if a.histogram_wide != 0 else 4
        target = a.histogram + first_channel * HISTOGRAM_BINS * item
        _flush_counts(counts, target, a.histogram_wide, lanes)
    if a.power != 0:
        sums = a.power + (group * a.channels + first_channel) * FREQUENCY_BINS * 8
        for c in range(lanes):
            for ring in range(FREQUENCY_BINS):
                value, target = power + 2 * LINE * ring + 8 * c, sums + 8 * (FREQUENCY_BINS * c + ring)
                move(value, target)
                move(value + 4, target + 4)


def _make_worker(digest: int) -> Any:
    """Make the C function that each thread runs, `void worker(arguments *)`.

    numba caches compiled code by the variables that a function closes over. Including the digest of this folder's
    sources means that a change in any module is detected.
    """

    @cfunc(types.void(types.CPointer(numba.from_dtype(_ARGUMENTS))), nopython=True, cache=True)
    def worker(data):  # type: ignore[no-untyped-def]
        a = carray(data, 1)[0]
        if digest == 0:
            return
        slot = a.scratch + fetch_add(a.next_slot, 1) * a.slot_bytes
        while True:
            task = fetch_add(a.next_task, 1)
            if task >= a.tasks:
                break
            _task(a, task, slot)

    return worker


@lru_cache(maxsize=1)
def _worker() -> Any:
    return team.compiled(_make_worker, "simd", "dft", "moments", "spectrum", "fused")


def accumulate(
    x: Tensor, moments: Tensor | None, argmax: Tensor | None, histogram: Tensor | None, power: Tensor | None
) -> None:
    """Update the buffers that are not None; see `actstats_kernels.ops.accumulate`."""
    images, channels, height, width = x.shape
    if x.numel() == 0:
        return
    if x.dtype not in DTYPES:
        x = x.float()
    blocks = -(-channels // LANES)
    group = 2 * -(-min(images, -(-VALUES_A_TASK // (height * width))) // 2)
    groups = -(-images // group)
    threads = min(torch.get_num_threads(), blocks * groups, 1 + x.numel() // VALUES_A_THREAD)

    pitch = row_pitch(width)
    depth = height if power is not None else min(height, 2)
    plane = depth * pitch
    work = 4 * LINE * max(height, width)
    slot = -(-(_POWER_BYTES + LINE + _COUNTS_BYTES + 2 * plane + pitch + work) // LINE) * LINE
    kept = tables(height, width) if power is not None else ()
    sums = np.empty((groups, channels, FREQUENCY_BINS)) if power is not None else None
    counters = np.zeros(2, dtype=np.int64)

    arguments = np.zeros(1, dtype=_ARGUMENTS)
    values = {
        "next_task": counters.ctypes.data,
        "next_slot": counters.ctypes.data + 8,
        "tasks": blocks * groups,
        "blocks": blocks,
        "group": group,
        "x": x.data_ptr(),
        "dtype": DTYPES[x.dtype],
        "images": images,
        "channels": channels,
        "height": height,
        "width": width,
        **strides(x, "stride_n", "stride_c", "stride_h", "stride_w"),
        "lane_starts": LANE_STARTS.ctypes.data,
        "scratch": team.scratch.address(threads * slot),
        "slot_bytes": slot,
        "plane_bytes": plane,
        "pitch": pitch,
        "depth": depth,
    }
    if moments is not None:
        values |= {
            "moments": moments.data_ptr(),
            **strides(moments, "moments_row", "moments_n", "moments_c"),
        }
    if argmax is not None:
        values |= {"argmax": argmax.data_ptr(), **strides(argmax, "argmax_n", "argmax_c")}
    if histogram is not None:
        values |= {"histogram": histogram.data_ptr(), "histogram_wide": histogram.dtype == torch.int64}
    if sums is not None:
        names = ("power", "plan_h", "plan_w", "rows", "ends")
        values |= {n: table.ctypes.data for n, table in zip(names, (sums, *kept), strict=True)}
    for name, value in values.items():
        arguments[name] = value
    team.run(_worker().address, arguments.ctypes.data, threads)
    if power is not None and sums is not None:
        power.numpy()[...] += np.add.reduce(sums, axis=0)


def strides(tensor: Tensor, *names: str) -> dict[str, int]:
    """Return the strides of a tensor in bytes, by name."""
    return {n: stride * tensor.element_size() for n, stride in zip(names, tensor.stride(), strict=True)}
