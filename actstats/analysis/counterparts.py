"""Which unit of one network corresponds to which of another: the units whose values over the images agree best."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from actstats.analysis.aligned import Aligned, Floats, Rows, align, cover, spread, within
from actstats.analysis.comparing import unit_index
from actstats.analysis.coverage import result, usable
from actstats.analysis.inference import PERMUTATIONS, benjamini_hochberg, permutation_test
from actstats.analysis.tables import from_csv, unit_table
from actstats.errors import ActstatsError
from actstats.records import load
from actstats.store.dataset import require_manifest
from actstats.store.manifest import UnitAxis
from actstats.store.schema import unit_coordinates
from actstats.support import require_package

LEAST: Final = 0.5
"""The correlation on held-out images from which on two units count as counterparts."""
LEVEL: Final = 0.05
"""The false discovery rate within a layer at which a unit has a counterpart."""
_FEWEST: Final = 8
_TESTED: Final = 4096
"""Most held-out images that are permuted."""
_KEYS: Final = ("network", "other_network", "image_set")
_NUMBERS: Final = ("channel", "counterpart", "best", "held_out")
"""Columns of numbers that a table of matches needs: whole ones from -1 on, except for the correlation `held_out`."""
_DESCRIBED: Final = {
    "counterpart": "unit of the other network that corresponds, as its index there; -1: none",
    "counterpart_layer": "layer of the counterpart; empty: none",
    "counterpart_channel": "channel of the counterpart; -1: none",
    "best": "unit of the other network that correlates best, as its index there; -1: none",
    "correlation": "correlation with the best unit of the other network",
    "margin": "by how much the greatest correlation exceeds the second greatest",
    "held_out": "correlation on one half of the images with the unit chosen on the other half",
    "stable": "whether the unit chosen on that half is the best on all images",
    "p": "p-value of the permutation test of the held-out correlation",
    "q": "least false discovery rate within the layer at which the held-out correlation is significant",
    "reciprocal": "whether both units are each other's best on both halves",
    "same_channel": "correlation with the unit of the same layer and channel",
    "partner": "partner in the one-to-one assignment of the layer, as its index there; -1: none",
    "partner_channel": "channel of the partner; -1: none",
    "partner_correlation": "correlation with the partner",
}


def match(
    first: xr.Dataset,
    second: xr.Dataset,
    variable: str = "mean",
    *,
    across: bool = False,
    least: float = LEAST,
    seed: int = 0,
) -> xr.Dataset:
    """Find the best counterpart of each unit of one network among the units of another.

    Units are compared by the Pearson correlation, over images, of a per-image statistic. The unit that correlates
    best on one random half of the images is the unit's counterpart if

    1. it still correlates by `least` or more on the other half, which is held out,
    2. the correlation there is significant: `q`, the false discovery rate within the unit's layer, is at most 0.05 in
       a permutation test of this pair on up to 4,096 held-out images (`permutation_test`, `benjamini_hochberg`),
    3. both units are each other's best on both halves (`reciprocal`): shuffling the images does not show what all
       units have in common,
    4. and it is the best one on all images, too (`stable`).

    The one-to-one assignment within each layer maximises the sum of its correlations (Hungarian method) and is not
    thresholded.

    Memory is bounded: blocks of images, up to 4,096 images for the tests, and the correlations of 2,048 units at a
    time (or of one layer) with their candidates. Each store is read once if the values of both take up to 256 MiB,
    and else twice, with `across` about once for every 2,048 units of the other one.

    Args:
        first: the store whose units are matched, as `open_dataset` gives it.
        second: the store in which to search for counterparts, of the same images in the same order.
        variable: the per-image statistic, `mean` or `maximum`.
        across: search all layers, not only the layer of the same name.
        least: the least held-out correlation of a counterpart, in [0, 1].
        seed: random seed for the halves and the permutations.

    Returns:
        By unit of `first` (without `across`, of the layers that both stores have): `counterpart` i64 (index along
        `second`'s `unit`; -1: none), `counterpart_layer`, `counterpart_channel` i64, `best` i64, `correlation`,
        `margin`, `held_out`, `p`, `q`, `same_channel` f64, `reciprocal`, `stable` bool, and `partner` i64,
        `partner_channel` i64, `partner_correlation` f64. Constant units have NaN correlations and no counterpart;
        `held_out`, `p` and `q` are also NaN if a unit is constant in one half. Images that either store could not
        read, or with a value that is not finite, are left out, and counted in the attributes.

    Raises:
        ActstatsError: the stores hold other images, have no layer in common, lack `variable`, or share fewer than 8
            images with values.
    """
    return _match(first, second, variable, across, least, seed, both=False)[0]


def match_both(first: xr.Dataset, second: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset]:
    """Return `match` of two stores in both directions, within layers, for the price of one."""
    one, two = _match(first, second, "mean", False, LEAST, 0, both=True)
    return one, two


def match_table(found: xr.Dataset) -> pd.DataFrame:
    """Return what `match` found as a table by unit that `read_matches` reads; its first columns say of what it is.

    Raises:
        ActstatsError: units were chosen or reordered in the other store, whose indices would be of other units.
    """
    if not found.attrs["other_whole"]:
        raise ActstatsError(
            "a table of matches names units by their index in the store, but units of `second` were chosen: match "
            "with the whole dataset, as actstats.open_dataset returns it"
        )
    table = unit_table(found)
    for at, key in enumerate(_KEYS):
        table.insert(at, key, found.attrs[key])
    return table


def read_matches(paths: Iterable[str | Path]) -> pd.DataFrame:
    """Read tables that `match_table` made, one or several, from CSV, Parquet or JSON files.

    Raises:
        ActstatsError: a file that cannot be read, holds no matches by unit, or has a text where a number belongs.
    """
    tables = []
    for path in map(Path, paths):
        names = dict.fromkeys((*_KEYS, "layer", "counterpart_layer"), str)
        try:
            if path.suffix == ".parquet":
                require_package("pyarrow", "a Parquet file")
                table = pd.read_parquet(path)
            elif path.suffix == ".json":
                table = pd.DataFrame(load(path.read_text(encoding="utf-8")))
            else:
                table = from_csv(
                    pd.read_csv(path, dtype=names, keep_default_na=False, na_values={"held_out": [""]})
                )
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is no table"
            raise ActstatsError(f"cannot read the matches in {path}: {reason}") from error
        needed = {*_KEYS, "layer", *_NUMBERS}
        if missing := needed - set(map(str, table.columns)):
            raise ActstatsError(
                f"{path} holds no matches by unit: it lacks {', '.join(sorted(missing))}; `actstats analyze match "
                "FIRST SECOND --by unit --out FILE` writes them"
            )
        for name in _NUMBERS:
            numbers = pd.to_numeric(table[name], errors="coerce")
            if name == "held_out":
                wrong, kind = numbers.isna() & table[name].notna(), "a number"
            else:
                wrong, kind = ~(numbers >= -1) | (numbers % 1 != 0), "an integer of -1 or more"
            if wrong.any():
                value = table[name].tolist()[int(wrong.argmax())]
                raise ActstatsError(f"{path} holds no matches by unit: {name} is {value!r}, not {kind}")
            table[name] = numbers
        tables.append(table.astype(dict.fromkeys((*_KEYS, "layer"), str)))
    return pd.concat(tables, ignore_index=True)


def select_matches(table: pd.DataFrame, first: xr.Dataset, second: xr.Dataset) -> xr.Dataset | None:
    """Return a table's matches of the units of `first` in `second`; None if it has none of these two.

    Returns:
        `counterpart` and `best` i64, `held_out` f64, `stable` and `reciprocal` bool, along all units of `first`.

    Raises:
        ActstatsError: the matches were made of other units, or do not have all of them.
    """
    if not _is_whole(second, second):
        raise ActstatsError("matches are of all units of a store, in their order: pass the whole dataset")
    rows = table[_is_of(table, first, second)]
    if rows.empty:
        return None
    units = unit_index(first)
    # Tables of before 0.2 may lack `stable`, and lack `reciprocal`.
    flags = {name: rows.get(name, True) for name in ("stable", "reciprocal")}
    named = rows.assign(**flags).set_index(["layer", "channel"])[["counterpart", "best", "held_out", *flags]]
    strange = not named.index.isin(units).all() or named.index.has_duplicates
    if strange or not rows[["counterpart", "best"]].lt(second.sizes["unit"]).all(axis=None):
        raise ActstatsError("the matches are of other units than the stores': match these stores again")
    if len(named) < len(units):
        raise ActstatsError(
            f"the matches have {len(named):,} of the {len(units):,} units of the store: match these stores again"
        )
    named = named.reindex(units)
    numbers = {name: named[name].astype(np.int64).to_numpy() for name in ("counterpart", "best")}
    truths = {name: named[name].to_numpy(dtype=bool) for name in flags}
    columns = {**numbers, "held_out": named["held_out"].to_numpy(dtype=np.float64), **truths}
    return xr.Dataset({name: ("unit", values) for name, values in columns.items()})


@dataclass(frozen=True)
class _Candidates:
    """Neighbouring layers of the first store, and where to seek their units.

    Attributes:
        here: of each layer, its units in the first store.
        there: the candidates in the second store.
        own: of each layer, the units of the layer of the same name in the second store; None: it lacks it.
    """

    here: list[slice]
    there: slice
    own: list[slice | None]

    @property
    def units(self) -> slice:
        """All units to match."""
        return slice(self.here[0].start, self.here[-1].stop)


def _match(
    first: xr.Dataset, second: xr.Dataset, variable: str, across: bool, least: float, seed: int, *, both: bool
) -> list[xr.Dataset]:
    if not 0 <= least <= 1:
        raise ActstatsError(f"`least=` is a correlation from 0 to 1, not {least}")
    require_package("scipy", "matching units")
    aligned = align([first, second], "match", variable, _FEWEST)
    layers, others = aligned.layers
    if not across and not (layers.keys() & others.keys()):
        raise ActstatsError(
            "the stores have no layer in common: match compares layers of the same name, or with `across=True` all"
        )
    jobs = [_job(names, layers, others, across) for names in aligned.strips(0)]
    rng = np.random.default_rng(seed)
    order = rng.permutation(aligned.rows)
    middle = len(order) // 2
    half, tested = (np.zeros(aligned.attrs["images"], dtype=bool) for _ in range(2))
    half[order[:middle]] = True
    tested[order[middle:][:_TESTED]] = True
    draws = int(rng.integers(2**63))
    matched = spread(
        lambda job: _matched(aligned, job, half, tested, draws, both), [job for job in jobs if job]
    )
    results = []
    for direction in range(1 + both):
        parts = [part for strip in matched for part in strip.parts[direction]]
        here, there = aligned.units[direction], aligned.units[1 - direction]
        placed = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        blocks = [block for strip in matched for block in strip.favourites[direction]]
        favourites = [_favourites(blocks, at, len(there)) for at in (0, 1)]
        _decide(placed, favourites, least)
        units = here[placed.pop("unit")]
        along = np.argsort(units)
        gathered = {name: values[along] for name, values in placed.items()}
        for name in ("counterpart", "best", "partner"):
            at = gathered[name]
            gathered[name] = np.where(at >= 0, there[at], -1)
        a, b = (first, second)[direction], (second, first)[direction]
        kept = usable(a, "match").isel(unit=units[along])
        candidates = usable(b, "match")
        for name in ("counterpart", "partner"):
            at = gathered[name]
            gathered[f"{name}_channel"] = np.where(at >= 0, candidates["channel"].values[at], -1)
        at = gathered["counterpart"]
        gathered["counterpart_layer"] = np.where(at >= 0, candidates["layer"].values[at], "")
        made = {
            name: xr.DataArray(gathered[name], dims="unit", attrs={"units": "", "long_name": text})
            for name, text in _DESCRIBED.items()
        }
        attrs = {**aligned.attrs, **_identity(a, b), "across": int(across), "least": least, "level": LEVEL}
        attrs |= {"images_tested": int(tested.sum()), "permutations": PERMUTATIONS, "seed": seed}
        attrs["other_whole"] = int(_is_whole(candidates, b))
        results.append(result(made, kept).assign_attrs(attrs))
    return results


def _identity(first: xr.Dataset, second: xr.Dataset) -> dict[str, str]:
    """Return what tells matches apart: the checksums of both networks' weights, and of the images as seen."""
    manifests = [require_manifest(dataset, "match") for dataset in (first, second)]
    weights = [manifest.weights.sha256[:12] for manifest in manifests]
    seen = json.dumps([manifest.treatment for manifest in manifests], sort_keys=True).encode()
    images = f"{manifests[0].data.fingerprint[:12]}-{hashlib.sha256(seen).hexdigest()[:8]}"
    return dict(zip(_KEYS, (*weights, images), strict=True))


def _is_of(table: pd.DataFrame, first: xr.Dataset, second: xr.Dataset) -> NDArray[np.bool_]:
    """Return which rows of a table of matches are of these two stores."""
    keys = _identity(first, second)
    alike = table[[*_KEYS[:2]]].eq([keys[name] for name in _KEYS[:2]]).all(axis=1)
    images, (fingerprint, _, _) = keys[_KEYS[2]], keys[_KEYS[2]].partition("-")
    # Tables of 0.1 do not say how the images were seen, which is taken to be undistorted and exact.
    manifests = [require_manifest(dataset, "match") for dataset in (first, second)]
    plain = all((m.distort, m.amp, m.bitround) == ((), "off", None) for m in manifests)
    known = table[_KEYS[2]].isin([images, fingerprint] if plain else [images])
    return np.asarray(alike & known)


def _is_whole(dataset: xr.Dataset, store: xr.Dataset) -> bool:
    """Return whether a dataset has all units of a store, in their order."""
    units = unit_coordinates(require_manifest(store, "match").layers)
    return all(np.array_equal(dataset[name].values, units[name]) for name in ("layer", "channel"))


def _job(names: list[str], layers: UnitAxis, others: UnitAxis, across: bool) -> list[_Candidates]:
    if across:
        everywhere = slice(0, others.total)
        return [
            _Candidates([layers[name] for name in names], everywhere, [others.get(name) for name in names])
        ]
    return [_Candidates([layers[name]], others[name], [others[name]]) for name in names if name in others]


class _Sums:
    """Sums over images of the products of some units' values with those of others, from which correlations follow."""

    def __init__(self, here: int, there: int) -> None:
        self.images = 0
        self.products = np.zeros((here, there))
        self.sums = [np.zeros(here), np.zeros(there)]
        self.squares = [np.zeros(here), np.zeros(there)]

    def add(self, x: Floats, y: Floats) -> None:
        self.images += len(x)
        self.products += x.T @ y
        for at, values in enumerate((x, y)):
            self.sums[at] += values.sum(0)
            self.squares[at] += (values * values).sum(0)

    def join(self, other: _Sums) -> None:
        self.images += other.images
        for mine, theirs in ((self.products, other.products), *zip(self.sums, other.sums, strict=True),
                             *zip(self.squares, other.squares, strict=True)):  # fmt: skip
            mine += theirs

    def correlations(self) -> Floats:
        """Return the correlation of each unit with each other one, f64; -2, below all of them, for a constant one."""
        n = self.images
        spreads = [squares - sums**2 / n for sums, squares in zip(self.sums, self.squares, strict=True)]
        # A unit that is constant in these images but not in all lies off its centre, where rounding leaves a spread.
        rounding = 4 * n * np.finfo(np.float64).eps
        x, y = (
            np.sqrt(np.where(spread > rounding * squares, spread, 0))
            for spread, squares in zip(spreads, self.squares, strict=True)
        )
        found = self.products - np.outer(self.sums[0] / n, self.sums[1])
        with np.errstate(invalid="ignore", divide="ignore"):
            found /= x[:, None]
            found /= y
        np.clip(found, -1, 1, out=found)
        found[x == 0] = -2
        found[:, y == 0] = -2
        return found


@dataclass(frozen=True)
class _Matched:
    """What one job says of its units, by direction.

    Attributes:
        parts: for each layer, numbers by unit.
        favourites: for each block of candidates, its slice, and for each half the greatest correlation of every
            candidate with a unit of the block, and that unit.
    """

    parts: list[list[dict[str, NDArray[Any]]]]
    favourites: list[list[tuple[slice, list[tuple[Floats, Rows]]]]]


def _matched(
    aligned: Aligned,
    job: list[_Candidates],
    half: NDArray[np.bool_],
    tested: NDArray[np.bool_],
    seed: int,
    both: bool,
) -> _Matched:
    """Match the units of one job's layers: choose on `half` of the images, measure on the rest, test on `tested`."""
    columns = [cover([pair.units for pair in job]), cover([pair.there for pair in job])]
    places = [(within(pair.units, columns[0]), within(pair.there, columns[1])) for pair in job]
    halves = [[_Sums(_size(pair.units), _size(pair.there)) for pair in job] for _ in range(2)]
    kept: list[list[NDArray[np.float32]]] = [[], []]
    for rows, (x, y) in aligned.blocks([0, 1], columns):
        for sums, here in zip(halves, (half[rows], ~half[rows]), strict=True):
            u, v = x[here], y[here]
            for one, (a, b) in zip(sums, places, strict=True):
                one.add(u[:, a], v[:, b])
        for sample, values in zip(kept, (x, y), strict=True):
            sample.append(values[tested[rows]].astype(np.float32))
    samples = [np.concatenate(sample) for sample in kept]
    matched = _Matched([[], []], [[], []])
    for number, (pair, (a, b)) in enumerate(zip(job, places, strict=True)):
        one, two = halves[0][number], halves[1][number]
        agreed = [sums.correlations() for sums in (one, two)]
        one.join(two)
        agreed.append(one.correlations())
        one_half, other_half = samples[0][:, a], samples[1][:, b]
        channels = aligned.channels
        for layer, own in zip(pair.here, pair.own, strict=True):
            place = within(layer, pair.units)
            units = [matrix[place] for matrix in agreed]
            part = _of_layer(units, one_half[:, place], other_half, layer, pair.there, own, channels, seed)
            matched.parts[0].append(part)
            if both:
                back = [matrix.T for matrix in units]
                part = _of_layer(
                    back, other_half, one_half[:, place], pair.there, layer, layer, channels[::-1], seed
                )
                matched.parts[1].append(part)
        for direction, (place, others) in enumerate(
            [(pair.units, pair.there), (pair.there, pair.units)][: 1 + both]
        ):
            best = [(matrix.max(direction), matrix.argmax(direction) + place.start) for matrix in agreed[:2]]
            matched.favourites[direction].append((others, best))
    return matched


def _favourites(
    blocks: Iterable[tuple[slice, list[tuple[Floats, Rows]]]], half: int, candidates: int
) -> Rows:
    """Return for each candidate the unit that correlates best with it in one half, i64; -1: none."""
    greatest, favourite = np.full(candidates, -2.0), np.full(candidates, -1)
    for place, best in blocks:
        agrees, unit = best[half]
        better = agrees > greatest[place]
        greatest[place][better], favourite[place][better] = agrees[better], unit[better]
    return favourite


def _decide(placed: dict[str, NDArray[Any]], favourites: Sequence[Rows], least: float) -> None:
    """Add `counterpart` and `reciprocal` to numbers by unit; removes the choices on both halves."""
    chosen, chosen_two = placed.pop("chosen"), placed.pop("chosen_two")
    mutual = [favourite[chosen] == placed["unit"] for favourite in favourites]
    placed["reciprocal"] = (chosen >= 0) & (chosen == chosen_two) & mutual[0] & mutual[1]
    significant = (placed["held_out"] >= least) & (placed["q"] <= LEVEL)
    has = significant & placed["reciprocal"] & placed["stable"]
    placed["counterpart"] = np.where(has, chosen, -1)


def _of_layer(
    agreed: list[Floats],
    x: NDArray[np.float32],
    y: NDArray[np.float32],
    layer: slice,
    candidates: slice,
    own: slice | None,
    channels: Sequence[NDArray[np.integer[Any]]],
    seed: int,
) -> dict[str, NDArray[Any]]:
    """Choose counterparts and test them, from correlations with candidates: on half one, on half two, on all images.

    `x` and `y` are values of the layer's units and of the candidates on images of half two; `channels` are those of
    the units of the layer's store, and those of the other.
    """
    from scipy.optimize import linear_sum_assignment

    by_one, by_two, whole = agreed
    units = np.arange(len(whole))
    best, chosen = whole.argmax(1), by_one.argmax(1)
    ranked = (
        np.partition(whole, -2, axis=1)[:, -2:]
        if whole.shape[1] > 1
        else np.pad(whole, ((0, 0), (1, 0)), constant_values=-2)
    )
    greatest, second = ranked[:, 1], ranked[:, 0]
    chose = by_one[units, chosen] > -2  # not for a unit that is constant in that half
    held_out, stable = np.where(chose, by_two[units, chosen], -2), chose & (chosen == best)
    p = np.full(len(units), np.nan)
    testable = held_out > -2
    p[testable] = permutation_test(x[:, testable], y[:, chosen[testable]], LEVEL, seed)
    same, partner, agrees = np.full(len(units), np.nan), np.full(len(units), -1), np.full(len(units), np.nan)
    if own is not None:
        block = whole[:, within(own, candidates)]
        place = pd.Index(channels[1][own])
        at = place[~place.duplicated()].get_indexer(channels[0][layer])
        same[at >= 0] = _known(block[:, ~place.duplicated()][at >= 0, at[at >= 0]])
        row, column = linear_sum_assignment(np.maximum(block, -1), maximize=True)
        real = block[row, column] > -2
        partner[row[real]], agrees[row[real]] = own.start + column[real], block[row[real], column[real]]
    return {
        "unit": np.arange(layer.start, layer.stop),
        "chosen": np.where(chose, candidates.start + chosen, -1),
        "chosen_two": candidates.start + by_two.argmax(1),
        "best": np.where(greatest > -2, candidates.start + best, -1),
        "correlation": _known(greatest),
        "margin": np.where(second > -2, greatest - second, np.nan),
        "held_out": _known(held_out),
        "stable": stable,
        "p": p,
        "q": benjamini_hochberg(p),
        "same_channel": same,
        "partner": partner,
        "partner_correlation": agrees,
    }


def _known(found: Floats) -> Floats:
    return np.where(found > -2, found, np.nan)


def _size(place: slice) -> int:
    return int(place.stop - place.start)
