"""Check the reader of `robustness` checkpoints against that package: the same images must give the same logits.

The package pins no versions and has many dependencies, so it is installed in a separate environment, which writes the
files; ours compares:

    python -m venv /tmp/robustness && /tmp/robustness/bin/pip install robustness==1.2.1.post2 torch torchvision
    /tmp/robustness/bin/python benchmarks/check_robustness.py write /tmp/robustness-files
    python benchmarks/check_robustness.py compare /tmp/robustness-files

`write` wraps seeded random networks in the package's own `AttackerModel` and in `DataParallel`, as its training does,
and saves what its training saves, with dill. Its `make_and_restore_model` cannot be used, because it calls `.cuda()`.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor, nn

NETWORKS: Final = {
    "alexnet": "alexnet",
    "resnet50": "resnet50",
    "googlenet": "googlenet",
    "googlenet-no-heads": "googlenet",
    "googlenet-wrapped": "googlenet",
    "googlenet-legacy": "googlenet",
}
"""The architecture of each file."""
IMAGES: Final = 4
BOUND: Final = 1e-5


def write(folder: Path) -> None:
    """Write images, and the checkpoint and logits of each network."""
    import dill
    import torchvision

    # The package imports one function from this module, which current versions of torchvision lack.
    shim = types.ModuleType("torchvision.models.utils")
    shim.load_state_dict_from_url = torch.hub.load_state_dict_from_url  # type: ignore[attr-defined]
    sys.modules[shim.__name__] = shim
    from cox.utils import Parameters
    from robustness import imagenet_models
    from robustness.attacker import AttackerModel
    from robustness.data_augmentation import TEST_TRANSFORMS_IMAGENET
    from robustness.datasets import ImageNet
    from robustness.model_utils import DummyModel

    class GoogLeNet(torchvision.models.GoogLeNet):
        """A network as users add it to the package: it accepts and ignores the arguments that the attacker passes."""

        def forward(self, x: Tensor, **_: Any) -> Tensor:
            return super().forward(x)

    def network(name: str) -> nn.Module:
        if name == "alexnet":
            return imagenet_models.alexnet()
        if name == "resnet50":
            return imagenet_models.resnet50()
        if name == "googlenet-wrapped":
            return DummyModel(torchvision.models.googlenet(weights=None, init_weights=False))
        return GoogLeNet(aux_logits=name != "googlenet-no-heads", init_weights=False)

    folder.mkdir(parents=True, exist_ok=True)
    draw = torch.Generator().manual_seed(0)
    for index in range(IMAGES):
        coarse = torch.randint(0, 256, (20, 24 + index, 3), generator=draw, dtype=torch.uint8).numpy()
        Image.fromarray(coarse).resize((300 + 40 * index, 280), Image.Resampling.BICUBIC).save(
            folder / f"{index}.png"
        )
    images = torch.stack(
        [TEST_TRANSFORMS_IMAGENET(Image.open(folder / f"{index}.png")) for index in range(IMAGES)]
    )
    for name in NETWORKS:
        torch.manual_seed(1)
        inner = network(name)
        _draw(inner)
        parallel = nn.DataParallel(AttackerModel(inner, ImageNet(str(folder)))).eval()
        optimizer = torch.optim.SGD(parallel.parameters(), 0.1, momentum=0.9)
        content = {
            "model": _old_keys(parallel.state_dict())
            if name == "googlenet-legacy"
            else parallel.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": torch.optim.lr_scheduler.StepLR(optimizer, 30).state_dict(),
            "epoch": 90,
            "amp": None,
            "args": Parameters(
                {"adv_train": 1, "constraint": "2", "eps": 3.0, "schedule": lambda step: step * 2}
            ),
        }
        torch.save(
            content,
            folder / f"{name}.pt",
            pickle_module=dill,
            _use_new_zipfile_serialization=name != "googlenet-legacy",
        )
        with torch.no_grad():
            logits, _ = parallel.module(images)
        torch.save(logits, folder / f"{name}-logits.pt")
        print(f"{name}: logits of standard deviation {logits.std():.3f}")


def _draw(network: nn.Module) -> None:
    """Draw weights that preserve the scale of activations, and normalisation statistics that are not the identity."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.2)
            nn.init.uniform_(module.weight, 0.5, 1)


def _old_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.replace("branch4.1.", "branch4_conv."): value for key, value in state.items()}


def compare(folder: Path) -> bool:
    """Print the differences between our logits and the package's; return whether all are within the bound."""
    from actstats.models import load_model

    fine = True
    for name, arch in NETWORKS.items():
        loaded = load_model(arch, folder / f"{name}.pt")
        images = torch.stack(
            [loaded.preprocessing(Image.open(folder / f"{index}.png")) for index in range(IMAGES)]
        )
        with torch.no_grad():
            ours = loaded.model(images)
        theirs = torch.load(folder / f"{name}-logits.pt", weights_only=True)
        far = (ours - theirs).abs().max().item()
        fine &= far <= BOUND
        foreign = loaded.identity["weights"].get("foreign", [])
        print(
            f"{name}: {far:.2g} apart at most, logits of standard deviation {theirs.std():.3g}; left alone: {foreign}"
        )
    return fine


if __name__ == "__main__":
    command, place = sys.argv[1], Path(sys.argv[2])
    if command == "write":
        write(place)
    elif not compare(place):
        sys.exit(f"not within {BOUND}")
