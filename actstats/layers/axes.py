"""Identify the axes of an activation by tracking labels from the image through every operation.

Without labels, tokens of shape [N, 49, 768] cannot be told apart from [N, 768, 49], nor channels-last maps
[N, 7, 7, 768] from maps with 7 channels. Only the batch axis, rows, columns and grids of tokens are labelled; the
remaining axis holds the units. If an operation is not understood, the labels are dropped rather than guessed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Grid:
    """Label of a token axis: `before` extra tokens, a grid in row-major order, then `after` extra tokens."""

    height: int
    width: int
    before: int = 0
    after: int = 0

    @property
    def length(self) -> int:
        """Number of tokens on the axis."""
        return self.before + self.height * self.width + self.after


Label = str | Grid | None
"""Label of one axis: "n" for images, "h" for rows, "w" for columns, a grid of tokens, or None."""
Labels = tuple[Label, ...]

IMAGE: Labels = ("n", None, "h", "w")

_PERMUTATIONS = {"permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "t", "numpy_T", "mT"}
_DROPS = {
    "select",
    "unbind",
    "mean",
    "sum",
    "amax",
    "amin",
    "var",
    "std",
    "std_mean",
    "var_mean",
    "max",
    "min",
}
_PRODUCTS = {"linear", "matmul", "mm", "bmm"}
_UNREADABLE = {"einsum", "tensordot"}
_MADE_MAPS = ("pool", "upsample", "interpolate", "pixel_shuffle", "pixel_unshuffle", "grid_sampler")
_PRIMES = (2, 3, 5, 7, 11, 13, 17, 19)


def labels_after(
    name: str,
    func: Callable[..., Any],
    args: Sequence[Any],
    inputs: Sequence[tuple[Shape, Labels]],
    shape: Shape,
) -> Labels:
    """Return the labels of an operation's output.

    Args:
        name: name of the operation, without the overload and the trailing `_` of in-place operations.
        func: the operation.
        args: its positional arguments.
        inputs: shape and labels of each input tensor, in order, including those that do not depend on the image.
        shape: shape of the output.
    """
    unknown: Labels = (None,) * len(shape)
    if not inputs or name in _UNREADABLE:
        return unknown
    before, labels = inputs[0]
    if convolves(name) or any(part in name for part in _MADE_MAPS):
        return _of_maps(len(shape))
    if name == "cat":
        return _joined(inputs, _axis(args, 1, len(shape)), shape)
    if name in _PERMUTATIONS and len(before) == len(shape) <= len(_PRIMES):
        # Permute a meta tensor whose sizes are all different to find the new order.
        moved = func(torch.empty(_PRIMES[: len(before)], device="meta"), *args[1:])
        return tuple(labels[_PRIMES.index(size)] for size in moved.shape)
    if name == "slice" and len(before) == len(shape):
        return _sliced(labels, before, shape, _axis(args, 1, len(shape)), args)
    if name in _PRODUCTS and len(before) == len(shape):
        other = inputs[1][1] if len(inputs) > 1 and len(inputs[1][0]) == len(shape) else (None,)
        last = None if name == "linear" else other[-1]
        return _fitting((*labels[:-1], last), shape)
    if name in _DROPS and len(before) > len(shape):
        dropped = args[1] if len(args) > 1 else 0
        dims = [dropped] if isinstance(dropped, int) else list(dropped or range(len(before)))
        gone = {d % len(before) for d in dims}
        kept = tuple(label for at, label in enumerate(labels) if at not in gone)
        return kept if len(kept) == len(shape) else unknown
    if len(before) != len(shape) or name in {"view", "reshape"}:
        return regrouped(before, labels, shape)
    return _elementwise(inputs, shape)


def convolves(name: str) -> bool:
    """Return whether an operation is a convolution (of any backend), judging by its name."""
    return "conv" in name and "convert" not in name


def regrouped(before: Shape, labels: Labels, after: Shape) -> Labels:
    """Return the labels after a reshape from `before` to `after`.

    Rows and columns merged into one axis become a grid, and a grid split into its rows and columns becomes rows and
    columns again. If rows (or columns) are split in two, the outer axis keeps the label (rows of patches). Any other
    merge drops the labels.
    """
    out: list[Label] = [None] * len(after)
    if math.prod(before) != math.prod(after) or 0 in before:
        return tuple(out)
    old = [at for at, size in enumerate(before) if size != 1]
    new = [at for at, size in enumerate(after) if size != 1]
    while old and new:
        left, right = [old.pop(0)], [new.pop(0)]
        while (a := math.prod(before[i] for i in left)) != (b := math.prod(after[j] for j in right)):
            if a < b:
                left.append(old.pop(0))
            else:
                right.append(new.pop(0))
        label = labels[left[0]]
        if len(left) == len(right) == 1:
            out[right[0]] = label
        elif len(right) == 1 and [labels[i] for i in left] == ["h", "w"]:
            out[right[0]] = Grid(before[left[0]], before[left[1]])
        elif len(left) == 1 and isinstance(label, Grid):
            if tuple(after[j] for j in right) == (label.height, label.width):
                out[right[0]], out[right[1]] = "h", "w"
        elif len(left) == 1 and label in ("h", "w"):
            out[right[0]] = label
    return tuple(out)


def _of_maps(rank: int) -> Labels:
    """Return the labels of the output of a convolution or pooling with `rank` axes."""
    return {3: ("n", None, "w"), 4: IMAGE}.get(rank, ("n", *(None,) * (rank - 1)))


def _axis(args: Sequence[Any], at: int, rank: int) -> int:
    """Return the axis given as positional argument `at` (default 0) as a non-negative integer."""
    return int(args[at]) % rank if len(args) > at else 0


def _fitting(labels: Sequence[Label], shape: Shape) -> Labels:
    """Drop the grid labels of axes whose length has changed."""
    return tuple(
        None if isinstance(label, Grid) and label.length != size else label
        for label, size in zip(labels, shape, strict=True)
    )


def _elementwise(inputs: Sequence[tuple[Shape, Labels]], shape: Shape) -> Labels:
    """Return the labels of an output laid out like an input of the same rank, preferably of the same shape."""
    alike = [i for i in inputs if len(i[0]) == len(shape) and any(i[1])]
    if not alike:
        return (None,) * len(shape)
    _, labels = next((i for i in alike if i[0] == shape), alike[0])
    return _fitting(labels, shape)


def _joined(inputs: Sequence[tuple[Shape, Labels]], axis: int, shape: Shape) -> Labels:
    """Return the labels of a concatenation: tokens concatenated to a grid come before or after it."""
    grids = [at for at, (_, labels) in enumerate(inputs) if len(labels) == len(shape) and any(labels)]
    if not grids:
        return (None,) * len(shape)
    first = grids[0]
    labels = list(inputs[first][1])
    label = labels[axis]
    if isinstance(label, Grid):
        before = sum(size[axis] for size, _ in inputs[:first])
        after = sum(size[axis] for size, _ in inputs[first + 1 :])
        labels[axis] = Grid(label.height, label.width, label.before + before, label.after + after)
    elif label is not None and sum(size[axis] for size, _ in inputs) != inputs[first][0][axis]:
        labels[axis] = None
    return _fitting(labels, shape)


def _sliced(labels: Labels, before: Shape, shape: Shape, axis: int, args: Sequence[Any]) -> Labels:
    """Return the labels of a slice: extra tokens may be removed from a grid, rows and columns may be subsampled."""
    label = labels[axis]
    if not isinstance(label, Grid) or before == shape:
        return labels
    start = int(args[2] or 0) if len(args) > 2 else 0
    step = int(args[4]) if len(args) > 4 else 1
    start += before[axis] if start < 0 else 0
    end = start + shape[axis]
    whole = step == 1 and start <= label.before and end >= label.before + label.height * label.width
    cut = Grid(label.height, label.width, label.before - start, label.after - (before[axis] - end))
    return (*labels[:axis], cut if whole else None, *labels[axis + 1 :])
