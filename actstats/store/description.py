"""Describe a store: its sweep, how complete and how large it is, and which images could not be read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zarr

from actstats.errors import ActstatsError
from actstats.store.creation import STATUSES
from actstats.store.manifest import Manifest
from actstats.store.place import StorePlace
from actstats.store.store import Store
from actstats.support import URL


@dataclass(frozen=True)
class Variable:
    """One array of a store."""

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    """Size of the values in bytes, before compression."""
    stored: int
    """Size of the stored objects in bytes."""


@dataclass(frozen=True)
class Description:
    """Description of the contents of a store."""

    path: Path | URL
    manifest: Manifest
    units: int
    completed: list[bool]
    """Whether each partition is complete."""
    statuses: dict[str, int]
    """Number of images by status, one of the values of `STATUSES`."""
    variables: list[Variable]
    coordinates: list[Variable]
    failures: dict[str, str]
    """Dict from the path of each image that could not be read to its status."""
    computed_on: dict[str, int]
    """Number of complete partitions by the device and versions that computed them; see `computed_on`."""
    attack: Attack | None
    """How far an adversarial distortion moved the images of the complete partitions."""

    @property
    def outdated(self) -> str:
        """The version that swept the store, if numbers were corrected since then; else empty."""
        return self.manifest.outdated

    @property
    def complete(self) -> bool:
        """Whether every partition is complete."""
        return all(self.completed)


def describe(path: str | Path) -> Description:
    """Describe the store at `path` without reading any variable.

    Raises:
        ActstatsError: the store does not exist or is damaged.
    """
    store = Store.open(path)
    store.require_objects()
    try:
        status = store.statuses().tolist()
        paths = [str(value) for value in store.read("path", ...)]
        arrays = [_variable(store.place, array) for _, array in sorted(store.group.arrays())]
        records = store.provenance()
    except (KeyError, ValueError) as error:
        raise ActstatsError(f"{path} is damaged: {error}; remove the store and sweep again") from error
    counts = Counter(status)
    return Description(
        path=store.path,
        manifest=store.manifest,
        units=store.manifest.units,
        completed=store.completed.tolist(),
        statuses={name: counts[value] for value, name in STATUSES.items() if counts[value]},
        variables=[array for array in arrays if array.name in store.manifest.outputs],
        coordinates=[array for array in arrays if array.name not in store.manifest.outputs],
        failures={p: STATUSES[s] for p, s in zip(paths, status, strict=True) if s > 0},
        computed_on=computed_on(records),
        attack=Attack.of(records),
    )


@dataclass(frozen=True)
class Attack:
    """How far an adversarial distortion moved images.

    Attributes:
        images: number of attacked images.
        distance: mean l2 distance over which they were moved.
        unmoved: number of images that did not move, because their gradient vanishes or is not finite.
    """

    images: int
    distance: float
    unmoved: int

    @classmethod
    def of(cls, records: Sequence[Mapping[str, Any]]) -> Attack | None:
        """Return the sum over the provenance `records` of partitions; None without attacks.

        >>> one, two = ({"images": n, "distance": d, "unmoved": n - 3} for n, d in ((4, 0.5), (12, 0.1)))
        >>> Attack.of([{"attack": one}, {}, {"attack": two}])
        Attack(images=16, distance=0.2, unmoved=10)
        """
        parts = [record["attack"] for record in records if "attack" in record]
        images = sum(part["images"] for part in parts)
        if not images:
            return None
        distance = sum(part["images"] * part["distance"] for part in parts) / images
        return cls(images, round(distance, 6), sum(part["unmoved"] for part in parts))

    def __str__(self) -> str:
        still = f"; {self.unmoved:,} did not move" if self.unmoved else ""
        return f"moved images by {self.distance:.3g} on average (l2){still}"


def computed_on(records: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Count partitions by the device and versions in their provenance `records`.

    The version of torch is always included, other versions only if they differ between records.

    >>> records = [
    ...     {"device": "cpu", "versions": {"torch": "2.9", "numba": "0.61"}},
    ...     {"device": "cpu", "versions": {"torch": "2.9", "numba": "0.62"}, "compiled": True},
    ... ]
    >>> computed_on(records)
    {'cpu, numba 0.61, torch 2.9': 1, 'cpu, numba 0.62, torch 2.9, compiled': 1}
    """
    versions = [record.get("versions", {}) for record in records]
    names = sorted({name for found in versions for name in found})
    told = [name for name in names if name == "torch" or len({found.get(name) for found in versions}) > 1]
    machines = [
        ", ".join(
            [
                record.get("device", "unknown"),
                *(f"{name} {found.get(name, 'absent')}" for name in told),
                *(["compiled"] if record.get("compiled") else []),
            ]
        )
        for record, found in zip(records, versions, strict=True)
    ]
    return dict(Counter(machines))


def _variable(place: StorePlace, array: zarr.Array[Any]) -> Variable:
    return Variable(
        name=array.basename,
        dims=tuple(array.metadata.dimension_names or ()),  # type: ignore[union-attr, arg-type]
        shape=array.shape,
        dtype=str(array.dtype),
        nbytes=array.nbytes,
        stored=sum(place.sizes(array.basename).values()),
    )
