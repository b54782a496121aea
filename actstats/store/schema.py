"""The schema of a store: its variables and coordinates, and how they are chunked."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from actstats.errors import ActstatsError
from actstats.metrics import Chosen, Output
from actstats.store.manifest import LayerRecord, UnitAxis
from actstats_kernels.bins import FREQUENCY_BINS, HISTOGRAM_BINS, frequencies, histogram_edges

if TYPE_CHECKING:
    from actstats.layers import Layer

UNITS_PER_CHUNK: Final = 64
"""Units per chunk: few, so that reading one unit or layer does not read many others. It does not add files, as all
chunks of a partition are in one shard."""

_FORMAT_1: Final = 700
"""Most units per chunk in format 1, whose chunks have equal lengths."""
_FIXED_SIZES: Final = frozenset({"image", "unit", "partition", "frequency", "bin", "rank"})
_LARGEST: Final = 2**31


@dataclass(frozen=True)
class Schema:
    """The variables of a store and the length of every dimension.

    Attributes:
        outputs: one entry per variable.
        layers: the layers along the unit axis, in order.
        images: length of the image axis.
        partition_size: images per partition.
        top_k: length of the rank axis.
        sizes: lengths of the dimensions that custom metrics add.
    """

    outputs: tuple[Output, ...]
    layers: tuple[Layer, ...]
    images: int
    partition_size: int
    top_k: int
    sizes: Mapping[str, int]

    @classmethod
    def of(
        cls,
        chosen: Chosen,
        layers: Sequence[Layer],
        images: int,
        *,
        partition_size: int,
        top_k: int,
        per_image: bool = True,
    ) -> Schema:
        """Return the schema of a sweep with these metrics and layers.

        Raises:
            ActstatsError: a metric declares a size that is not a positive integer, or two metrics declare different
                lengths for the same dimension.
        """
        size = min(partition_size, images)
        sizes: dict[str, int] = {}
        for name, metric in chosen.custom.items():
            for dim, length in _sizes(name, metric.sizes, metric.outputs, layers).items():
                if sizes.setdefault(dim, length) != length:
                    raise ActstatsError(
                        f"metric {name} declares length {length} for dimension {dim!r}, but another metric "
                        f"declares {sizes[dim]}; rename one of the dimensions"
                    )
        positions = max((layer.height * layer.width for layer in layers), default=1)
        outputs = chosen.outputs(wide_counts=size * positions >= 2**31)
        kept = tuple(output for output in outputs if per_image or not output.per_image)
        if not kept:
            raise ActstatsError(
                "all chosen metrics are per-image; use `per_image=True`, or add one that is stored per partition"
            )
        return cls(kept, tuple(layers), images, size, top_k, sizes)

    @functools.cached_property
    def axis(self) -> UnitAxis:
        """Where the units of each layer are on the axis `unit`."""
        return UnitAxis.of(self.layers)

    @property
    def units(self) -> int:
        """Length of the unit axis, i.e. number of channels of all layers."""
        return self.axis.total

    @property
    def partitions(self) -> int:
        """Number of partitions of `partition_size` images; the last one may be smaller."""
        return math.ceil(self.images / self.partition_size)

    @property
    def lengths(self) -> dict[str, int]:
        """Length of each dimension, by name."""
        return {
            "image": self.images,
            "unit": self.units,
            "partition": self.partitions,
            "frequency": FREQUENCY_BINS,
            "bin": HISTOGRAM_BINS,
            "rank": self.top_k,
            **self.sizes,
        }

    def bounds(self, partition: int) -> tuple[int, int]:
        """Return the image range [start, stop) of a partition."""
        start = partition * self.partition_size
        return start, min(start + self.partition_size, self.images)

    def bytes(self, *, per_image: bool | None = None, images: int | None = None) -> int:
        """Return the uncompressed size of the variables in bytes, for `images` images if given, else for all.

        With `per_image` True or False, only variables with or without the dimension `image` are counted.
        """
        images = self.images if images is None else images
        lengths = {**self.lengths, "image": images, "partition": math.ceil(images / self.partition_size)}
        return sum(
            math.prod(lengths[dim] for dim in output.dims) * np.dtype(output.dtype).itemsize
            for output in self.outputs
            if per_image is None or output.per_image == per_image
        )

    def chunks(self, output: Output) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the chunk and shard shapes of a variable. Each shard holds one partition with all units."""
        rest = tuple(self.lengths[dim] for dim in output.dims[2:])
        first = self.partition_size if output.per_image else 1
        units, shard = unit_chunks(self.units)
        return (first, units, *rest), (first, shard, *rest)

    def coordinates(
        self, paths: Sequence[str], labels: NDArray[np.int64]
    ) -> dict[str, tuple[tuple[str, ...], NDArray[np.generic]]]:
        """Return the dimensions and values of the coordinates that are known before any image is read."""
        fixed = {name: (("unit",), values) for name, values in unit_coordinates(self.layers).items()}
        fixed |= {name: ((name.partition("_")[0],), values) for name, values in axis_coordinates().items()}
        return {
            "image": (("image",), np.arange(self.images)),
            "partition": (("partition",), np.arange(self.partitions)),
            "path": (("image",), np.array(paths, dtype=object)),
            "label": (("image",), labels),
            **fixed,
        }


def unit_coordinates(layers: Sequence[Layer | LayerRecord]) -> dict[str, NDArray[Any]]:
    """Return the coordinates along the unit axis, by name."""
    counts = [layer.units for layer in layers]

    def by_unit(values: Sequence[str | int], dtype: type) -> NDArray[Any]:
        repeated: NDArray[Any] = np.repeat(np.array(values, dtype=dtype), counts)
        return repeated

    return {
        "layer": by_unit([layer.name for layer in layers], object),
        "channel": np.concatenate([np.arange(n, dtype=np.int32) for n in counts]),
        "height": by_unit([layer.height for layer in layers], np.int32),
        "width": by_unit([layer.width for layer in layers], np.int32),
    }


def axis_coordinates() -> dict[str, NDArray[Any]]:
    """Return the coordinates along `frequency` and `bin`, by name."""
    left, right = histogram_edges()
    return {"frequency": frequencies(), "bin_left": left, "bin_right": right}


def unit_chunks(units: int, form: int = 2) -> tuple[int, int]:
    """Return the lengths of a chunk and of a shard along the unit axis, in a store of format `form`.

    >>> unit_chunks(80), unit_chunks(1500, form=1)
    ((64, 128), (500, 1500))
    """
    if form == 1:
        blocks = math.ceil(units / _FORMAT_1)
        length = math.ceil(units / blocks)
        return length, length * blocks
    length = min(units, UNITS_PER_CHUNK)
    return length, length * math.ceil(units / length)


def _sizes(name: str, declare: object, outputs: Sequence[Output], layers: Sequence[Layer]) -> dict[str, int]:
    """Validate and return the dimension lengths that a custom metric declares."""
    assert callable(declare)
    try:
        declared = declare(layers)
    except Exception as error:
        raise ActstatsError(f"metric {name}: sizes() failed: {type(error).__name__}: {error}") from error
    if not isinstance(declared, Mapping):
        raise ActstatsError(
            f"metric {name}: sizes() returned {declared!r}; it must be a dict from dimensions to lengths"
        )
    for dim, length in declared.items():
        whole = isinstance(length, int | np.integer) and not isinstance(length, bool)
        if dim in _FIXED_SIZES or not whole or not 0 < length < _LARGEST:
            raise ActstatsError(
                f"metric {name}: sizes() gives dimension {dim!r} the length {length!r}; it must be a positive "
                "integer, for a dimension other than the built-in ones"
            )
    used = {dim for output in outputs for dim in output.dims} - _FIXED_SIZES
    if missing := sorted(used - declared.keys()):
        raise ActstatsError(f"metric {name}: sizes() gives no length for the dimension {missing[0]!r}")
    return {dim: int(declared[dim]) for dim in declared if dim in used}
