"""Metrics: the quantities that a sweep computes for every unit.

The built-in metrics are computed by one fused kernel. A metric of your own is a small class:

>>> from actstats.metrics import Metric, Output
>>> class Energy(Metric):
...     outputs = (Output("energy", ("image", "unit"), units="activation^2"),)
...
...     def update(self, activation, state):
...         return {"energy": activation.square().sum((-2, -1))}
"""

from actstats.metrics.builtin import BUFFERS, BUILTINS, DEFAULT, PAIRS, Rows
from actstats.metrics.discovery import Chosen, resolve_metrics
from actstats.metrics.protocol import ImageBatch, Metric, Output, State, takes_batch

__all__ = [
    "BUFFERS",
    "BUILTINS",
    "DEFAULT",
    "PAIRS",
    "Chosen",
    "ImageBatch",
    "Metric",
    "Output",
    "Rows",
    "State",
    "resolve_metrics",
    "takes_batch",
]
