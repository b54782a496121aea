"""Preprocessing by a function of the caller: a `Compose`, a processor from a library, or none at all.

A function that is equivalent to a `Preprocessing` is replaced by it (`as_preprocessing`). For any other function, the
store records a description, and a checksum of its output for the first image, which reveals a different function.

>>> import torch
>>> halved = Transform.of(lambda image: image / 2, torch.ones(13, 8, 8))
>>> halved.shape, float(halved.pixels(torch.ones(13, 8, 8)).max())
((13, 8, 8), 0.5)
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from actstats.data.image import ImageError
from actstats.data.preprocessing import INTERPOLATIONS, LARGEST, Preprocessing
from actstats.errors import ActstatsError, reason_of
from actstats.support import random_images

NEEDED: Final = (
    "a network of your own needs `preprocessing=` for images: an actstats.Preprocessing, a function such as a "
    "torchvision Compose, or the text 'imagenet' or 'resize=36 crop=32 mean=0.5 std=0.25'"
)
"""Error for a network whose preprocessing is not known."""
_ADDRESS: Final = re.compile(r" at 0x[0-9a-fA-F]+")
_FIELDS: Final = {"function", "shape", "dtype", "first"}
_MOST_CHANNELS: Final = 4096


@dataclass(frozen=True)
class Transform:
    """Preprocessing by a function that returns inputs of the same shape and dtype for all images.

    Attributes:
        function: maps an item of the source (a PIL image or a tensor) to an input [C, H, W]; None if the item is the
            input. It may return a mapping with `pixel_values`, or a batch of one. In a `Transform` read from a store
            the function is missing, and calling it raises an error.
        description: one-line description of the function.
        shape: shape of an input, [C, H, W].
        dtype: NumPy name of the dtype of an input.
        first: SHA-256 of the input for the first readable image.
        span: lowest and highest value of that input, at least those of 0 to 1; not stored.
    """

    function: Callable[[Any], Any] | None
    description: str
    shape: tuple[int, int, int]
    dtype: str
    first: str
    span: tuple[float, float] = field(default=(0.0, 1.0), compare=False)

    @classmethod
    def of(cls, function: Callable[[Any], Any] | None, item: object) -> Self:
        """Create the preprocessing for `function`, which is applied to `item` to find the shape and dtype.

        Raises:
            ActstatsError: the function fails, or its output is not of shape [C, H, W].
        """
        name = "none" if function is None else described(function)
        made = _made(function, name, item)
        if made.ndim != 3:
            more = ": videos and volumes are not supported; sweep their frames" if made.ndim > 3 else ""
            raise ActstatsError(
                f"the network's input would have shape {list(made.shape)}; "
                f"it must be [channels, height, width]{more}"
            )
        channels, height, width = made.shape
        first = hashlib.sha256(np.ascontiguousarray(made).data).hexdigest()
        finite = made[np.isfinite(made)].astype(np.float64)
        span = float(finite.min(initial=0)), float(finite.max(initial=1))
        return cls(function, name, (channels, height, width), str(made.dtype), first, span)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """Return the preprocessing that `to_dict` recorded, without the function, which is not stored.

        Raises:
            ActstatsError: the record is invalid.
        """
        if set(record) != _FIELDS:
            odd = ", ".join(sorted(set(record) ^ _FIELDS))
            raise ActstatsError(f"the record is not a preprocessing of this version: check its fields {odd}")
        shape, dtype, name = record["shape"], record["dtype"], record["function"]
        sizes = isinstance(shape, list) and len(shape) == 3 and all(type(n) is int and n > 0 for n in shape)
        if not sizes or shape[0] > _MOST_CHANNELS or max(shape[1:]) > LARGEST or dtype not in _DTYPES:
            raise ActstatsError(
                f"the store has an invalid preprocessing: {str(shape)[:40]} {str(dtype)[:20]}"
            )

        def missing(_: object) -> Any:
            raise ActstatsError(
                f"the images were preprocessed by a function, {str(name)[:80]!r}, which is not in the store"
            )

        return cls(missing, str(name), (shape[0], shape[1], shape[2]), dtype, str(record["first"]))

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable record of this preprocessing."""
        shape = list(self.shape)
        return {"function": self.description, "shape": shape, "dtype": self.dtype, "first": self.first}

    def pixels(self, item: object) -> NDArray[Any]:
        """Return the network's input for an item of the source, [C, H, W].

        Raises:
            ActstatsError: the function fails, or its output differs in shape or dtype from that of the first image.
        """
        made = _made(self.function, self.description, item)
        if made.shape != self.shape or str(made.dtype) != self.dtype:
            raise ActstatsError(
                f"the inputs differ: {list(made.shape)} {made.dtype} after {list(self.shape)} {self.dtype} for "
                "the first image; `preprocessing=` must return the same shape and dtype for all images"
            )
        return made

    def normalize(self, pixels: Tensor) -> Tensor:
        """Return a batch of outputs of `pixels`, [N, C, H, W], unchanged: it is the network's input."""
        return pixels

    def empty(self, images: int, *, pin: bool = False) -> Tensor:
        """Return an empty tensor for the pixels of N images, [N, C, H, W] in channels_last memory."""
        dtype = _DTYPES[self.dtype]
        return torch.empty(
            (images, *self.shape), dtype=dtype, pin_memory=pin, memory_format=torch.channels_last
        )

    def example(self, images: int, device: torch.device) -> Tensor:
        """Return a batch of seeded random inputs of the range of the first image, [N, C, H, W]."""
        low, high = self.span
        return (low + (high - low) * random_images(images, self.shape)).to(device, _DTYPES[self.dtype])


def preprocessing_from(record: Mapping[str, Any]) -> Preprocessing | Transform:
    """Return the preprocessing that a manifest records.

    Raises:
        ActstatsError: the record is not one of this version.
    """
    return Transform.from_dict(record) if "function" in record else Preprocessing.from_dict(record)


def choose_preprocessing(
    given: object, own: Preprocessing | Transform | None, item: object
) -> Preprocessing | Transform:
    """Return the preprocessing that turns items of a source, such as `item`, into the network's input.

    Args:
        given: the caller's choice: a `Preprocessing`, a function, or None.
        own: the preprocessing of the network's weights, if known.
        item: a PIL image, or a tensor or array, which is the input itself unless a preprocessing applies to it.

    Raises:
        ActstatsError: there is no preprocessing for images, or the function fails.
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
        raise ActstatsError(NEEDED)
    return own


def is_image(item: object) -> bool:
    """Return whether an item is an 8-bit image: PIL, a tensor [1 or 3, H, W], an array [H, W] or [H, W, 1 or 3]."""
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
    """Return a one-line description of a function, without memory addresses.

    >>> described(len), described(Transform.of)
    ('builtins.len', 'actstats.data.transform.Transform.of')
    """
    if hasattr(function, "__qualname__") and hasattr(function, "__module__"):
        return f"{function.__module__}.{function.__qualname__}"
    return " ".join(_ADDRESS.sub("", repr(function)).split())


def as_preprocessing(function: Callable[[Any], Any], image: Image.Image) -> Preprocessing | None:
    """Return the `Preprocessing` whose output is identical to that of `function` on `image`, or None.

    Recognised functions are the presets of torchvision's weights, and a `Compose` of Resize, CenterCrop, ToTensor and
    Normalize.
    """
    if image.mode != "RGB":
        return None
    try:
        found = _known_steps(function)
        if found is None:
            return None
        made = function(image)
        same = isinstance(made, Tensor) and torch.equal(made, found(image))
    except Exception:  # of the function, which is used unchanged and reports its own error
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
    """Return the output of `function` for an item, as an array."""
    if function is None:
        made = item
    else:
        try:
            made = function(item)
        except (ActstatsError, ImageError, MemoryError):
            raise
        except Exception as error:
            raise ActstatsError(f"the preprocessing {name[:80]} fails: {reason_of(error)}") from error
    if isinstance(made, Mapping):  # from a Hugging Face processor
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
        raise ActstatsError(
            f"the preprocessing {name[:80]} returned {what}; it must return a tensor [C, H, W]"
        )
    return made[0] if made.ndim == 4 and len(made) == 1 else made
