"""Distortions of one image: scrambled patches, noise, greyscale, low-pass and high-pass, contours, silhouettes.

Each is a `Step` that runs in the threads that decode images, on pixels in [0, 1] that are resized and cropped but not
normalised.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pictures

from actstats.data.image import MISSING, UNREADABLE, ImageError, is_image_name
from actstats.data.patience import image_error
from actstats.data.preprocessing import Preprocessing
from actstats.errors import ActstatsError
from actstats.support import exact, needs

Image = NDArray[np.float32]
"""An image in [0, 1], f32 [H, W, 3], resized and cropped but not normalised."""


@dataclass(frozen=True)
class Place:
    """The image that a step is applied to.

    Attributes:
        index: index of the image in the source.
        path: path of the image in the source.
        preprocessing: the preprocessing that resized and cropped the image.
        size: (width, height) before resizing; None after an attack.
        occurrence: number of steps of the same kind before this one in the chain.
    """

    index: int
    path: str
    preprocessing: Preprocessing
    size: tuple[int, int] | None = None
    occurrence: int = 0

    def random(self, kind: str) -> np.random.Generator:
        """Return the random generator of a step of this kind for this image.

        It is seeded by the index of the image, the kind and the occurrence, so results do not depend on batches,
        threads, order or other kinds of steps in the chain.
        """
        return np.random.default_rng([self.index, zlib.crc32(kind.encode()), self.occurrence])


class Step(Protocol):
    """A distortion of one image. `str(step)` is its spec, which `parse` reads."""

    def __call__(self, image: Image, place: Place) -> Image:
        """Return the distorted image, in [0, 1]; may raise `ImageError`. Must be thread-safe."""
        ...


LUMA: Final = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""Weights of red, green and blue in grey values, from ITU-R BT.601 as in PIL and torchvision."""


def grey(image: Image) -> Image:
    """Return the grey values of an image, f32 [H, W]."""
    values: Image = image @ LUMA
    return values


@dataclass(frozen=True)
class Greyscale:
    """Convert the image to greyscale."""

    def __str__(self) -> str:
        return "greyscale"

    def __call__(self, image: Image, place: Place) -> Image:
        """Return the grey image, repeated over three channels."""
        return np.repeat(grey(image)[..., None], 3, axis=2)


@dataclass(frozen=True)
class Noise:
    """Add Gaussian noise of standard deviation `sigma`, independent per pixel and colour; clip to [0, 1]."""

    sigma: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.sigma) and self.sigma > 0):
            raise ActstatsError(
                f"{self} needs a positive standard deviation, such as noise:0.1 (images are in [0, 1])"
            )

    def __str__(self) -> str:
        return f"noise:{exact(self.sigma)}"

    def __call__(self, image: Image, place: Place) -> Image:
        """Return the image with noise."""
        noise = place.random("noise").standard_normal(image.shape, dtype=np.float32)
        noise *= np.float32(self.sigma)
        noise += image
        return np.clip(noise, 0, 1, out=noise)


@dataclass(frozen=True)
class Scramble:
    """Cut the image into `grid` x `grid` equal patches and shuffle them.

    Pixels beyond a multiple of `grid` stay in place, half of them at each edge.
    """

    grid: int

    def __post_init__(self) -> None:
        if self.grid < 2:
            raise ActstatsError(f"{self} has no effect; use 2 or more patches per side")

    def __str__(self) -> str:
        return f"scramble:{self.grid}"

    def check(self, side: int) -> None:
        """Raise `ActstatsError` if images of `side` pixels per side cannot be cut into that many patches."""
        if self.grid > side:
            raise ActstatsError(f"{self} needs images of at least {self.grid} pixels per side, got {side}")

    def __call__(self, image: Image, place: Place) -> Image:
        """Return the scrambled image, in which at least two patches have moved."""
        grid = self.grid
        patch = image.shape[0] // grid
        first = (image.shape[0] - grid * patch) // 2
        inner = slice(first, first + grid * patch)
        random = place.random("scramble")
        order = random.permutation(grid**2)
        while (order == np.arange(grid**2)).all():
            order = random.permutation(grid**2)
        patches = image[inner, inner].reshape(grid, patch, grid, patch, 3).swapaxes(1, 2)
        moved = patches.reshape(grid**2, patch, patch, 3)[order].reshape(grid, grid, patch, patch, 3)
        scrambled = image.copy()
        scrambled[inner, inner] = moved.swapaxes(1, 2).reshape(grid * patch, grid * patch, 3)
        return scrambled


_HALF: Final = math.sqrt(math.log(2) / 2) / math.pi
"""sigma * f where exp(-2 pi^2 sigma^2 f^2), the transfer function of a Gaussian, is 1/2."""


@cache
def halving_sigma(side: int, cycles: float) -> float:
    """Return the standard deviation, in pixels, of the Gaussian that halves `cycles` cycles per `side` pixels.

    Sampled at pixels, a narrow Gaussian passes more than its transfer function says. Where that matters, the standard
    deviation is solved for, with the sum over pixels.

    >>> round(halving_sigma(224, 8), 3), round(halving_sigma(224, 112), 3)
    (5.247, 0.528)
    """
    from scipy.optimize import brentq

    continuous = _HALF * side / cycles
    pixels = np.arange(-8, 9)

    def excess(sigma: float) -> float:
        weights = np.exp(-0.5 * (pixels / sigma) ** 2)
        return float(np.cos(2 * math.pi * cycles / side * pixels) @ weights / weights.sum() - 0.5)

    # From a standard deviation of 2 pixels on, both agree to rounding.
    return continuous if continuous >= 2 else float(brentq(excess, 0.2, 2 * continuous))


def smooth(image: Image, cycles: float) -> Image:
    """Return the low frequencies of an image, f32 [H, W, 3], with reflected edges.

    The amplitude is halved at a frequency of `cycles` cycles per side, at most half the side, and reduced to 1/16 at
    twice that frequency where that is well below half the side.
    """
    with needs("scipy", "lowpass and highpass"):
        from scipy.ndimage import gaussian_filter

        sigma = halving_sigma(image.shape[0], cycles)
    # The kernel reaches to 4 standard deviations, and further where that is only a pixel or two.
    low: Image = gaussian_filter(image, (sigma, sigma, 0), mode="reflect", truncate=max(4.0, 3 / sigma))
    return low


@dataclass(frozen=True)
class LowPass:
    """Keep frequencies below `cycles` cycles per image.

    The filter is Gaussian, without negative lobes, so edges have no halos and the result stays in [0, 1]. It halves
    the amplitude at `cycles`.
    """

    cycles: float

    def __post_init__(self) -> None:
        _check(str(self), self.cycles)

    def __str__(self) -> str:
        return f"lowpass:{exact(self.cycles)}"

    def check(self, side: int) -> None:
        """Raise `ActstatsError` if images of `side` pixels per side have no such frequency."""
        _check_frequency(str(self), self.cycles, side)

    def __call__(self, image: Image, place: Place) -> Image:
        """Return the blurred image."""
        self.check(image.shape[0])
        return np.clip(smooth(image, self.cycles), 0, 1)


@dataclass(frozen=True)
class HighPass:
    """Keep frequencies above `cycles` cycles per image and the mean colour; clip to [0, 1].

    The result is the image minus its `LowPass` with the same `cycles`, plus the mean colour.
    """

    cycles: float

    def __post_init__(self) -> None:
        _check(str(self), self.cycles)

    def __str__(self) -> str:
        return f"highpass:{exact(self.cycles)}"

    def check(self, side: int) -> None:
        """Raise `ActstatsError` if images of `side` pixels per side have no such frequency."""
        _check_frequency(str(self), self.cycles, side)

    def __call__(self, image: Image, place: Place) -> Image:
        """Return the image without its low frequencies, except its mean."""
        self.check(image.shape[0])
        mean = image.mean((0, 1), dtype=np.float64).astype(np.float32)
        high: Image = image - smooth(image, self.cycles) + mean
        return np.clip(high, 0, 1)


def _check_frequency(spec: str, cycles: float, side: int) -> None:
    if 2 * cycles > side:
        raise ActstatsError(
            f"{spec} needs images that have such a frequency; {side} pixels per side have at most {side / 2:g} cycles"
        )


def _check(spec: str, cycles: float) -> None:
    if not (math.isfinite(cycles) and cycles > 0):
        example = f"{spec.partition(':')[0]}:8"
        raise ActstatsError(f"{spec} needs a positive frequency in cycles per image, such as {example}")


# Parameters from Chen, Agarwal & Nguyen 2020, "The shape and simplicity biases of adversarially robust CNNs".
_SIGMA: Final = 0.4
_LOW, _HIGH = 0.35, 0.9


@dataclass(frozen=True)
class Contour:
    """Draw the Canny edges of the grey image, black on white."""

    def __str__(self) -> str:
        return "contour"

    def __call__(self, image: Image, place: Place) -> Image:
        """Return the edges, with values 0 and 1."""
        with needs("skimage", "contour"):
            from skimage.feature import canny

        edges = canny(grey(image), sigma=_SIGMA, low_threshold=_LOW, high_threshold=_HIGH)
        return _black_on_white(edges)


@dataclass(frozen=True)
class Silhouette:
    """Replace the image by the silhouette of its object, black on white.

    `masks` is a folder of images that are nonzero on the object. Each mask has the same path as its image, except for
    the extension, and the same size. It is resized and cropped in the same way.
    """

    masks: Path

    def __post_init__(self) -> None:
        if not self.masks.is_dir():
            raise ActstatsError(f"silhouette:{self.masks} is not a folder; give a folder of masks")
        if not self._files:
            raise ActstatsError(f"silhouette:{self.masks} contains no images; give a folder of masks")

    def __str__(self) -> str:
        return f"silhouette:{self.masks}"

    @cached_property
    def _files(self) -> dict[str, Path]:
        named = {path: path.relative_to(self.masks).as_posix() for path in self.masks.rglob("*")}
        # Devices are skipped, and pipes, which would block.
        files = sorted(path for path, name in named.items() if is_image_name(name) and path.is_file())
        return {_key(named[path]): path for path in files}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of the names and contents of the masks."""
        digest = hashlib.sha256()
        for name, path in self._files.items():
            digest.update(f"{name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()

    def __call__(self, image: Image, place: Place) -> Image:
        """Return the silhouette, with values 0 and 1."""
        path = self._files.get(_key(place.path))
        if path is None:
            raise ImageError(MISSING, f"has no mask in {self.masks}")
        try:
            mask = np.asarray(Pictures.open(path))
        except Exception as error:  # Pillow's parsers may raise any exception on a damaged file
            failure = image_error(error)
            why = failure.message.removeprefix("cannot be read: ")
            raise type(failure)(failure.status, f"its mask {path.name} cannot be read: {why}") from None
        if mask.ndim == 3:
            mask = _marked(mask)
        if mask.shape[::-1] != place.size:
            raise ImageError(
                UNREADABLE, f"its mask {path.name} has {mask.shape[::-1]} pixels, not {place.size}"
            )
        marked = Pictures.fromarray(np.where(mask != 0, 255, 0).astype(np.uint8))
        return _black_on_white(place.preprocessing.pixels(marked)[..., 0] > 127)


def _marked(mask: NDArray[Any]) -> NDArray[np.bool_]:
    """Return where a mask [H, W, channels] is nonzero in a colour and, if it has 2 or 4 channels, not transparent."""
    marked: NDArray[np.bool_] = mask != 0
    transparent = mask.shape[2] in (2, 4)
    colours: NDArray[np.bool_] = np.any(marked[..., :-1] if transparent else marked, axis=2)
    if not transparent:
        return colours
    opaque = marked[..., -1]
    # A mask that is drawn in its alpha channel alone may be black throughout.
    return colours & opaque if colours.any() else opaque


def _key(path: str) -> str:
    folder, slash, name = path.rpartition("/")
    return folder + slash + name.rpartition(".")[0]


def _black_on_white(drawn: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> Image:
    return np.repeat(np.where(drawn, 0, 1).astype(np.float32)[..., None], 3, axis=2)
