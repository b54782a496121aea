"""From a weights file to a `Checkpoint`, without running anything in it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from safetensors import SafetensorError, safe_open
from torch import Tensor

from actstats.errors import ActstatsError, first, nearest
from actstats.models.checkpoints.archives import read_archive
from actstats.models.checkpoints.layouts import (
    Normaliser,
    common_wrapper,
    find_normaliser,
    find_part,
    find_prefix,
    renamed,
)
from actstats.models.checkpoints.records import Refused

_AVERAGED: Final = "n_averaged"
"""What PyTorch's averaged models count beside their weights."""


@dataclass(frozen=True)
class Checkpoint:
    """The content of a weights file.

    `state` maps names to tensors on the CPU; `layout` is what PyTorch noted of each module's version beside
    them; `notes` is the text metadata of a safetensors file; `sha256` is that of the file, in hex. `part` is the
    key that the weights were under, `foreign` names what the file holds beside tensors and plain values, none of
    which was made or called; `normaliser` is the normalisation of the input that it brings, if `unwrap` found one.
    """

    path: Path
    state: Mapping[str, Tensor]
    layout: Mapping[str, Any]
    notes: Mapping[str, str]
    sha256: str
    part: str = ""
    foreign: tuple[str, ...] = ()
    normaliser: Normaliser | None = None

    def note(self, name: str) -> Any:
        """Return the JSON under `name` in the notes of a safetensors file, None where there is none.

        Raises `ActstatsError` where it is no JSON.
        """
        text = self.notes.get(name)
        try:
            return None if text is None else json.loads(text)
        except ValueError:
            raise ActstatsError(f"{self.path} has no JSON under {name!r} in its metadata") from None


def read_checkpoint(path: Path, part: str | None = None, sha256: str | None = None) -> Checkpoint:
    """Read the weights in a `.safetensors` file, or in one that `torch.save` or a pickle wrote.

    They may lie under a key such as `state_dict` or `model` (`layouts.PARTS`; or `part` says which); what
    data-parallel training puts before the names is taken off. `sha256` is what the file's must begin with, in hex.
    Nothing in the file is ever run, and little more memory is taken than the file has bytes: foreign objects become
    placeholders, and are named in `foreign`.

    Raises `ActstatsError`.
    """
    try:
        if path.exists() and not path.is_file():
            what = "a folder" if path.is_dir() else "a pipe or a device"
            raise ActstatsError(f"cannot read the weights file {path}: it is {what}")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            if sha256 and not digest.startswith(sha256.lower()):
                raise ActstatsError(
                    f"{path} is not the file that it should be: its SHA-256 is {digest}, not {sha256}"
                )
            file.seek(0)
            if _is_safetensors(path, file):
                return _read_safetensors(path, digest)
            return _read_torch(path, file, digest, part)
    except FileNotFoundError:
        folder = path.parent
        hint = nearest(path.name, (entry.name for entry in folder.iterdir())) if folder.is_dir() else ""
        raise ActstatsError(f"no such weights file: {path}{hint}") from None
    except OSError as error:
        raise ActstatsError(f"cannot read the weights file {path}: {error.strerror or error}") from None


def unwrap(checkpoint: Checkpoint, wanted: Collection[str]) -> Checkpoint:
    """Return `checkpoint` under the names that a network has today, which are `wanted`.

    Names of old are renamed; what wrappers put before them is taken off, and what lies beside the network (the copy
    within an attacker, counters) is left out. A normaliser is taken out of the state into `normaliser`.

    Raises `ActstatsError` where there are two normalisers that differ.
    """
    new = renamed(checkpoint.state, wanted)
    prefix = find_prefix(new.values(), wanted)
    inner = {
        name: tensor for old, tensor in checkpoint.state.items() if (name := new[old]).startswith(prefix)
    }
    state = {name.removeprefix(prefix): tensor for name, tensor in inner.items()}
    beside = {
        name: tensor
        for old, tensor in checkpoint.state.items()
        if (name := new[old]).removeprefix(prefix) not in wanted and name not in wanted
    }
    try:
        normaliser, names = find_normaliser(beside)
    except Refused as reason:
        raise ActstatsError(f"{checkpoint.path} is refused: {reason}") from None
    for name in (*names, _AVERAGED):
        state.pop(name.removeprefix(prefix), None)
    module = prefix.removesuffix(".")
    layout = {
        name.removeprefix(module).removeprefix("."): value
        for name, value in checkpoint.layout.items()
        if isinstance(name, str) and (name == module or name.startswith(prefix))
    }
    return dataclasses.replace(checkpoint, state=state, layout=layout, normaliser=normaliser)


def _is_safetensors(path: Path, file: IO[bytes]) -> bool:
    start = file.read(9)
    file.seek(0)
    return path.suffix == ".safetensors" or (
        start[8:] == b"{" and start[:1] != b"\x80" and start[:2] != b"PK"
    )


def _read_safetensors(path: Path, digest: str) -> Checkpoint:
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            notes = dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise ActstatsError(f"{path} is no whole safetensors file: {error}") from None
    return _unwrapped(Checkpoint(path, state, {}, notes, digest))


def _read_torch(path: Path, file: IO[bytes], digest: str, key: str | None) -> Checkpoint:
    foreign: tuple[str, ...] = ()
    try:
        content, machine = read_archive(file)
        foreign = tuple(sorted(machine.foreign))
        part = find_part(content, key)
        state = {
            name: entry if isinstance(entry, Tensor) else entry.read() for name, entry in part.state.items()
        }
    except Refused as reason:
        aside = f"; it also holds {first(foreign)}, which was not run" if foreign else ""
        raise ActstatsError(f"{path} is refused: {reason}{aside}") from None
    except (MemoryError, OSError):
        raise
    except Exception:  # Damaged files make the readers of zip, tar and pickle raise all kinds.
        advice = "a damaged one, such as a half download; copy or download it again"
        raise ActstatsError(f"{path} is no weights file of PyTorch, or {advice}") from None
    return _unwrapped(Checkpoint(path, state, part.layout, {}, digest, part.key, foreign))


def _unwrapped(checkpoint: Checkpoint) -> Checkpoint:
    prefix = common_wrapper(checkpoint.state)
    return (
        unwrap(checkpoint, {name.removeprefix(prefix) for name in checkpoint.state}) if prefix else checkpoint
    )
