"""What is in a store: what was swept, how complete it is, how large, and which images could not be read."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import zarr

from actstats.data import MISSING, OK, PENDING, REFUSED, UNREADABLE
from actstats.errors import ActstatsError
from actstats.store import Store

REASONS: Final = {
    PENDING: "pending",
    OK: "read",
    MISSING: "missing",
    UNREADABLE: "unreadable",
    REFUSED: "refused",
}
"""What each value of the coordinate `status` means, in a word."""


@dataclass(frozen=True)
class Variable:
    """One array of a store."""

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    """Of all its values, before compression."""
    stored: int
    """Of its files."""


@dataclass(frozen=True)
class Description:
    """What is in a store."""

    path: Path
    manifest: dict[str, Any]
    units: int
    completed: list[bool]
    """For each partition."""
    statuses: dict[str, int]
    """Number of images by what became of them, a value of `REASONS`."""
    variables: list[Variable]
    coordinates: list[Variable]
    failures: dict[str, str]
    """Reason by path, of the images that were not read."""

    @property
    def complete(self) -> bool:
        """Whether every partition is complete."""
        return all(self.completed)


def describe(path: str | Path) -> Description:
    """Return what is in the store at `path`; no variable is read.

    Raises:
        ActstatsError: there is no store, or a damaged one.
    """
    store = Store.open(path)
    try:
        status = [int(value) for value in _values(store, "status")]
        paths = [str(value) for value in _values(store, "path")]
        arrays = [_variable(store.path, array) for _, array in sorted(store.group.arrays())]
        completed = [bool(value) for value in store.completed]
        outputs = set(store.manifest["outputs"])
        layers = store.manifest["layers"]
    except (KeyError, ValueError) as error:
        raise ActstatsError(f"{path} is damaged: {error}; sweep it again with --overwrite") from error
    counts = Counter(status)
    return Description(
        path=store.path,
        manifest=store.manifest,
        units=sum(layer["units"] for layer in layers),
        completed=completed,
        statuses={name: counts[value] for value, name in REASONS.items() if counts[value]},
        variables=[array for array in arrays if array.name in outputs],
        coordinates=[array for array in arrays if array.name not in outputs],
        failures={p: REASONS[s] for p, s in zip(paths, status, strict=True) if s not in (OK, PENDING)},
    )


def _values(store: Store, name: str) -> Any:
    return store.group[name][...]  # type: ignore[index]


def _variable(root: Path, array: zarr.Array[Any]) -> Variable:
    files = (root / array.basename).rglob("*")
    return Variable(
        name=array.basename,
        dims=tuple(array.metadata.dimension_names or ()),  # type: ignore[union-attr, arg-type]
        shape=array.shape,
        dtype=str(array.dtype),
        nbytes=array.nbytes,
        stored=sum(file.stat().st_size for file in files if file.is_file()),
    )
