"""Carry coordinates from the image through every operation of a forward pass.

Each value has coordinates: fields that state, for every element, the image, row, column and unit that it stands for.
Operations that move elements (views, slices, concatenations, rolls, indices) are run on the fields themselves, so
windows, shuffles and extra tokens are followed exactly and undone exactly. A contraction leaves the centroid of what
it sums, or nothing if it sums over the whole image. What an unknown operation does is measured on that operation; if
it neither moves elements nor keeps an axis in order, the coordinates are lost and nothing is claimed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor

Shape = tuple[int, ...]

Fields = Mapping[str, Tensor]
"""Coordinates by kind, each a float32 tensor that broadcasts to the value's shape; an axis of size 1 does not matter.

Kinds: "n" image, "h" row, "w" column, "c" unit, and "H" and "W" for the rows and columns of a second axis, as in the
matrix of an attention. "q" marks places that are only those of an attention's queries. NaN stands for no place (a
class token) and infinity for an unknown one. Rows and columns are in pixels of the image, up to an offset; units are
only distinguished from each other.
"""


@dataclass(frozen=True)
class Coordinates:
    """Coordinates of a value, and the operation in which they were lost, if one was."""

    fields: Fields = field(default_factory=dict)
    lost: str = ""


Geometry = tuple[int, Shape, Shape]
"""Place of a tensor in memory: offset, shape and strides, in elements."""


@dataclass(frozen=True)
class Operand:
    """A tensor that an operation reads; `computed` is True if it depends on the image."""

    shape: Shape
    coordinates: Coordinates
    computed: bool


# fmt: off
ACTIVATIONS: Final = frozenset({
    "relu", "relu6", "hardtanh", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish",
    "hardsigmoid", "sigmoid", "tanh", "softplus", "prelu", "_prelu_kernel", "rrelu", "clamp", "clamp_min",
    "clamp_max", "clip", "threshold", "softsign", "softshrink", "hardshrink", "tanhshrink", "log_sigmoid", "erf",
    "exp",
})
ARITHMETIC: Final = frozenset({
    "mul", "add", "sub", "rsub", "div", "neg", "pow", "square", "sqrt", "rsqrt", "reciprocal", "abs", "multiply",
    "divide", "subtract", "true_divide",
})
_RESHAPES: Final = frozenset({
    "view", "_unsafe_view", "reshape", "_reshape_alias", "flatten", "unflatten", "squeeze", "unsqueeze",
})
_MOVES: Final = frozenset({
    "index", "index_select", "gather", "take_along_dim", "roll", "flip", "repeat", "tile", "repeat_interleave",
    "index_put", "scatter", "slice_scatter", "select_scatter", "channel_shuffle", "permute",
})
_WRITES: Final = frozenset({"index_put", "scatter", "slice_scatter", "select_scatter"})
_COPIES: Final = frozenset({
    "_to_copy", "to", "type_as", "contiguous", "clone", "detach", "alias", "lift_fresh", "dequantize",
    "quantize_per_tensor", "quantize_per_tensor_dynamic",
})
_PRODUCTS: Final = {"matmul": 0, "mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}
_KEEPS: Final = ("norm", "softmax", "dropout", "cumsum", "cumprod", "logcumsumexp")
_MADE_MAPS: Final = ("pool", "upsample", "interpolate", "pixel_shuffle", "pixel_unshuffle", "grid_sampler")
# fmt: on


def of_images(shape: Shape) -> Coordinates:
    """Return the coordinates of images [n, channels, rows, columns], or of inputs [n, ...] of another kind."""
    kinds = "nchw" if len(shape) == 4 else "n"
    return Coordinates(
        {
            kind: _along(at, size, len(shape))
            for at, (kind, size) in enumerate(zip(kinds, shape, strict=False))
        }
    )


def convolves(name: str) -> bool:
    """Return whether an operation is a convolution (of any backend), judging by its name."""
    return "conv" in name and "convert" not in name


def follow(
    name: str,
    func: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    operands: Sequence[Operand],
    results: Sequence[Tensor],
) -> list[Coordinates]:
    """Return the coordinates of each of an operation's results.

    Args:
        name: name of the operation, without the overload and the trailing `_` of in-place operations.
        func: the operation.
        args: its positional arguments.
        kwargs: its named arguments.
        operands: the dense tensors among the arguments, in order.
        results: the dense tensors that it returned, in order.
    """
    rule = _rule(name, func)
    if rule is None:
        return [_measured(name, func, args, kwargs, operands, result) for result in results]
    try:
        return rule(_Operation(name, func, args, kwargs, operands, results))
    except (RuntimeError, IndexError, ValueError, TypeError, StopIteration):
        return [Coordinates(lost=name) for _ in results]


def understood(name: str, func: Callable[..., Any]) -> bool:
    """Return whether `follow` knows what an operation does; if not, it is worth taking apart."""
    return _rule(name, func) is not None


@dataclass(frozen=True)
class _Operation:
    name: str
    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    operands: Sequence[Operand]
    results: Sequence[Tensor]

    def argument(self, name: str, default: Any = None) -> Any:
        """Return an argument by its name in the operation's schema."""
        for at, known in enumerate(self.func._schema.arguments):  # type: ignore[attr-defined]
            if known.name == name:
                return self.args[at] if at < len(self.args) else self.kwargs.get(name, default)
        return default

    def each(self, rule: Callable[[Shape], Coordinates]) -> list[Coordinates]:
        return [rule(tuple(result.shape)) for result in self.results]


_Rule = Callable[[_Operation], list[Coordinates]]


def _rule(name: str, func: Any) -> _Rule | None:
    """Return the function that follows coordinates through an operation, or None if it is not known."""
    if name in _BY_NAME:
        return _BY_NAME[name]
    if name in _RESHAPES:
        return lambda o: o.each(lambda shape: reshaped(o.operands[0].shape, o.operands[0].coordinates, shape))
    if convolves(name):
        return _through_convolution
    if "_pad" in name or name == "pad":
        return _through_padding
    if name in _PRODUCTS or name.startswith("linear") or "attention" in name or "encoder_layer" in name:
        return _through_product
    if any(part in name for part in _MADE_MAPS):
        return lambda o: o.each(lambda shape: _resampled(o.operands[0], shape))
    elementwise = name in ACTIVATIONS or name in ARITHMETIC or name in _COPIES or _is_elementwise(name, func)
    if elementwise or any(part in name for part in _KEEPS):
        return _through_elements
    if name in _MOVES or _is_view(func):
        return _through_move
    names = {argument.name for argument in func._schema.arguments}
    if names & {"dim", "axis"} and names & {"keepdim", "keepdims"}:
        return _through_elements
    return None


def _is_elementwise(name: str, func: Any) -> bool:
    """Return whether torch tags an operation as pointwise; many in-place forms and overloads lack the tag."""
    packet = getattr(getattr(torch.ops, func.namespace), name, None)
    overloads = [func] if packet is None else [func, *(getattr(packet, key) for key in packet.overloads())]
    return any(torch.Tag.pointwise in overload.tags for overload in overloads)


def _is_view(func: Any) -> bool:
    """Return whether an operation returns a view of its first argument."""
    schema = func._schema
    return not schema.is_mutable and any(r.alias_info is not None for r in schema.returns)


# Fields


def _along(axis: int, size: int, rank: int) -> Tensor:
    """Return 0 to `size` - 1 along one axis."""
    return torch.arange(size, dtype=torch.float32).reshape([size if at == axis else 1 for at in range(rank)])


def varies(values: Tensor | None) -> set[int]:
    """Return the axes along which a field varies."""
    return set() if values is None else {at for at, size in enumerate(values.shape) if size > 1}


def _aligned(values: Tensor, rank: int) -> Tensor:
    """Return a field of a value of lower rank that is broadcast to `rank` axes."""
    return values.reshape((1,) * (rank - values.ndim) + tuple(values.shape))


def compact(kind: str, values: Tensor) -> Tensor | None:
    """Return a field without the axes along which it is constant, or None if it states nothing.

    What has no image or unit (a constant) belongs to all of them, but what has no row is no part of the grid.
    """
    for axis, size in enumerate(values.shape):
        if size == 1:
            continue
        first = values.narrow(axis, 0, 1)
        if values.stride(axis) == 0:
            values = first
            continue
        last = values.narrow(axis, size - 1, 1)
        if bool(((first != last) & ~first.isnan() & ~last.isnan()).any()):
            continue
        if kind in "ncq":
            first = values.nan_to_num(nan=-torch.inf).amax(axis, keepdim=True)
            same = (values == first) | values.isnan()
            first = torch.where(first == -torch.inf, torch.nan, first)
        else:
            same = (values == first) | (values.isnan() & first.isnan())
        if bool(same.all()):
            values = first
    return None if values.numel() == 1 and bool(values.isnan()) else values.contiguous()


def _compacted(fields: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    smaller = {kind: compact(kind, values) for kind, values in fields.items() if values is not None}
    return {kind: values for kind, values in smaller.items() if values is not None}


def _contracted(fields: Fields, axis: int) -> dict[str, Tensor]:
    """Return the fields of a sum over one axis, which is kept with size 1: centroids, unless nothing else is left."""
    out = {}
    for kind, values in fields.items():
        if values.shape[axis] > 1:
            mean = values.nanmean(axis, keepdim=True)
            centroid = compact(kind, mean)
            if centroid is None or centroid.numel() == 1:
                continue
            values = centroid
        out[kind] = values
    for kind in "HW":
        if kind in out and kind.lower() not in out:
            out[kind.lower()] = out.pop(kind)
    return out


def order(values: Tensor) -> Tensor:
    """Return the rank of each element among the distinct values."""
    ranks: Tensor = torch.unique(values, return_inverse=True)[1]
    return ranks


def _merged(first: Tensor, second: Tensor) -> Tensor:
    """Return the field of a sum of two values: where both have a place, their centroid, or one in the same order."""
    if first is second or (first.shape == second.shape and torch.equal(first, second)):
        return first
    a, b = torch.broadcast_tensors(first, second)  # type: ignore[no-untyped-call]
    a, b = torch.where(a.isnan(), b, a), torch.where(b.isnan(), a, b)
    if torch.equal(a, b) or a.isnan().all():
        return a
    ranks = order(a)
    if len(varies(a)) == 1 and int(ranks.max()) + 1 == a.numel() and torch.equal(ranks, order(-b)):
        return a  # the mirrored image
    middle = (a + b) / 2
    for one in (a, b):
        if torch.equal(order(one), order(middle)):
            return one
    return middle


def _both(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """Return a field that varies along the axes of both."""
    if first is None or varies(first) <= varies(second):
        return second
    if second is None or varies(second) <= varies(first):
        return first
    return first * 1000.5 + second


def overwritten(
    below: Coordinates, geometry: Geometry, above: Coordinates, written: Geometry, elements: int
) -> Coordinates:
    """Return the coordinates of a view after another view of the same memory was written to.

    Args:
        below: coordinates of the view before.
        geometry: offset, shape and strides of the view.
        above: coordinates of what was written.
        written: offset, shape and strides of the view that was written to.
        elements: number of elements of the memory.
    """
    fields = {}
    for kind in dict.fromkeys([*below.fields, *above.fields]):
        memory = torch.full((elements,), torch.nan)
        for coordinates, (offset, shape, strides) in ((below, geometry), (above, written)):
            values = coordinates.fields.get(kind)
            view = memory.as_strided(shape, strides, offset)
            view.copy_(torch.tensor(torch.nan) if values is None else values)
        offset, shape, strides = geometry
        fields[kind] = memory.as_strided(shape, strides, offset)
    return Coordinates(_compacted(fields), above.lost)


# Rules


def _combined(operands: Sequence[Operand], shape: Shape) -> Coordinates:
    """Return the coordinates of an elementwise operation. A value with a place keeps it beside one without."""
    computed = [o for o in operands if o.computed and len(o.shape) <= len(shape)]
    known = [o for o in computed if not o.coordinates.lost] or computed
    if not known:
        return Coordinates()
    if len({id(o.coordinates) for o in known}) == 1 and known[0].shape == shape:
        return known[0].coordinates
    placed = [o.coordinates.fields for o in known if _has_places(o.coordinates.fields)]
    if any("q" not in fields for fields in placed):
        placed = [
            {kind: values for kind, values in fields.items() if "q" not in fields or kind in "nc"}
            for fields in sorted(placed, key=lambda fields: "q" in fields)
        ]
    others = [
        {kind: values for kind, values in o.coordinates.fields.items() if kind != "q" or not placed}
        for o in known
        if not _has_places(o.coordinates.fields)
    ]
    out: dict[str, Tensor] = {}
    for fields in [*placed, *others]:
        for kind, values in fields.items():
            values = _aligned(values, len(shape))
            if any(size not in (1, full) for size, full in zip(values.shape, shape, strict=True)):
                return Coordinates(lost="an operation that changes sizes")
            if kind not in out:
                out[kind] = values
            elif kind not in "cqHW":
                out[kind] = _merged(out[kind], values)
    return Coordinates(_compacted(out), known[0].coordinates.lost)


def _expands_to(before: Shape, after: Shape) -> bool:
    aligned = zip(reversed(before), reversed(after), strict=False)
    return len(before) <= len(after) and all(size in (1, full) for size, full in aligned)


def _has_places(fields: Fields) -> bool:
    return any(varies(fields.get(kind)) for kind in "hw")


def _through_elements(operation: _Operation) -> list[Coordinates]:
    """Elementwise operations, normalisations, and reductions along axes."""
    operands = operation.operands
    out = []
    for result in operation.results:
        shape, before = tuple(result.shape), operands[0].shape if operands else ()
        if all(_expands_to(o.shape, shape) for o in operands if o.computed):
            out.append(_combined(operands, shape))
        else:
            out.append(_reduced(operation, before, shape))
    return out


def _reduced(operation: _Operation, before: Shape, shape: Shape) -> Coordinates:
    dims = operation.argument("dim", operation.argument("axis"))
    if dims is None or dims == []:
        dims = list(range(len(before)))
    axes = sorted({int(at) % max(len(before), 1) for at in ([dims] if isinstance(dims, int) else dims)})
    kept = tuple(1 if at in axes else size for at, size in enumerate(before))
    if math.prod(kept) != math.prod(shape):
        return Coordinates(lost=operation.name)
    coordinates = operation.operands[0].coordinates
    fields: Fields = coordinates.fields
    for axis in axes:
        fields = _contracted(fields, axis)
    dropped = len(shape) < len(before)
    return Coordinates({k: v.squeeze(axes) if dropped else v for k, v in fields.items()}, coordinates.lost)


def reshaped(before: Shape, coordinates: Coordinates, after: Shape) -> Coordinates:
    """Return the coordinates after a reshape from `before` to `after`, which merges and splits axes."""
    if math.prod(before) != math.prod(after) or 0 in before:
        return Coordinates(lost="a view of another size")
    groups = list(_groups(before, after))
    out = {}
    for kind, values in coordinates.fields.items():
        full, sizes = list(values.shape), [1] * len(after)
        for old, new in groups:
            if any(values.shape[at] > 1 for at in old):
                for at in old:
                    full[at] = before[at]
                for at in new:
                    sizes[at] = after[at]
        out[kind] = values.expand(full).reshape(sizes)
    return Coordinates(_compacted(out), coordinates.lost)


def _groups(before: Shape, after: Shape) -> Iterator[tuple[list[int], list[int]]]:
    """Yield the smallest sets of axes before and after a reshape that hold the same elements."""
    old = [at for at, size in enumerate(before) if size != 1]
    new = [at for at, size in enumerate(after) if size != 1]
    while old and new:
        left, right = [old.pop(0)], [new.pop(0)]
        while (a := math.prod(before[i] for i in left)) != (b := math.prod(after[j] for j in right)):
            if a < b:
                left.append(old.pop(0))
            else:
                right.append(new.pop(0))
        yield left, right


def _through_move(operation: _Operation) -> list[Coordinates]:
    """Run an operation that moves elements on the fields."""
    operands = operation.operands
    if operation.name in ("index", "index_select") and not operands[0].computed:
        return _through_lookup(operation)
    if operation.name in _WRITES and operands[0].computed and not _writes_what_is_computed(operation):
        # As in x[x < 0] = 0: a constant that is written to an element takes its place.
        return [operands[0].coordinates for _ in operation.results]
    dtype = operation.results[0].dtype
    kinds = dict.fromkeys(kind for o in operands for kind in o.coordinates.fields)
    fields: list[dict[str, Tensor]] = [{} for _ in operation.results]
    for kind in kinds:
        remaining = iter(operands)

        def moved(tensor: Tensor, kind: str = kind, remaining: Iterator[Operand] = remaining) -> Tensor:
            operand = next(remaining)
            if tensor.dtype != dtype:
                return tensor.cpu()
            values = operand.coordinates.fields.get(kind)
            if values is None:
                unknown = kind in "hw" and operand.coordinates.lost
                values = torch.full((1,) * len(operand.shape), torch.inf if unknown else torch.nan)
            values = values.expand(operand.shape)
            return values.clone() if operation.func._schema.is_mutable else values  # type: ignore[attr-defined]

        args, kwargs = substituted((operation.args, operation.kwargs), moved)
        for at, result in enumerate(tensors(operation.func(*args, **kwargs))):
            fields[at][kind] = result
    lost = next((o.coordinates.lost for o in operands if o.computed), "")
    return [
        Coordinates(_compacted(made), lost)
        if _fits(made, tuple(result.shape))
        else Coordinates(lost=operation.name)
        for made, result in zip(fields, operation.results, strict=True)
    ]


def _through_lookup(operation: _Operation) -> list[Coordinates]:
    """Rows of a constant table: each is at the place of its number, and its values are units."""
    table, numbers = operation.operands
    indices = operation.argument("indices")
    axis = 0 if operation.name == "embedding" else operation.argument("dim", 0)
    if indices is not None:
        axis = next(at for at, index in enumerate(indices) if index is not None)
    rank = len(table.shape) - axis - 1
    shape = tuple(operation.results[0].shape)
    if shape != (*table.shape[:axis], *numbers.shape, *table.shape[axis + 1 :]):
        return [Coordinates(lost=operation.name)]
    fields = {
        kind: values.reshape((1,) * axis + tuple(values.shape) + (1,) * rank)
        for kind, values in numbers.coordinates.fields.items()
        if kind != "c" or len(table.shape) == 1
    }
    if len(table.shape) == 2:
        at = 0 if axis else len(shape) - 1
        fields["c"] = _along(at, shape[at], len(shape))
    return [Coordinates(fields, numbers.coordinates.lost)]


def _writes_what_is_computed(operation: _Operation) -> bool:
    """Return whether what an operation in `_WRITES` writes, the last of its tensors, depends on the image."""
    source = operation.argument("values", operation.argument("src"))
    return isinstance(source, Tensor) and operation.operands[-1].computed


def _fits(fields: Fields, shape: Shape) -> bool:
    return all(tuple(values.shape) == shape for values in fields.values())


def _through_cat(operation: _Operation) -> list[Coordinates]:
    shape = tuple(operation.results[0].shape)
    axis = int(operation.argument("dim", 0)) % len(shape)
    pieces = [o for o in operation.operands if len(o.shape) > 1 or o.shape != (0,) or len(shape) == 1]
    if operation.name == "stack":
        pieces = [
            Operand(size, reshaped(o.shape, o.coordinates, size), o.computed)
            for o in pieces
            for size in [(*o.shape[:axis], 1, *o.shape[axis:])]
        ]
    kinds = dict.fromkeys(kind for o in pieces for kind in o.coordinates.fields)
    fields = {}
    for kind in kinds:
        parts = []
        for piece in pieces:
            values = piece.coordinates.fields.get(kind)
            if values is None:
                mixed = axis in varies(piece.coordinates.fields.get("c"))
                unknown = kind in "hw" and piece.computed and (piece.coordinates.lost or mixed)
                values = torch.full((1,) * len(shape), torch.inf if unknown else torch.nan)
            parts.append(values)
        sizes = [max(part.shape[at] for part in parts) for at in range(len(shape))]
        parts = [
            part.expand([piece.shape[axis] if at == axis else size for at, size in enumerate(sizes)])
            for part, piece in zip(parts, pieces, strict=True)
        ]
        fields[kind] = torch.cat(parts, axis)
    computed = [o.coordinates.lost for o in pieces if o.computed]
    return [Coordinates(_compacted(fields), computed[0] if computed and all(computed) else "")]


def _through_padding(operation: _Operation) -> list[Coordinates]:
    """Padding adds rows and columns beyond the border, and tokens, images or units that have no place."""
    operand, sizes = operation.operands[0], operation.argument("pad", operation.argument("padding"))
    fields = dict(operand.coordinates.fields)
    rank = len(operand.shape)
    for at, (left, right) in enumerate(zip(sizes[::2], sizes[1::2], strict=True)):
        axis = rank - 1 - at
        for kind, values in fields.items():
            if (size := values.shape[axis]) > 1:
                index = torch.arange(-left, size + right)
                inside = values.index_select(axis, index.clamp(0, size - 1))
                index = index.reshape([-1 if i == axis else 1 for i in range(rank)])
                step = values.diff(dim=axis).flatten()
                regular = (
                    values.numel() == size and kind in "hw" and torch.allclose(step, step[:1], rtol=1e-2)
                )
                beyond = values.narrow(axis, 0, 1) + index * step[0] if regular else torch.nan
                fields[kind] = torch.where((index < 0) | (index >= size), beyond, inside)
    return [Coordinates(fields, operand.coordinates.lost)]


def _through_convolution(operation: _Operation) -> list[Coordinates]:
    """A convolution makes new units on the axis of channels and keeps the order of the axes that it slides over."""
    operand = operation.operands[0]
    rank = len(operand.shape)
    slides = len(operation.operands[1].shape) - 2 if len(operation.operands) > 1 else rank - 2
    channels = rank - 1 - slides
    fields = _contracted(operand.coordinates.fields, channels)
    before = tuple(1 if at == channels else size for at, size in enumerate(operand.shape))
    out = []
    for result in operation.results:
        after = tuple(1 if at == channels else size for at, size in enumerate(result.shape))
        made = _resampled(Operand(before, Coordinates(fields, operand.coordinates.lost), True), after)
        units = _along(channels, result.shape[channels], rank)
        out.append(Coordinates(_with_units(made.fields, units), made.lost))
    return out


def _with_units(fields: Fields, units: Tensor) -> Fields:
    both = _both(fields.get("c"), units)
    return {**fields, "c": units if both is None else both}


def _resampled(operand: Operand, after: Shape) -> Coordinates:
    """Return the coordinates after a pooling, upsampling or strided convolution, which keep the order along axes."""
    before, coordinates = operand.shape, operand.coordinates
    if len(before) != len(after):
        return Coordinates(lost="a pooling that changes the number of axes")
    fields = dict(coordinates.fields)
    for kind, values in fields.items():
        for axis, size in enumerate(after):
            if values.shape[axis] > 1 and before[axis] != size:
                values = _interpolated(values, axis, size)
        fields[kind] = values
    return _with_new_places(Coordinates(_compacted(fields), coordinates.lost), before, after)


def _with_new_places(coordinates: Coordinates, before: Shape, after: Shape) -> Coordinates:
    """Return the coordinates with rows and columns where [n, c, 1, 1], which has none, became [n, c, h, w]."""
    if len(before) != 4 or len(after) != 4 or coordinates.lost:
        return coordinates
    made = {
        kind: _along(axis, after[axis], 4)
        for axis, kind in ((2, "h"), (3, "w"))
        if before[axis] == 1 < after[axis] and not varies(coordinates.fields.get(kind))
    }
    return Coordinates({**coordinates.fields, **made})


def _interpolated(values: Tensor, axis: int, size: int) -> Tensor:
    """Interpolate a field linearly along an axis, at the centres of `size` equal parts."""
    length = values.shape[axis]
    at = (torch.arange(size, dtype=torch.float32) + 0.5) * (length / size) - 0.5
    low = at.floor().long().clamp(0, length - 2)
    part = (at - low).reshape([-1 if i == axis else 1 for i in range(values.ndim)])
    below, above = values.index_select(axis, low), values.index_select(axis, low + 1)
    return torch.where(part == 0, below, below + (above - below) * part)


def _through_product(operation: _Operation) -> list[Coordinates]:
    """Matrix products, and attention as two of them."""
    operands, name = operation.operands, operation.name
    shape = tuple(operation.results[0].shape)
    if "encoder_layer" in name or "multi_head_attention" in name:
        made = _product(operands[0], Operand(shape[-1:] * 2, Coordinates(), False), shape)
    elif "attention" in name:
        query, key, value = operands[:3]
        key = Operand(
            (*key.shape[:-2], key.shape[-1], key.shape[-2]),
            Coordinates(
                {k: v.transpose(-2, -1) for k, v in key.coordinates.fields.items()}, key.coordinates.lost
            ),
            key.computed,
        )
        weights = (*shape[:-1], key.shape[-1])
        made = _product(Operand(weights, _product(query, key, weights), True), value, shape)
    else:
        at = _PRODUCTS.get(name, 0)
        left = operands[at]
        if name.startswith("linear"):
            right = Operand((left.shape[-1], shape[-1]), Coordinates(), False)
        else:
            right = operands[at + 1]
        made = _product(left, right, shape)
    return [made, *(Coordinates(lost=name) for _ in operation.results[1:])]


def _product(left: Operand, right: Operand, shape: Shape) -> Coordinates:
    """Return the coordinates of a matrix product: rows of the left operand, columns of the right one."""
    lost = left.coordinates.lost if left.computed else right.coordinates.lost
    rows = _contracted(left.coordinates.fields, -1) if left.shape else {}
    if len(right.shape) < 2:
        return Coordinates({k: v.squeeze(-1) for k, v in rows.items()}, lost)
    if len(left.shape) < 2:
        return Coordinates(lost=lost or "a product of a vector")
    rank = len(shape)
    rows = {k: _aligned(v, rank) for k, v in rows.items()}
    columns = {k: _aligned(v, rank) for k, v in _contracted(right.coordinates.fields, -2).items()}
    out = {**columns, **rows}
    for kind in "hw":
        if varies(columns.get(kind)):
            if not varies(rows.get(kind)):
                out[kind] = columns[kind]
            elif columns[kind].shape[-1] > 1:
                out[kind.upper()] = columns[kind]
    if "n" in rows and "n" in columns:
        out["n"] = _merged(rows["n"], columns["n"])
    units = _both(rows.get("c"), columns.get("c"))
    if units is not None:
        out["c"] = units
    if left.computed and right.computed:
        out["q"] = torch.ones((1,) * rank)
    if not right.computed:
        return Coordinates(_with_units(out, _along(rank - 1, shape[-1], rank)), lost)
    return Coordinates(out, lost)


def _through_recurrence(operation: _Operation) -> list[Coordinates]:
    operand, shape = operation.operands[0], tuple(operation.results[0].shape)
    made = _product(operand, Operand((operand.shape[-1], shape[-1]), Coordinates(), False), shape)
    return [made, *(Coordinates(lost=operation.name) for _ in operation.results[1:])]


def _through_unfold(operation: _Operation) -> list[Coordinates]:
    """`nn.Unfold`: elements move; those of the padding have no place."""
    operand = operation.operands[0]
    fields = {}
    for kind, values in operand.coordinates.fields.items():
        moved = operation.func((values + 1).expand(operand.shape), *operation.args[1:], **operation.kwargs)
        fields[kind] = torch.where(moved == 0, torch.nan, moved - 1)
    return [Coordinates(_compacted(fields), operand.coordinates.lost)]


def _through_fold(operation: _Operation) -> list[Coordinates]:
    """`nn.Fold`: the blocks lie in rows and columns, in row-major order."""
    operand = operation.operands[0]
    size, kernel, dilation, padding, stride = (
        operation.argument(name) for name in ("output_size", "kernel_size", "dilation", "padding", "stride")
    )
    blocks = [
        (size[i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in range(2)
    ]
    fields = _contracted(operand.coordinates.fields, -2)
    shape = tuple(operation.results[0].shape)
    before = (*operand.shape[:-2], 1, *blocks)
    row = (*operand.shape[:-2], 1, operand.shape[-1])
    maps = reshaped(row, Coordinates(fields, operand.coordinates.lost), before)
    after = (*shape[:-3], 1, *shape[-2:])
    made = _resampled(Operand(before, maps, True), after)
    return [Coordinates(_with_units(made.fields, _along(len(shape) - 3, shape[-3], len(shape))), made.lost)]


# Operations that are not known


def _measured(
    name: str,
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    operands: Sequence[Operand],
    result: Tensor,
) -> Coordinates:
    """Follow coordinates through an unknown operation with one result and one input that depends on the image.

    The operation is run again: on numbered elements, to see whether it moves them, and with half of the input's
    slices along an axis changed, to see whether the other slices stay the same.
    """
    lost = Coordinates(lost=name)
    inputs = list(tensors((args, kwargs)))
    computed = [at for at, operand in enumerate(operands) if operand.computed]
    if func._schema.is_mutable or len(computed) != 1 or len(func._schema.returns) != 1:
        return lost
    at = computed[0]
    given, operand = inputs[at], operands[at]
    if not given.is_floating_point() or operand.coordinates.lost or given.numel() == 0:
        return lost

    def run(tensor: Tensor) -> Tensor | None:
        numbers = iter(range(len(inputs)))
        changed = substituted((args, kwargs), lambda old: tensor if next(numbers) == at else old)
        try:
            again = func(*changed[0], **changed[1])
        except (RuntimeError, TypeError, ValueError):
            return None
        return again if isinstance(again, Tensor) and again.shape == result.shape else None

    numbered = torch.arange(1.0, given.numel() + 1, dtype=torch.float64, device=given.device).reshape(
        given.shape
    )
    moved = run(numbered)
    if moved is not None:
        index = moved.long() - 1
        if bool(((index >= -1) & (index < given.numel())).all()) and torch.equal(
            torch.where(index < 0, 0, given.flatten()[index.clamp(min=0)]), result
        ):
            flat = index.flatten().cpu()
            fields = {
                kind: torch.where(
                    flat < 0, torch.nan, values.expand(operand.shape).flatten()[flat.clamp(min=0)]
                ).reshape(result.shape)
                for kind, values in operand.coordinates.fields.items()
            }
            return Coordinates(_compacted(fields))
    if result.ndim != given.ndim:
        return lost
    aligned = set()
    for axis, size in enumerate(given.shape):
        if size < 2 or result.shape[axis] != size:
            continue
        halves = torch.arange(size, device=given.device) % 2 == 0
        changed = given.clone()
        changed.index_add_(
            axis,
            halves.nonzero().flatten(),
            torch.ones_like(given.index_select(axis, halves.nonzero().flatten())),
        )
        again = run(changed)
        if again is not None:
            differs = (again != result).movedim(axis, 0).flatten(1).any(1)
            if torch.equal(differs, halves):
                aligned.add(axis)
    fields = {k: v for k, v in operand.coordinates.fields.items() if varies(v) and varies(v) <= aligned}
    return Coordinates(fields, "" if fields.keys() >= operand.coordinates.fields.keys() else name)


def tensors(tree: object) -> Iterator[Tensor]:
    """Yield the dense tensors in nested tuples, lists and dicts, in order."""
    if isinstance(tree, Tensor):
        if tree.layout is torch.strided:
            yield tree
    elif isinstance(tree, tuple | list):
        for item in tree:
            yield from tensors(item)
    elif isinstance(tree, dict):
        for item in tree.values():
            yield from tensors(item)


def substituted(tree: Any, replace: Callable[[Tensor], Tensor]) -> Any:
    """Return nested tuples, lists and dicts with each dense tensor replaced, in the order of `tensors`."""
    if isinstance(tree, Tensor):
        return replace(tree) if tree.layout is torch.strided else tree
    if isinstance(tree, tuple | list):
        return type(tree)(substituted(item, replace) for item in tree)
    if isinstance(tree, dict):
        return {key: substituted(item, replace) for key, item in tree.items()}
    return tree


_BY_NAME: Final[Mapping[str, _Rule]] = {
    **dict.fromkeys(("cat", "concat", "concatenate", "stack"), _through_cat),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _through_recurrence),
    "copy": lambda o: o.each(lambda shape: _combined(o.operands[-1:], shape)),
    "im2col": _through_unfold,
    "col2im": _through_fold,
    "embedding": _through_lookup,
    "expand": lambda o: o.each(
        lambda shape: _with_new_places(_through_move(o)[0], o.operands[0].shape, shape)
    ),
}
