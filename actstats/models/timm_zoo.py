"""timm's networks, `timm/NAME`: built by timm, their published files read by us. Needs the extra `timm`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from types import ModuleType
from typing import Any, cast

import torch
from torch import nn

from actstats.data.preprocessing import Preprocessing
from actstats.errors import ActstatsError, nearest
from actstats.models import torchvision_zoo as zoo
from actstats.models.builders import Builder, Published
from actstats.models.checkpoints import Checkpoint
from actstats.models.downloads import fetch
from actstats.models.hub import hub_file
from actstats.support import require_extra


class Timm(Builder):
    """A network of timm's."""

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
        """What timm notes of the published weights."""
        return cast(dict[str, Any], self.skeleton.pretrained_cfg)

    def preprocessing(self, checkpoint: Checkpoint | None) -> Preprocessing:
        """Return timm's own for the network."""
        config = _timm().data.resolve_model_data_config(self.skeleton)
        _, height, width = config["input_size"]
        if height != width or len(config["mean"]) != 3:
            raise ActstatsError(
                f"{self.arch} wants images of {height} x {width}, which are no squares in colour"
            )
        return Preprocessing(
            resize=math.floor(height / config["crop_pct"]),
            crop=height,
            interpolation=config["interpolation"],
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
        )

    def arguments(
        self, preprocessing: Preprocessing, classes: int | None, *, transform_input: bool
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
        # timm knows how its own files of old are to be converted.
        overlay = {"state_dict": dict(checkpoint.state)}
        try:
            return self._made(arguments, pretrained=True, pretrained_cfg_overlay=overlay)
        except (RuntimeError, KeyError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ActstatsError(f"{checkpoint.path.name} does not fit {self.arch}: {reason}") from None

    def published(self, name: str, *, offline: bool) -> Published:
        """Return the weights that the name means."""
        if name != "default":
            raise ActstatsError(
                f"{self.arch} has no weights {name!r}; timm's sets are part of the name, as timm/resnet50.a1_in1k"
            )
        config = self._config
        sha256 = None
        if repository := config.get("hf_hub_id"):
            path = hub_file(repository, config.get("hf_hub_filename") or "model.safetensors", offline=offline)
        elif url := config.get("url"):
            path, sha256 = (fetched := fetch(url, offline=offline)).path, fetched.sha256
        else:
            raise ActstatsError(f"timm has no weights for {self.arch}; use --weights none, or give a file")
        return Published(f"timm:{self._name}", path, self.preprocessing(None), sha256)

    def _made(self, arguments: Mapping[str, Any], **more: Any) -> nn.Module:
        model: nn.Module = _timm().create_model(self._name, **arguments, **more)
        return model.eval().requires_grad_(False)


def _timm() -> ModuleType:
    module: ModuleType = require_extra("timm", "timm", "timm/...")
    return module
