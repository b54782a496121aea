"""The store: one Zarr v3 group that holds a sweep's statistics and opens in xarray as one lazy dataset."""

from actstats.store.store import Schema, Store, parse_compression

__all__ = ["Schema", "Store", "parse_compression"]
