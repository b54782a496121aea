"""Which activations of a network are looked at: finding them, choosing them, and watching them go by.

`probe` runs a network once and finds what can be hooked, `select_layers` chooses layers by presets, names and
patterns, `watch` hands over their maps during later forward passes.
"""

from actstats.layers.layer import Layer, watch
from actstats.layers.selection import PRESETS, Candidate, Probe, probe, select, select_layers

__all__ = ["PRESETS", "Candidate", "Layer", "Probe", "probe", "select", "select_layers", "watch"]
