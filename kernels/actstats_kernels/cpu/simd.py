"""Vectors of 16 lanes for numba: values in registers that support the operators of numbers.

A lane is a channel: a kernel is written as if for one map and computes 16. LLVM maps a vector to the registers of the
machine: one of AVX-512, two of AVX2, four of NEON. Memory is addressed by plain integers, in bytes.

    total = zeros()
    for j in range(width):
        total += load(row + j * LINE)
    store(total, out)

These functions have no Python body; they exist in compiled code only.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, Final

from llvmlite import ir
from numba import types
from numba.core.cgutils import get_or_insert_function
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import lower_builtin, models, register_model

LANES: Final = 16
LINE: Final = 4 * LANES
"""Size in bytes of a vector of 32-bit lanes."""


class Vector(types.Type):  # type: ignore[misc]
    """The numba type of a vector; `llvm` is its type in LLVM."""

    def __init__(self, name: str, element: ir.Type) -> None:
        self.llvm = ir.VectorType(element, LANES)
        super().__init__(name=f"Vector({name})")


@register_model(Vector)
class _Model(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, fe_type: Vector) -> None:
        super().__init__(manager, fe_type, fe_type.llvm)


F32: Final = Vector("f32", ir.FloatType())
F64: Final = Vector("f64", ir.DoubleType())
I32: Final = Vector("i32", ir.IntType(32))
MASK: Final = Vector("bool", ir.IntType(1))
WORD: Final = types.int64


def load(address: Any) -> Any:
    """Read an F32 at `address`, aligned to 4 bytes."""


def load_integers(address: Any) -> Any:
    """Read an I32 at `address`."""


def load_halves(address: Any) -> Any:
    """Read 16 unsigned 16-bit integers at `address` as an I32."""


def load_doubles(address: Any) -> Any:
    """Read an F64 at `address`."""


def store(vector: Any, address: Any) -> Any:
    """Write an F32, F64 or I32 at `address`."""


def splat(number: Any) -> Any:
    """Return a vector with `number` in all lanes: F32 for float32, F64 for float64, I32 for int32."""


def fma(a: Any, b: Any, c: Any) -> Any:
    """Return a * b + c, rounded only once if the machine supports it."""


def select(mask: Any, a: Any, b: Any) -> Any:
    """Return `a` where `mask`, else `b`."""


def bits(vector: Any) -> Any:
    """Return the bits of an F32 as an I32."""


def from_bits(vector: Any) -> Any:
    """Return the F32 with the bits of an I32."""


def double(vector: Any) -> Any:
    """Convert F32 to F64."""


def single(vector: Any) -> Any:
    """Convert F64 to F32."""


def square_root(vector: Any) -> Any:
    """Return the square roots of an F64."""


def read(address: Any) -> Any:
    """Read an int64."""


def read_float(address: Any) -> Any:
    """Read a float32."""


def move(source: Any, target: Any) -> Any:
    """Copy 32 bits."""


def move_half(source: Any, target: Any) -> Any:
    """Copy an unsigned 16-bit integer to a 32-bit one."""


def prefetch(address: Any) -> Any:
    """Prefetch the cache line at `address`, which may be any address."""


def fetch_add(address: Any, number: Any) -> Any:
    """Atomically add to the int64 at `address` and return its previous value."""


def atomic_add(address: Any, number: Any, wide: Any) -> Any:
    """Atomically add `number` to the integer at `address`, int64 if `wide` is not 0, else int32."""


def increment(address: Any) -> Any:
    """Add 1 to the int32 at `address`; not atomic."""


def counted(address: Any) -> Any:
    """Read an int32 as int64."""


_I16 = ir.IntType(16)
_I32 = ir.IntType(32)
_I64 = ir.IntType(64)
_cases: dict[Any, list[Any]] = {}


def _pointer(builder: ir.IRBuilder, address: ir.Value, target: ir.Type) -> ir.Value:
    return builder.inttoptr(address, target.as_pointer())


def read_from(builder: ir.IRBuilder, address: ir.Value, target: ir.Type, align: int) -> ir.Value:
    """Emit a read of a `target` at an address."""
    return builder.load(_pointer(builder, address, target), align=align)


def write_to(builder: ir.IRBuilder, value: ir.Value, address: ir.Value, align: int) -> None:
    """Emit a write of `value` to an address."""
    builder.store(value, _pointer(builder, address, value.type), align=align)


def broadcast(builder: ir.IRBuilder, number: ir.Value) -> ir.Value:
    """Emit a vector with `number` in all lanes."""
    vector = ir.VectorType(number.type, LANES)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), number, ir.Constant(_I32, 0))
    mask = ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES)
    return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), mask)


def call(builder: ir.IRBuilder, name: str, *values: ir.Value) -> ir.Value:
    """Emit a call to an LLVM intrinsic on vectors of one type; `name` excludes the type."""
    vector = values[0].type
    name = f"{name}.v{LANES}{vector.element.intrinsic_name}"
    kind = ir.FunctionType(vector, [vector] * len(values))
    return builder.call(get_or_insert_function(builder.module, kind, name), values)


def define(function: Any, result: types.Type, *arguments: types.Type) -> Callable[[Any], Any]:
    """Return a decorator that registers `emit(builder, *values)` with numba as `function` on `arguments`."""
    if function not in _cases:
        _cases[function] = []
        template = type(
            f"_{function.__name__}", (ConcreteTemplate,), {"key": function, "cases": _cases[function]}
        )
        if function.__module__ in ("_operator", "builtins"):
            infer_global(function)(template)
        else:
            infer_global(function, types.Function(template))
    _cases[function].append(signature(result, *arguments))

    def register(emit: Callable[..., Any]) -> None:

        @lower_builtin(function, *arguments)  # type: ignore[untyped-decorator]
        def lower(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
            found = emit(builder, *values)
            return context.get_dummy_value() if found is None else found

    return register


for _type in (F32, F64):
    for _add in (operator.add, operator.iadd):
        define(_add, _type, _type, _type)(lambda b, x, y: b.fadd(x, y))
    define(operator.sub, _type, _type, _type)(lambda b, x, y: b.fsub(x, y))
    define(operator.mul, _type, _type, _type)(lambda b, x, y: b.fmul(x, y))
    define(operator.truediv, _type, _type, _type)(lambda b, x, y: b.fdiv(x, y))
    define(operator.gt, MASK, _type, _type)(lambda b, x, y: b.fcmp_ordered(">", x, y))
    define(operator.eq, MASK, _type, _type)(lambda b, x, y: b.fcmp_ordered("==", x, y))
    define(fma, _type, _type, _type, _type)(lambda b, x, y, z: call(b, "llvm.fmuladd", x, y, z))
    define(abs, _type, _type)(lambda b, x: call(b, "llvm.fabs", x))
define(operator.add, I32, I32, I32)(lambda b, x, y: b.add(x, y))
define(operator.sub, I32, I32, I32)(lambda b, x, y: b.sub(x, y))
define(operator.mul, I32, I32, I32)(lambda b, x, y: b.mul(x, y))
define(operator.and_, I32, I32, I32)(lambda b, x, y: b.and_(x, y))
define(operator.or_, I32, I32, I32)(lambda b, x, y: b.or_(x, y))
define(operator.xor, I32, I32, I32)(lambda b, x, y: b.xor(x, y))
define(operator.lshift, I32, I32, I32)(lambda b, x, y: b.shl(x, y))
define(operator.rshift, I32, I32, I32)(lambda b, x, y: b.ashr(x, y))
define(operator.gt, MASK, I32, I32)(lambda b, x, y: b.icmp_signed(">", x, y))
define(operator.eq, MASK, I32, I32)(lambda b, x, y: b.icmp_signed("==", x, y))
define(min, I32, I32, I32)(lambda b, x, y: b.select(b.icmp_signed("<", x, y), x, y))
define(max, I32, I32, I32)(lambda b, x, y: b.select(b.icmp_signed(">", x, y), x, y))
define(operator.and_, MASK, MASK, MASK)(lambda b, x, y: b.and_(x, y))
for _type in (F32, F64, I32):
    define(select, _type, MASK, _type, _type)(lambda b, m, x, y: b.select(m, x, y))
    define(store, types.none, _type, WORD)(lambda b, v, a: write_to(b, v, a, 4))
for _type, _number in ((F32, types.float32), (F64, types.float64), (I32, types.int32)):
    define(splat, _type, _number)(broadcast)
define(load, F32, WORD)(lambda b, a: read_from(b, a, F32.llvm, 4))
define(load_doubles, F64, WORD)(lambda b, a: read_from(b, a, F64.llvm, 8))
define(load_integers, I32, WORD)(lambda b, a: read_from(b, a, I32.llvm, 4))
define(load_halves, I32, WORD)(lambda b, a: b.zext(read_from(b, a, ir.VectorType(_I16, LANES), 2), I32.llvm))
define(bits, I32, F32)(lambda b, v: b.bitcast(v, I32.llvm))
define(from_bits, F32, I32)(lambda b, v: b.bitcast(v, F32.llvm))
define(double, F64, F32)(lambda b, v: b.fpext(v, F64.llvm))
define(single, F32, F64)(lambda b, v: b.fptrunc(v, F32.llvm))
define(square_root, F64, F64)(lambda b, v: call(b, "llvm.sqrt", v))
define(read, WORD, WORD)(lambda b, a: read_from(b, a, _I64, 8))
define(read_float, types.float32, WORD)(lambda b, a: read_from(b, a, ir.FloatType(), 4))
define(counted, WORD, WORD)(lambda b, a: b.sext(read_from(b, a, _I32, 4), _I64))
define(move, types.none, WORD, WORD)(lambda b, s, t: write_to(b, read_from(b, s, _I32, 4), t, 4))
define(move_half, types.none, WORD, WORD)(
    lambda b, s, t: write_to(b, b.zext(read_from(b, s, _I16, 2), _I32), t, 4)
)
define(fetch_add, WORD, WORD, WORD)(lambda b, a, n: b.atomic_rmw("add", _pointer(b, a, _I64), n, "monotonic"))


@define(prefetch, types.none, WORD)
def _(b: ir.IRBuilder, address: ir.Value) -> None:
    pointer = _pointer(b, address, ir.IntType(8))
    kind = ir.FunctionType(ir.VoidType(), [pointer.type, _I32, _I32, _I32])
    function = get_or_insert_function(b.module, kind, "llvm.prefetch.p0")
    b.call(function, [pointer, *(ir.Constant(_I32, flag) for flag in (0, 3, 1))])


@define(increment, types.none, WORD)
def _(b: ir.IRBuilder, address: ir.Value) -> None:
    write_to(b, b.add(read_from(b, address, _I32, 4), ir.Constant(_I32, 1)), address, 4)


@define(atomic_add, types.none, WORD, WORD, WORD)
def _(b: ir.IRBuilder, address: ir.Value, number: ir.Value, wide: ir.Value) -> None:
    with b.if_else(b.icmp_signed("!=", wide, ir.Constant(_I64, 0))) as (then, otherwise):
        with then:
            b.atomic_rmw("add", _pointer(b, address, _I64), number, "monotonic")
        with otherwise:
            b.atomic_rmw("add", _pointer(b, address, _I32), b.trunc(number, _I32), "monotonic")
