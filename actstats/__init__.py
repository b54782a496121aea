"""Statistics of every unit of a vision network over a whole dataset, in one streaming pass.

>>> import actstats
>>> summary = actstats.sweep(  # doctest: +SKIP
...     "googlenet", "photographs/", "googlenet.zarr", weights="googlenet.pth"
... )
>>> dataset = actstats.open_dataset("googlenet.zarr")  # doctest: +SKIP

`sweep` computes the statistics and writes them to a store. `plan` checks a sweep without running it, to run it later
or elsewhere. `sweep_together` runs several plans in one pass. `repair` restores what is damaged in a store.
`open_sweep` opens a store: record, results, top images, network and images. `open_dataset` opens only the results.
`merge` merges their partitions. `Metric` and `Output` define custom metrics.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from actstats.errors import ActstatsError
from actstats.support import lazy_exports
from actstats.version import __version__ as __version__

if TYPE_CHECKING:
    from actstats.data import open_source
    from actstats.data.preprocessing import Preprocessing
    from actstats.layers import select_layers
    from actstats.metrics import Metric, Output
    from actstats.models import Loaded, load_from_manifest, load_model
    from actstats.store.dataset import open_dataset
    from actstats.store.merging import merge
    from actstats.store.sweep import Sweep, open_sweep
    from actstats.sweeping.planning import SweepPlan, plan
    from actstats.sweeping.progress import Summary
    from actstats.sweeping.repairing import repair
    from actstats.sweeping.settings import Execution, Settings
    from actstats.sweeping.sweeps import sweep
    from actstats.sweeping.together import sweep_together

__all__ = [
    "ActstatsError",
    "Execution",
    "Loaded",
    "Metric",
    "Output",
    "Preprocessing",
    "Settings",
    "Summary",
    "Sweep",
    "SweepPlan",
    "load_from_manifest",
    "load_model",
    "merge",
    "open_dataset",
    "open_source",
    "open_sweep",
    "plan",
    "repair",
    "select_layers",
    "sweep",
    "sweep_together",
]

# Importing torch takes seconds.
__getattr__ = lazy_exports(
    __name__,
    {
        "Execution": "sweeping.settings",
        "Loaded": "models",
        "Metric": "metrics",
        "Output": "metrics",
        "Preprocessing": "data.preprocessing",
        "Settings": "sweeping.settings",
        "Summary": "sweeping.progress",
        "Sweep": "store.sweep",
        "SweepPlan": "sweeping.planning",
        "load_from_manifest": "models",
        "load_model": "models",
        "merge": "store.merging",
        "open_dataset": "store.dataset",
        "open_source": "data",
        "open_sweep": "store.sweep",
        "plan": "sweeping.planning",
        "repair": "sweeping.repairing",
        "select_layers": "layers",
        "sweep": "sweeping.sweeps",
        "sweep_together": "sweeping.together",
    },
)


def __dir__() -> list[str]:
    return sorted(__all__)
