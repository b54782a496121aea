"""The study's photographs, with masks computed from their pixels, so that nobody has to label anything.

Each photograph gets a mask for each category of concepts:

- `colour`: seven hues and grey, by hue, saturation and value; black where it is darker than 50 of 255 is none;
- `edge`: in which of four directions the brightness changes most, where the slope (Sobel) is above 50 of 255 a pixel;
- `texture`: fine where what a Gaussian of 0.8 pixels takes away has a root mean square above 36 of 255 (2 pixels
  around), coarse where what lies between it and one of 2.4 pixels has one above 32, smooth where both are below 1.5;
- `photograph`: the category of the whole photograph, over all of its positions.

A unit is active at 0.5 % of all positions, so of a concept that covers more than an eighth of them it cannot reach an
IoU of 0.04: the limits of edges and textures are such that each covers 2 to 5 %.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from actstats import open_source

COLOURS = ("red", "yellow", "green", "cyan", "blue", "magenta", "grey")
EDGES = ("horizontal change", "rising change", "vertical change", "falling change")
TEXTURES = ("smooth", "coarse", "fine")


def lay_out(tar: str, split: str, root: Path) -> None:
    """Write the images of one split of the tar, and their masks, into `root`, in the layout of a folder of masks."""
    source = open_source(tar)
    rows = ["category,number,name"]
    names = {"colour": COLOURS, "edge": EDGES, "texture": TEXTURES, "photograph": source.classes}
    for category, known in names.items():
        rows += [f"{category},{number},{name}" for number, name in enumerate(known, 1)]
    root.mkdir(parents=True, exist_ok=True)
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    for index, path in enumerate(source.paths):
        folders, name = path.split("/")[:-1], Path(path).with_suffix(".png").name
        if split not in folders:
            continue
        image = source.image(index)
        masks = {
            "colour": colours(image),
            "edge": edges(image),
            "texture": textures(image),
            "photograph": np.full(image.size[::-1], source.labels[index] + 1),
        }
        _save(image, root / "images" / folders[-1] / name)
        for category, mask in masks.items():
            _save(Image.fromarray(mask.astype(np.uint8)), root / "masks" / category / folders[-1] / name)


def colours(image: Image.Image) -> NDArray[np.int64]:
    """Return the colour's number at each position, 0 where it is dark."""
    hue, saturation, value = np.asarray(image.convert("HSV")).astype(int).transpose(2, 0, 1)
    found = np.where(saturation < 60, len(COLOURS), 1 + (hue + 21) // 43 % 6)
    return np.where(value < 50, 0, found)


def edges(image: Image.Image) -> NDArray[np.int64]:
    """Return the number of the direction in which brightness changes, 0 where it hardly changes."""
    grey = _grey(image)
    across, down = (ndimage.sobel(grey, axis) / 8 for axis in (1, 0))
    direction = np.round(np.arctan2(down, across) / (np.pi / 4)).astype(int) % 4
    return np.where(np.hypot(across, down) > 50, 1 + direction, 0)


def textures(image: Image.Image) -> NDArray[np.int64]:
    """Return the texture's number at each position, 0 at most positions."""
    grey = _grey(image)
    little, much = (ndimage.gaussian_filter(grey, sigma) for sigma in (0.8, 2.4))
    fine, coarse = (np.sqrt(ndimage.gaussian_filter(band**2, 2)) for band in (grey - little, little - much))
    smooth = np.maximum(fine, coarse) < 1.5
    return np.select([smooth, fine > 36, coarse > 32], [1, 3, 2], 0)


def _grey(image: Image.Image) -> NDArray[np.float64]:
    return np.asarray(image.convert("L"), dtype=np.float64)


def _save(image: Image.Image, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file)
