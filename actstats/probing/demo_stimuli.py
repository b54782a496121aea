"""Cue-conflict images made of the demo's photographs: one's phases, which carry shape, with another's amplitudes."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from actstats.data.demo import DemoSource
from actstats.data.source import fingerprint

_EACH: Final = 4
"""Stimuli of each ordered pair of photographs."""
_SIDE: Final = 224
_LEFT_OUT: Final = "hubble_deep_field"
"""No shape is to be seen in it."""


class DemoStimuli:
    """Four stimuli for each ordered pair of seven of the demo's photographs: 168, named `<shape>1-<texture>1.png`.

    Each has the phase spectrum of a crop of one photograph and, in each colour channel, the amplitude spectrum of a
    crop of another (Oppenheim & Lim 1981: the phases decide what is seen where). They ship with the package and so
    show what the test does; for results, take stimuli that were made by style transfer (Geirhos et al. 2019).
    """

    kind = "demo-stimuli"
    spec = "demo"

    def __init__(self, limit: int | None = None) -> None:
        """Name the first `limit` stimuli; raises `ActstatsError` if the demo's photographs are not installed."""
        self._crops = DemoSource()
        names = self._crops.classes
        self.classes = [name for name in names if name != _LEFT_OUT]
        pairs = [
            (names.index(shape), names.index(texture), number)
            for shape in self.classes
            for texture in self.classes
            for number in range(_EACH)
            if shape != texture
        ][:limit]
        # The crops of a photograph are every len(names)-th image.
        self._pairs = [(len(names) * n + shape, len(names) * n + texture) for shape, texture, n in pairs]
        self.paths = [
            f"{names[shape]}/{names[shape]}{n + 1}-{names[texture]}{n + 1}.png" for shape, texture, n in pairs
        ]
        self.labels = np.array([self.classes.index(names[shape]) for shape, _, _ in pairs], dtype=np.int64)
        self.fingerprint = fingerprint([self._crops.fingerprint, *self.paths], [0] * (len(pairs) + 1))

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, index: int) -> Image.Image:
        """Return stimulus `index` in mode RGB; thread-safe."""
        shape, texture = (
            np.fft.fft2(_pixels(self._crops.image(crop)), axes=(0, 1)) for crop in self._pairs[index]
        )
        mixed = np.fft.ifft2(np.abs(texture) * np.exp(1j * np.angle(shape)), axes=(0, 1)).real
        return Image.fromarray(mixed.round().clip(0, 255).astype(np.uint8))


def _pixels(image: Image.Image) -> NDArray[np.float64]:
    return np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC), dtype=np.float64)
