"""Weights files: read without running code from them, fitted to a network, and known by a checksum."""

from __future__ import annotations

import hashlib
import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from actstats.errors import ActstatsError, nearest

_NESTED: Final = ("state_dict", "model")
"""Keys under which training scripts keep a state dict among other things."""
_SHOWN: Final = 3


@dataclass(frozen=True)
class Checkpoint:
    """The content of a weights file.

    `state` maps names to tensors on the CPU; `layout` is what PyTorch noted of each module's version beside
    them; `notes` is the text metadata of a safetensors file; `sha256` is that of the file, in hex.
    """

    path: Path
    state: Mapping[str, Tensor]
    layout: Mapping[str, Any]
    notes: Mapping[str, str]
    sha256: str


def read_checkpoint(path: Path) -> Checkpoint:
    """Read the state dict in a `.safetensors` file or in one that `torch.save` wrote.

    It may lie under the key `state_dict` or `model`; the prefix `module.` that data-parallel training
    leaves is taken off. Nothing in the file is ever run: what holds more than tensors and plain values is
    refused.

    Raises `ActstatsError`.
    """
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        folder = path.parent
        hint = nearest(path.name, (entry.name for entry in folder.iterdir())) if folder.is_dir() else ""
        raise ActstatsError(f"no such weights file: {path}{hint}") from None
    except OSError as error:
        raise ActstatsError(f"cannot read the weights file {path}: {error.strerror}") from None
    if path.suffix == ".safetensors":
        state, notes = _read_safetensors(path)
        layout: dict[str, Any] = {}
    else:
        state, layout = _state_dict(path, _read_torch(path))
        notes = {}
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
        layout = {
            name.removeprefix("module").removeprefix("."): value for name, value in layout.items() if name
        }
    return Checkpoint(path, state, layout, notes, digest)


def fit(model: nn.Module, checkpoint: Checkpoint, arch: str) -> None:
    """Load `checkpoint` into `model`, every key and no other.

    Raises `ActstatsError` that counts the keys that do not fit and names the first few.
    """
    state = OrderedDict(checkpoint.state)
    # Modules use it to read their older layouts. Some raise if their own version is missing, as it is in
    # files that hold plain names and tensors.
    vars(state)["_metadata"] = checkpoint.layout or {"": {"version": getattr(model, "_version", None)}}
    try:
        model.load_state_dict(state)
    except (RuntimeError, ValueError) as error:
        found = "; ".join(_misfits(model.state_dict(), state)) or " ".join(str(error).split())[:200]
        raise ActstatsError(f"{checkpoint.path.name} does not fit {arch}: {found}") from None


def state_sha256(model: nn.Module) -> str:
    """Return the SHA-256, in hex, of all names, types, shapes and bytes of the model's state dict."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            return state, dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise ActstatsError(f"{path} is no whole safetensors file: {error}") from None


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # Damaged files make the readers of zip, tar and pickle raise all kinds.
        foreign = (
            re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        )
        if foreign:
            reason = (
                f"it holds {foreign[1]}, and to load that could run code; save only the model's state_dict()"
            )
            raise ActstatsError(f"{path} is refused: {reason}") from None
        raise ActstatsError(f"{path} is no weights file of PyTorch, or a damaged one") from None


def _state_dict(path: Path, content: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if isinstance(content, Mapping):
        content = next((content[key] for key in _NESTED if isinstance(content.get(key), Mapping)), content)
        state = {key: value for key, value in content.items() if isinstance(value, Tensor)}
        if state and all(isinstance(key, str) for key in state):
            return state, getattr(content, "_metadata", None) or {}
    raise ActstatsError(f"{path} holds no state dict, neither alone nor under {' or '.join(_NESTED)}")


def _misfits(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    missing = [name for name in wanted if name not in given]
    unexpected = [name for name in given if name not in wanted]
    reshaped = [
        f"{name}: {list(given[name].shape)} in the file, {list(tensor.shape)} in the network"
        for name, tensor in wanted.items()
        if name in given and given[name].shape != tensor.shape
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
    return [f"{len(names)} {what} ({_first(names)})" for what, names in kinds if names]


def _first(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
