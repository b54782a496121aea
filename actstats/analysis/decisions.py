"""Decisions on cue-conflict images, as tables and as CSV files of the texture-vs-shape and model-vs-human projects.

One row is one trial: an observer saw one image, whose name says what it has the shape and what the texture of, and
said what it is. Both projects write the columns `subj`, `session`, `trial`, `rt`, `object_response`, `category`,
`condition`, `imagename`; their order, quotes and further columns do not matter here.

>>> cues("0001_s5n_dnn_0_airplane_00_airplane1-bicycle2.png")
('airplane', 'bicycle')
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pandas as pd

from actstats.errors import ActstatsError, nearest

COLUMNS: Final = (
    "subj", "session", "trial", "rt", "object_response", "category", "condition", "imagename",
)  # fmt: skip
"""The columns of a file, in the order in which they are written."""
NEEDED: Final = ("subj", "object_response", "imagename")
"""The columns without which a file holds no decisions."""

_CUES: Final = re.compile(r"(?P<shape>[^-]*?[^-\d])\d*-(?P<texture>[^-]*?[^-\d])\d*")
_TRIAL: Final = ("subj", "session", "trial", "imagename")


def cues(name: str) -> tuple[str, str] | None:
    """Return the shape and the texture that the name of an image tells, or None if it tells none.

    That is `cat7-bear1.png`: the shape of a cat in the texture of a bear; the numbers say which cat and which bear.
    A folder, and words before it that end in `_`, are passed over.

    >>> cues("cat/cat7-bear1.png"), cues("n01440764_10026.JPEG")
    (('cat', 'bear'), None)
    """
    stem = name.rpartition("/")[2].rpartition(".")[0]
    found = _CUES.fullmatch(stem.rpartition("_")[2].lower())
    return None if found is None else (found["shape"], found["texture"])


def read_decisions(paths: Iterable[str | Path]) -> pd.DataFrame:
    """Return the decisions in all files, a row a trial.

    Each path is a CSV file, a folder (with the files in it whose name ends in .csv, at any depth) or a tar file of
    such, compressed or not. All columns are text: those of the files, `observer` (that is `subj`), `response`
    (lower case; empty where nothing or "na" was said), and `shape` and `texture` as the image's name tells them.

    Raises:
        ActstatsError: nothing there, a file that is no such table, an image name without cues, a trial given twice.
    """
    tables = [_table(data, name) for path in paths for name, data in _files(Path(path).expanduser())]
    if not tables:
        raise ActstatsError("no decisions were given: name CSV files, folders or tar files of them")
    whole = pd.concat(tables, ignore_index=True)
    keys = [name for name in _TRIAL if name in whole]
    again = whole.duplicated(keys) if len(keys) == len(_TRIAL) else pd.Series(False, index=whole.index)
    if again.any():
        row = whole[again].iloc[0]
        raise ActstatsError(
            f"trial {row['trial']} of {row['subj']}, session {row['session']}, is there twice (again in "
            f"{row['file']}): give each file once"
        )
    return whole.drop(columns="file")


def write_decisions(decisions: pd.DataFrame, path: str | Path) -> None:
    """Write decisions as one CSV file of the projects' format.

    `decisions` has at least `observer`, `response`, `shape` and `imagename`. Each observer's trials are numbered in
    order; `rt` is NaN where the table has none, as the projects do it for networks.

    Raises:
        ActstatsError: the file cannot be written.
    """
    made: dict[str, Any] = {
        "subj": decisions["observer"],
        "session": 1,
        "trial": decisions.groupby("observer").cumcount() + 1,
        "rt": "NaN",
        "object_response": decisions["response"],
        "category": decisions["shape"],
        "condition": 0,
        "imagename": decisions["imagename"],
    }
    table = pd.DataFrame({name: decisions.get(name, made[name]) for name in COLUMNS})
    try:
        table.to_csv(path, index=False)
    except OSError as error:
        raise ActstatsError(f"cannot write {path}: {error.strerror or error}") from error


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the name and content of each CSV file that a path stands for."""
    try:
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if _is_table(file.name) and file.is_file())
            found = [(str(file), file.read_bytes()) for file in files]
        elif path.suffix.lower() == ".csv" or not tarfile.is_tarfile(path):
            found = [(str(path), path.read_bytes())]
        else:
            with tarfile.open(path) as archive:
                members = [m for m in archive if m.isreg() and _is_table(m.name.rpartition("/")[2])]
                found = [(f"{path}:{m.name}", _content(archive, m)) for m in members]
    except FileNotFoundError:
        near = nearest(path.name, (e.name for e in path.parent.iterdir())) if path.parent.is_dir() else ""
        raise ActstatsError(f"no such file or folder of decisions: {path}{near}") from None
    except (tarfile.TarError, EOFError) as error:
        raise ActstatsError(f"{path} is not a whole tar file ({error})") from None
    except OSError as error:
        raise ActstatsError(f"cannot read {path}: {error.strerror or error}") from error
    if not found:
        raise ActstatsError(f"{path} holds no .csv file")
    yield from found


def _is_table(name: str) -> bool:
    return name.lower().endswith(".csv") and not name.startswith(".")


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    return b"" if file is None else file.read()


def _table(data: bytes, name: str) -> pd.DataFrame:
    """Return one file's rows, with what they say in columns of their own."""
    try:
        table = pd.read_csv(
            io.BytesIO(data), dtype=str, keep_default_na=False, skipinitialspace=True, encoding="utf-8-sig"
        )
    except (ValueError, UnicodeError) as error:  # pandas' own errors among them
        reason = " ".join(str(error).split())
        raise ActstatsError(f"{name} is no CSV table of decisions: {reason}") from None
    table.columns = table.columns.str.strip().str.lower()
    missing = [column for column in NEEDED if column not in table]
    if missing:
        raise ActstatsError(
            f"{name} has no column {', '.join(missing)}: a file of decisions has {', '.join(COLUMNS)}"
        )
    table = table.apply(lambda column: column.str.strip())
    found = [cues(image) for image in table["imagename"]]
    _refuse_without_cues(table["imagename"].tolist(), found, name)
    response = table["object_response"].str.lower()
    return table.assign(
        observer=table["subj"],
        response=response.where(~response.isin(["na", "nan", "none"]), ""),
        shape=[pair[0] for pair in found if pair],
        texture=[pair[1] for pair in found if pair],
        file=name,
    )


def _refuse_without_cues(images: Sequence[str], found: Sequence[object], name: str) -> None:
    wrong = [image for image, pair in zip(images, found, strict=True) if pair is None]
    if not images:
        raise ActstatsError(f"{name} holds no decisions: there is no row in it")
    if wrong:
        raise ActstatsError(
            f"{name} holds no cue-conflict decisions: {len(wrong)} of {len(images)} image names tell no shape and "
            f"texture as cat7-bear1.png does, {wrong[0]!r} say"
        )
