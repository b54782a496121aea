"""Weights files: read without running code from them, fitted to a network, and known by a checksum."""

from actstats.checkpoints.fitting import fit, state_sha256
from actstats.checkpoints.layouts import Normaliser
from actstats.checkpoints.reading import Checkpoint, read_checkpoint, unwrap

__all__ = ["Checkpoint", "Normaliser", "fit", "read_checkpoint", "state_sha256", "unwrap"]
