"""Loading a checkpoint into a network, all of it or not at all; and a network's own checksum."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from actstats.errors import ActstatsError, first, one_line
from actstats.models.checkpoints.reading import Checkpoint


def fit(model: nn.Module, checkpoint: Checkpoint, arch: str) -> None:
    """Load `checkpoint` into `model`, every key and no other.

    Raises `ActstatsError` that counts the keys that do not fit and names the first few.
    """
    state = OrderedDict(checkpoint.state)
    wrong = [
        name
        for name, tensor in model.state_dict().items()
        if name in state and tensor.is_floating_point() and not state[name].is_floating_point()
    ]
    if wrong:
        kinds = ", ".join(sorted({str(state[name].dtype).removeprefix("torch.") for name in wrong}))
        raise ActstatsError(
            f"{checkpoint.path.name} has {len(wrong)} weights of {kinds} ({first(wrong)}) where {arch} has real "
            "numbers; a quantised or complex network cannot be loaded"
        )
    # Modules use it to read their older layouts. Some raise if their own version is missing, as it is in
    # files that hold plain names and tensors.
    vars(state)["_metadata"] = checkpoint.layout or {"": {"version": getattr(model, "_version", None)}}
    try:
        model.load_state_dict(state)
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        found = "; ".join(_misfits(model.state_dict(), state)) or one_line(error, 200)
        raise ActstatsError(f"{checkpoint.path.name} does not fit {arch}: {found}") from None


def state_sha256(model: nn.Module) -> str:
    """Return the SHA-256, in hex, of all names, types, shapes and bytes of the model's state dict."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _misfits(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    missing = [name for name in wanted if name not in given]
    unexpected = [name for name in given if name not in wanted]
    reshaped = [
        f"{name}: {list(given[name].shape)} in the file, {list(tensor.shape)} in the network"
        for name, tensor in wanted.items()
        if name in given and given[name].shape != tensor.shape
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
    return [f"{len(names)} {what} ({first(names)})" for what, names in kinds if names]
