"""Which files of a segmented dataset are its images: beside them lie masks, which are images to look at, too."""

from __future__ import annotations

import csv
from pathlib import Path

from actstats.data.folder import find_images
from actstats.errors import ActstatsError


def segmented_images(root: Path) -> list[str] | None:
    """Return the names of a segmented dataset's images under `root/images`, with `/`; None if `root` holds none.

    That is a folder as Broden lies (`index.csv` and `images/`), whose index lists them in order, or one with
    `images/` and `masks/`.

    Raises:
        ActstatsError: an index that cannot be read.
    """
    if not (root / "images").is_dir():
        return None
    if (root / "index.csv").is_file():
        return [row["image"] for row in read_rows(root / "index.csv", "image")]
    return find_images(root / "images") if (root / "masks").is_dir() else None


def read_rows(file: Path, *columns: str) -> list[dict[str, str]]:
    """Return the rows of a CSV file, which has to have these columns, as text by column.

    Raises:
        ActstatsError: no such file, no CSV, or a column is missing.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            reader = csv.DictReader(text)
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                raise ActstatsError(f"{file} has no column {', '.join(missing)}")
            return [{key: value or "" for key, value in row.items() if key is not None} for row in reader]
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise ActstatsError(f"cannot read {file}: {reason}") from None
