"""The kernel for pairs of maps: reads both once, row by row, and writes their change and correlation.

Tasks are divided as in `fused`. Sums are in f64, of the deviations from each map's first value: so they are 0 for a
constant map, and a variance is never small beside the sum of squares that it is computed from.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

import numba
import numpy as np
import torch
from numba import carray, cfunc, njit, types
from torch import Tensor

from actstats_kernels.cpu import team
from actstats_kernels.cpu.fused import DTYPES, VALUES_A_TASK, VALUES_A_THREAD, put, strides
from actstats_kernels.cpu.moments import MapBlock, pack_row
from actstats_kernels.cpu.simd import (
    LANES,
    LINE,
    double,
    fetch_add,
    fma,
    load,
    prefetch,
    select,
    single,
    splat,
    square_root,
)
from actstats_kernels.cpu.spectrum import row_pitch

_ARGUMENTS: Final = np.dtype(
    [
        (name, np.int64)
        for name in (
            "next_task", "next_slot", "tasks", "blocks", "group", "images", "channels", "height", "width",
            "clean", "clean_dtype", "clean_n", "clean_c", "clean_h", "clean_w",
            "changed", "changed_dtype", "changed_n", "changed_c", "changed_h", "changed_w",
            "pairs", "pairs_row", "pairs_n", "pairs_c",
            "scratch", "slot_bytes", "pitch",
        )
    ]
)  # fmt: skip
"""Arguments of the worker: addresses, and strides in bytes."""


@njit(nogil=True, error_model="numpy")
def _compare(clean, at, changed, beside, height, width, own, pitch):  # type: ignore[no-untyped-def]
    """Return change and correlation of 16 pairs of maps, NaN where either map is not finite."""
    nothing, one = splat(np.float64(0.0)), splat(np.float64(1.0))
    pivot = other = nothing
    sums = others = squares = other_squares = products = energy = nothing
    row, second = own, own + pitch
    for i in range(height):
        pack_row(clean, at + i * clean.stride_h, width, row)
        pack_row(changed, beside + i * changed.stride_h, width, second)
        if i == 0:
            pivot, other = double(load(row)), double(load(second))
        below, below_other = at + (i + 1) * clean.stride_h, beside + (i + 1) * changed.stride_h
        for j in range(width):
            a, b = load(row + j * LINE), load(second + j * LINE)
            # The rows of 16 channels can be too far apart in memory for the hardware prefetcher.
            prefetch(below + j * clean.stride_w)
            prefetch(below_other + j * changed.stride_w)
            x, y = double(a) - pivot, double(b) - other
            difference = double(b) - double(a)
            sums += x
            others += y
            squares = fma(x, x, squares)
            other_squares = fma(y, y, other_squares)
            products = fma(x, y, products)
            energy = fma(difference, difference, energy)
    size = splat(np.float64(height * width))
    spread = squares - sums * sums / size
    other_spread = other_squares - others * others / size
    shared = products - sums * others / size
    varying = (spread > nothing) & (other_spread > nothing)
    correlation = shared / (square_root(spread) * square_root(other_spread))
    correlation = select(correlation > one, one, correlation)
    correlation = select(nothing - one > correlation, nothing - one, correlation)
    correlation = select(varying, correlation, splat(np.float64(np.nan)))
    # A sum of squares is finite if and only if all values are.
    finite = energy - energy == nothing
    nan = splat(np.float32(np.nan))
    return select(finite, single(energy / size), nan), select(finite, single(correlation), nan)


@njit(nogil=True, error_model="numpy")
def _task(a, task, slot):  # type: ignore[no-untyped-def]
    """Run one task with the scratch memory at `slot`."""
    first_channel = (task % a.blocks) * LANES
    lanes = min(LANES, a.channels - first_channel)
    group = task // a.blocks
    clean = MapBlock(a.clean_dtype, lanes, a.clean_c, a.clean_h, a.clean_w)
    changed = MapBlock(a.changed_dtype, lanes, a.changed_c, a.changed_h, a.changed_w)
    for n in range(group * a.group, min((group + 1) * a.group, a.images)):
        change, correlation = _compare(
            clean, a.clean + n * a.clean_n + first_channel * a.clean_c,
            changed, a.changed + n * a.changed_n + first_channel * a.changed_c,
            a.height, a.width, slot + LINE, a.pitch,
        )  # fmt: skip
        cell = a.pairs + n * a.pairs_n + first_channel * a.pairs_c
        put(change, cell, a.pairs_c, lanes, slot)
        put(correlation, cell + a.pairs_row, a.pairs_c, lanes, slot)


def _make_worker(digest: int) -> Any:
    """Make the C function that each thread runs; see `team.compiled`."""

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
    return team.compiled(_make_worker, "simd", "moments", "fused", "pairs")


def compare(clean: Tensor, changed: Tensor, pairs: Tensor) -> None:
    """Overwrite `pairs`; see `actstats_kernels.ops.compare`."""
    images, channels, height, width = clean.shape
    if clean.numel() == 0:
        return
    clean, changed = (x if x.dtype in DTYPES else x.float() for x in (clean, changed))
    blocks = -(-channels // LANES)
    group = min(images, -(-VALUES_A_TASK // (height * width)))
    groups = -(-images // group)
    threads = min(torch.get_num_threads(), blocks * groups, 1 + 2 * clean.numel() // VALUES_A_THREAD)
    pitch = row_pitch(width)
    slot = -(-(LINE + 2 * pitch) // LINE) * LINE
    counters = np.zeros(2, dtype=np.int64)
    arguments = np.zeros(1, dtype=_ARGUMENTS)
    values = {
        "next_task": counters.ctypes.data,
        "next_slot": counters.ctypes.data + 8,
        "tasks": blocks * groups,
        "blocks": blocks,
        "group": group,
        "images": images,
        "channels": channels,
        "height": height,
        "width": width,
        "clean": clean.data_ptr(),
        "clean_dtype": DTYPES[clean.dtype],
        **strides(clean, "clean_n", "clean_c", "clean_h", "clean_w"),
        "changed": changed.data_ptr(),
        "changed_dtype": DTYPES[changed.dtype],
        **strides(changed, "changed_n", "changed_c", "changed_h", "changed_w"),
        "pairs": pairs.data_ptr(),
        **strides(pairs, "pairs_row", "pairs_n", "pairs_c"),
        "scratch": team.scratch.address(threads * slot),
        "slot_bytes": slot,
        "pitch": pitch,
    }
    for name, value in values.items():
        arguments[name] = value
    team.run(_worker().address, arguments.ctypes.data, threads)
