"""Preprocess images for a network: resize, centre crop and normalise.

The steps are bit-identical to those of torchvision's image-classification preset on a PIL image:
`preprocessing(image)` equals `weights.transforms()(image)`. They are split as a sweep needs them: `pixels` (uint8, in
the worker threads) and `normalize` (a whole batch, on the network's device).

>>> from PIL import Image
>>> preprocessing = Preprocessing.imagenet(size=32, resize=36)
>>> preprocessing.pixels(Image.new("RGB", (50, 40), "red")).shape
(32, 32, 3)
>>> preprocessing(Image.new("RGB", (50, 40), "red")).shape
torch.Size([3, 32, 32])
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from actstats.data.jpeg import size_of
from actstats.errors import ActstatsError, nearest
from actstats.identity import PreprocessingRecord
from actstats.records import InvalidError, parse
from actstats.support import random_images

if TYPE_CHECKING:
    import torch
    from torch import Tensor

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)

LARGEST: Final = 16_384
"""Largest side, in pixels, that an image may be resized or cropped to."""

INTERPOLATIONS: Final = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
"""PIL's filters by their names in torchvision. Both antialias when downscaling."""


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing of an image for a network.

    `resize` is the length of the shorter side after resizing (None keeps the image's size). `crop` is the side of the
    square cropped from the centre; images smaller than that are padded with black. `interpolation` is a key of
    `INTERPOLATIONS`. `mean` and `std` are those of red, green and blue in [0, 1].
    """

    resize: int | None
    crop: int
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            hint = nearest(self.interpolation, INTERPOLATIONS)
            raise ActstatsError(f"unknown interpolation {self.interpolation!r} in the preprocessing{hint}")
        for size in (self.resize, self.crop):
            if size is not None and not (isinstance(size, int) and 0 < size <= LARGEST):
                raise ActstatsError(
                    f"the preprocessing's sizes must be from 1 to {LARGEST} pixels, not {size}"
                )
        if any(value > 1 for value in self.mean):
            raise ActstatsError(
                f"the preprocessing's mean {list(self.mean)} is not one of colours in [0, 1]; for pixels up to 255, "
                "divide mean and std by 255"
            )
        finite = all(math.isfinite(value) for value in (*self.mean, *self.std))
        if len(self.mean) != 3 or len(self.std) != 3 or not finite or min(self.std) <= 0:
            raise ActstatsError(
                "the preprocessing needs a finite mean and a positive std for each of three colours"
            )

    @classmethod
    def imagenet(cls, size: int = 224, resize: int | None = 256) -> Self:
        """Return the usual ImageNet preprocessing: resize the shorter side, then crop `size` x `size` pixels."""
        return cls(resize=resize, crop=size)

    @classmethod
    def from_dict(cls, record: Mapping[str, object]) -> Self:
        """Rebuild the preprocessing that `to_dict` recorded.

        Raises:
            ActstatsError: the record has other fields or invalid values.
        """
        try:
            return cls(**vars(parse(PreprocessingRecord, dict(record))))
        except InvalidError as error:
            raise ActstatsError(f"the record is not a preprocessing of this version: {error}") from None

    def to_dict(self) -> dict[str, int | str | list[float] | None]:
        """Return a JSON-serialisable record, from which `from_dict` rebuilds an equal object."""
        return {**dataclasses.asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of a preprocessed image: 3, height, width."""
        return (3, self.crop, self.crop)

    @property
    def geometry(self) -> tuple[int | None, int, str]:
        """The fields that determine the pixels before normalisation."""
        return self.resize, self.crop, self.interpolation

    def resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the (width, height) that an image of (width, height) `size` is resized to before the crop."""
        if self.resize is None:
            return size
        width, height = size
        if width <= height:
            return self.resize, int(self.resize * height / width)
        return int(self.resize * width / height), self.resize

    def corner(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the corner (x, y) of the crop in an image resized to `size`; negative if the image is padded."""
        return _margin(size[0], self.crop), _margin(size[1], self.crop)

    def pixels(self, image: Image.Image | NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the resized and cropped image, uint8 [crop, crop, 3], which must not be modified.

        `image` is a PIL image, or an RGB array, uint8 [H, W, 3].
        """
        if isinstance(image, Image.Image) and image.mode != "RGB":
            image = image.convert("RGB")
        size = size_of(image)
        resized, crop = self.resized(size), (self.crop, self.crop)
        corner = self.corner(resized)
        if resized != size:
            from actstats.data.resize import can_resize, resized_crop  # requires numba

            if can_resize(size, resized, corner, crop):
                return resized_crop(np.asarray(image), resized, self.interpolation, corner, crop)
        if not isinstance(image, Image.Image):
            image = Image.fromarray(image)
        if resized != size:
            # Resize the whole image although the crop needs less: PIL's `box` rounds differently.
            image = image.resize(resized, INTERPOLATIONS[self.interpolation])
        left, top = corner
        return np.asarray(image.crop((left, top, left + self.crop, top + self.crop)))

    def normalize(self, pixels: Tensor) -> Tensor:
        """Return the network's input, f32 [N, 3, H, W] in channels_last memory on the device of `pixels`.

        `pixels` is uint8 [N, H, W, 3], or f32 in [0, 1] if the result should be differentiable.
        """
        full, mean, std = _constants(self.mean, self.std, pixels.shape[2], pixels.device)
        # Rows of W * 3 values: broadcasting 3 colours over NHWC takes twice as long, for the same result.
        if pixels.is_floating_point():
            rows = (pixels.flatten(2) - mean).div_(std)
        else:
            rows = pixels.float().flatten(2)
            rows.div_(full).sub_(mean).div_(std)
        return rows.view(pixels.shape).permute(0, 3, 1, 2)

    def empty(self, images: int, *, pin: bool = False) -> Tensor:
        """Return an empty tensor for the pixels of N images, uint8 [N, crop, crop, 3], page-locked if `pin`."""
        import torch

        return torch.empty(images, self.crop, self.crop, 3, dtype=torch.uint8, pin_memory=pin)

    def example(self, images: int, device: torch.device) -> Tensor:
        """Return a batch of inputs for seeded random images, f32 [N, 3, crop, crop] (`support.random_images`)."""
        import torch

        pixels = (255 * random_images(images, self.shape)).to(torch.uint8).permute(0, 2, 3, 1)
        return self.normalize(pixels.to(device)).contiguous()

    def __call__(self, image: Image.Image) -> Tensor:
        """Return the network's input for `image`, f32 [3, H, W]."""
        import torch

        return self.normalize(torch.from_numpy(self.pixels(image).copy())[None])[0]


def _margin(length: int, crop: int) -> int:
    """Return the start of a centre crop on a side of `length`; negative if the side is padded."""
    if crop > length:
        return -((crop - length) // 2)
    return round((length - crop) / 2)


@lru_cache(maxsize=32)
def _constants(
    mean: tuple[float, ...], std: tuple[float, ...], width: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Return 255, and mean and std for each value of a row, f32 [width * 3], on `device`.

    They are cached, since copying them to a GPU for each batch would wait for it. 255 is a tensor because CUDA
    multiplies by the reciprocal of a Python number, which rounds differently from division on the CPU.
    """
    import torch  # imported here: listing and drawing images does not need it

    with torch.inference_mode(False):
        full = torch.tensor(255.0, device=device)
        centre, spread = (torch.tensor(values).repeat(width).to(device) for values in (mean, std))
    return full, centre, spread


def of_images(preprocessing: object, what: str) -> Preprocessing:
    """Return `preprocessing` if it defines how images are resized and cropped, as a `Transform` does not.

    Raises:
        ActstatsError: it is a function, which `what` does not support.
    """
    if isinstance(preprocessing, Preprocessing):
        return preprocessing
    raise ActstatsError(
        f"{what} needs to know how images are resized and cropped: give `preprocessing=` an "
        "actstats.Preprocessing"
    )
