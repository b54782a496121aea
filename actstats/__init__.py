"""Statistics of every unit of a vision network over a whole dataset, in one streaming pass.

>>> import actstats
>>> summary = actstats.sweep(  # doctest: +SKIP
...     "googlenet", "photographs/", "googlenet.zarr", weights="googlenet.pth"
... )
>>> import xarray
>>> dataset = xarray.open_zarr("googlenet.zarr")  # doctest: +SKIP

`sweep` fills a store; `merge` reduces what it keeps by partition; `load_from_manifest` rebuilds the model and its
preprocessing from a dataset's attributes. `Metric` and `Output` are for metrics of your own.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from actstats.errors import ActstatsError

if TYPE_CHECKING:
    from actstats.data import open_source
    from actstats.engine import sweep
    from actstats.layers import select_layers
    from actstats.merging import merge
    from actstats.metrics import Metric, Output
    from actstats.models import Loaded, load_from_manifest, load_model
    from actstats.preprocess import Preprocessing
    from actstats.progress import Summary

__all__ = [
    "ActstatsError",
    "Loaded",
    "Metric",
    "Output",
    "Preprocessing",
    "Summary",
    "load_from_manifest",
    "load_model",
    "merge",
    "open_source",
    "select_layers",
    "sweep",
]

# Importing torch takes seconds: `import actstats` does without until a name is used.
_HOMES = {
    "Loaded": "models",
    "Metric": "metrics",
    "Output": "metrics",
    "Preprocessing": "preprocess",
    "Summary": "progress",
    "load_from_manifest": "models",
    "load_model": "models",
    "merge": "merging",
    "open_source": "data",
    "select_layers": "layers",
    "sweep": "engine",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'actstats' has no attribute {name!r}")
    value = getattr(import_module(f"actstats.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
