"""Weights files: read without running code from them, fitted to a network, and known by a checksum."""

from actstats.models.checkpoints.fitting import fit, state_sha256
from actstats.models.checkpoints.layouts import Normaliser
from actstats.models.checkpoints.reading import Checkpoint, read_checkpoint, unwrap

__all__ = ["Checkpoint", "Normaliser", "fit", "read_checkpoint", "state_sha256", "unwrap"]
