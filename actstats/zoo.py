"""Torchvision's classification networks: their names, sets of weights, builders and downloads.

Torchvision is imported at the first call, not with this module, since that takes seconds.
"""

from __future__ import annotations

import dataclasses
import math
import re
import socket
import sys
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import torch
from torch import nn

from actstats.checkpoints import Checkpoint
from actstats.errors import ActstatsError, nearest
from actstats.preprocess import Preprocessing

_AUXILIARY: Final = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}
"""Networks with auxiliary heads, which only training uses, and how the names of the heads' weights begin."""
_TIMEOUT: Final = 30.0
"""Seconds without an answer after which a download has failed."""


def architectures() -> list[str]:
    """Return the names of torchvision's classification networks, sorted."""
    models = _models()
    names: list[str] = models.list_models(module=models)
    return names


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
        if checkpoint.sha256.startswith(_hash_prefix(member)):
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
    if arch in _AUXILIARY:
        arguments |= {"aux_logits": False, "init_weights": False, "transform_input": transform_input}
    if arch.startswith("vit_"):
        arguments["image_size"] = preprocessing.crop
    return arguments


def build(arch: str, arguments: Mapping[str, Any], seed: int | None = None) -> nn.Module:
    """Return the network in eval mode, its weights drawn from `seed`; None: they will be loaded over.

    The global random state stays as it was.
    """
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would seed the GPUs too.
        torch.default_generator.manual_seed(seed or 0)
        model: nn.Module = _models().get_model(arch, weights=None, **arguments)
        if seed is not None and arch in _AUXILIARY:
            _draw_for_relu(model)
    return model.eval().requires_grad_(False)


def class_layer(model: nn.Module) -> str:
    """Return the name of the weight whose rows are the classes: the last linear layer or convolution."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    return f"{names[-1]}.weight"


def with_current_names(arch: str, checkpoint: Checkpoint) -> Checkpoint:
    """Return `checkpoint` under the names that torchvision's `arch` has today, without its auxiliary heads."""
    heads = _AUXILIARY.get(arch)
    state = {
        # DenseNet's published files still say `denselayer1.norm.1` for what is now `denselayer1.norm1`.
        re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", name): tensor
        for name, tensor in checkpoint.state.items()
        if heads is None or not name.startswith(heads)
    }
    return dataclasses.replace(checkpoint, state=state)


def download(member: Any) -> Path:
    """Return the file of a set of weights, in torch.hub's folder, downloaded unless it is there.

    Raises `ActstatsError` where that fails.
    """
    url: str = member.url
    file = Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
    if file.exists():
        return file
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT)  # torch.hub sets none, and would wait forever.
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        print(f"downloading {url} to {file}", file=sys.stderr)
        torch.hub.download_url_to_file(url, str(file), _hash_prefix(member), progress=sys.stderr.isatty())
    except (OSError, HTTPException, RuntimeError) as error:
        reason = " ".join(str(error).split())
        advice = "use --weights none for random weights, or --weights FILE"
        raise ActstatsError(f"download of {url} failed ({reason}); {advice}") from None
    finally:
        socket.setdefaulttimeout(before)
    return file


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


def _hash_prefix(member: Any) -> str:
    found = re.search(r"-([0-9a-f]{8,})\.", member.url)
    return found[1] if found else "none"


def _models() -> ModuleType:
    import torchvision.models

    models: ModuleType = torchvision.models
    return models
