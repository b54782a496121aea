"""Torchvision's classification networks: their names, sets of weights, builders and downloads.

Torchvision is imported at the first call, not with this module, since that takes seconds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import torch
from torch import nn

from actstats.data.preprocessing import Preprocessing
from actstats.errors import ActstatsError, nearest
from actstats.models.checkpoints import Checkpoint
from actstats.models.downloads import fetch

AUXILIARY: Final = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}
"""Networks with auxiliary heads, which only training uses, and how the names of the heads' weights begin."""
_VARIANTS: Final = {"wide_resnet50_4": ("resnet50", {"width_per_group": 256})}
"""Networks that torchvision can build but has no name for: robust ones are published of it."""
NO_NETWORK: Final = "use --weights none for random weights, or --weights FILE"
"""What to do where published weights cannot be downloaded."""


def architectures() -> list[str]:
    """Return the names of torchvision's classification networks, sorted."""
    models = _models()
    return sorted([*models.list_models(module=models), *_VARIANTS])


def weight_sets(arch: str) -> Mapping[str, Any]:
    """Return torchvision's sets of weights for `arch` by name, `DEFAULT` among them, as its own enum's
    members.

    Raises `ActstatsError` for an unknown architecture.
    """
    known = architectures()
    if arch not in known:
        hint = (
            nearest(arch, known) or f"; known are {len(known)} classifiers of torchvision, such as resnet50"
        )
        raise ActstatsError(f"unknown architecture {arch!r}{hint}")
    if arch in _VARIANTS:
        return {}
    sets: Mapping[str, Any] = _models().get_model_weights(arch).__members__
    return sets


def preprocessing_of(member: Any) -> Preprocessing:
    """Return the preprocessing that belongs to a set of weights."""
    preset = member.transforms()
    return Preprocessing(
        resize=preset.resize_size[0],
        crop=preset.crop_size[0],
        interpolation=preset.interpolation.value,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )


def set_of_file(checkpoint: Checkpoint, sets: Mapping[str, Any]) -> Any:
    """Return the set of weights that a file is, or whose images it must have been trained on.

    It is one of torchvision's files if it has the hash that is in that file's name. Any other gets the
    default, or, where the size of a transformer's position embedding rules that out, the first that fits.
    """
    for member in sets.values():
        prefix = _hash_prefix(member)
        if prefix and checkpoint.sha256.startswith(prefix):
            return member
    size = _embedded_size(checkpoint.state)
    fitting = (member for member in sets.values() if member.transforms().crop_size[0] == size)
    default = sets["DEFAULT"]
    return default if default.transforms().crop_size[0] == size else next(fitting, default)


def builder_arguments(arch: str, preprocessing: Preprocessing, *, transform_input: bool) -> dict[str, Any]:
    """Return the arguments of torchvision's builder that go with the weights, fit for JSON.

    `transform_input` matters to GoogLeNet and Inception v3 alone: their pretrained weights want the input
    in [-1, 1] and convert it themselves.
    """
    arguments: dict[str, Any] = {"num_classes": 1000}
    if arch in AUXILIARY:
        arguments |= {"aux_logits": False, "init_weights": False, "transform_input": transform_input}
    if arch.startswith("vit_"):
        arguments["image_size"] = preprocessing.crop
    return arguments


def build(arch: str, arguments: Mapping[str, Any], seed: int | None = None) -> nn.Module:
    """Return the network in eval mode, its weights drawn from `seed`; None: they will be loaded over.

    The global random state stays as it was.
    """
    name, more = _VARIANTS.get(arch, (arch, {}))
    with drawing_from(seed or 0):
        model: nn.Module = _models().get_model(name, weights=None, **arguments, **more)
        if seed is not None and arch in AUXILIARY:
            _draw_for_relu(model)
    return model.eval().requires_grad_(False)


def class_layer(model: nn.Module) -> str:
    """Return the name of the weight whose rows are the classes: the last linear layer or convolution.

    Raises `ActstatsError` where there is neither.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    if not names:
        raise ActstatsError(f"{type(model).__name__} has no linear layer or convolution to tell its classes")
    return f"{names[-1]}.weight"


@contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """Draw random numbers from `seed`, and leave the global random state as it was."""
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would seed the GPUs too.
        torch.default_generator.manual_seed(seed)
        yield


def download(member: Any, *, offline: bool = False) -> Path:
    """Return the file of a set of weights, out of torch.hub's folder or the cache, or downloaded into that.

    Raises `ActstatsError` where that fails, or `offline` forbids it.
    """
    file = hub_file(member)
    if file.exists():
        return file
    return fetch(member.url, sha256=_hash_prefix(member), offline=offline, advice=NO_NETWORK).path


def hub_file(member: Any) -> Path:
    """Return where torchvision itself keeps the file of a set of weights, in torch.hub's folder."""
    return Path(torch.hub.get_dir(), "checkpoints", member.url.rpartition("/")[2])


def _draw_for_relu(model: nn.Module) -> None:
    """Draw the convolutions' weights so that activations keep their scale.

    Torchvision's own draw for GoogLeNet and Inception v3 counts on batch statistics: in eval mode, where the
    normalisation of an untrained network does nothing, all activations would fade to zero.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")


def _embedded_size(state: Mapping[str, torch.Tensor]) -> int | None:
    """Return the side of the images that a vision transformer's position embedding was made for."""
    positions, patches = state.get("encoder.pos_embedding"), state.get("conv_proj.weight")
    if positions is None or patches is None:
        return None
    return math.isqrt(positions.shape[1] - 1) * patches.shape[-1]


def _hash_prefix(member: Any) -> str | None:
    found = re.search(r"-([0-9a-f]{8,})\.", member.url)
    return found[1] if found else None


def _models() -> ModuleType:
    import torchvision.models

    models: ModuleType = torchvision.models
    return models
