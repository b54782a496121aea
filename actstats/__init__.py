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
__getattr__, __dir__ = lazy_exports(
    __name__,
    __all__,
    {
        "data": "open_source",
        "data.preprocessing": "Preprocessing",
        "layers": "select_layers",
        "metrics": "Metric Output",
        "models": "Loaded load_from_manifest load_model",
        "store.dataset": "open_dataset",
        "store.merging": "merge",
        "store.sweep": "Sweep open_sweep",
        "sweeping.planning": "SweepPlan plan",
        "sweeping.progress": "Summary",
        "sweeping.repairing": "repair",
        "sweeping.settings": "Execution Settings",
        "sweeping.sweeps": "sweep",
        "sweeping.together": "sweep_together",
    },
)
