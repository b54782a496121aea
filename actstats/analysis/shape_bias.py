"""Shape bias: how often recorded decisions of humans and networks follow shape rather than texture.

Shape bias is shape / (shape + texture) decisions on cue-conflict images (Geirhos et al. 2019).
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from actstats.errors import ActstatsError, nearest, one_line


def proportion_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion; (NaN, NaN) if there are no trials."""
    if trials == 0:
        return np.nan, np.nan
    interval = stats.binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar(lost: int, gained: int) -> float:
    """Return the p-value of McNemar's exact test that `lost` and `gained` are equally likely; 1 if both are 0."""
    return float(stats.binomtest(lost, lost + gained, 0.5).pvalue) if lost + gained else 1.0


COLUMNS: Final = (
    "subj", "session", "trial", "rt", "object_response", "category", "condition", "imagename",
)  # fmt: skip
"""Columns of a file, in the order in which they are written."""
NEEDED: Final = ("subj", "object_response", "imagename")
"""Columns that a file of decisions must have."""

_TRIAL: Final = ("subj", "session", "trial", "imagename")


def cues(name: str) -> tuple[str, str] | None:
    """Return the shape and texture encoded in the name of an image, or None if there are none.

    `cat7-bear1.png` is the shape of a cat with the texture of a bear; the numbers identify the cat and the bear. A
    folder, and a prefix that ends in `_`, are ignored. Where several images are at hand, `cues_of` knows better which
    `_` and `-` belong to a category.

    >>> cues("cat/cat7-bear1.png"), cues("n01440764_10026.JPEG")
    (('cat', 'bear'), None)
    """
    return cues_of([name])[0]


def cues_of(names: Sequence[str], categories: Iterable[str] = ()) -> list[tuple[str, str] | None]:
    """Return the shape and texture in each name, as `cues`, where all names are of the same categories.

    A category may contain `_` and `-` if it is one of `categories`, the name of the image's folder, or a texture in
    another name.

    >>> cues_of(["0001_hot-dog7-cat1.png", "cat2-hot-dog3.png"])
    [('hot-dog', 'cat'), ('cat', 'hot-dog')]
    """
    stems = [name.rpartition("/")[2].rpartition(".")[0].lower() for name in names]
    folders = {name.rpartition("/")[0].rpartition("/")[2].lower() for name in names}
    known = {name.lower() for name in categories} | folders
    known |= {right for stem in stems if (halves := _halves(stem)) is not None for right in halves[1:]}
    known.discard("")
    pairs = {stem: _known_pair(stem, known) or _pair(stem) for stem in set(stems)}
    return [pairs[stem] for stem in stems]


_NUMBER: Final = "0123456789_"
"""What may follow the name of a category."""


def _splits(stem: str) -> Iterator[tuple[str, str]]:
    """Yield both sides of each `-`, without the numbers at their ends."""
    for at in (at for at, letter in enumerate(stem) if letter == "-"):
        left, right = stem[:at].rstrip(_NUMBER), stem[at + 1 :].rstrip(_NUMBER)
        if left and right and not left.endswith("-") and not right.endswith("-"):
            yield left, right


def _halves(stem: str) -> tuple[str, str] | None:
    """Return both sides of the `-` between the cues: the only one, or the first after a number."""
    splits = list(_splits(stem))
    if len(splits) > 1:
        numbered = re.match(r".*?\d-", stem)
        at = None if numbered is None else stem[: numbered.end() - 1].rstrip(_NUMBER)
        splits = [split for split in splits if split[0] == at]
    return splits[0] if splits else None


def _known_pair(stem: str, known: set[str]) -> tuple[str, str] | None:
    """Return the longest known categories that a name states."""
    pairs = [
        (shape, right)
        for left, right in _splits(stem)
        if right in known
        for shape in known
        if left == shape or left.endswith(f"_{shape}")
    ]
    return max(pairs, key=lambda pair: sum(map(len, pair)), default=None)


def _pair(stem: str) -> tuple[str, str] | None:
    halves = _halves(stem)
    return None if halves is None else (halves[0].rpartition("_")[2], halves[1])


def read_decisions(paths: Iterable[str | Path]) -> pd.DataFrame:
    """Return the decisions in all files, one row per trial.

    Each path is a CSV file, a folder (with .csv files at any depth), or a tar file of these, compressed or not. All
    columns are text: those of the files, `observer` (equal to `subj`), `response` (lower case; empty for no response
    or "na"), and `shape` and `texture` from the name of the image.

    Raises:
        ActstatsError: there are no files, a file is not such a table, an image name has no cues, or a trial occurs
            twice.
    """
    tables = [_table(data, name) for path in paths for name, data in _files(Path(path).expanduser())]
    if not tables:
        raise ActstatsError("no decisions were given: pass CSV files, or folders or tar files of them")
    whole = pd.concat(tables, ignore_index=True)
    keys = [name for name in _TRIAL if name in whole]
    again = whole.duplicated(keys) if len(keys) == len(_TRIAL) else pd.Series(False, index=whole.index)
    if again.any():
        row = whole[again].iloc[0]
        raise ActstatsError(
            f"trial {row['trial']} of {row['subj']}, session {row['session']}, occurs twice (again in "
            f"{row['file']}): pass each file only once"
        )
    return whole.drop(columns="file")


def write_decisions(decisions: pd.DataFrame, path: str | Path) -> None:
    """Write decisions to one CSV file in the format of the projects.

    `decisions` has at least `observer`, `response`, `shape` and `imagename`. The trials of each observer are numbered
    in order. `rt` is NaN if the table has none, as in the projects' own files for networks.

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
    """Yield the name and content of each CSV file that a path refers to."""
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
        raise ActstatsError(f"{path} is not a complete tar file ({error})") from None
    except OSError as error:
        raise ActstatsError(f"cannot read {path}: {error.strerror or error}") from error
    if not found:
        raise ActstatsError(f"{path} contains no .csv file")
    yield from found


def _is_table(name: str) -> bool:
    return name.lower().endswith(".csv") and not name.startswith(".")


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    return b"" if file is None else file.read()


def _table(data: bytes, name: str) -> pd.DataFrame:
    """Return the rows of a file, with additional columns for observer, response, shape and texture."""
    try:
        table = pd.read_csv(
            io.BytesIO(data), dtype=str, keep_default_na=False, skipinitialspace=True, encoding="utf-8-sig"
        )
    except (ValueError, UnicodeError) as error:  # includes pandas' own errors
        raise ActstatsError(f"{name} is not a CSV table of decisions: {one_line(error)}") from None
    table.columns = table.columns.str.strip().str.lower()
    missing = [column for column in NEEDED if column not in table]
    if missing:
        raise ActstatsError(
            f"{name} has no column {', '.join(missing)}: a file of decisions has {', '.join(COLUMNS)}"
        )
    table = table.apply(lambda column: column.str.strip())
    named = {*table["object_response"], *table.get("category", ())}
    found = cues_of(table["imagename"].tolist(), named)
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
        raise ActstatsError(f"{name} contains no decisions: it has no rows")
    if wrong:
        raise ActstatsError(
            f"{name} contains no cue-conflict decisions: {len(wrong)} of {len(images)} image names do not state "
            f"shape and texture like cat7-bear1.png, for example {wrong[0]!r}"
        )


ALL: Final = "all"
"""Value of the column `category` in rows for all shape categories together."""
HUMANS: Final = "humans"
"""Name under which the trials of all human observers are pooled."""
RESAMPLES: Final = 9999
_COUNTS: Final = ["shape", "texture", "other"]


def is_human(observer: str) -> bool:
    """Return whether an observer is human: both projects name them `subject-01` and so on."""
    return observer.startswith("subject-")


def conflicting(decisions: pd.DataFrame) -> pd.DataFrame:
    """Return the trials whose shape and texture differ; other trials are not informative."""
    return decisions[decisions["shape"] != decisions["texture"]]


def shape_bias(decisions: pd.DataFrame, *, confidence: float = 0.95) -> pd.DataFrame:
    """Return the shape bias of each observer, with the numbers of decisions for shape and texture.

    shape bias = decisions for the shape / (decisions for the shape + decisions for the texture), over the trials
    whose shape and texture differ (Geirhos et al. 2019, arXiv 1811.12231). Human observers are pooled over their
    trials rather than averaged, as published. Their interval is a percentile bootstrap over observers (9,999
    resamples, seeded), since the trials of an observer are not independent. All other intervals are Wilson's over
    trials.

    Args:
        decisions: one row per trial, with the text columns `observer`, `response`, `shape` and `texture`.
        confidence: confidence level of the intervals `low` to `high`, in (0, 1).

    Returns:
        For each observer, and for the `humans` together if there are several, one row for `all` categories and one
        for each shape category: `observer`, `category`, `observers` (number pooled), `trials`, `shape`, `texture`,
        `other` (decisions), `shape_bias`, `low`, `high` (NaN without decisions for either cue), and `accuracy`, the
        fraction of trials decided by either cue.

    Raises:
        ActstatsError: no trial has a conflict, an observer decides one trial twice, or `confidence` is out of range.
    """
    if not 0 < confidence < 1:
        raise ActstatsError(f"`confidence=` must be between 0 and 1, not {confidence}")
    _refuse_repeated_trials(decisions)
    trials = conflicting(decisions)
    if trials.empty:
        raise ActstatsError(
            f"none of the {len(decisions)} trials has a conflict: the shape and texture of each image are the same"
        )
    counts = _counts(trials)
    people = [name for name in counts.index.unique("observer") if is_human(name)]
    rows = []
    if len(people) > 1:
        rows += list(_rows(HUMANS, counts.loc[people], confidence))
    for observer in counts.index.unique("observer"):
        rows += list(_rows(observer, counts.loc[[observer]], confidence))
    return pd.DataFrame(rows)


def _refuse_repeated_trials(decisions: pd.DataFrame) -> None:
    """Raise `ActstatsError` if two tables of one observer were joined, which would count its trials twice."""
    keys = ["observer", "imagename"]
    if "imagename" not in decisions:
        return
    # Recorded trials have a session and a number, decisions of a network have neither.
    numbered = [name for name in ("session", "trial") if name in decisions]
    trials = decisions[[*keys, *numbered]].astype(object).where(decisions[[*keys, *numbered]].notna(), "")
    mixed = (
        trials.groupby("observer")[numbered].agg(lambda column: (column == "").nunique())
        if numbered
        else None
    )
    twice = trials[trials.duplicated()]["observer"].tolist()
    if mixed is not None:
        twice += mixed.index[(mixed > 1).any(axis=1)].tolist()
    if twice:
        raise ActstatsError(
            f"decisions of the observer {twice[0]!r} were given twice, or two observers have this name: rename one"
        )


def _counts(trials: pd.DataFrame) -> pd.DataFrame:
    """Return the number of decisions for `shape`, `texture` and `other` by (observer, category), int [.., 3]."""
    by_shape, by_texture = (trials["response"] == trials[cue] for cue in ("shape", "texture"))
    kinds = pd.DataFrame(
        {
            "observer": trials["observer"],
            "category": trials["shape"],
            "shape": by_shape.astype(int),
            "texture": by_texture.astype(int),
            "other": (~(by_shape | by_texture)).astype(int),
        }
    )
    return kinds.groupby(["observer", "category"], sort=True)[_COUNTS].sum()


def _rows(name: str, counts: pd.DataFrame, confidence: float) -> Iterator[dict[str, Any]]:
    """Yield the rows of one observer, or of several pooled under `name`: `all`, then each category."""
    for category in (ALL, *counts.index.unique("category")):
        chosen = counts if category == ALL else counts.xs(category, level="category", drop_level=False)
        each = chosen.groupby("observer").sum()
        shape, texture, other = (int(each[kind].sum()) for kind in _COUNTS)
        trials = shape + texture + other
        low, high = bias_interval(each["shape"].to_numpy(), each["texture"].to_numpy(), confidence)
        yield {
            "observer": name,
            "category": category,
            "observers": len(each),
            "trials": trials,
            "shape": shape,
            "texture": texture,
            "other": other,
            "shape_bias": shape / (shape + texture) if shape + texture else np.nan,
            "low": low,
            "high": high,
            "accuracy": (shape + texture) / trials,
        }


def bias_interval(
    shape: NDArray[np.int64], texture: NDArray[np.int64], confidence: float = 0.95
) -> tuple[float, float]:
    """Return the interval of the pooled shape bias of observers, given their decisions, i64 [observers] each.

    This is Wilson's interval for one observer, and a percentile bootstrap over observers for several; (NaN, NaN)
    without decisions for either cue.
    """
    total = int(shape.sum() + texture.sum())
    if total == 0:
        return np.nan, np.nan
    if len(shape) == 1:
        return proportion_interval(int(shape.sum()), total, confidence)
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(shape), (RESAMPLES, len(shape)))
    by_shape, by_either = shape[drawn].sum(1), (shape + texture)[drawn].sum(1)
    tail = 50 * (1 - confidence)
    ratios = by_shape[by_either > 0] / by_either[by_either > 0]
    low, high = np.percentile(ratios, [tail, 100 - tail])
    return float(low), float(high)
