"""The `demo` source: crops of public-domain photographs that are included in scikit-image."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from actstats.data.image import decode
from actstats.data.source import fingerprint
from actstats.errors import ActstatsError
from actstats.support import install

_PHOTOGRAPHS: Final = {
    # Each is included in the wheel, and CC0 or in the public domain according to skimage.data.
    "astronaut": "astronaut.png",
    "brick": "brick.png",
    "camera": "camera.png",
    "chelsea": "chelsea.png",
    "coffee": "coffee.png",
    "grass": "grass.png",
    "hubble_deep_field": "hubble_deep_field.jpg",
    "rocket": "rocket.jpg",
}
_CROPS: Final = 32
_SIDES: Final = (256, 160, 224)
# Fractional parts of 1/p and 1/p^2 in units of 1/65536, where p^3 = p + 1. They spread the crops evenly.
_STEP_X, _STEP_Y = 49472, 37345


class DemoSource:
    """32 square crops of each of eight photographs: 256 images, labelled by photograph.

    The photographs alternate, so the first few images include each of them. The path of an image describes the crop:
    `coffee/x120-y40-256` is the square of side 256 whose top left corner is at (120, 40).
    """

    kind = "demo"
    spec = "demo"

    def __init__(self, limit: int | None = None) -> None:
        """Use the first `limit` crops.

        Raises `ActstatsError` if scikit-image is not installed or does not include the photographs.
        """
        folder = _folder()
        self.classes = list(_PHOTOGRAPHS)
        files = [folder / name for name in _PHOTOGRAPHS.values()]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise ActstatsError(
                f"this version of scikit-image does not include {missing[0]}; pip install -U scikit-image"
            )
        self._photographs = [decode(file.read_bytes()) for file in files]
        crops = [(label, crop) for crop in range(_CROPS) for label in range(len(files))][:limit]
        self._boxes = [_box(crop, self._photographs[label].size) for label, crop in crops]
        self.labels = np.array([label for label, _ in crops], dtype=np.int64)
        self.paths = [
            f"{self.classes[label]}/x{left}-y{top}-{right - left}"
            for (label, _), (left, top, right, _) in zip(crops, self._boxes, strict=True)
        ]
        sizes = [file.stat().st_size for file in files]
        self.fingerprint = fingerprint(self.paths, (sizes[label] for label, _ in crops))

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, index: int) -> Image.Image:
        """Return crop `index` in mode RGB; thread-safe."""
        photograph = self._photographs[int(self.labels[index])]
        return photograph.crop(self._boxes[index])


def _folder() -> Path:
    # Locate scikit-image without importing it, which takes longer than reading the photographs.
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise ActstatsError(f"the demo photographs need scikit-image; {install(['skimage'])}")
    return Path(spec.origin).parent / "data"


def _box(crop: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the corners (left, top, right, bottom) of crop number `crop` in a photograph of `size`."""
    width, height = size
    side = _SIDES[crop % len(_SIDES)]
    left = (crop + 1) * _STEP_X % 65536 * (width - side + 1) >> 16
    top = (crop + 1) * _STEP_Y % 65536 * (height - side + 1) >> 16
    return left, top, left + side, top + side
