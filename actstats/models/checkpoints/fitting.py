"""Loading a checkpoint into a network, all of it or not at all; and a network's own checksum."""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

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
        wanted = model.state_dict()
        found = "; ".join(_misfits(wanted, state)) or one_line(error, 200)
        found += _computed(wanted, state)
        raise ActstatsError(f"{checkpoint.path.name} does not fit {arch}: {found}") from None


def state_sha256(model: nn.Module) -> str:
    """Return the SHA-256, in hex, of all names, types, shapes and bytes of the model's state dict."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name}\0".encode())
        _update(digest, value)
    return digest.hexdigest()


def _update(digest: hashlib._Hash, value: Any) -> None:
    """Add an entry of a state dict: a tensor, or plain values, which for instance quantised modules have."""
    match value:
        case Tensor() if value.is_quantized:
            axes = (torch.per_channel_affine, torch.per_channel_affine_float_qparams)
            scale = (
                (value.q_per_channel_scales(), value.q_per_channel_zero_points(), value.q_per_channel_axis())
                if value.qscheme() in axes
                else (value.q_scale(), value.q_zero_point())
            )
            _update(digest, ("quantized", str(value.dtype), value.int_repr(), scale))
        case Tensor() if value.layout is not torch.strided:
            _update(digest, (str(value.layout), list(value.shape), value.to_dense()))
        case Tensor():
            digest.update(f"{value.dtype}\0{list(value.shape)}\0".encode())
            plain = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
            digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
        case Mapping():
            _update(digest, [part for item in value.items() for part in item])
        case list() | tuple():
            digest.update(f"{len(value)} values\0".encode())
            for part in value:
                _update(digest, part)
        case _:
            # Python's address of an object differs from run to run.
            digest.update(re.sub(r" at 0x[0-9a-f]+", "", f"{value!r}\0").encode(errors="replace"))


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


def _computed(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """Return advice if the file holds what weights are computed from, as pruning and norms of weights leave it."""
    for name in wanted:
        if name in given:
            continue
        module, dot, last = name.rpartition(".")
        sources = (f"{name}_", f"{module}{dot}parametrizations.{last}.")
        if found := [other for other in given if other.startswith(sources)]:
            return (
                f"; {name} is computed from {first(found)}: make it permanent before saving (prune.remove, "
                "remove_parametrizations), or use a factory of the network with its parametrisation"
            )
    return ""
