"""Stores: a Zarr v3 group with the statistics of a sweep, which xarray opens as one lazy dataset."""

from typing import TYPE_CHECKING, Any

from actstats.store.codecs import compressors
from actstats.store.place import place_of
from actstats.store.schema import Schema
from actstats.store.store import Store, damage_in

if TYPE_CHECKING:
    from actstats.store.dataset import open_dataset

__all__ = ["Schema", "Store", "compressors", "damage_in", "open_dataset", "place_of"]


def __getattr__(name: str) -> Any:
    if name != "open_dataset":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from actstats.store.dataset import open_dataset  # imports xarray and pandas, which sweeps do without

    return open_dataset
