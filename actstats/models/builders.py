"""Build networks by name, from torchvision, timm or a factory function of the user."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from actstats.data.preprocessing import Preprocessing
from actstats.errors import ActstatsError, nearest, one_line
from actstats.models import torchvision_zoo as zoo
from actstats.models.checkpoints import Checkpoint, fit
from actstats.models.downloads import fetch
from actstats.models.hub import hub_file
from actstats.support import named_object, require_package


class Published(NamedTuple):
    """Published weights of an architecture; `sha256` is the beginning of the file's SHA-256, if known."""

    source: str
    path: Path
    preprocessing: Preprocessing | None
    sha256: str | None = None


class Builder(ABC):
    """Builds one architecture. `heads` are name prefixes of weights that are only used in training."""

    arch: str
    heads: tuple[str, ...] = ()

    @property
    @abstractmethod
    def skeleton(self) -> nn.Module:
        """The network with arbitrary or no weights, used for the names of its weights."""

    @abstractmethod
    def preprocessing(self, checkpoint: Checkpoint | None) -> Preprocessing | None:
        """Return the preprocessing for weights that come without one, if it is known. None: random weights."""

    @abstractmethod
    def arguments(
        self, preprocessing: Preprocessing | None, classes: int | None, *, transform_input: bool
    ) -> dict[str, Any]:
        """Return the JSON-serialisable arguments of `build`."""

    @abstractmethod
    def build(self, arguments: Mapping[str, Any], seed: int) -> nn.Module:
        """Return the network in eval mode, with weights drawn from `seed`."""

    @abstractmethod
    def published(self, name: str, *, offline: bool) -> Published:
        """Return the published weights with this name, downloading them if needed."""

    def fill(self, arguments: Mapping[str, Any], checkpoint: Checkpoint, *, published: bool) -> nn.Module:
        """Return the network in eval mode with the weights of a checkpoint.

        Raises `ActstatsError` if they do not fit.
        """
        model = self.build(arguments, 0)
        fit(model, checkpoint, self.arch)
        return model

    def state(self) -> dict[str, Any]:
        """Return the state dict of the network with arbitrary or no weights, for names and shapes."""
        # Entries that are no tensors, such as those of quantised layers, are not in files either.
        return {
            name: value for name, value in self.skeleton.state_dict().items() if isinstance(value, Tensor)
        }

    def class_weight(self) -> str | None:
        """Return the name of the weight tensor whose rows are the classes, if there is one."""
        layer = zoo.class_layer(self.skeleton)
        return None if layer is None else f"{layer[0]}.weight"


def builder_of(arch: str) -> Builder:
    """Return the builder of `arch`.

    Raises `ActstatsError` if the name is unknown or the library is not installed.
    """
    if arch.startswith("timm/"):
        return Timm(arch)
    return Own(arch) if ":" in arch else Torchvision(arch)


class Torchvision(Builder):
    """A network from torchvision."""

    def __init__(self, arch: str) -> None:
        self.arch = arch
        self.heads = zoo.AUXILIARY.get(arch, ())
        self._sets = zoo.weight_sets(arch)

    @cached_property
    def skeleton(self) -> nn.Module:
        """The network without weights."""
        arguments = zoo.builder_arguments(self.arch, Preprocessing.imagenet(), transform_input=False)
        with torch.device("meta"):
            return zoo.build(self.arch, arguments)

    def preprocessing(self, checkpoint: Checkpoint | None) -> Preprocessing:
        """Return the preprocessing of the weight set that the file belongs to, or of the default set."""
        if not self._sets:
            return Preprocessing.imagenet()
        default = self._sets["DEFAULT"]
        return zoo.preprocessing_of(zoo.set_of_file(checkpoint, self._sets) if checkpoint else default)

    def arguments(
        self, preprocessing: Preprocessing | None, classes: int | None, *, transform_input: bool
    ) -> dict[str, Any]:
        """Return the arguments of torchvision's builder."""
        found = zoo.builder_arguments(self.arch, preprocessing, transform_input=transform_input)
        return found if classes is None else {**found, "num_classes": classes}

    def build(self, arguments: Mapping[str, Any], seed: int) -> nn.Module:
        """Return the network, its weights drawn from `seed`."""
        return zoo.build(self.arch, arguments, seed)

    def fill(self, arguments: Mapping[str, Any], checkpoint: Checkpoint, *, published: bool) -> nn.Module:
        """Return the network with the weights of a checkpoint."""
        model = zoo.build(self.arch, arguments)
        fit(model, checkpoint, self.arch)
        return model

    def published(self, name: str, *, offline: bool) -> Published:
        """Return one of torchvision's weight sets."""
        # The name may be given in full, as torchvision prints it: GoogLeNet_Weights.IMAGENET1K_V1.
        member = self._sets.get(name.rpartition(".")[2].upper())
        if member is None:
            named = [*dict.fromkeys(member.name for member in self._sets.values()), "none"]
            known = ["default", *named] if self._sets else named
            hint = nearest(name, known) or f"; it has {', '.join(known)}, or give a file"
            raise ActstatsError(f"{self.arch} has no weights {name!r}{hint}")
        return Published(
            f"torchvision:{type(member).__name__}.{member.name}",
            zoo.download(member, offline=offline),
            zoo.preprocessing_of(member),
        )


class Own(Builder):
    """A network made by the user's function `package.module:factory`, called without arguments."""

    def __init__(self, arch: str) -> None:
        self.arch = arch
        self._factory = named_object(arch, "architecture", "factory")

    @cached_property
    def _made(self) -> tuple[nn.Module, Preprocessing | None]:
        return self._make(0)

    @property
    def skeleton(self) -> nn.Module:
        """The network itself."""
        return self._made[0]

    def preprocessing(self, checkpoint: Checkpoint | None) -> Preprocessing | None:
        """Return the preprocessing that the function returned, if any."""
        return self._made[1]

    def arguments(
        self, preprocessing: Preprocessing | None, classes: int | None, *, transform_input: bool
    ) -> dict[str, Any]:
        """Return an empty dict, because the function takes no arguments."""
        return {}

    def build(self, arguments: Mapping[str, Any], seed: int) -> nn.Module:
        """Return the network, made with random numbers drawn from `seed`."""
        return self._make(seed)[0]

    def published(self, name: str, *, offline: bool) -> Published:
        """Raise `ActstatsError`, because a function has no published weights."""
        raise ActstatsError(f"{self.arch} has no weights {name!r}; give a file, or omit `weights=`")

    def _make(self, seed: int) -> tuple[nn.Module, Preprocessing | None]:
        if not callable(self._factory):
            raise ActstatsError(f"`arch={self.arch}` is not a function")
        try:
            with zoo.drawing_from(seed):
                made = self._factory()
        except Exception as error:
            reason = " ".join(str(error).split())
            raise ActstatsError(f"`arch={self.arch}` fails: {type(error).__name__}: {reason}") from error
        model, preprocessing = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
        if not isinstance(model, nn.Module) or not isinstance(preprocessing, Preprocessing | None):
            raise ActstatsError(
                f"`arch={self.arch}` returned {type(made).__name__}; it must return a torch module, "
                "or a module and its actstats.Preprocessing"
            )
        return model.eval().requires_grad_(False), preprocessing


class Timm(Builder):
    """A network from timm."""

    def __init__(self, arch: str) -> None:
        self.arch = arch
        self._name = arch.removeprefix("timm/")
        base = self._name.partition(".")[0]
        if base not in (known := _timm().list_models()):
            raise ActstatsError(f"timm has no model {base!r}{nearest(base, known)}")

    @cached_property
    def skeleton(self) -> nn.Module:
        """The network without weights."""
        with torch.device("meta"):
            return self._made({})

    @property
    def _config(self) -> dict[str, Any]:
        """Timm's configuration of the published weights."""
        return cast(dict[str, Any], self.skeleton.pretrained_cfg)

    def preprocessing(self, checkpoint: Checkpoint | None) -> Preprocessing:
        """Return timm's preprocessing for the network."""
        config = _timm().data.resolve_model_data_config(self.skeleton)
        _, height, width = config["input_size"]
        if height != width or len(config["mean"]) != 3:
            raise ActstatsError(
                f"{self.arch} expects input of shape {list(config['input_size'])}, but only square RGB is supported"
            )
        return Preprocessing(
            resize=math.floor(height / config["crop_pct"]),
            crop=height,
            interpolation=config["interpolation"],
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
        )

    def arguments(
        self, preprocessing: Preprocessing | None, classes: int | None, *, transform_input: bool
    ) -> dict[str, Any]:
        """Return the arguments of `timm.create_model`."""
        return {"num_classes": classes or self._config["num_classes"]}

    def build(self, arguments: Mapping[str, Any], seed: int) -> nn.Module:
        """Return the network, its weights drawn from `seed`."""
        with zoo.drawing_from(seed):
            return self._made(arguments)

    def fill(self, arguments: Mapping[str, Any], checkpoint: Checkpoint, *, published: bool) -> nn.Module:
        """Return the network with the weights of a checkpoint."""
        if not published:
            return super().fill(arguments, checkpoint, published=False)
        # timm converts its own files in older formats.
        overlay = {"state_dict": dict(checkpoint.state)}
        try:
            return self._made(arguments, pretrained=True, pretrained_cfg_overlay=overlay)
        except (RuntimeError, KeyError, ValueError) as error:
            reason = one_line(error, 200)
            raise ActstatsError(f"{checkpoint.path.name} does not fit {self.arch}: {reason}") from None

    def published(self, name: str, *, offline: bool) -> Published:
        """Return the published weights with this name."""
        if name != "default":
            raise ActstatsError(
                f"{self.arch} has no weights {name!r}; timm's weight sets are part of the model name, "
                "as in timm/resnet50.a1_in1k"
            )
        config = self._config
        sha256 = None
        if repository := config.get("hf_hub_id"):
            path = hub_file(repository, config.get("hf_hub_filename") or "model.safetensors", offline=offline)
        elif url := config.get("url"):
            path, sha256 = (fetched := fetch(url, offline=offline)).path, fetched.sha256
        else:
            raise ActstatsError(f"timm has no weights for {self.arch}; use `weights=none`, or give a file")
        return Published(f"timm:{self._name}", path, self.preprocessing(None), sha256)

    def _made(self, arguments: Mapping[str, Any], **more: Any) -> nn.Module:
        model: nn.Module = _timm().create_model(self._name, **arguments, **more)
        return model.eval().requires_grad_(False)


def _timm() -> ModuleType:
    module: ModuleType = require_package("timm", "timm/...")
    return module
