"""The `demo` source: crops of the public-domain photographs inside scikit-image, without a download."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from actstats.data.image import decode
from actstats.data.source import fingerprint
from actstats.errors import ActstatsError

_PHOTOGRAPHS: Final = {
    # Each inside the wheel, and CC0 or in the public domain by the words of skimage.data's own docstrings.
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
# The fractional parts of 1/p and 1/p^2, p the root of p^3 = p + 1, in 1/65536: they spread the crops evenly.
_STEP_X, _STEP_Y = 49472, 37345


class DemoSource:
    """32 square crops of each of eight photographs: 256 images, labelled by photograph.

    The photographs take turns, so that the first few images already show each of them. A path tells where
    its crop lies: `coffee/x120-y40-256` is the square of side 256 whose top left corner is at (120, 40).
    """

    kind = "demo"
    spec = "demo"

    def __init__(self, limit: int | None = None) -> None:
        """List the first `limit` crops.

        Raises `ActstatsError` if scikit-image is not installed or does not ship the photographs.
        """
        folder = _folder()
        self.classes = list(_PHOTOGRAPHS)
        files = [folder / name for name in _PHOTOGRAPHS.values()]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise ActstatsError(f"this scikit-image ships no {missing[0]}; pip install -U 'actstats[demo]'")
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
    # Found, not imported: importing scikit-image takes longer than reading its photographs.
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise ActstatsError("the demo's photographs come with scikit-image; pip install 'actstats[demo]'")
    return Path(spec.origin).parent / "data"


def _box(crop: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the corners (left, top, right, bottom) of crop number `crop` in a photograph of `size`."""
    width, height = size
    side = _SIDES[crop % len(_SIDES)]
    left = (crop + 1) * _STEP_X % 65536 * (width - side + 1) >> 16
    top = (crop + 1) * _STEP_Y % 65536 * (height - side + 1) >> 16
    return left, top, left + side, top + side
