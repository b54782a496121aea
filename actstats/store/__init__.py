"""Stores: a Zarr v3 group with the statistics of a sweep, which xarray opens as one lazy dataset."""

from typing import TYPE_CHECKING

from actstats.store.codecs import compressors
from actstats.store.place import place_of
from actstats.store.schema import Schema
from actstats.store.store import Store, damage_in
from actstats.support import lazy_exports

if TYPE_CHECKING:
    from actstats.store.dataset import open_dataset

__all__ = ["Schema", "Store", "compressors", "damage_in", "open_dataset", "place_of"]

# `dataset` imports xarray and pandas, which sweeps do without.
__getattr__, __dir__ = lazy_exports(__name__, __all__, {"dataset": "open_dataset"})
