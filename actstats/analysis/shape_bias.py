"""Shape bias: how often recorded decisions of humans and networks follow shape rather than texture.

Shape bias is shape / (shape + texture) decisions on cue-conflict images (Geirhos et al. 2019).
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from actstats.analysis.inference import FEWEST_CLUSTERS, crossed_difference, crossed_interval
from actstats.analysis.tables import from_csv, write_csv
from actstats.errors import ActstatsError, first, nearest, one_line

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
        write_csv(table, path)
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
    table = from_csv(table)
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
UNNUMBERED: Final = (
    "the names of the images shown to {} do not number the images of shape and texture, as cat7-bear1.png does: "
    "trials count as independent, and intervals may be too narrow"
)
"""Note on intervals that take no account of shared stimuli."""
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
    trials rather than averaged, as published.

    Trials share shape images and texture images, so they are not independent: intervals are clustered by both, those
    of pooled people by observer, too (`crossed_interval`). The images are read from `imagename`, `cat7` and `bear1`
    from `cat7-bear1.png`. Where a name lacks them, trials on the same stimuli cannot be recognised and count as
    independent (those of pooled people are clustered by observer), as `attrs["notes"]` says.

    Args:
        decisions: one row per trial, with the text columns `observer`, `response`, `shape`, `texture` and, to
            recognise the stimuli, `imagename`.
        confidence: confidence level of the intervals `low` to `high`, in (0, 1).

    Returns:
        For each observer, and for the `humans` together if there are several, one row for `all` categories and one
        for each shape category: `observer`, `category`, `observers` (number pooled), `trials`, `shape`, `texture`,
        `other` (decisions), `shape_bias`, `low`, `high` (NaN without decisions for either cue), `clusters` (the least
        of the numbers of shape images, texture images and people; 0: trials count as independent), and `accuracy`,
        the fraction of trials decided by either cue. `attrs["notes"]` names intervals to be wary of.

    Raises:
        ActstatsError: no trial has a conflict, an observer decides one trial twice, or `confidence` is out of range.
    """
    trials = _informative(decisions, confidence)
    rows = [row for name, part in _groups(trials) for row in _rows(name, part, confidence)]
    table = pd.DataFrame(rows)
    whole = table["category"] == ALL
    clusters = {
        "intervals": table["clusters"][whole],
        "intervals of single categories": table["clusters"][~whole],
    }
    table.attrs["notes"] = _notes(trials, clusters)
    return table


def compare_shape_bias(decisions: pd.DataFrame, *, confidence: float = 0.95) -> pd.DataFrame:
    """Return how much the shape biases of every two observers differ on the stimuli that both were shown.

    The same stimuli are hard or easy for both, so the interval of the difference is narrower than those of the two
    biases suggest: two intervals that overlap may belong to a difference that is decided. It is clustered by shape
    image and texture image, with pooled people by observer, too (`crossed_difference`).

    Args:
        decisions: as for `shape_bias`.
        confidence: confidence level of each interval by itself, in (0, 1).

    Returns:
        For every two observers (`humans` pooled, if there are several, and each of them): `observer`, `other`,
        `stimuli` (images shown to both), `shape_bias` and `other_bias` on these, `difference` = shape_bias -
        other_bias, its interval `low` to `high`, and `clusters`, as in `shape_bias`. NaN without common stimuli, or
        where image names do not state them. `attrs["notes"]` names intervals to be wary of.

    Raises:
        ActstatsError: as `shape_bias`, or there is only one observer.
    """
    trials = _informative(decisions, confidence)
    groups = dict(_groups(trials))
    # Pooled people are not compared with one of them.
    pairs = [pair for pair in combinations(groups, 2) if HUMANS not in pair or not is_human(pair[1])]
    if not pairs:
        raise ActstatsError(
            f"a comparison needs two observers or more, and all trials are of {first(list(groups))}"
        )
    known = {
        name: part[part["shape_image"] >= 0].assign(
            stimulus=lambda known: known["shape_image"] * len(trials) + known["texture_image"]
        )
        for name, part in groups.items()
    }
    table = pd.DataFrame([_difference(*pair, known[pair[0]], known[pair[1]], confidence) for pair in pairs])
    table.attrs["notes"] = _notes(trials, {"intervals": table["clusters"]})
    return table


def _informative(decisions: pd.DataFrame, confidence: float) -> pd.DataFrame:
    """Return the trials with a conflict: a flag for each decision, and by number the factors, -1 where unknown."""
    if not 0 < confidence < 1:
        raise ActstatsError(f"`confidence=` must be between 0 and 1, not {confidence}")
    _refuse_repeated_trials(decisions)
    trials = conflicting(decisions)
    if trials.empty:
        raise ActstatsError(
            f"none of the {len(decisions)} trials has a conflict: the shape and texture of each image are the same"
        )
    by_shape, by_texture = (trials["response"] == trials[cue] for cue in ("shape", "texture"))
    images = (
        stimulus_images(trials["imagename"].tolist(), trials["shape"].tolist(), trials["texture"].tolist())
        if "imagename" in trials
        else [None] * len(trials)
    )
    numbered = [
        pd.factorize(np.array([pair and pair[at] for pair in images], dtype=object))[0] for at in (0, 1)
    ]
    return pd.DataFrame(
        {
            "observer": trials["observer"],
            "category": trials["shape"],
            "shape": by_shape,
            "texture": by_texture,
            "other": ~(by_shape | by_texture),
            "person": pd.factorize(trials["observer"])[0],
            **{f"{cue}_image": numbers for cue, numbers in zip(("shape", "texture"), numbered, strict=True)},
        }
    )


def stimulus_images(
    names: Sequence[str], shapes: Sequence[str], textures: Sequence[str]
) -> list[tuple[str, str] | None]:
    """Return the images of shape and texture that make each stimulus, or None where its name does not number them.

    >>> stimulus_images(["0001_cat7-bear1.png", "cat-bear.png"], ["cat"] * 2, ["bear"] * 2)
    [('cat7', 'bear1'), None]
    """
    keys = list(zip(map(str, names), map(str, shapes), map(str, textures), strict=True))
    made = {key: _stimulus_images(*key) for key in set(keys)}
    return [made[key] for key in keys]


def _stimulus_images(name: str, shape: str, texture: str) -> tuple[str, str] | None:
    stated = re.search(
        rf"(?:^|_)({re.escape(shape)}\d[\d_]*) *- *({re.escape(texture)}\d[\d_]*)(?:\.\w+)?$",
        name.rpartition("/")[2],
        re.IGNORECASE,
    )
    return None if stated is None else (stated[1].lower().rstrip("_"), stated[2].lower().rstrip("_"))


def stimulus_factors(images: Sequence[tuple[str, str] | None]) -> list[NDArray[np.object_]]:
    """Return the levels of the factors of crossed stimuli, shape image and texture image; none if one is unknown."""
    if None in images:
        return []
    return [np.array([pair[at] for pair in images if pair], dtype=object) for at in (0, 1)]


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


def _groups(trials: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the trials of people pooled, if there are several, and of each observer."""
    observers = sorted(trials["observer"].unique())
    people = trials[trials["observer"].isin([name for name in observers if is_human(name)])]
    if people["observer"].nunique() > 1:
        yield HUMANS, people
    for observer in observers:
        yield observer, trials[trials["observer"] == observer]


def _factors(decided: pd.DataFrame) -> list[NDArray[Any]]:
    """Return the levels of each factor of some trials: observer, and the stimuli's images if all are known."""
    images = ["shape_image", "texture_image"] if (decided["shape_image"] >= 0).all() else []
    return [decided[name].to_numpy() for name in ("person", *images)]


def _rows(name: str, trials: pd.DataFrame, confidence: float) -> Iterator[dict[str, Any]]:
    """Yield the rows of one observer, or of several pooled under `name`: `all`, then each category."""
    for category in (ALL, *sorted(trials["category"].unique())):
        chosen = trials if category == ALL else trials[trials["category"] == category]
        decided = chosen[~chosen["other"]]
        hits = decided["shape"].to_numpy()
        interval = crossed_interval(hits, _factors(decided), confidence)
        yield {
            "observer": name,
            "category": category,
            "observers": chosen["observer"].nunique(),
            "trials": len(chosen),
            **{kind: int(chosen[kind].sum()) for kind in _COUNTS},
            "shape_bias": hits.mean() if len(hits) else np.nan,
            "low": interval.low,
            "high": interval.high,
            "clusters": interval.clusters,
            "accuracy": len(decided) / len(chosen),
        }


def _difference(
    name: str, other: str, one: pd.DataFrame, two: pd.DataFrame, confidence: float
) -> dict[str, Any]:
    """Return the row of two observers, from their trials on known stimuli."""
    common = set(one["stimulus"]) & set(two["stimulus"])
    sides = [part[part["stimulus"].isin(common) & ~part["other"]] for part in (one, two)]
    hits = [part["shape"].to_numpy() for part in sides]
    pooled = HUMANS in (name, other)
    factors = [(a, b) for a, b in zip(*map(_factors, sides), strict=True)][0 if pooled else 1 :]
    biases = [float(each.mean()) if len(each) else np.nan for each in hits]
    interval = crossed_difference(hits[0], hits[1], factors, confidence)
    return {
        "observer": name,
        "other": other,
        "stimuli": len(common),
        "shape_bias": biases[0],
        "other_bias": biases[1],
        "difference": biases[0] - biases[1],
        "low": interval.low,
        "high": interval.high,
        "clusters": interval.clusters,
    }


def _notes(trials: pd.DataFrame, clusters: Mapping[str, pd.Series[int]]) -> list[str]:
    unknown = trials.loc[trials["shape_image"] < 0, "observer"].unique().tolist()
    notes = [UNNUMBERED.format(first(sorted(unknown)))] if unknown else []
    for intervals, numbers in clusters.items():
        if few := int(numbers.between(1, FEWEST_CLUSTERS - 1).sum()):
            notes.append(
                f"{few} of {len(numbers)} {intervals} are of fewer than {FEWEST_CLUSTERS} shape images, texture "
                "images or people (`clusters`), and may be too narrow"
            )
    return notes
