"""Compare the embedded pair layer by layer on photographs that neither network was trained on.

    python docs/studies/compare_pair.py --data tiny-imagenet-11.tar --split val --work /tmp/pair \
        --tables docs/studies/pair.tables --figure docs/studies/pair-layers.png

Sweeps S and R over the images, clean and with noise of standard deviation 0.1, into `--work`, and writes the
Markdown tables that `pair.md` includes: every layer, with 95 % bootstrap intervals over units.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from actstats import load_model, open_source
from actstats.data import Source
from actstats.pair.comparison import Row, compare_layers, compare_pair, kernels_of
from actstats.pair.pictures import draw_layers, kernel_sheet
from actstats.pair.sweeping import sweep_pair

NOISE = 0.1
BY_LAYER = {
    "total_variation": "Total variation of the activations, clean",
    "noisy_total_variation": "Total variation of the activations, with noise",
    "relative_change": "Rise of total variation by noise",
    "roughness": "Roughness of the activations, clean",
    "noisy_roughness": "Roughness of the activations, with noise",
    "centroid": "Spectral centroid, clean, cycles/pixel",
}


class Split:
    """The images of a source that lie in a folder of this name."""

    kind = "split"

    def __init__(self, source: Source, name: str) -> None:
        self._source = source
        self._chosen = [at for at, path in enumerate(source.paths) if name in path.split("/")[:-1]]
        self.spec = f"{source.spec}, {name}"
        self.paths = [source.paths[at] for at in self._chosen]
        self.labels = source.labels[self._chosen]
        self.classes = source.classes
        self.fingerprint = hashlib.sha256("\n".join([source.fingerprint, *self.paths]).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, index: int) -> Image.Image:
        """Return an image, decoded."""
        return self._source.image(self._chosen[index])


def main() -> None:
    """Sweep, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", default="demo", help="what open_source takes")
    parser.add_argument("--split", help="only images in a folder of this name")
    parser.add_argument("--work", type=Path, required=True, help="folder for the stores")
    parser.add_argument("--tables", type=Path, required=True, help="file for the Markdown tables")
    parser.add_argument("--figure", type=Path, help="picture of the layers; the kernels' goes beside it")
    given = parser.parse_args()
    source = open_source(given.data)
    images: Source = Split(source, given.split) if given.split else source
    pair = [load_model("googlenet", "demo", robust=robust) for robust in (False, True)]
    stores, _ = sweep_pair(*pair, images, given.work, noise=NOISE)
    models = [loaded.model.cpu() for loaded in pair]
    rows, layers = compare_pair(stores, *models)
    kernels = compare_layers(*(kernels_of(model) for model in models))
    given.tables.write_text("\n".join(_lines(len(images), rows, layers, kernels)) + "\n")
    if given.figure:
        draw_layers(layers, given.figure)
        kernel_sheet(*models).save(given.figure.with_name("pair-kernels.png"))


def _lines(images: int, rows: list[Row], layers: pd.DataFrame, kernels: pd.DataFrame) -> Iterator[str]:
    yield f"**All layers together**, {images} images: medians over units; Cliff's delta of R against S."
    yield ""
    yield "| measure | S | R | delta, 95 % interval | R lower in | R higher in |"
    yield "|---|---|---|---|---|---|"
    for row in rows:
        delta = f"{row.delta:+.2f} ({row.low:+.2f} to {row.high:+.2f})"
        counts = f"{row.lower} of {row.layers} | {row.higher} of {row.layers}"
        yield f"| {row.measure} | {row.standard:.3g} | {row.robust:.3g} | {delta} | {counts} |"
    yield ""
    for name, title in BY_LAYER.items():
        yield from _by_layer(title, layers[layers["variable"] == name])
    for name, title in (
        ("kernels_tv", "Total variation of the kernels"),
        ("kernels", "Roughness of the kernels"),
    ):
        found = kernels[kernels["variable"] == name]
        yield from _by_layer(f"{title}, every convolution larger than 1 x 1", found)


def _by_layer(title: str, table: pd.DataFrame) -> Iterator[str]:
    yield f"**{title}**: means over units."
    yield ""
    yield "| layer | units | S | R | R - S, 95 % interval | delta, 95 % interval |"
    yield "|---|---|---|---|---|---|"
    for row in table.itertuples():
        difference = f"{row.difference:+.3g} ({row.difference_low:+.3g} to {row.difference_high:+.3g})"
        delta = f"{row.cliffs_delta:+.2f} ({row.delta_low:+.2f} to {row.delta_high:+.2f})"
        decided = "**" if np.sign(row.delta_low) == np.sign(row.delta_high) else ""
        means = f"{row.mean_s:.3g} | {row.mean_r:.3g}"
        yield f"| {row.layer} | {row.units_s} | {means} | {difference} | {decided}{delta}{decided} |"
    yield ""


if __name__ == "__main__":
    main()
