"""Read a weights file into a `Checkpoint` without running code from it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from actstats.errors import ActstatsError, first, listed, nearest
from actstats.models.checkpoints.archives import read_archive
from actstats.models.checkpoints.layouts import (
    Normaliser,
    find_normaliser,
    find_part,
    renamed,
    require_plain,
)
from actstats.models.checkpoints.places import Location, find_places
from actstats.models.checkpoints.records import Refused
from actstats.records import load

_AVERAGED: Final = "n_averaged"
"""Counters that PyTorch's averaged models store beside their weights."""


@dataclass(frozen=True)
class Checkpoint:
    """The content of a weights file.

    `state` maps names to tensors on the CPU; `layout` has the version of each module that PyTorch recorded beside
    them; `notes` is the text metadata of a safetensors file; `sha256` is that of the file, in hex. `part` is the key
    that the weights were under, `prefix` what precedes the network's names in the file, if `unwrap` removed it;
    `foreign` are the names of what the file contains beside tensors and plain values, none of which was created or
    called; `normaliser` is the normalisation of the input that is part of the file, if `unwrap` found one.
    """

    path: Path
    state: Mapping[str, Tensor]
    layout: Mapping[str, Any]
    notes: Mapping[str, str]
    sha256: str
    part: str = ""
    foreign: tuple[str, ...] = ()
    normaliser: Normaliser | None = None
    prefix: str = ""

    def note(self, name: str) -> Any:
        """Return the JSON under `name` in the notes of a safetensors file, or None.

        Raises `ActstatsError` if it is not JSON.
        """
        text = self.notes.get(name)
        try:
            return None if text is None else load(text)
        except ValueError:
            raise ActstatsError(f"{self.path} has no JSON under {name!r} in its metadata") from None


def read_checkpoint(path: Path, part: str | None = None, sha256: str | None = None) -> Checkpoint:
    """Read the weights in a `.safetensors` file, or in one that `torch.save` or a pickle wrote.

    They may be under a key such as `state_dict` or `model` (one of `layouts.PARTS`, or `part`). The weights of a
    TorchScript program are read, too. `sha256` is the beginning of the file's SHA-256, in hex.

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


def unwrap(
    checkpoint: Checkpoint,
    network: Mapping[str, Tensor],
    free: Collection[str] = (),
    prefix: str | None = None,
) -> Checkpoint:
    """Return `checkpoint` under the names of `network`, a state dict.

    The weights are taken from the prefix under which most names and shapes of the network are (`places`). If there
    are several such prefixes, their weights have to be equal. Outdated names are replaced, and what is not part of
    the network (the copy within an attacker, counters) is ignored. A normaliser is taken out of the state into
    `normaliser`.

    Args:
        checkpoint: the content of a file.
        network: the network's state dict, of which only names, shapes and dtypes are used.
        free: names of weights whose shape depends on the number of classes.
        prefix: the prefix to use, or what it begins with; None to choose it.

    Raises:
        ActstatsError: several prefixes have different weights, there are none under `prefix`, or there are two
            normalisers that differ.
    """
    try:
        return _unwrapped(checkpoint, network, free, prefix)
    except Refused as reason:
        raise ActstatsError(f"{checkpoint.path} is refused: {reason}") from None


def _unwrapped(
    checkpoint: Checkpoint, network: Mapping[str, Tensor], free: Collection[str], prefix: str | None
) -> Checkpoint:
    state = checkpoint.state
    require_plain(state)
    counts = {name: int(_is_weight(tensor)) for name, tensor in network.items()}
    new = renamed(state)
    old = {name: name for name in state}, {name: of for of, name in new.items()}
    searched = [
        find_places(names, counts) for names in old[: 1 + any(of != name for of, name in new.items())]
    ]
    best = max(range(len(searched)), key=lambda at: searched[at][0].hits if searched[at] else 0)
    places, original = searched[best], old[best]
    tensors = {name: state[of] for name, of in original.items()}
    chosen = _chosen(checkpoint, tensors, network, places, free, prefix)
    copies = [
        place.prefix
        for place in places
        if place is not chosen and place.prefix.startswith(chosen.prefix) and 2 * place.hits >= chosen.hits
    ]
    kept: dict[str, Tensor] = {}
    beside: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name in chosen.names:
            kept[chosen.names[name]] = tensor
            continue
        beside[name] = tensor
        if name.startswith(chosen.prefix) and not name.startswith(tuple(copies)):
            kept[_inside(name, chosen)] = tensor
    normaliser, names = find_normaliser(beside)
    for name in (*names, f"{chosen.prefix}{_AVERAGED}"):
        kept.pop(_inside(name, chosen), None)
    layout = {
        chosen.modules[name]: value
        for name, value in checkpoint.layout.items()
        if isinstance(name, str) and name in chosen.modules
    }
    return dataclasses.replace(
        checkpoint, state=kept, layout=layout, normaliser=normaliser, prefix=chosen.prefix
    )


def _inside(name: str, place: Location) -> str:
    """Return the name in the network for a name that the network lacks: its module's, and the rest."""
    module = name
    while module:
        module = module.rpartition(".")[0]
        if module in place.modules:
            rest = name[len(module) :].removeprefix(".")
            return f"{place.modules[module]}.{rest}".removeprefix(".")
    return name.removeprefix(place.prefix)


def _chosen(
    checkpoint: Checkpoint,
    state: Mapping[str, Tensor],
    network: Mapping[str, Tensor],
    places: Sequence[Location],
    free: Collection[str],
    prefix: str | None,
) -> Location:
    """Return the place under `prefix`, or the only one with most names and shapes of the network."""
    if prefix is not None:
        prefix = prefix if not prefix or prefix.endswith(".") else f"{prefix}."
        if exact := [place for place in places if place.prefix == prefix]:
            return exact[0]
        under = [place for place in places if place.prefix.startswith(prefix)]
        if not under:
            there = _listed(place.prefix for place in places if 2 * place.hits >= places[0].hits)
            raise Refused(
                f"it has no weights of the network under the prefix {prefix!r}{there and f', but {there}'}"
            )
        places = under
    if not places:
        return Location("")

    def score(place: Location) -> tuple[int, int]:
        alike = (state[of].shape == network[name].shape or name in free for of, name in weights(place))
        return place.hits, sum(alike)

    def weights(place: Location) -> list[tuple[str, str]]:
        return [pair for pair in place.names.items() if _is_weight(network[pair[1]])]

    most = max(map(score, places))
    best = [place for place in places if score(place) == most]
    values = [{name: state[of] for of, name in weights(place)} for place in best]
    if all(_equal(values[0], other) for other in values[1:]):
        return best[0]
    file = checkpoint.path.name
    raise Refused(
        f"the network is in it several times, with different weights, {_listed(place.prefix for place in best)}; "
        f"choose with {file}#prefix={best[0].prefix} or {file}#prefix={best[1].prefix}"
    )


def _is_weight(tensor: Tensor) -> bool:
    """Return whether an entry of a state dict is more than a counter of batches, which a copy may lack."""
    return tensor.ndim > 0 or tensor.is_floating_point()


def _equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        tensor.dtype == second[name].dtype and torch.equal(tensor, second[name])
        for name, tensor in first.items()
    )


def _listed(prefixes: Iterable[str]) -> str:
    return listed([f"under {prefix}" if prefix else "without a prefix" for prefix in prefixes])


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
    return Checkpoint(path, state, {}, notes, digest)


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
    return Checkpoint(path, state, part.layout, {}, digest, part.key, foreign)
