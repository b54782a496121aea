"""Write the table of docs/layers.md: layers and units of each preset in some networks of torchvision.

python docs/_tools/layer_table.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch

import actstats
from actstats.errors import ActstatsError
from actstats.layers import probe, select

FILE: Final = Path(__file__).parents[1] / "measured" / "layers.md"
NETWORKS: Final = {
    "AlexNet": "alexnet",
    "GoogLeNet": "googlenet",
    "ResNet-50": "resnet50",
    "VGG-16": "vgg16",
    "DenseNet-121": "densenet121",
    "ConvNeXt-T": "convnext_tiny",
    "ViT-B/16": "vit_b_16",
}
PRESETS: Final = ("conv", "block", "all", "paper")


def row(name: str) -> str:
    """Return the table's line for one of `NETWORKS`."""
    loaded = actstats.load_model(NETWORKS[name], "none")
    probed = probe(loaded.model, torch.zeros(2, *loaded.preprocessing.shape))
    cells = []
    for preset in PRESETS:
        try:
            layers = select(probed, preset)
        except ActstatsError:
            cells.append("\N{EN DASH}")
            continue
        stands_for = probed.default if preset == "conv" else preset
        counts = f"{len(layers):,}, {sum(layer.units for layer in layers):,}"
        cells.append(counts if stands_for == preset else f"as `{stands_for}`")
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    """Write the file."""
    head = f"| network | {' | '.join(f'`{preset}`' for preset in PRESETS)} |\n|---|{'---|' * len(PRESETS)}\n"
    FILE.write_text(head + "".join(f"{row(name)}\n" for name in NETWORKS))


if __name__ == "__main__":
    main()
