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
    from actstats.data.preprocessing import Preprocessing
    from actstats.layers import select_layers
    from actstats.metrics import Metric, Output
    from actstats.models import Loaded, load_from_manifest, load_model
    from actstats.store.merging import merge
    from actstats.sweeping.progress import Summary
    from actstats.sweeping.run import sweep

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
    "Preprocessing": "data.preprocessing",
    "Summary": "sweeping.progress",
    "load_from_manifest": "models",
    "load_model": "models",
    "merge": "store.merging",
    "open_source": "data",
    "select_layers": "layers",
    "sweep": "sweeping.run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'actstats' has no attribute {name!r}")
    value = getattr(import_module(f"actstats.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
