"""Networks by name, with their weights and the preprocessing that belongs to them.

>>> loaded = load_model("squeezenet1_1", "none", seed=3)
>>> loaded.identity["weights"]["source"], loaded.preprocessing.shape
('none', (3, 224, 224))
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from torch import nn

from actstats import zoo
from actstats.checkpoints import Checkpoint, fit, read_checkpoint, state_sha256
from actstats.errors import ActstatsError, nearest
from actstats.preprocess import Preprocessing
from actstats.zoo import architectures

__all__ = ["Loaded", "architectures", "load_from_manifest", "load_model"]

_FILE_ENDINGS: Final = frozenset({".pth", ".pt", ".ckpt", ".bin", ".safetensors"})


@dataclass(frozen=True)
class Loaded:
    """A network ready to be swept, and known by its `identity`. Those of `load_model` are in eval mode.

    `identity` is fit for JSON: `arch`, `num_classes`, and `weights`, which is all that `load_from_manifest`
    needs.
    """

    model: nn.Module
    preprocessing: Preprocessing
    identity: dict[str, Any]

    @classmethod
    def of(cls, model: nn.Module, preprocessing: Preprocessing) -> Self:
        """Return a network of the caller's own, left in the mode that it is in. It cannot be rebuilt by name."""
        weights = {"source": "module", "sha256": state_sha256(model)}
        return cls(model, preprocessing, {"arch": type(model).__name__, "weights": weights})


def load_model(arch: str, weights: str | Path = "default", *, seed: int = 0) -> Loaded:
    """Return a classification network by torchvision's name for it, with its weights' preprocessing.

    `weights` is `default` (torchvision's best) or the name of another of its sets (`IMAGENET1K_V1`),
    downloaded once; `none` for random ones drawn from `seed`; or a `.pth`, `.pt` or `.safetensors` file. A
    file tells the number of classes. Its preprocessing is that of the torchvision set that it is, else of
    `default`; a safetensors file may bring its own, as JSON under `preprocessing` in its metadata.

    Raises `ActstatsError` for an unknown name, a failed download, and a file that does not fit.
    """
    sets = zoo.weight_sets(arch)
    if str(weights) == "none":
        return _drawn(arch, sets, seed)
    if Path(weights).suffix in _FILE_ENDINGS:
        return _from_file(arch, sets, Path(weights))
    return _from_set(arch, sets, str(weights))


def load_from_manifest(
    attrs: Mapping[str, Any], *, weights: str | Path | None = None
) -> tuple[nn.Module, Preprocessing]:
    """Rebuild what was swept from a dataset's attributes: the network in eval mode, and its preprocessing.

    `weights` says where a weights file lies now, if it was moved since.

    Raises `ActstatsError` if the weights cannot be had any more, or are not those that were swept.
    """
    arch, record = attrs["arch"], attrs["weights"]
    source, arguments = record["source"], record.get("builder")
    if arguments is None:
        raise ActstatsError(f"a {arch} of the caller's own was swept, which cannot be rebuilt by name")
    sets = zoo.weight_sets(arch)
    if source == "none":
        model = zoo.build(arch, arguments, record["seed"])
    else:
        named = source.startswith("torchvision:")
        file = zoo.download(sets[source.rpartition(".")[2]]) if named else weights or record["resolved"]
        checkpoint = read_checkpoint(Path(file).expanduser())
        model = _filled(arch, arguments, zoo.with_current_names(arch, checkpoint))
    if state_sha256(model) != record["sha256"]:
        raise ActstatsError(
            f"the weights of {arch} ({source}) are not those that were swept: another SHA-256"
        )
    return model, Preprocessing.from_dict(attrs["preprocessing"])


def _drawn(arch: str, sets: Mapping[str, Any], seed: int) -> Loaded:
    preprocessing = zoo.preprocessing_of(sets["DEFAULT"])
    arguments = zoo.builder_arguments(arch, preprocessing, transform_input=False)
    model = zoo.build(arch, arguments, seed)
    return _identified(arch, model, preprocessing, arguments, {"source": "none", "seed": seed})


def _from_set(arch: str, sets: Mapping[str, Any], name: str) -> Loaded:
    # The name may be given in full, as torchvision prints it: GoogLeNet_Weights.IMAGENET1K_V1.
    member = sets.get(name.rpartition(".")[2].upper())
    if member is None:
        known = ["default", *dict.fromkeys(member.name for member in sets.values()), "none"]
        hint = nearest(name, known) or f"; it has {', '.join(known)}, or give a file"
        raise ActstatsError(f"{arch} has no weights {name!r}{hint}")
    checkpoint = zoo.with_current_names(arch, read_checkpoint(zoo.download(member)))
    preprocessing = zoo.preprocessing_of(member)
    arguments = zoo.builder_arguments(arch, preprocessing, transform_input=True)
    source = f"torchvision:{type(member).__name__}.{member.name}"
    model = _filled(arch, arguments, checkpoint)
    record = {"source": source, "file_sha256": checkpoint.sha256}
    return _identified(arch, model, preprocessing, arguments, record)


def _from_file(arch: str, sets: Mapping[str, Any], path: Path) -> Loaded:
    checkpoint = zoo.with_current_names(arch, read_checkpoint(path.expanduser()))
    preprocessing = _own_preprocessing(checkpoint) or zoo.preprocessing_of(zoo.set_of_file(checkpoint, sets))
    # Most files of GoogLeNet and Inception v3 descend from torchvision's, which transform their input.
    arguments = zoo.builder_arguments(arch, preprocessing, transform_input=True)
    model = zoo.build(arch, arguments)
    classes = checkpoint.state.get(zoo.class_layer(model))
    if classes is not None and len(classes) != arguments["num_classes"]:
        arguments["num_classes"] = len(classes)
        model = zoo.build(arch, arguments)
    fit(model, checkpoint, arch)
    record = {
        "source": f"file:{path.name}",
        "path": str(path),
        "resolved": str(checkpoint.path.resolve()),
        "file_sha256": checkpoint.sha256,
    }
    return _identified(arch, model, preprocessing, arguments, record)


def _own_preprocessing(checkpoint: Checkpoint) -> Preprocessing | None:
    note = checkpoint.notes.get("preprocessing")
    if note is None:
        return None
    try:
        return Preprocessing.from_dict(json.loads(note))
    except (ValueError, TypeError, AttributeError, ActstatsError) as error:
        raise ActstatsError(
            f"{checkpoint.path} has no usable preprocessing in its metadata: {error}"
        ) from None


def _filled(arch: str, arguments: Mapping[str, Any], checkpoint: Checkpoint) -> nn.Module:
    model = zoo.build(arch, arguments)
    fit(model, checkpoint, arch)
    return model


def _identified(
    arch: str,
    model: nn.Module,
    preprocessing: Preprocessing,
    arguments: Mapping[str, Any],
    record: Mapping[str, Any],
) -> Loaded:
    weights = {**record, "builder": dict(arguments), "sha256": state_sha256(model)}
    identity = {"arch": arch, "num_classes": arguments["num_classes"], "weights": weights}
    return Loaded(model, preprocessing, identity)
