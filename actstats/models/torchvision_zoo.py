"""Torchvision's classification networks: names, weight sets, builders and downloads.

Torchvision is imported on first use, because importing it takes seconds.
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
"""Networks with auxiliary heads, which are only used in training, and the name prefixes of their weights."""
_VARIANTS: Final = {"wide_resnet50_4": ("resnet50", {"width_per_group": 256})}
"""Networks that torchvision can build but does not name. Robust weights are published for them."""
NO_NETWORK: Final = "use `weights=none` for random weights, or `weights=FILE`"
"""Advice for when published weights cannot be downloaded."""


def architectures() -> list[str]:
    """Return the names of torchvision's classification networks, sorted."""
    models = _models()
    return sorted([*models.list_models(module=models), *_VARIANTS])


def weight_sets(arch: str) -> Mapping[str, Any]:
    """Return torchvision's weight sets for `arch` by name, including `DEFAULT`, as members of its own enum.

    Raises `ActstatsError` if the architecture is unknown.
    """
    known = architectures()
    if arch not in known:
        hint = nearest(arch, known) or f"; torchvision has {len(known)} classifiers, such as resnet50"
        raise ActstatsError(f"unknown architecture {arch!r}{hint}")
    if arch in _VARIANTS:
        return {}
    sets: Mapping[str, Any] = _models().get_model_weights(arch).__members__
    return sets


def preprocessing_of(member: Any) -> Preprocessing:
    """Return the preprocessing of a weight set."""
    preset = member.transforms()
    return Preprocessing(
        resize=preset.resize_size[0],
        crop=preset.crop_size[0],
        interpolation=preset.interpolation.value,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )


def set_of_file(checkpoint: Checkpoint, sets: Mapping[str, Any]) -> Any:
    """Return the weight set that a file belongs to, or whose images it must have been trained on.

    A file is one of torchvision's if its hash matches that in the name of torchvision's file. Any other file gets the
    default set or, if the size of a transformer's position embedding rules that out, the first set that fits.
    """
    for member in sets.values():
        prefix = _hash_prefix(member)
        if prefix and checkpoint.sha256.startswith(prefix):
            return member
    size = _embedded_size(checkpoint.state)
    fitting = (member for member in sets.values() if member.transforms().crop_size[0] == size)
    default = sets["DEFAULT"]
    return default if default.transforms().crop_size[0] == size else next(fitting, default)


def builder_arguments(
    arch: str, preprocessing: Preprocessing | None, *, transform_input: bool
) -> dict[str, Any]:
    """Return the JSON-serialisable arguments of torchvision's builder that go with the weights.

    `transform_input` only matters for GoogLeNet and Inception v3, whose pretrained weights expect input in [-1, 1]
    and which convert it themselves.
    """
    arguments: dict[str, Any] = {"num_classes": 1000}
    if arch in AUXILIARY:
        arguments |= {"aux_logits": False, "init_weights": False, "transform_input": transform_input}
    if arch.startswith("vit_") and preprocessing is not None:
        arguments["image_size"] = preprocessing.crop
    return arguments


def build(arch: str, arguments: Mapping[str, Any], seed: int | None = None) -> nn.Module:
    """Return the network in eval mode, with weights drawn from `seed`; None if they will be overwritten.

    The global random state is left unchanged.
    """
    name, more = _VARIANTS.get(arch, (arch, {}))
    with drawing_from(seed or 0):
        model: nn.Module = _models().get_model(name, weights=None, **arguments, **more)
        if seed is not None and arch in AUXILIARY:
            _draw_for_relu(model)
    return model.eval().requires_grad_(False)


def class_layer(model: nn.Module) -> tuple[str, int] | None:
    """Return the name and the number of outputs of the last linear layer or convolution, None if there is neither."""
    # By attribute: quantised layers have these too, but are of other classes.
    outputs = {
        name: getattr(module, "out_features", None) or getattr(module, "out_channels", None)
        for name, module in model.named_modules()
    }
    found = [(name, count) for name, count in outputs.items() if isinstance(count, int)]
    return found[-1] if found else None


@contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """Seed the random numbers drawn in this context, and restore the global random state afterwards."""
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would seed the GPUs too.
        torch.default_generator.manual_seed(seed)
        yield


def download(member: Any, *, offline: bool = False) -> Path:
    """Return the file of a weight set from torch.hub's folder or the cache, downloading it if needed.

    Raises `ActstatsError` if the download fails, or `offline` forbids it.
    """
    file = hub_file(member)
    if file.exists():
        return file
    return fetch(member.url, sha256=_hash_prefix(member), offline=offline, advice=NO_NETWORK).path


def hub_file(member: Any) -> Path:
    """Return the path where torchvision itself stores the file of a weight set, in torch.hub's folder."""
    return Path(torch.hub.get_dir(), "checkpoints", member.url.rpartition("/")[2])


def _draw_for_relu(model: nn.Module) -> None:
    """Draw the convolutions' weights so that activations keep their scale.

    Torchvision's initialisation of GoogLeNet and Inception v3 relies on batch statistics. In eval mode the
    normalisation of an untrained network is the identity, and all activations would vanish.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")


def _embedded_size(state: Mapping[str, torch.Tensor]) -> int | None:
    """Return the image side that a vision transformer's position embedding was made for."""
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
