"""Preprocessing by a function of the caller's own: a `Compose`, a processor of a library, or none at all.

A function that does what `Preprocessing` can say is replaced by it (`as_preprocessing`). Of any other the store
records a description, and a checksum of what it made of the first image, by which another function is noticed.

>>> import torch
>>> halved = Transform.of(lambda image: image / 2, torch.ones(13, 8, 8))
>>> halved.shape, float(halved.pixels(torch.ones(13, 8, 8)).max())
((13, 8, 8), 0.5)
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from actstats.data.image import ImageError
from actstats.data.preprocessing import INTERPOLATIONS, LARGEST, Preprocessing
from actstats.errors import ActstatsError, reason_of

_ADDRESS: Final = re.compile(r" at 0x[0-9a-fA-F]+")
_FIELDS: Final = {"function", "shape", "dtype", "first"}
_MOST_CHANNELS: Final = 4096


@dataclass(frozen=True)
class Transform:
    """What a function makes of an image: an input of the network, of one shape and dtype for all images.

    Attributes:
        function: from an item of the source (a PIL image or a tensor) to an input [C, H, W]; None: the item is the
            input. It may return a mapping with `pixel_values`, or a batch of one. One that was read from a store is
            not there, and fails when it is called.
        description: what the function calls itself.
        shape: of an input, [C, H, W].
        dtype: of an input, by its NumPy name.
        first: SHA-256 of the first readable image's input.
    """

    function: Callable[[Any], Any] | None
    description: str
    shape: tuple[int, int, int]
    dtype: str
    first: str

    @classmethod
    def of(cls, function: Callable[[Any], Any] | None, item: object) -> Self:
        """Return the preprocessing by `function`, which is tried on an item.

        Raises:
            ActstatsError: it fails, or makes no [C, H, W].
        """
        name = "none" if function is None else described(function)
        made = _made(function, name, item)
        if made.ndim != 3:
            more = ": videos and volumes are not supported; sweep their frames" if made.ndim > 3 else ""
            raise ActstatsError(
                f"the network's input would be of shape {list(made.shape)} for an image; "
                f"it must be [channels, height, width]{more}"
            )
        channels, height, width = made.shape
        first = hashlib.sha256(np.ascontiguousarray(made).data).hexdigest()
        return cls(function, name, (channels, height, width), str(made.dtype), first)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """Return what `to_dict` recorded, without the function, which no store holds.

        Raises:
            ActstatsError: the record is none.
        """
        if set(record) != _FIELDS:
            odd = ", ".join(sorted(set(record) ^ _FIELDS))
            raise ActstatsError(f"the record is no preprocessing of this version: see its fields {odd}")
        shape, dtype, name = record["shape"], record["dtype"], record["function"]
        sizes = isinstance(shape, list) and len(shape) == 3 and all(type(n) is int and n > 0 for n in shape)
        if not sizes or shape[0] > _MOST_CHANNELS or max(shape[1:]) > LARGEST or dtype not in _DTYPES:
            raise ActstatsError(
                f"the store has an impossible preprocessing: {str(shape)[:40]} {str(dtype)[:20]}"
            )

        def missing(_: object) -> Any:
            raise ActstatsError(
                f"the images were prepared by a function, {str(name)[:80]!r}, which no store holds"
            )

        return cls(missing, str(name), (shape[0], shape[1], shape[2]), dtype, str(record["first"]))

    def to_dict(self) -> dict[str, Any]:
        """Return the record of this preprocessing; fit for JSON."""
        shape = list(self.shape)
        return {"function": self.description, "shape": shape, "dtype": self.dtype, "first": self.first}

    def pixels(self, item: object) -> NDArray[Any]:
        """Return an item of the source as the network reads it, [C, H, W].

        Raises:
            ActstatsError: the function fails, or makes something of another shape or dtype than of the first image.
        """
        made = _made(self.function, self.description, item)
        if made.shape != self.shape or str(made.dtype) != self.dtype:
            raise ActstatsError(
                f"the inputs differ: {list(made.shape)} {made.dtype} after {list(self.shape)} {self.dtype} for "
                "the first image; `preprocessing=` must bring all to one shape"
            )
        return made

    def normalize(self, pixels: Tensor) -> Tensor:
        """Return a batch of what `pixels` gave, [N, C, H, W], as the network reads it: as it is."""
        return pixels

    def empty(self, images: int, *, pin: bool = False) -> Tensor:
        """Return room for the pixels of so many images, [N, C, H, W] in channels_last memory."""
        dtype = _DTYPES[self.dtype]
        return torch.empty(
            (images, *self.shape), dtype=dtype, pin_memory=pin, memory_format=torch.channels_last
        )

    def example(self, images: int, device: torch.device) -> Tensor:
        """Return a blank batch of inputs, [N, C, H, W]."""
        return torch.zeros(images, *self.shape, dtype=_DTYPES[self.dtype], device=device)


def preprocessing_from(record: Mapping[str, Any]) -> Preprocessing | Transform:
    """Return what a manifest records of the preprocessing.

    Raises:
        ActstatsError: the record is none of this version.
    """
    return Transform.from_dict(record) if "function" in record else Preprocessing.from_dict(record)


def of_images(preprocessing: Preprocessing | Transform, what: str) -> Preprocessing:
    """Return a preprocessing by which images are resized and cropped.

    Raises:
        ActstatsError: it is a function, which `what` cannot do with.
    """
    if isinstance(preprocessing, Transform):
        raise ActstatsError(
            f"{what} needs to know how images are resized and cropped: give `preprocessing=` an "
            "actstats.Preprocessing"
        )
    return preprocessing


def choose_preprocessing(
    given: object, own: Preprocessing | Transform | None, item: object
) -> Preprocessing | Transform:
    """Return what makes the network's input of the items of a source, of which `item` is one.

    Args:
        given: what the caller asked for: a `Preprocessing`, a function, or None.
        own: that of the network's weights, if it is known.
        item: a PIL image, or a tensor or array, which is the input as it is unless something else is known of it.

    Raises:
        ActstatsError: nothing is known of the images, or the function fails.
    """
    if isinstance(given, Preprocessing | Transform):
        return given
    if given is not None:
        if not callable(given):
            raise ActstatsError(
                f"`preprocessing=` is a {type(given).__name__}; give a function or an actstats.Preprocessing"
            )
        known = as_preprocessing(given, item) if isinstance(item, Image.Image) else None
        return known or Transform.of(given, item)
    if not isinstance(item, Image.Image) and (own is None or not is_image(item)):
        return Transform.of(None, item)
    if own is None:
        raise ActstatsError(
            "a module of your own needs `preprocessing=` for images: an actstats.Preprocessing, or a function "
            "such as a torchvision Compose"
        )
    return own


def is_image(item: object) -> bool:
    """Return whether an item is an image of bytes: PIL's, a tensor [1 or 3, H, W], an array [H, W] or [H, W, 3]."""
    if isinstance(item, Tensor):
        return item.dtype == torch.uint8 and item.ndim == 3 and item.shape[0] in (1, 3)
    if isinstance(item, np.ndarray):
        return item.dtype == np.uint8 and (item.ndim == 2 or (item.ndim == 3 and item.shape[2] in (1, 3)))
    return isinstance(item, Image.Image)


_DTYPES: Final = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "uint8": torch.uint8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
}


def described(function: object) -> str:
    """Return what a function calls itself, in one line and without addresses in memory.

    >>> described(len), described(Transform.of)
    ('builtins.len', 'actstats.data.transform.Transform.of')
    """
    if hasattr(function, "__qualname__") and hasattr(function, "__module__"):
        return f"{function.__module__}.{function.__qualname__}"
    return " ".join(_ADDRESS.sub("", repr(function)).split())


def as_preprocessing(function: Callable[[Any], Any], image: Image.Image) -> Preprocessing | None:
    """Return the `Preprocessing` that does what `function` does, to the bit on `image`; None if there is none.

    Known are the presets of torchvision's weights, and a `Compose` of Resize, CenterCrop, ToTensor and Normalize.
    """
    if image.mode != "RGB":
        return None
    try:
        found = _known_steps(function)
        if found is None:
            return None
        made = function(image)
        same = isinstance(made, Tensor) and torch.equal(made, found(image))
    except Exception:  # of the function, which is then called, and whose error told, as it is
        return None
    return found if same else None


def _known_steps(function: Any) -> Preprocessing | None:
    steps = list(getattr(function, "transforms", ()))
    kinds = [type(step).__name__ for step in steps]
    if all(hasattr(function, name) for name in ("resize_size", "crop_size", "mean", "std", "interpolation")):
        size, crop, normal = function.resize_size, function.crop_size, function
        interpolation = function.interpolation
    elif kinds[:2] == ["Resize", "CenterCrop"] and kinds[2:] in (
        ["ToTensor", "Normalize"],
        ["MaybeToTensor", "Normalize"],
    ):
        size, crop, normal = steps[0].size, steps[1].size, steps[3]
        interpolation = steps[0].interpolation
    else:
        return None
    sizes, crops = (list(value) if isinstance(value, (tuple, list)) else [value] for value in (size, crop))
    if len(sizes) != 1 or len(set(crops)) != 1 or interpolation.value not in INTERPOLATIONS:
        return None
    mean, std = (
        tuple(round(float(value), 6) for value in torch.as_tensor(values).flatten())
        for values in (normal.mean, normal.std)
    )
    return Preprocessing(int(sizes[0]), int(crops[0]), interpolation.value, mean, std)  # type: ignore[arg-type]


def _made(function: Callable[[Any], Any] | None, name: str, item: object) -> NDArray[Any]:
    """Return what `function` makes of an item, as an array."""
    if function is None:
        made = item
    else:
        try:
            made = function(item)
        except (ActstatsError, ImageError, MemoryError):
            raise
        except Exception as error:
            raise ActstatsError(f"the preprocessing {name[:80]} fails: {reason_of(error)}") from error
    if isinstance(made, Mapping):  # of a Hugging Face processor
        made = made.get("pixel_values")
    if isinstance(made, (list, tuple)) and len(made) == 1:
        made = made[0]
    if isinstance(made, Tensor):
        made = made.detach().cpu()
        made = made.numpy() if made.dtype in _DTYPES.values() else made
    if not isinstance(made, np.ndarray) or str(made.dtype) not in _DTYPES:
        what = getattr(made, "dtype", type(made).__name__)
        if isinstance(made, Image.Image):
            what = "a PIL image"
        raise ActstatsError(f"the preprocessing {name[:80]} gives {what}; it must give a tensor [C, H, W]")
    return made[0] if made.ndim == 4 and len(made) == 1 else made
