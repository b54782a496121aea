"""Identify the axes of an activation from the coordinates of its elements.

Without coordinates, tokens of shape [N, 49, 768] cannot be told apart from [N, 768, 49], nor channels-last maps
[N, 7, 7, 768] from maps with 7 channels. Rows and columns are claimed only where the
coordinates lie in rows and columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from actstats.layers.coordinates import Coordinates, Fields, Shape, compact, order, varies


@dataclass(frozen=True)
class Axes:
    """Meaning of the axes of an output: see `Layer` for the fields."""

    letters: str
    units: int
    height: int
    width: int
    prefix: int = 0


def identify_axes(shape: Shape, coordinates: Coordinates, images: int) -> Axes | str:
    """Return the meaning of the axes of a value of `images` images, or the reason why it has no maps.

    Rows and columns are claimed only where the coordinates lie in rows and columns. Other tokens are one row.
    """
    fields = coordinates.fields
    batch = _batch_axis(shape, coordinates, images)
    if batch is None:
        return (
            f"it returns {list(shape)} for {images} images: the first axis is not the batch axis, nor is another "
            "(it may hold windows or tokens)"
        )
    units = varies(fields.get("c")) - {batch}
    places = _centroids(fields, units)
    letters = {batch: "n"}
    height = width = 1
    prefix = 0
    along = [varies(values) for values in places.values()]
    scattered = any(bool((~values.isfinite()).any()) for values in places.values())
    if along and all(len(axes) == 1 for axes in along):
        axes = [min(a) for a in along]
        if len(set(axes)) == 1 and (len(axes) == 2 or scattered):
            if grid := _grid(places):
                prefix, height, width = grid
                letters[axes[0]] = "t"
        elif len(set(axes)) == len(axes) and all(map(_in_order, places.values())):
            letters |= dict(zip(axes, places, strict=True))
    tokens = set.union(set(), *(varies(fields.get(kind)) for kind in "hwHW"))
    complete = _rest(shape, letters, units, tokens, lost=bool(coordinates.lost))
    if complete is None:
        where = f" (they are lost in the operation {coordinates.lost})" if coordinates.lost else ""
        return f"it returns {list(shape)}, whose unit, row and column axes cannot be identified{where}"
    sizes = {letter: shape[at] for at, letter in complete.items()}
    return Axes(
        "".join(complete[at] for at in range(len(shape))),
        sizes.get("c", 1),
        sizes.get("h", height),
        sizes.get("w", width),
        prefix,
    )


def _batch_axis(shape: Shape, coordinates: Coordinates, images: int) -> int | None:
    """Return the axis that holds the images and nothing else.

    Images in another order on the first axis are accepted here: that is measured (see `unsteady_calls`).
    """
    values = coordinates.fields.get("n")
    if values is None:
        return 0 if coordinates.lost and shape[0] == images else None
    axes = varies(values)
    index = values.flatten().sort().values if axes == {0} else values.flatten()
    if len(axes) == 1 and torch.equal(index, torch.arange(images, dtype=values.dtype)):
        return min(axes)
    return None


def _centroids(fields: Fields, units: set[int]) -> dict[str, Tensor]:
    """Return the fields of rows and columns that vary, each the centroid over the axes of units."""
    places = {}
    for kind in "hw":
        values = fields.get(kind)
        if values is None:
            continue
        for axis in units:
            values = values.nanmean(axis, keepdim=True)
        centroid = compact(kind, (values * 1000).round() / 1000)
        if centroid is not None and varies(centroid):
            places[kind] = centroid
    return places


def _in_order(values: Tensor) -> bool:
    """Return whether rows (or columns) are in order; those of a mirrored image are."""
    steps = values.flatten().diff()
    return bool(values.isfinite().all() and ((steps >= 0).all() or (steps <= 0).all()))


def _grid(places: Mapping[str, Tensor]) -> tuple[int, int, int] | None:
    """Return the number of tokens before a grid in row-major order, its height and width; None if there is none."""
    rows, columns = (places[kind].flatten() if kind in places else None for kind in "hw")
    rows = torch.where(columns.isnan(), torch.nan, 0) if rows is None else rows  # type: ignore[union-attr]
    columns = torch.where(rows.isnan(), torch.nan, 0) if columns is None else columns
    there = (~rows.isnan() & ~columns.isnan()).nonzero().flatten()
    if rows.isinf().any() or columns.isinf().any() or len(there) == 0:
        return None
    first, last = int(there[0]), int(there[-1])
    row, column = order(rows[there]), order(columns[there])
    height, width = int(row.max()) + 1, int(column.max()) + 1
    if last - first + 1 != len(there) or height * width != len(there):
        return None
    if not torch.equal(row * width + column, torch.arange(height * width)):
        return None
    return first, height, width


def _rest(
    shape: Shape, letters: dict[int, str], units: set[int], tokens: set[int], *, lost: bool
) -> dict[int, str] | None:
    """Return letters for all axes: one of the axes without rows and columns holds the units; None if none stands out.

    Without a grid, the tokens of [N, T, C] or [N, C, T] are one row, if it is known which axis holds the units.
    """
    letters = dict(letters)
    grid = len(letters) > 1
    left = [at for at in range(len(shape)) if at not in letters]
    large = [at for at in left if shape[at] > 1]
    single = [at for at in left if shape[at] == 1]
    marked = [at for at in large if at in units]
    plain = [at for at in large if at not in tokens]
    if len(large) == 2 == len(left) and not grid:
        clear = [at for at in marked if at in plain]
        holder = next((found[0] for found in (clear, marked, plain) if len(found) == 1), None)
        if holder is None:
            return None
        letters[holder] = "c"
        letters[large[0] if holder == large[1] else large[1]] = "w"
    elif len(large) == 1:
        row = large[0] in tokens and not marked
        if (row and (grid or len(left) > 2)) or (single and lost and not marked):
            return None
        letters[large[0]] = "w" if row else "c"
    elif large:
        return None
    order = "c" if "t" in letters.values() else "chw" if len(shape) > 3 or grid else "wc"[-len(shape) + 1 :]
    free = [letter for letter in order if letter not in letters.values()]
    if len(single) > len(free):
        return None
    return letters | dict(zip(single, free, strict=False))
