"""Stores: a Zarr v3 group with the statistics of a sweep, which xarray opens as one lazy dataset."""

from actstats.store.place import place_of
from actstats.store.schema import Schema
from actstats.store.store import Store, damage_in, open_dataset, parse_compression

__all__ = ["Schema", "Store", "damage_in", "open_dataset", "parse_compression", "place_of"]
