"""Images as Python objects: a torch `Dataset` or `DataLoader`, a Hugging Face dataset, a tensor or a list of images.

>>> import torch
>>> source = DatasetSource([torch.ones(13, 8, 8), torch.zeros(13, 8, 8)], fingerprint="two")
>>> len(source), source.item(0).shape, source.paths
(2, torch.Size([13, 8, 8]), ['0', '1'])
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import os
import secrets
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
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

from actstats.data.image import UNREADABLE, ImageError, rgb
from actstats.data.patience import Patience, image_error
from actstats.data.preprocessing import Preprocessing
from actstats.data.source import NO_LABEL, UNNAMED, Source, unnamed, within
from actstats.data.source import fingerprint as of_files
from actstats.data.transform import Transform, is_image
from actstats.errors import ActstatsError, reason_of

_COLUMNS: Final = ("pixel_values", "image", "img", "images")
"""Keys of the image in an item that is a mapping."""


class DatasetSource:
    """The images of a dataset, in order. An item is an image, or a tuple or mapping that contains one.

    Labels, paths and the fingerprint come from what the dataset tells without being read, if items are made by code
    that is known. A few items are read to check both: the labels against those of the items, and whether an item is
    the same each time, in which case these images are part of the fingerprint.

    Attributes:
        loader: the DataLoader that was given, if its worker processes should read the images; else None.
        batch_size: batch size of the DataLoader, or None.
        notes: lines about labels and images for the user.
        sample: how a random sample was drawn, as `N:SEED`.
    """

    kind = "dataset"
    sample: str | None = None

    def __init__(self, dataset: Any, limit: int | None = None, fingerprint: str | None = None) -> None:
        """Use the first `limit` items; `fingerprint` identifies a dataset that has none of its own.

        Raises:
            ActstatsError: the dataset cannot be read by index, or its order is not reproducible.
        """
        self.loader: DataLoader[Any] | None = None
        self.batch_size: int | None = None
        self._batched = False
        self._collate: Any = None
        given = dataset
        if isinstance(given, DataLoader):
            dataset = given.dataset
        self.spec = type(dataset).__name__
        stream = isinstance(dataset, IterableDataset)
        if stream or not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise ActstatsError(
                f"a {self.spec} cannot be read by index, which is needed to resume a sweep; give a dataset with "
                "__getitem__ and __len__"
            )
        if isinstance(dataset, Mapping):
            parts = ", ".join(map(str, dataset))
            raise ActstatsError(f"a {self.spec} has several parts ({parts}): pass one of them")
        total = len(dataset)
        if isinstance(given, DataLoader):
            total = _in_order(given)
            self._use_loader(given)
        if total == 0:
            raise ActstatsError(f"the {self.spec} is empty")
        self._dataset = dataset
        self._lock: AbstractContextManager[Any] = threading.Lock()
        facts = _facts(dataset)
        count = min(total, limit or total)
        self._indices: Sequence[int] = range(count)
        numbers = [f"{number:0{len(str(len(dataset) - 1))}d}" for number in range(count)]
        paths = (facts.paths or numbers)[:count]
        self.paths = paths if len(set(paths)) == count else numbers
        labels, self.classes = _checked(facts, len(dataset))
        self.labels = labels[:count]
        self.notes = [*facts.notes, *self._drop_contradicted(_CLASSES if facts.known else _UNKNOWN_CLASSES)]
        self._refuse_mixing()
        if fingerprint is None and facts.mark is not None:
            fingerprint = self._mark(facts, whole=count == len(dataset))
        self.fingerprint = fingerprint or f"{UNNAMED}{secrets.token_hex(4)}"

    def _use_loader(self, loader: DataLoader[Any]) -> None:
        """Read as `loader` does: in its processes, in its batches, and with its function that makes batches."""
        batches = loader.batch_sampler
        self._batched = batches is not None
        self.batch_size = batches.batch_size if isinstance(batches, BatchSampler) else None
        self.loader = loader if loader.num_workers else None
        usual = loader.collate_fn in (default_collate, default_convert)
        self._collate = None if usual else loader.collate_fn

    def _drop_contradicted(self, most: int) -> list[str]:
        """Drop the labels if items have others, and return a line that says so; `most` classes are compared."""
        known, first = np.unique(self.labels, return_index=True)
        if not (known != NO_LABEL).any():
            return []
        spread = _spread(len(self), _COMPARED)
        chosen = sorted({*spread, *first[_spread(len(first), most)].tolist()})
        items = {}
        for index in chosen:
            with suppress(Exception):  # reported when the image is swept
                items[index] = _labels_in(self._item(index), self.classes)
        places = {place for labels in items.values() for place in labels}
        wrong = {
            place: next(
                (i for i, labels in items.items() if labels.get(place, NO_LABEL) != self.labels[i]), None
            )
            for place in places
        }
        if not places or None in wrong.values():
            return []
        place = min(wrong, key=str)
        index = wrong[place]
        assert index is not None
        said = (
            f"the images are stored without classes: item {index} of the {self.spec} has the label "
            f"{items[index].get(place, NO_LABEL)}, while the dataset lists {self.labels[index]} for it"
        )
        self.labels, self.classes = np.full(len(self), NO_LABEL, dtype=np.int64), []
        return [said]

    def _refuse_mixing(self) -> None:
        """Raise `ActstatsError` if the DataLoader's `collate_fn` makes an image depend on the others of its batch."""
        if self._collate is None or not self._batched or self.batch_size == 1:
            return
        items: list[Any] = []
        for index in range(min(len(self), 4 * _COMPARED)):
            with suppress(Exception):  # reported when the image is swept
                _picture(self._item(index), self.spec)
                items.append(self._item(index))
            if len(items) == 2:
                break
        else:
            return
        try:
            single = [_picture(self._collate([item]), self.spec)[0] for item in items]
            both = _picture(self._collate(items), self.spec)
            same = len(both) == 2 and all(map(_equal, single, both))
        except Exception as error:
            raise ActstatsError(
                f"the collate_fn of the DataLoader fails for the first images: {reason_of(error)}"
            ) from error
        if not same:
            raise ActstatsError(
                "the collate_fn of the DataLoader returns other images for a batch than for each image alone; use "
                "one that treats each image by itself, and the same each time"
            )

    def _mark(self, facts: _Facts, *, whole: bool) -> str | None:
        """Return the fingerprint: of the dataset, its labels and a few images; None if these change by themselves."""
        assert facts.mark is not None
        part = [] if whole else [f"first {len(self)}"]
        if facts.stated and self._collate is None:
            return _digest([facts.mark, *part]) if part else facts.mark
        chosen = _spread(len(self), _COMPARED)
        images, again = ([self._content(index) for index in chosen] for _ in range(2))
        for index, one, other in zip(chosen, images, again, strict=True):
            if one != other:
                self.notes.append(
                    f"item {index} of the {self.spec} is another image each time that it is read, so this sweep "
                    "cannot be repeated; remove random transforms"
                )
                return None
        return _digest([facts.mark, *part, self.labels, *images])

    def _content(self, index: int) -> str:
        """Return a checksum of image `index`, or what stands for it if it cannot be read."""
        try:
            picture = self._read(index)
        except MemoryError:
            raise
        except Exception:  # reported when the image is swept
            return "unreadable"
        if isinstance(picture, Image.Image):
            return _digest([picture.mode, np.asarray(picture)])
        return _digest([picture])

    def select(self, indices: Sequence[int], mark: str) -> DatasetSource:
        """Return the items at `indices` as a source with the fingerprint `mark`."""
        chosen = copy.copy(self)
        chosen._indices = [self._indices[index] for index in indices]
        chosen.paths = [self.paths[index] for index in indices]
        chosen.labels, chosen.fingerprint = self.labels[list(indices)], mark
        return chosen

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
            ImageError: this image cannot be read: the dataset raises any exception, or the item contains no image.
            ActstatsError: the dataset raises it.
        """
        with self._lock:
            return self._read(index)

    def _item(self, index: int) -> Any:
        """Return item `index` as the DataLoader would get it."""
        number = self._indices[index]
        if self._batched and callable(getattr(self._dataset, "__getitems__", None)):
            return self._dataset.__getitems__([number])[0]
        return self._dataset[number]

    def _read(self, index: int) -> Any:
        try:
            item = self._item(index)
            if self._collate is not None:
                made = self._collate([item] if self._batched else item)
                item = _picture(made, self.spec)[0] if self._batched else made
            picture = _picture(item, self.spec)
            if isinstance(picture, Image.Image):
                picture.load()
        except (ActstatsError, ImageError, MemoryError):
            raise
        except Exception as error:  # a dataset may raise anything for a damaged image
            raise image_error(error) from error
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
            grey = values[..., 0] if values.shape[2:] == (1,) else values
            return Image.fromarray(np.ascontiguousarray(grey)).convert("RGB")
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
        ActstatsError: no image can be read, or none of the first eight of a dataset, which then has a bug.
    """
    return next(_readable(source))


def first_inputs(source: Source, preprocessing: Preprocessing | Transform, device: torch.device) -> Tensor:
    """Return the network's inputs for the first image that can be read and the next of eight that differs, if any.

    Raises:
        ActstatsError: as `first_readable`.
    """
    first, *others = (preprocessing.pixels(item) for item in islice(_readable(source), _TRIED))
    made = [first, *(pixels for pixels in others if not np.array_equal(first, pixels))][:2]
    return preprocessing.normalize(torch.from_numpy(np.stack(made)).to(device)).contiguous()


def _readable(source: Source) -> Iterator[Any]:
    """Yield the images that can be read, as the source has them; of a dataset, those among the first eight."""
    patience, last = Patience(), _TRIED if isinstance(source, DatasetSource) else None
    errors, empty = [], True
    for index in range(len(source))[:last]:
        try:
            item = patience(partial(item_of, source, index))
        except ImageError as error:
            errors.append(error)
            del errors[1:]
        else:
            empty = False
            yield item
    if not empty:
        return
    first = errors[0]
    if isinstance(source, DatasetSource):
        number = min(_TRIED, len(source))
        which = "its only item" if number == len(source) == 1 else f"each of its first {number} items"
        cause = first.__cause__
        why = reason_of(cause) if isinstance(cause, Exception) else first.message
        raise ActstatsError(f"the {source.spec} fails at {which}; item 0: {why}") from first
    raise ActstatsError(
        f"none of the {len(source)} images of {source.spec} can be read; {source.paths[0]}: {first}"
    )


_TRIED: Final = 8
"""Number of items of a dataset, at its beginning, of which one has to be readable."""


def _picture(found: Any, spec: str) -> Any:
    """Return the image contained in an item of a dataset."""
    if isinstance(found, Mapping):
        named = [found[name] for name in _COLUMNS if name in found]
        found = next((v for v in [*named, *found.values()] if isinstance(v, _PICTURES)), None)
    elif isinstance(found, (tuple, list)) and found:
        found = found[0]
    if isinstance(found, _PICTURES):
        return found
    raise ImageError(
        UNREADABLE,
        f"an item of the {spec} has no image: it is a {type(found).__name__}; an item must be a tensor or PIL image, "
        "a tuple that begins with one, or a mapping with `image` or `pixel_values`",
    )


_PICTURES: Final = (Tensor, Image.Image, np.ndarray)


_COMPARED: Final = 8
"""Number of items that are read when a dataset is opened, evenly spread, to check what it says about itself."""


_CLASSES: Final = 32
"""Number of classes of which one item is read when the code that makes the items is known."""
_UNKNOWN_CLASSES: Final = 256
"""The same for unknown code, which may give any class another label."""


def _spread(count: int, most: int) -> list[int]:
    """Return up to `most` of the numbers below `count`, evenly spread, the first and last among them."""
    return sorted(set(np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()))


def _in_order(loader: DataLoader[Any]) -> int:
    """Return how many images a DataLoader yields, which are the first of its dataset, in order.

    Raises:
        ActstatsError: it yields other images, or in another order.
    """
    kind = type(loader)
    for name in ("__iter__", "_get_iterator"):
        if getattr(kind, name, None) is not getattr(DataLoader, name, None):
            raise ActstatsError(
                f"a {kind.__name__} makes batches in its own way; pass its dataset, or a torch DataLoader of it"
            )
    batches = loader.batch_sampler
    sampler: Any = loader.sampler if batches is None else batches
    if type(batches) is BatchSampler:
        sampler = batches.sampler
    if type(sampler) is not SequentialSampler:
        raise ActstatsError(
            f"the DataLoader uses a {type(sampler).__name__}, but a sweep needs the images in the order of the "
            "dataset: create it without shuffle and sampler (to select images, use torch.utils.data.Subset)"
        )
    count, there = len(sampler), len(loader.dataset)  # type: ignore[arg-type]
    if count > there:
        raise ActstatsError(f"the sampler of the DataLoader has {count} images, but its dataset only {there}")
    if isinstance(batches, BatchSampler) and batches.drop_last:
        count -= count % batches.batch_size
        if count == 0:
            raise ActstatsError(
                f"the DataLoader drops its only batch, of less than {batches.batch_size} images: omit `drop_last`"
            )
    return count


_LABELS: Final = ("label", "labels", "target", "targets", "y", "class")
"""Keys of the label in an item that is a mapping."""


def _labels_in(item: Any, classes: Sequence[str]) -> dict[Any, int]:
    """Return what may be the label in an item, by key or position: integers, one-hot vectors, names of classes."""
    places: dict[Any, Any] = {}
    if isinstance(item, Mapping):
        places = {name: item[name] for name in _LABELS if name in item}
    elif isinstance(item, (tuple, list)):
        places = dict(enumerate(item[1:], start=1))
    labels = {place: _label(value, classes) for place, value in places.items()}
    return {place: label for place, label in labels.items() if label is not None}


def _label(value: Any, classes: Sequence[str]) -> int | None:
    if isinstance(value, str):
        return classes.index(value) if value in classes else None
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if not isinstance(value, (int, np.integer, np.ndarray)) or isinstance(value, bool):
        return None
    values = np.asarray(value)
    if values.size == 1 and values.dtype.kind in "iu":
        return max(int(values.item()), NO_LABEL)
    one_hot = values.ndim == 1 and values.dtype.kind in "iufb" and sorted(values.tolist())[-2:] == [0, 1]
    return int(values.argmax()) if one_hot and values.sum() == 1 else None


def _equal(one: Any, other: Any) -> bool:
    """Return whether two images are equal, up to rounding."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.allclose(one.double(), other.double(), equal_nan=True)
    first, second = np.asarray(one), np.asarray(other)
    return first.shape == second.shape and np.allclose(first, second, equal_nan=True)


@dataclass(frozen=True)
class _Facts:
    """What is known about the items of a dataset without reading them.

    `stated` if `mark` is its own fingerprint, `known` if the code that makes its items is.
    """

    paths: list[str] | None = None
    labels: NDArray[np.int64] | None = None
    classes: Sequence[str] = ()
    mark: str | None = None
    stated: bool = False
    known: bool = True
    notes: tuple[str, ...] = ()


def _behaves_as(dataset: Any, kind: type | None) -> bool:
    """Return whether the items of a dataset are made by the code of `kind`, which a subclass may have replaced."""
    names = ("__getitem__", "__getitems__")
    return (
        kind is not None
        and isinstance(dataset, kind)
        and all(getattr(type(dataset), name, None) is getattr(kind, name, None) for name in names)
        and not any(name in getattr(dataset, "__dict__", {}) for name in names)
    )


def _imported(module: str, name: str) -> Any:
    """Return a class of a library, or None if the library is not in use."""
    return getattr(sys.modules.get(module), name, None)


def _facts(dataset: Any) -> _Facts:
    if _behaves_as(dataset, Subset):
        return _of_subset(_facts(dataset.dataset), [int(index) for index in dataset.indices])
    if _behaves_as(dataset, ConcatDataset):
        return _of_several([_facts(part) for part in dataset.datasets], [len(d) for d in dataset.datasets])
    if _behaves_as(dataset, Tensor):
        return _Facts(mark=_digest([dataset]))
    if _behaves_as(dataset, TensorDataset):
        labels = _numbers(dataset.tensors[1]) if len(dataset.tensors) > 1 else None
        return _Facts(labels=labels, mark=_digest(dataset.tensors))
    if _behaves_as(dataset, _imported("datasets", "Dataset")):
        return _of_hugging_face(dataset)
    stated = _attribute(dataset, "fingerprint")
    facts = _of_torchvision(dataset) or _Facts(
        labels=_numbers(_listed_labels(dataset)),
        classes=_names(_attribute(dataset, "classes")),
        known=False,
    )
    return replace(facts, mark=stated, stated=True) if isinstance(stated, str) else facts


def _attribute(dataset: Any, name: str) -> Any:
    """Return an attribute that a dataset has itself, not one that it forwards to the dataset that it wraps."""
    missing = object()
    if inspect.getattr_static(dataset, name, missing) is missing:
        return None
    try:
        return getattr(dataset, name)
    except Exception:  # of a property: what it would tell is not known
        return None


def _listed_labels(dataset: Any) -> Any:
    targets = _attribute(dataset, "targets")
    return _attribute(dataset, "labels") if targets is None else targets


def _of_torchvision(dataset: Any) -> _Facts | None:
    """Return what is known of a dataset whose items are made by torchvision's code; None for any other."""
    made_by = getattr(getattr(type(dataset), "__getitem__", None), "__module__", "")
    if not str(made_by).startswith("torchvision.datasets."):
        return None
    change = getattr(dataset, "target_transform", None)
    classes = _names(_attribute(dataset, "classes")) if change is None else ()
    if _behaves_as(dataset, _imported("torchvision.datasets", "DatasetFolder")):
        files = [os.fspath(sample[0]) for sample in dataset.samples]
        targets = [sample[1] for sample in dataset.samples]
        paths = [Path(os.path.relpath(file, dataset.root)).as_posix() for file in files]
        numbers = dataset.class_to_idx
        folders = (path.partition("/")[0] for path in paths)
        moved = any(numbers.get(folder, n) != n for folder, n in zip(folders, targets, strict=True))
        labels = _numbers(targets if change is None else [change(target) for target in targets])
        return _Facts(paths, labels, () if moved else classes, of_files(paths, map(_size, files)))
    listed = _listed_labels(dataset)
    if change is not None and listed is not None:
        listed = [change(target) for target in np.asarray(listed).tolist()]
    data = getattr(dataset, "data", None)  # of CIFAR10, MNIST
    mark = _digest([data, type(dataset).__name__]) if isinstance(data, (Tensor, np.ndarray)) else None
    return _Facts(None, _numbers(listed), classes, mark)


def _of_subset(whole: _Facts, indices: list[int]) -> _Facts:
    return _Facts(
        None if whole.paths is None else [whole.paths[index] for index in indices],
        None if whole.labels is None else whole.labels[indices],
        whole.classes,
        None if whole.mark is None else _digest([whole.mark, np.array(indices, dtype=np.int64)]),
        known=whole.known,
        notes=whole.notes,
    )


def _of_several(parts: Sequence[_Facts], sizes: Sequence[int]) -> _Facts:
    paths = [f"{n}/{path}" for n, part in enumerate(parts) for path in part.paths or ()]
    marks = [part.mark for part in parts if part.mark is not None]
    labelled = [part for part in parts if part.labels is not None]
    same = len({tuple(part.classes) for part in labelled}) == 1
    labels = [
        np.full(size, NO_LABEL, dtype=np.int64) if part.labels is None else part.labels
        for part, size in zip(parts, sizes, strict=True)
    ]
    notes = [note for part in parts for note in part.notes]
    if labelled and not same:
        notes.append(
            "the images are stored without classes: the parts of the ConcatDataset have different classes"
        )
    return _Facts(
        paths if all(part.paths is not None for part in parts) else None,
        np.concatenate(labels) if same else None,
        labelled[0].classes if same else (),
        _digest(marks) if len(marks) == len(parts) else None,
        known=all(part.known for part in parts),
        notes=tuple(notes),
    )


def _of_hugging_face(dataset: Any) -> _Facts:
    features, mark = dataset.features, f"datasets:{dataset._fingerprint}"
    columns = [name for name, feature in features.items() if type(feature).__name__ == "ClassLabel"]
    if "label" in features and str(getattr(features["label"], "dtype", "")).startswith(("int", "uint")):
        columns = ["label"]
    if len(columns) != 1:
        several = f"the images are stored without classes: of the columns {', '.join(columns)}, rename one to 'label'"
        return _Facts(mark=mark, notes=(several,) if columns else ())
    # Read the column of the underlying table, since a transform may change that of the dataset.
    column = dataset.with_format("arrow", columns=columns)[:].column(columns[0])
    labels = column.cast("int64").fill_null(NO_LABEL).to_numpy()
    classes = _names(getattr(features[columns[0]], "names", None))
    return _Facts(None, within(labels, classes), classes, mark, notes=tuple(unnamed(labels, classes)))


def _checked(facts: _Facts, total: int) -> tuple[NDArray[np.int64], list[str]]:
    """Return the labels of `total` items and the class names, if there is a label for each."""
    if facts.labels is None or len(facts.labels) != total:
        return np.full(total, NO_LABEL, dtype=np.int64), []
    labels = within(facts.labels, ())
    return labels, list(facts.classes) if labels.max() < len(facts.classes) else []


def _names(classes: Any) -> Sequence[str]:
    """Return class names, if that is what these are."""
    if isinstance(classes, str) or not isinstance(classes, (Sequence, np.ndarray)):
        return ()
    return [str(name) for name in classes]


def _numbers(values: Any) -> NDArray[np.int64] | None:
    """Return integers, one per item and `NO_LABEL` for None, or None for anything else."""
    if values is None:
        return None
    try:
        if isinstance(values, (list, tuple)):
            values = [NO_LABEL if value is None else value for value in values]
        numbers = np.asarray(values)
    except (ValueError, TypeError, RuntimeError):
        return None
    return (
        numbers.astype(np.int64)
        if numbers.ndim == 1 and numbers.dtype.kind in "iu" and len(numbers)
        else None
    )


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
