"""Analyses of the dataset of a sweep, by unit and by layer.

Each analysis is a pure function from an `xarray.Dataset`, as returned by `xarray.open_zarr`, to a lazy dataset of
results by unit:

>>> import xarray
>>> from actstats.analysis import by_layer, smoothness
>>> dataset = xarray.open_zarr("googlenet.zarr")  # doctest: +SKIP
>>> by_layer(smoothness(dataset))  # doctest: +SKIP

`by_layer` and `unit_table` convert results to tables, `compare_units` compares the results of two networks,
`compare_matched` those of their matched units, `compare_networks` those of several training runs of each, and `notes`
lists the images that were excluded.
"""

from actstats.analysis.changes import map_changes
from actstats.analysis.classes import class_means, selectivity, variety
from actstats.analysis.comparing import cliffs_delta, compare_matched, compare_units
from actstats.analysis.counterparts import match, match_table
from actstats.analysis.coverage import notes
from actstats.analysis.histograms import quantiles
from actstats.analysis.noise_blocking import noise, noise_by_layer
from actstats.analysis.replication import compare_networks
from actstats.analysis.representations import similarity
from actstats.analysis.roughness import kernel_smoothness, smoothness
from actstats.analysis.spectra import spectrum
from actstats.analysis.tables import by_layer, unit_table, write_table

__all__ = [
    "by_layer",
    "class_means",
    "cliffs_delta",
    "compare_matched",
    "compare_networks",
    "compare_units",
    "kernel_smoothness",
    "map_changes",
    "match",
    "match_table",
    "noise",
    "noise_by_layer",
    "notes",
    "quantiles",
    "selectivity",
    "similarity",
    "smoothness",
    "spectrum",
    "unit_table",
    "variety",
    "write_table",
]
