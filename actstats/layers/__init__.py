"""Find, select and hook the layers of a network.

`probe` runs a network once and finds the layers that can be hooked, `select_layers` selects some by preset, name or
pattern, and `watch` passes their maps to a callback during later forward passes.
"""

from actstats.layers.layer import Layer, watch
from actstats.layers.selection import (
    PRESETS,
    Candidate,
    Probe,
    named_layers,
    notes_on,
    probe,
    select,
    select_layers,
)

__all__ = [
    "PRESETS",
    "Candidate",
    "Layer",
    "Probe",
    "named_layers",
    "notes_on",
    "probe",
    "select",
    "select_layers",
    "watch",
]
