"""Networks by name, with their weights and the preprocessing that belongs to them."""

from actstats.models.loaded import Loaded
from actstats.models.loading import load_from_manifest, load_model
from actstats.models.torchvision_zoo import architectures

__all__ = ["Loaded", "architectures", "load_from_manifest", "load_model"]
