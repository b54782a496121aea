"""Images as Python objects: a torch `Dataset` or `DataLoader`, a Hugging Face dataset, a tensor or a list of images.

>>> import torch
>>> source = DatasetSource([torch.ones(13, 8, 8), torch.zeros(13, 8, 8)], fingerprint="two")
>>> len(source), source.item(0).shape, source.paths
(2, torch.Size([13, 8, 8]), ['0', '1'])
"""

from __future__ import annotations

import copy
import hashlib
import os
import secrets
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    IterableDataset,
    SequentialSampler,
    Subset,
    TensorDataset,
)
from torch.utils.data._utils.collate import default_collate, default_convert

from actstats.data.image import MISSING, UNREADABLE, ImageError, rgb
from actstats.data.source import NO_LABEL, UNNAMED, Source
from actstats.data.source import fingerprint as of_files
from actstats.data.transform import described, is_image
from actstats.errors import ActstatsError, reason_of

_COLUMNS: Final = ("pixel_values", "image", "img", "images")
"""Keys of the image in an item that is a mapping."""


class DatasetSource:
    """The images of a dataset, in order. An item is an image, or a tuple or mapping that contains one.

    Attributes:
        loader: the DataLoader that was given, if its worker processes should read the images; else None.
        batch_size: batch size of the DataLoader, or None.
    """

    kind = "dataset"

    def __init__(self, dataset: Any, limit: int | None = None, fingerprint: str | None = None) -> None:
        """Use the first `limit` items; `fingerprint` identifies a dataset that has none of its own.

        Raises:
            ActstatsError: the dataset cannot be read by index, or its order is not reproducible.
        """
        self.loader: DataLoader[Any] | None = None
        self.batch_size: int | None = None
        self._collate: Any = None
        if isinstance(dataset, DataLoader):
            _refuse_other_orders(dataset)
            self.batch_size = dataset.batch_size
            self.loader = dataset if dataset.num_workers else None
            usual = dataset.collate_fn in (default_collate, default_convert)
            self._collate = None if usual else dataset.collate_fn
            dataset = dataset.dataset
        self.spec = type(dataset).__name__
        stream = isinstance(dataset, IterableDataset)
        if stream or not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise ActstatsError(
                f"a {self.spec} cannot be read by index, which is needed to resume a sweep; give a dataset with "
                "__getitem__ and __len__"
            )
        if len(dataset) == 0:
            raise ActstatsError(f"the {self.spec} is empty")
        self._dataset = dataset
        self._lock: AbstractContextManager[Any] = threading.Lock()
        facts = _facts(dataset)
        count = min(len(dataset), limit or len(dataset))
        numbers = [f"{number:0{len(str(len(dataset) - 1))}d}" for number in range(count)]
        paths = (facts.paths or numbers)[:count]
        self.paths = paths if len(set(paths)) == count else numbers
        self.labels, self.classes = _checked(facts, len(dataset), count)
        mark = fingerprint or facts.mark
        if mark is not None and count < len(dataset) and fingerprint is None:
            mark = _digest([mark, f"first {count}"])
        self.fingerprint = mark or f"{UNNAMED}{secrets.token_hex(4)}"

    def __len__(self) -> int:
        return len(self.paths)

    def for_processes(self) -> DatasetSource:
        """Return this source for worker processes, each of which reads in a single thread."""
        found = copy.copy(self)
        found._lock, found.loader = nullcontext(), None
        return found

    def item(self, index: int) -> Any:
        """Return the image of item `index` as the dataset returns it: a tensor, a PIL image or an array.

        Only one thread reads at a time, since a dataset may not be thread-safe.

        Raises:
            ImageError: this image cannot be read.
            ActstatsError: the dataset fails in another way, or the item contains no image.
        """
        with self._lock:
            return self._read(index)

    def _read(self, index: int) -> Any:
        try:
            found = self._dataset[index]
            if self._collate is not None:
                found = _picture(self._collate([found]), self.spec)[0]
            picture = _picture(found, self.spec)
            if isinstance(picture, Image.Image):
                picture.load()
        except (ActstatsError, ImageError, MemoryError):
            raise
        except FileNotFoundError as error:
            raise ImageError(MISSING, f"the file does not exist: {error.filename}") from None
        except OSError as error:  # PIL also raises it for damaged images
            raise ImageError(UNREADABLE, " ".join(str(error).split())[:160] or "cannot be read") from None
        except Exception as error:
            raise ActstatsError(f"the {self.spec} fails at item {index}: {reason_of(error)}") from error
        return picture

    def image(self, index: int) -> Image.Image:
        """Return image `index` in mode RGB, from a PIL image or from 8-bit values with one or three channels.

        Raises:
            ImageError: this image cannot be read.
            ActstatsError: it has another number of channels, or is a tensor of floats, whose range is not defined.
        """
        item = self.item(index)
        if isinstance(item, Image.Image):
            return rgb(item)
        values = item.numpy() if isinstance(item, Tensor) else item
        if is_image(item):
            values = values if isinstance(item, np.ndarray) else values.transpose(1, 2, 0)
            return Image.fromarray(np.ascontiguousarray(values.squeeze())).convert("RGB")
        raise ActstatsError(
            f"an item of the {self.spec} is {values.dtype} of shape {list(values.shape)}, not an 8-bit image with "
            "one or three channels; give a function as `preprocessing=` that converts it to the network's input"
        )


def item_of(source: Source, index: int) -> Any:
    """Return image `index` as the source has it: a PIL image, or the image in an item of a dataset."""
    return source.item(index) if isinstance(source, DatasetSource) else source.image(index)


def first_readable(source: Source) -> Any:
    """Return the first image that can be read, as the source has it.

    Raises:
        ActstatsError: no image can be read.
    """
    first: ImageError | None = None
    for index in range(len(source)):
        try:
            return item_of(source, index)
        except ImageError as error:
            first = first or error
    raise ActstatsError(
        f"none of the {len(source)} images of {source.spec} can be read; {source.paths[0]}: {first}"
    )


def _picture(found: Any, spec: str) -> Any:
    """Return the image contained in an item of a dataset."""
    if isinstance(found, Mapping):
        named = [found[name] for name in _COLUMNS if name in found]
        found = next((v for v in [*named, *found.values()] if isinstance(v, _PICTURES)), None)
    elif isinstance(found, (tuple, list)) and found:
        found = found[0]
    if isinstance(found, _PICTURES):
        return found
    raise ActstatsError(
        f"an item of the {spec} has no image: it is a {type(found).__name__}; an item must be a tensor or PIL image, "
        "a tuple that begins with one, or a mapping with `image` or `pixel_values`"
    )


_PICTURES: Final = (Tensor, Image.Image, np.ndarray)


def _refuse_other_orders(loader: DataLoader[Any]) -> None:
    sampler = loader.sampler
    if type(loader.batch_sampler) not in (BatchSampler, type(None)):
        sampler = loader.batch_sampler  # type: ignore[assignment]
    if type(sampler) is not SequentialSampler:
        raise ActstatsError(
            f"the DataLoader uses a {type(sampler).__name__}, but a sweep needs the images in the order of the "
            "dataset: create it without shuffle and sampler (to select images, use torch.utils.data.Subset)"
        )


@dataclass(frozen=True)
class _Facts:
    """What is known about the items of a dataset without reading them."""

    paths: list[str] | None = None
    labels: NDArray[np.int64] | None = None
    classes: Sequence[str] = ()
    mark: str | None = None


def _facts(dataset: Any) -> _Facts:
    if isinstance(dataset, Subset):
        return _of_subset(_facts(dataset.dataset), [int(index) for index in dataset.indices])
    if isinstance(dataset, ConcatDataset):
        return _of_several([_facts(part) for part in dataset.datasets])
    if isinstance(dataset, Tensor):
        return _Facts(mark=_digest([dataset]))
    if isinstance(dataset, TensorDataset):
        labels = _numbers(dataset.tensors[1]) if len(dataset.tensors) > 1 else None
        return _Facts(labels=labels, mark=_digest(dataset.tensors))
    if hasattr(dataset, "features") and hasattr(dataset, "_fingerprint"):
        return _of_hugging_face(dataset)
    given = getattr(dataset, "targets", None)
    labels = _numbers(getattr(dataset, "labels", None) if given is None else given)
    classes = getattr(dataset, "classes", ())
    paths, mark = None, getattr(dataset, "fingerprint", None)
    steps = described(getattr(dataset, "transforms", None))
    samples, data = getattr(dataset, "samples", None), getattr(dataset, "data", None)
    if mark is None and isinstance(samples, list) and hasattr(dataset, "root"):  # torchvision's ImageFolder
        files = [os.fspath(sample[0]) for sample in samples]
        paths = [Path(os.path.relpath(file, dataset.root)).as_posix() for file in files]
        mark = _digest([of_files(paths, map(_size, files)), steps])
    elif (
        mark is None and hasattr(dataset, "root") and isinstance(data, (Tensor, np.ndarray))
    ):  # CIFAR10, MNIST
        mark = _digest([data, type(dataset).__name__, steps])
    return _Facts(paths, labels, classes, mark if isinstance(mark, str) else None)


def _of_subset(whole: _Facts, indices: list[int]) -> _Facts:
    return _Facts(
        None if whole.paths is None else [whole.paths[index] for index in indices],
        None if whole.labels is None else whole.labels[indices],
        whole.classes,
        None if whole.mark is None else _digest([whole.mark, np.array(indices, dtype=np.int64)]),
    )


def _of_several(parts: Sequence[_Facts]) -> _Facts:
    paths = [f"{n}/{path}" for n, part in enumerate(parts) for path in part.paths or ()]
    labels = [part.labels for part in parts if part.labels is not None]
    marks = [part.mark for part in parts if part.mark is not None]
    same = len({tuple(part.classes) for part in parts}) == 1
    return _Facts(
        paths if all(part.paths is not None for part in parts) else None,
        np.concatenate(labels) if len(labels) == len(parts) and same else None,
        parts[0].classes if same else (),
        _digest(marks) if len(marks) == len(parts) else None,
    )


def _of_hugging_face(dataset: Any) -> _Facts:
    labels, classes = None, ()
    for name, feature in dataset.features.items():
        if type(feature).__name__ == "ClassLabel":
            # Read the column of the underlying table, since a transform may change that of the dataset.
            labels, classes = _numbers(dataset.with_format("numpy", columns=[name])[name][:]), feature.names
            break
    return _Facts(None, labels, classes, f"datasets:{dataset._fingerprint}")


def _checked(facts: _Facts, total: int, count: int) -> tuple[NDArray[np.int64], list[str]]:
    """Return the labels of the first `count` of `total` items and the class names, if they are valid."""
    labels = facts.labels
    if labels is None or len(labels) != total or labels.min() < NO_LABEL or labels.max() >= 2**31:
        return np.full(count, NO_LABEL, dtype=np.int64), []
    classes = [str(name) for name in facts.classes] if isinstance(facts.classes, Sequence) else []
    return labels[:count], classes if labels.max() < len(classes) else []


def _numbers(values: Any) -> NDArray[np.int64] | None:
    """Return integers, one per item, or None for anything else."""
    if values is None:
        return None
    try:
        found = np.asarray(values)
    except (ValueError, TypeError):
        return None
    return found.astype(np.int64) if found.ndim == 1 and found.dtype.kind in "iu" and len(found) else None


def _digest(parts: Iterable[str | Tensor | NDArray[Any]]) -> str:
    """Return the SHA-256 of strings and of the bytes, shapes and dtypes of arrays."""
    digest = hashlib.sha256()
    for part in _bytes(parts):
        digest.update(part)
    return digest.hexdigest()


def _bytes(parts: Iterable[str | Tensor | NDArray[Any]]) -> Iterator[Any]:
    for part in parts:
        if isinstance(part, str):
            yield f"{part}\0".encode()
            continue
        yield f"{part.dtype}{list(part.shape)}\0".encode()
        if isinstance(part, Tensor):
            part = part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        yield np.ascontiguousarray(part)


def _size(file: str) -> int:
    try:
        return os.stat(file).st_size  # noqa: PTH116
    except OSError:
        return -1
