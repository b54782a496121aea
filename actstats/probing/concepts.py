"""Images with concepts labelled in them: Broden, or any folder of segmentation masks.

**Broden** (Bau et al. 2017): `index.csv` has a row for each image with its size (`ih`, `iw`) and, for each category,
the numbers of concepts that the whole image has and the names of masks under `images/`, with `;` between; a mask
holds the number R + 256 G at each position. `label.csv` names the numbers, `category.csv` the categories, and
`c_<category>.csv` says which numbers a category has, and how much of it they cover.

**A folder of masks**: `images/<name>.jpg` and `masks/<category>/<name>.png`, in which a position holds a number: the
grey value or palette index, or R + 256 G in a colour file; 0 is for what is not labelled. `labels.csv` with the
columns `category`, `number`, `name` names them, where it is there. A category whose concepts overlap can have
several folders of masks, `masks/part`, `masks/part.2`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from actstats.data import ImageError, Source, open_source
from actstats.data.folder import read_rows, segmented_images
from actstats.data.image import MISSING, UNREADABLE
from actstats.errors import ActstatsError, nearest

Labels = list[int | NDArray[np.int32]]
"""What is labelled in one image: numbers of concepts that all of it has, and masks of numbers, i32 [h, w]."""

_LAYOUT: Final = (
    "neither Broden (index.csv, label.csv, category.csv, c_*.csv, images/) nor images/ with masks/"
)
_PLAIN: Final = ("1", "L", "P", "I", "I;16")
"""Modes of mask files whose values are the numbers."""
_MOST: Final = 255
"""The greatest number of a concept in a category that `labels.csv` does not name."""


@dataclass(frozen=True)
class Concepts:
    """The concepts that a dataset labels, by number; 0 stands for none.

    `names` and `category` (an index into `categories`, -1 where the number is unused) have an entry for each number.
    """

    names: tuple[str, ...]
    categories: tuple[str, ...]
    category: NDArray[np.int64]


class Segmented(Protocol):
    """A source of images with what is labelled in each."""

    source: Source
    concepts: Concepts

    def size(self, index: int) -> tuple[int, int]:
        """Return the width and height of image `index`; raises `ImageError`."""
        ...

    def labels(self, index: int) -> Labels:
        """Return what is labelled in image `index`; thread-safe; raises `ImageError`."""
        ...


def open_segmented(root: str | Path, categories: Sequence[str] = (), limit: int | None = None) -> Segmented:
    """Open a folder of either layout, the first `limit` images, with these categories alone (default: all).

    Raises:
        ActstatsError: another layout, files that do not fit it, a category that it lacks.
    """
    root = Path(root).expanduser()
    if segmented_images(root) is None:
        raise ActstatsError(f"{root} is no segmented dataset: {_LAYOUT}")
    made: Segmented = (Broden if (root / "index.csv").is_file() else MaskFolder)(root, categories, limit)
    return made


class Broden:
    """A dataset in the layout of Broden."""

    def __init__(self, root: Path, categories: Sequence[str] = (), limit: int | None = None) -> None:
        known = [row["name"] for row in read_rows(root / "category.csv", "name")]
        chosen = _chosen(known, categories, root / "category.csv")
        self._root = root / "images"
        self._rows = read_rows(root / "index.csv", "image", "ih", "iw", *chosen)[:limit]
        self._categories = chosen
        self.source: Source = open_source(root, limit=limit)
        self.concepts = _broden_concepts(root, chosen)

    def size(self, index: int) -> tuple[int, int]:
        """Return the width and height that the index tells."""
        row = self._rows[index]
        return int(row["iw"]), int(row["ih"])

    def labels(self, index: int) -> Labels:
        """Return what the index and its masks tell; thread-safe; raises `ImageError`."""
        row, found = self._rows[index], Labels()
        for category in self._categories:
            for item in filter(None, row[category].split(";")):
                if item.isdecimal():
                    found.append(int(item))
                    continue
                mask = _mask(self._root / item)
                _refuse_other_shape(mask, self.size(index), self._root / item)
                found.append(mask)
        for label in found:
            _refuse_unknown(label, len(self.concepts.names) - 1, self._root / row["image"])
        return found


class MaskFolder:
    """Images with a folder of masks for each category."""

    def __init__(self, root: Path, categories: Sequence[str] = (), limit: int | None = None) -> None:
        folders = sorted(path for path in (root / "masks").iterdir() if path.is_dir() and path.name[0] != ".")
        known = list(dict.fromkeys(_category(path) for path in folders))
        chosen = _chosen(known, categories, root / "masks")
        self._folders = [path for path in folders if _category(path) in chosen]
        self._images = root / "images"
        self.source: Source = open_source(root, limit=limit)
        # A category that no image has a mask of would pass for one that no unit detects.
        everything = self.source.paths if limit is None else open_source(root).paths
        for category in chosen:
            folders = [path for path in self._folders if _category(path) == category]
            if everything and not any(
                (folder / Path(path).with_suffix(".png")).is_file()
                for folder in folders
                for path in everything
            ):
                raise ActstatsError(
                    f"none of the {len(everything):,} images in {root / 'images'} has a mask in masks/{category}: "
                    f"the mask of images/NAME.jpg is masks/{category}/NAME.png, with the same folders in NAME"
                )
        named = _named(root / "labels.csv", chosen)
        names, belongs = [""], [-1]
        self._numbers: dict[str, tuple[int, int]] = {}
        for at, category in enumerate(chosen):
            # Each category has its own run of numbers, so that equal ones of two categories stay apart.
            numbers = named.get(category, {})
            most = max(numbers, default=_MOST)
            self._numbers[category] = len(names) - 1, most
            names += [numbers.get(number, str(number)) for number in range(1, most + 1)]
            belongs += [at] * most
        self.concepts = Concepts(tuple(names), tuple(chosen), np.array(belongs, dtype=np.int64))

    def size(self, index: int) -> tuple[int, int]:
        """Return the width and height that the image file's head tells; raises `ImageError`."""
        return _size(self._images / self.source.paths[index])

    def labels(self, index: int) -> Labels:
        """Return the masks of the image that are there; thread-safe; raises `ImageError`."""
        name = Path(self.source.paths[index]).with_suffix(".png")
        found = Labels()
        for folder in self._folders:
            if (file := folder / name).exists():
                offset, most = self._numbers[_category(folder)]
                mask = _mask(file)
                _refuse_unknown(mask, most, file)
                _refuse_other_shape(mask, self.size(index), file)
                found.append(np.where(mask > 0, mask + offset, 0).astype(np.int32))
        return found


def _broden_concepts(root: Path, categories: Sequence[str]) -> Concepts:
    """Read the names, and for each number the category that it covers most of."""
    file = root / "label.csv"
    names = {_number(row, file): row["name"] for row in read_rows(file, "number", "name")}
    count = max(names, default=0) + 1
    belongs, most = np.full(count, -1, dtype=np.int64), np.full(count, -1.0)
    for at, category in enumerate(categories):
        file = root / f"c_{category}.csv"
        for row in read_rows(file, "number"):
            number, coverage = _number(row, file), _coverage(row, file)
            if number >= count:
                raise ActstatsError(f"{file} has the number {number}, which label.csv does not name")
            if number and coverage > most[number]:
                belongs[number], most[number] = at, coverage
    return Concepts(tuple(names.get(n, "") for n in range(count)), tuple(categories), belongs)


def _named(file: Path, categories: Sequence[str]) -> dict[str, dict[int, str]]:
    """Return the names in a `labels.csv` by category and number; none if there is no such file."""
    found: dict[str, dict[int, str]] = {category: {} for category in categories}
    if file.exists():
        for row in read_rows(file, "category", "number", "name"):
            if row["category"] in found:
                found[row["category"]][_number(row, file)] = row["name"]
    return {category: names for category, names in found.items() if names}


def _chosen(known: Sequence[str], wanted: Sequence[str], where: Path) -> list[str]:
    for name in wanted:
        if name not in known:
            raise ActstatsError(
                f"{where} has no category {name!r}{nearest(name, known) or '; it has ' + ', '.join(known)}"
            )
    return [name for name in known if not wanted or name in wanted]


def _category(folder: Path) -> str:
    return folder.name.partition(".")[0]


def _refuse_unknown(label: int | NDArray[np.int32], last: int, where: Path) -> None:
    most = int(np.max(label, initial=0))
    if most > last:
        raise ActstatsError(
            f"{where} is labelled with the number {most}, but the last that has a name is {last}"
        )


def _refuse_other_shape(mask: NDArray[np.int32], size: tuple[int, int], where: Path) -> None:
    """Raise `ActstatsError` if a mask is not `size` (width, height), scaled: its sides may be exchanged."""
    height, width = mask.shape
    # A scaled side may be rounded either way.
    least = max((width - 1) / size[0], (height - 1) / size[1])
    most = min((width + 1) / size[0], (height + 1) / size[1])
    if least > most:
        raise ActstatsError(
            f"{where} has {width} x {height} pixels, not those of its image, scaled: {size[0]} x {size[1]}"
        )


def _number(row: dict[str, str], file: Path) -> int:
    if not row["number"].strip().isdecimal():
        raise ActstatsError(f"{file}: the number of a concept is a positive integer, not {row['number']!r}")
    return int(row["number"])


def _coverage(row: dict[str, str], file: Path) -> float:
    try:
        return float(row.get("coverage") or 0)
    except ValueError:
        raise ActstatsError(
            f"{file}: the coverage of a concept is a number, not {row['coverage']!r}"
        ) from None


def _size(file: Path) -> tuple[int, int]:
    try:
        with Image.open(file) as image:
            return image.size
    except (OSError, ValueError) as error:
        raise ImageError(UNREADABLE, f"its size cannot be read: {error}") from None


def _mask(file: Path) -> NDArray[np.int32]:
    """Return the numbers in a mask file, i32 [h, w]."""
    try:
        with Image.open(file) as image:
            values: NDArray[Any] = np.asarray(image if image.mode in _PLAIN else image.convert("RGB"))
    except FileNotFoundError:
        raise ImageError(MISSING, f"its mask {file.name} is not there") from None
    except (OSError, ValueError, SyntaxError) as error:
        raise ImageError(UNREADABLE, f"its mask {file.name} cannot be read: {error}") from None
    values = values.astype(np.int32)
    return values if values.ndim == 2 else values[..., 0] + 256 * values[..., 1]
