"""Discrete Fourier transforms of any length on vectors of 16 lanes, in place, as generated LLVM code.

A length is factored into radices (112 = 16 x 7). For each radix there is a *butterfly*: the whole transform of that
many elements as straight-line code in registers, with its constants folded in. Stages of butterflies (decimation in
frequency; Cooley and Tukey 1965, Gentleman and Sande 1966) leave the coefficients in the digit-reversed order given
by `Plan.order`, which does not matter for a power spectrum. Primes without a butterfly take O(p^2) steps.
"""

from __future__ import annotations

from functools import cache
from math import cos, pi, sin
from typing import Any, Final, NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core.cgutils import for_range, for_range_slice
from numpy.typing import NDArray

from actstats_kernels.cpu.simd import (
    F32,
    LINE,
    WORD,
    broadcast,
    call,
    define,
    fma,
    load,
    read,
    read_float,
    read_from,
    splat,
    store,
    write_to,
)

RADICES: Final = (2, 3, 4, 5, 7, 8, 9, 11, 13, 16)
_GREATEST_RADIX: Final = max(RADICES)

Complex = tuple[ir.Value, ir.Value]


class Plan(NamedTuple):
    """How to transform one length; compiled code reads `stages`, i64 [1 + 4 stages].

    `order` [n] is the frequency of the coefficient at each place of the result.
    """

    length: int
    order: NDArray[np.int64]
    stages: NDArray[np.int64]
    twiddles: tuple[NDArray[np.float32], ...]


def radices(length: int) -> list[int]:
    """Factor a length into radices.

    >>> radices(112), radices(32), radices(149)
    ([16, 7], [8, 4], [149])
    """
    found, rest = [], length
    twos = (rest & -rest).bit_length() - 1
    rest >>= twos
    pieces = -(-twos // 4)
    found += [2 ** ((twos + i) // pieces) for i in reversed(range(pieces))]
    for radix in (9, 3, 5, 7, 11, 13):
        while rest % radix == 0:
            found.append(radix)
            rest //= radix
    factor = 17
    while rest > 1:
        while rest % factor:
            factor += 2
        found.append(factor)
        rest //= factor
    return found


@cache
def plan(length: int) -> Plan:
    """Return the plan of a length. It is never freed, because compiled code reads its tables by address."""
    words: list[int] = []
    tables: list[NDArray[np.float32]] = []
    order, left = np.zeros(1, dtype=np.int64), length
    stages = radices(length)
    for radix in stages:
        step = left // radix
        twiddles = np.exp(-2j * np.pi * np.outer(np.arange(step), np.arange(1, radix)) / left).ravel()
        if radix not in RADICES:
            roots = np.exp(2j * np.pi * np.arange(radix) / radix)
            twiddles = np.concatenate([roots, twiddles])
        tables.append(twiddles.astype(np.complex64).view(np.float32))
        words += [radix, length // left, step, tables[-1].ctypes.data]
        left = step
    for radix in reversed(stages):
        order = (np.arange(radix)[:, None] + radix * order[None, :]).ravel()
    return Plan(length, order, np.array([len(stages), *words], dtype=np.int64), tuple(tables))


def _constant(value: float) -> ir.Constant:
    return ir.Constant(F32.llvm, [value] * F32.llvm.count)


def _times(b: ir.IRBuilder, z: Complex, c: ir.Value, s: ir.Value) -> Complex:
    """Return z * (c + i s)."""
    re = call(b, "llvm.fmuladd", b.fneg(s), z[1], b.fmul(c, z[0]))
    return re, call(b, "llvm.fmuladd", s, z[0], b.fmul(c, z[1]))


def _turned(b: ir.IRBuilder, z: Complex, k: int, n: int) -> Complex:
    """Return z * exp(-2 pi i k / n)."""
    k %= n
    if k == 0:
        return z
    if 4 * k == n:
        return z[1], b.fneg(z[0])
    if 2 * k == n:
        return b.fneg(z[0]), b.fneg(z[1])
    if 4 * k == 3 * n:
        return b.fneg(z[1]), z[0]
    return _times(b, z, _constant(cos(2 * pi * k / n)), _constant(-sin(2 * pi * k / n)))


def _add(b: ir.IRBuilder, x: Complex, y: Complex) -> Complex:
    return b.fadd(x[0], y[0]), b.fadd(x[1], y[1])


def _subtract(b: ir.IRBuilder, x: Complex, y: Complex) -> Complex:
    return b.fsub(x[0], y[0]), b.fsub(x[1], y[1])


def _emit_prime(b: ir.IRBuilder, x: list[Complex]) -> list[Complex]:
    """Emit the transform of an odd prime length, from sums and differences of mirrored elements."""
    n, half = len(x), len(x) // 2
    sums = [_add(b, x[k], x[n - k]) for k in range(1, half + 1)]
    differences = [_subtract(b, x[k], x[n - k]) for k in range(1, half + 1)]
    out: list[Complex] = [x[0]] * n
    for total in sums:
        out[0] = _add(b, out[0], total)
    for q in range(1, half + 1):
        even, odd = list(x[0]), [_constant(0.0)] * 2
        for k, (total, difference) in enumerate(zip(sums, differences, strict=True), 1):
            angle = 2 * pi * (q * k % n) / n
            for part in range(2):
                even[part] = call(b, "llvm.fmuladd", _constant(cos(angle)), total[part], even[part])
                term = (_constant(sin(angle)), difference[part])
                odd[part] = b.fmul(*term) if k == 1 else call(b, "llvm.fmuladd", *term, odd[part])
        # even - i odd, and its mirror image
        out[q] = b.fadd(even[0], odd[1]), b.fsub(even[1], odd[0])
        out[n - q] = b.fsub(even[0], odd[1]), b.fadd(even[1], odd[0])
    return out


def _emit(b: ir.IRBuilder, x: list[Complex]) -> list[Complex]:
    """Emit the transform of the complex vectors `x`, in order of frequency."""
    n = len(x)
    if n == 1:
        return x
    if n == 2:
        return [_add(b, *x), _subtract(b, *x)]
    p = 4 if n % 4 == 0 and n > 4 else next(f for f in range(2, n + 1) if n % f == 0)
    if p == n:
        return _emit_prime(b, x)
    q = n // p
    inner = [_emit(b, [x[q * i + j] for i in range(p)]) for j in range(q)]
    out: list[Complex] = [x[0]] * n
    for k in range(p):
        column = [_turned(b, inner[j][k], j * k, n) for j in range(q)]
        for m, value in enumerate(_emit(b, column)):
            out[k + p * m] = value
    return out


def _emit_butterfly(
    b: ir.IRBuilder, radix: int, address: ir.Value, gap: ir.Value, leg: ir.Value, twiddles: ir.Value | None
) -> None:
    """Transform `radix` elements in place, `leg` bytes apart; output k is multiplied by the k-th of the twiddles."""
    places = [b.add(address, b.mul(leg, _word(q))) for q in range(radix)]
    x = [(read_from(b, at, F32.llvm, 4), read_from(b, b.add(at, gap), F32.llvm, 4)) for at in places]
    for k, (place, value) in enumerate(zip(places, _emit(b, x), strict=True)):
        z = value
        if twiddles is not None and k:
            z = _times(b, value, *(_spread(b, b.add(twiddles, _word(8 * (k - 1) + half))) for half in (0, 4)))
        write_to(b, z[0], place, 4)
        write_to(b, z[1], b.add(place, gap), 4)


def _spread(b: ir.IRBuilder, address: ir.Value) -> ir.Value:
    return broadcast(b, read_from(b, address, ir.FloatType(), 4))


def _word(value: int) -> ir.Constant:
    return ir.Constant(ir.IntType(64), value)


def _stage(radix: Any, address: Any, gap: Any, stride: Any, blocks: Any, step: Any, twiddles: Any) -> Any:
    """Run one stage of a radix in `RADICES`, in place.

    In each of `blocks` runs of `radix * step` elements, butterfly j of `step` takes every `step`-th element, starting
    with the j-th. Exists in compiled code only.
    """


@define(_stage, types.none, *[WORD] * 7)
def _(
    b: ir.IRBuilder, radix: Any, address: Any, gap: Any, stride: Any, blocks: Any, step: Any, twiddles: Any
) -> None:
    leg = b.mul(step, stride)
    done = b.append_basic_block("done")
    switch = b.switch(radix, done)
    for r in RADICES:
        case = b.append_basic_block(f"radix{r}")
        switch.add_case(_word(r), case)
        b.position_at_end(case)
        with for_range(b, blocks) as block:
            first = b.add(address, b.mul(block.index, b.mul(leg, _word(r))))
            _emit_butterfly(b, r, first, gap, leg, None)
            with for_range_slice(b, _word(1), step, _word(1)) as (j, _):
                table = b.add(twiddles, b.mul(j, _word(8 * (r - 1))))
                _emit_butterfly(b, r, b.add(first, b.mul(j, stride)), gap, leg, table)
        b.branch(done)
    b.position_at_end(done)


@njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _prime(
    radix: int, address: int, gap: int, stride: int, blocks: int, step: int, table: int, work: int
) -> None:
    """Run a stage of any odd radix. `work` has room for 2 (radix - 1) vectors; `table` holds roots, then twiddles."""
    half = radix // 2
    leg = step * stride
    for block in range(blocks):
        for j in range(step):
            x = address + (block * radix * step + j) * stride
            re0 = load(x)
            im0 = load(x + gap)
            re, im = re0, im0
            for k in range(1, half + 1):
                low, high, place = x + k * leg, x + (radix - k) * leg, work + 4 * LINE * (k - 1)
                a, c, d, e = load(low), load(high), load(low + gap), load(high + gap)
                re += a + c
                im += d + e
                store(a + c, place)
                store(d + e, place + LINE)
                store(a - c, place + 2 * LINE)
                store(d - e, place + 3 * LINE)
            store(re, x)
            store(im, x + gap)
            for q in range(1, half + 1):
                even_re, even_im = re0, im0
                odd_re = odd_im = splat(np.float32(0.0))
                root = 0
                for k in range(half):
                    root += q
                    if root >= radix:
                        root -= radix
                    c = splat(read_float(table + 8 * root))
                    s = splat(read_float(table + 8 * root + 4))
                    place = work + 4 * LINE * k
                    even_re = fma(c, load(place), even_re)
                    even_im = fma(c, load(place + LINE), even_im)
                    odd_re = fma(s, load(place + 2 * LINE), odd_re)
                    odd_im = fma(s, load(place + 3 * LINE), odd_im)
                turns = table + 8 * radix + 8 * j * (radix - 1)
                _store_turned(even_re + odd_im, even_im - odd_re, turns + 8 * (q - 1), x + q * leg, gap)
                _store_turned(
                    even_re - odd_im,
                    even_im + odd_re,
                    turns + 8 * (radix - q - 1),
                    x + (radix - q) * leg,
                    gap,
                )


@njit(nogil=True, error_model="numpy")
def _store_turned(re, im, twiddle, address, gap):  # type: ignore[no-untyped-def]
    c = splat(read_float(twiddle))
    s = splat(read_float(twiddle + 4))
    store(c * re - s * im, address)
    store(s * re + c * im, address + gap)


@njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def transform(address: int, gap: int, stride: int, stages: int, work: int) -> None:
    """Transform the elements at `address`, `address + stride`, ... in place, with the plan at `stages`.

    The imaginary parts are `gap` bytes after the real parts. `work` has room for 2 (p - 1) vectors, where p is the
    greatest radix.
    """
    for s in range(read(stages)):
        entry = stages + 8 * (1 + 4 * s)
        radix, blocks, step, table = read(entry), read(entry + 8), read(entry + 16), read(entry + 24)
        if radix <= _GREATEST_RADIX:
            _stage(radix, address, gap, stride, blocks, step, table)
        else:
            _prime(radix, address, gap, stride, blocks, step, table, work)
