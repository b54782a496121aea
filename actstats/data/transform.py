"""Preprocessing by a function of the caller: a `Compose`, a processor from a library, or none at all.

A function that is equivalent to a `Preprocessing` is replaced by it (`as_preprocessing`). For any other function, the
store records a description, and a checksum of its output for the first image, which reveals a different function.

>>> import torch
>>> halved = Transform.of(lambda image: image / 2, torch.ones(13, 8, 8))
>>> halved.shape, float(halved.pixels(torch.ones(13, 8, 8)).max())
((13, 8, 8), 0.5)
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from actstats.data.image import ImageError
from actstats.data.preprocessing import LARGEST, Preprocessing
from actstats.errors import ActstatsError, nearest, reason_of
from actstats.identity import FunctionRecord, PreprocessingRecord
from actstats.records import load, shortened
from actstats.support import named_object, random_images

FORMS: Final = (
    "imagenet, sizes and moments ('resize=36 crop=32 mean=0.5 std=0.25'), a JSON file, or package.module:object, "
    "which is a function such as a torchvision Compose or an actstats.Preprocessing"
)
"""What `preprocessing=` can be as text."""
NEEDED: Final = f"a network of your own needs `preprocessing=` for images: {FORMS}"
"""Error for a network whose preprocessing is not known."""
_ADDRESS: Final = re.compile(r" at 0x[0-9a-fA-F]+")
_REFERENCE: Final = re.compile(r"[\w.]{1,200}:[\w.]{1,200}")
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
    def of(cls, function: Callable[[Any], Any] | None, item: object, name: str | None = None) -> Self:
        """Create the preprocessing for `function`, which is applied to `item` to find the shape and dtype.

        `name` is `package.module:object` if the function was given by this name, by which `opened` finds it again.

        Raises:
            ActstatsError: the function fails, or its output is not of shape [C, H, W].
        """
        name = name or ("none" if function is None else described(function))
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
    def of_record(cls, record: FunctionRecord) -> Self:
        """Return the preprocessing that `to_dict` recorded, without the function, which is not stored.

        Raises:
            ActstatsError: no input has this shape or dtype.
        """
        channels, *sides = record.shape
        if channels > _MOST_CHANNELS or max(sides) > LARGEST or record.dtype not in _DTYPES:
            raise ActstatsError(
                f"the store has an invalid preprocessing: {list(record.shape)} {shortened(record.dtype)}"
            )

        def missing(_: object) -> Any:
            raise ActstatsError(
                f"the images were preprocessed by a function, {record.function[:80]!r}, which is not in the store"
            )

        return cls(missing, record.function, record.shape, record.dtype, record.first)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable record of this preprocessing."""
        shape = list(self.shape)
        return {"function": self.description, "shape": shape, "dtype": self.dtype, "first": self.first}

    @property
    def reference(self) -> str | None:
        """The name `package.module:object` of the function; None if it was not given by name."""
        return self.description if _REFERENCE.fullmatch(self.description) else None

    def opened(self) -> Self:
        """Return the preprocessing with its function, imported by the name that a store records, if it was given so.

        This runs the module's code. Only for stores of your own.
        """
        if self.reference is None:
            return self
        return dataclasses.replace(self, function=_named_function(self.reference))

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


def preprocessing_from(record: PreprocessingRecord | FunctionRecord) -> Preprocessing | Transform:
    """Return the preprocessing that a manifest records.

    Raises:
        ActstatsError: its values are out of bounds.
    """
    return (
        Transform.of_record(record) if isinstance(record, FunctionRecord) else Preprocessing(**vars(record))
    )


def choose_preprocessing(
    given: object, own: Preprocessing | Transform | None, item: object
) -> Preprocessing | Transform:
    """Return the preprocessing that turns items of a source, such as `item`, into the network's input.

    Args:
        given: the caller's choice: a `Preprocessing`, a function, the text of one (`parse_preprocessing`), or None.
        own: the preprocessing of the network's weights, if known.
        item: a PIL image, or a tensor or array, which is the input itself unless a preprocessing applies to it.

    Raises:
        ActstatsError: there is no preprocessing for images, or the function fails.
    """
    name = None
    if isinstance(given, str):
        text, given = given, parse_preprocessing(given)
        name = None if isinstance(given, Preprocessing) else text
    if type(given) in (Preprocessing, Transform):
        return cast(Preprocessing | Transform, given)
    if given is not None:
        if not callable(given):
            raise ActstatsError(
                f"`preprocessing=` is a {type(given).__name__}; give a function or an actstats.Preprocessing"
            )
        is_rgb = isinstance(item, Image.Image) and item.mode == "RGB"
        return (as_preprocessing(given) if is_rgb else None) or Transform.of(given, item, name)
    if not isinstance(item, Image.Image) and (own is None or not is_image(item)):
        return Transform.of(None, item)
    if own is None:
        raise ActstatsError(NEEDED)
    # A subclass may do anything, which is not in the record of a `Preprocessing`.
    return own if type(own) in (Preprocessing, Transform) else Transform.of(cast(Any, own), item)


def parse_preprocessing(text: str) -> Preprocessing | Callable[[Any], Any]:
    """Return the preprocessing that a text describes.

    It is `imagenet`; sizes and moments, such as `resize=36 crop=32 interpolation=bicubic mean=0.5 std=0.2,0.3,0.3`,
    where images keep their size without `resize`; a JSON file with the fields of `Preprocessing`; or
    `package.module:object`, a function or a `Preprocessing`, which is imported.

    >>> parse_preprocessing("crop=32 mean=0.5 std=0.25").std
    (0.25, 0.25, 0.25)

    Raises:
        ActstatsError: it is none of these, or has invalid values.
    """
    path = Path(text).expanduser()
    if text == "imagenet":
        return Preprocessing.imagenet()
    if path.suffix == ".json" or path.is_file():
        try:
            record = load(path.read_bytes())
        except OSError as error:
            raise ActstatsError(f"cannot read the preprocessing {path}: {error.strerror or error}") from None
        except ValueError:
            raise ActstatsError(f"the preprocessing {path} is not JSON") from None
        if not isinstance(record, Mapping):
            raise ActstatsError(
                f"the preprocessing {path} is not a JSON object with the fields resize, crop, ..."
            )
        return Preprocessing.from_dict(record)
    if "=" in text:
        return _of_sizes(text)
    if ":" in text:
        found: Preprocessing | Callable[[Any], Any] = _named_function(text)
        return found
    raise ActstatsError(f"`preprocessing=` is {text!r}; give {FORMS}")


def _of_sizes(text: str) -> Preprocessing:
    known = ("resize", "crop", "interpolation", "mean", "std")
    values: dict[str, str] = {}
    for piece in text.replace(";", " ").split():
        name, _, value = piece.partition("=")
        if name not in known or name in values:
            again = " twice" if name in values else nearest(name, known)
            raise ActstatsError(f"`preprocessing=` has {piece!r}{again}; it takes {', '.join(known)}")
        values[name] = value
    if missing := [name for name in ("crop", "mean", "std") if name not in values]:
        raise ActstatsError(f"`preprocessing=` is {text!r}; it lacks {', '.join(missing)}")
    try:
        mean, std = (tuple(map(float, values[name].split(","))) for name in ("mean", "std"))
        resize = values.get("resize", "none")
        return Preprocessing(
            None if resize == "none" else int(resize),
            int(values["crop"]),
            values.get("interpolation", "bilinear"),
            3 * mean if len(mean) == 1 else mean,  # type: ignore[arg-type]
            3 * std if len(std) == 1 else std,  # type: ignore[arg-type]
        )
    except ValueError as error:
        raise ActstatsError(f"`preprocessing=` is {text!r}: {error}") from None


def _named_function(reference: str) -> Any:
    found = named_object(reference, "preprocessing", "object")
    if not isinstance(found, Preprocessing) and not callable(found):
        raise ActstatsError(
            f"`preprocessing={reference}` is a {type(found).__name__}; give a function or an actstats.Preprocessing"
        )
    return found


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


def as_preprocessing(function: Any) -> Preprocessing | None:
    """Return the `Preprocessing` that does the same to any RGB image as `function`, or None.

    Recognised are the presets of torchvision's weights, and a `Compose` of Resize, CenterCrop, ToTensor and Normalize
    as torchvision and timm make them: by the exact type of each step, which must be equal in all its attributes to
    one made anew from sizes, interpolation, mean and standard deviation.
    """
    if _is_one(function, _PRESETS, ("crop_size", "resize_size", "mean", "std", "interpolation")):
        return _preprocessing(function.resize_size, function.crop_size, function.interpolation, function)
    if not _is_one(function, _COMPOSES, ("transforms",)):
        return None
    steps = list(function.transforms)
    if len(steps) != len(_STEPS) or not all(map(_is_one, steps, *zip(*_STEPS, strict=True))):
        return None
    resize, crop, _, normalize = steps
    return _preprocessing(resize.size, crop.size, resize.interpolation, normalize)


_V1, _V2 = "torchvision.transforms.transforms", "torchvision.transforms.v2"
_PRESETS: Final = ("torchvision.transforms._presets:ImageClassification",)
_COMPOSES: Final = (f"{_V1}:Compose", f"{_V2}:Compose")
# Not v2's ToDtype, which multiplies by 1/255 instead of dividing: the last bits differ.
_STEPS: Final = (
    ((f"{_V1}:Resize", f"{_V2}:Resize"), ("size", "interpolation")),
    ((f"{_V1}:CenterCrop", f"{_V2}:CenterCrop"), ("size",)),
    ((f"{_V1}:ToTensor", f"{_V2}:ToTensor", "timm.data.transforms:MaybeToTensor"), ()),
    ((f"{_V1}:Normalize", f"{_V2}:Normalize"), ("mean", "std", "inplace")),
)
"""Classes of each step, and the arguments that make it."""


def _is_one(step: Any, classes: Sequence[str], arguments: Sequence[str]) -> bool:
    """Return whether `step` is exactly of one of `classes`, and in all attributes as made from `arguments` alone."""
    for name in classes:
        module, _, attribute = name.partition(":")
        kind = getattr(sys.modules.get(module), attribute, None)
        if kind is not type(step):
            continue
        try:
            given = {name: getattr(step, name) for name in arguments}
            if classes is _PRESETS:  # it keeps its sizes in lists of one
                given |= {name: given[name][0] for name in ("crop_size", "resize_size")}
            with warnings.catch_warnings(action="ignore"):  # v2.ToTensor is deprecated
                made = vars(kind(**given))
        except Exception:  # what torchvision's constructors raise: the step was changed after it was made
            return False
        own = vars(step)
        return own.keys() == made.keys() and all(_same(own[name], made[name]) for name in own)
    return False


def _same(first: object, second: object) -> bool:
    return first is second or (type(first) is type(second) and bool(first == second))


def _preprocessing(size: Any, crop: Any, interpolation: Any, normal: Any) -> Preprocessing | None:
    sizes, crops = (list(value) if isinstance(value, Sequence) else [value] for value in (size, crop))
    if len(sizes) != 1 or len(set(crops)) != 1:
        return None
    try:
        mean, std = (tuple(map(_exact, values)) for values in (normal.mean, normal.std))
        kind = getattr(interpolation, "value", interpolation)
        return Preprocessing(sizes[0], crops[0], kind, mean, std)  # type: ignore[arg-type]
    except (
        ActstatsError,
        TypeError,
        ValueError,
    ):  # another filter, or moments that are not three numbers each
        return None


def _exact(value: Any) -> float:
    """Return a number of a mean as a Python float: of an element of a tensor, the shortest that is equal in f32."""
    if isinstance(value, Tensor) and value.dtype == torch.float32:
        return float(str(value.numpy()))
    return float(value)


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
