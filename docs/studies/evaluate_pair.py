"""Measure the pair of GoogLeNets on the validation images: clean, and attacked within two l2 radii.

    python docs/studies/evaluate_pair.py --data tiny-imagenet-11.tar --table docs/studies/pair.figures

Takes the pair inside actstats, or the files of `train_pair.py` given by `--weights S R`. The attack is l2 PGD of
20 steps of 2.5 epsilon / 20 from a random start, in f32, away from the true category. An image counts as right
at a radius if the network is right on it clean and after the attack of this and every smaller radius.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from markdown_table import lines
from torch import Tensor
from train_pair import Images, read_images

from actstats import Loaded, load_model
from actstats.distort.attack import pgd_l2, random_offset

STEPS = 20
BATCH = 50


def main() -> None:
    """Measure both networks, print a table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", required=True, help="the tar that train_pair.py read")
    parser.add_argument(
        "--weights", nargs=2, type=Path, metavar=("S", "R"), help="weights files; default: the embedded pair"
    )
    parser.add_argument("--epsilon", type=float, default=1.0, help="radius that R was trained with")
    parser.add_argument("--every", type=int, help="use only every N-th image, to try it out", metavar="N")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--table", type=Path, help="file for the table in the model card")
    given = parser.parse_args()
    images = read_images(given.data, "val")
    if given.every:
        images = Images(images.pixels[:: given.every], images.labels[:: given.every], images.classes)
    pair = (
        [load_model("googlenet", path) for path in given.weights]
        if given.weights
        else [load_model("googlenet", "demo", robust=robust) for robust in (False, True)]
    )
    radii = (0.0, given.epsilon, 2 * given.epsilon)
    figures: dict[str, Any] = {"images": len(images.labels), "steps": STEPS}
    for name, loaded in zip("SR", pair, strict=True):
        started = time.perf_counter()
        figures[name] = {
            "sha256": loaded.identity["weights"]["file_sha256"],
            "accuracy": {
                f"{radius:g}": share
                for radius, share in zip(radii, accuracies(loaded, images, radii), strict=True)
            },
            "seconds": round(time.perf_counter() - started),
        }
    shown = table(figures, radii)
    print(shown)
    if given.out:
        given.out.write_text(json.dumps(figures, indent=1) + "\n")
    if given.table:
        given.table.write_text(f"{shown}\n\nPer cent of {figures['images']} validation images.\n")


def accuracies(loaded: Loaded, images: Images, radii: Sequence[float]) -> list[float]:
    """Return the share of images classified correctly at each radius, ascending; radius 0 means clean images."""
    model = loaded.model.to(memory_format=torch.channels_last)

    def predict(x: Tensor) -> Tensor:
        scores: Tensor = model(loaded.preprocessing.normalize(x.permute(0, 2, 3, 1)))
        return scores

    random = torch.Generator().manual_seed(0)
    left = torch.arange(len(images.labels))
    shares = []
    for radius in radii:
        kept = []
        for chosen in left.split(BATCH):
            seen, labels = images.pixels[chosen].float() / 255, images.labels[chosen]
            if radius:
                start = random_offset(torch.randn(seen.shape, generator=random), radius)
                seen = pgd_l2(predict, seen, labels, radius, STEPS, start=start)
            with torch.inference_mode():
                kept.append(chosen[predict(seen).argmax(1) == labels])
        left = torch.cat(kept)
        shares.append(len(left) / len(images.labels))
    return shares


def table(figures: dict[str, Any], radii: tuple[float, ...]) -> str:
    """Return the figures as a Markdown table, in percent."""
    heads = ["network", "clean", *(f"PGD-{STEPS}, ε = {radius:g}" for radius in radii[1:])]
    rows = [[name, *(f"{100 * a:.1f}" for a in figures[name]["accuracy"].values())] for name in "SR"]
    return "\n".join(lines(heads, rows))


if __name__ == "__main__":
    main()
