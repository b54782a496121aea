"""Sets of units to be ablated: each alone, by index, by what they detect, by rank in a table.

>>> units_named(["conv1/3", "conv1/7", "fc/0"])
UnitSet(name='conv1/3+conv1/7+fc/0', units={'conv1': (3, 7), 'fc': (0,)})
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from actstats.errors import ActstatsError, nearest, one_line
from actstats.layers import Layer
from actstats.records import load

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class UnitSet:
    """Units under one name: channels by layer, in increasing order."""

    name: str
    units: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, name: str, pairs: Iterable[tuple[str, int]]) -> UnitSet:
        """Return the set of these (layer, channel)."""
        units: dict[str, set[int]] = {}
        for layer, channel in pairs:
            units.setdefault(layer, set()).add(int(channel))
        return cls(name, {layer: tuple(sorted(channels)) for layer, channels in units.items()})

    def __len__(self) -> int:
        return sum(len(channels) for channels in self.units.values())


def each_unit(layers: Sequence[Layer]) -> list[UnitSet]:
    """Return a set for every unit of the layers, by itself, named `layer/channel`."""
    return [
        UnitSet(f"{layer.name}/{channel}", {layer.name: (channel,)})
        for layer in layers
        for channel in range(layer.units)
    ]


def units_named(names: Sequence[str]) -> UnitSet:
    """Return the set of the units named `layer/channel`.

    Raises:
        ActstatsError: a name of another form, or none.
    """
    pairs = []
    for name in names:
        layer, slash, channel = name.rpartition("/")
        if not slash or not layer or not channel.isdecimal():
            raise ActstatsError(f"a unit is named LAYER/CHANNEL, inception4c/17 say, not {name!r}")
        pairs.append((layer, int(channel)))
    if not pairs:
        raise ActstatsError("no unit was named: give LAYER/CHANNEL, inception4c/17 say")
    return UnitSet.of("+".join(names), pairs)


def by_category(table: pd.DataFrame) -> list[UnitSet]:
    """Return a set for each layer and each category of concepts that units of the layer detect: `conv1:object`.

    `table` is that of `dissection`, a row a unit. Units that detect nothing are in none.

    Raises:
        ActstatsError: a column is missing, or no unit detects anything.
    """
    _require(table, "concept_category", "detects")
    found = table[table["detects"].astype(bool)]
    if found.empty:
        raise ActstatsError("no unit in the table detects a concept: there is no category to ablate")
    return [
        UnitSet.of(f"{layer}:{category}", zip(part["layer"], part["channel"], strict=True))
        for (layer, category), part in found.groupby(["layer", "concept_category"], sort=False)
    ]


def by_rank(table: pd.DataFrame, column: str, shares: Sequence[float]) -> list[UnitSet]:
    """Return, for each layer and share, the set of its units with the lowest and that with the highest values.

    Named `conv1:lowest 25% roughness`. Units without a value (NaN) are in none; a set has at least one unit.

    Raises:
        ActstatsError: no such column, or a share outside (0, 1).
    """
    _require(table, column)
    for share in shares:
        if not 0 < share < 1:
            raise ActstatsError(f"a share of the units is in (0, 1), 0.25 say, not {share:g}")
    if table[column].dtype.kind not in "biuf":
        raise ActstatsError(f"units are ranked by numbers, which the column {column!r} does not hold")
    sets = []
    for layer, part in table.dropna(subset=[column]).groupby("layer", sort=False):
        ranked = part.sort_values(column, kind="stable")
        for share in shares:
            count = max(1, round(share * len(ranked)))
            for end, chosen in (("lowest", ranked.head(count)), ("highest", ranked.tail(count))):
                pairs = zip(chosen["layer"], chosen["channel"], strict=True)
                sets.append(UnitSet.of(f"{layer}:{end} {share:.4g} {column}", pairs))
    return sets


def complement(chosen: UnitSet, layers: Sequence[Layer]) -> UnitSet:
    """Return the other units of the layers that a set touches: ablating them keeps only the set."""
    units = {
        layer.name: tuple(sorted(set(range(layer.units)) - set(chosen.units[layer.name])))
        for layer in layers
        if layer.name in chosen.units
    }
    return UnitSet(f"all but {chosen.name}", units)


def check_units(sets: Sequence[UnitSet], layers: Sequence[Layer]) -> None:
    """Raise `ActstatsError` if a set has a unit that the layers do not."""
    units = {layer.name: layer.units for layer in layers}
    for chosen in sets:
        for layer, channels in chosen.units.items():
            if layer not in units:
                raise ActstatsError(f"{chosen.name}: no layer is named {layer!r}{nearest(layer, units)}")
            if channels and max(channels) >= units[layer]:
                raise ActstatsError(
                    f"{chosen.name}: {layer} has {units[layer]} units, counted from 0, but no {max(channels)}"
                )


def read_units(path: Path) -> pd.DataFrame:
    """Return a table of units that `write_table` wrote: .csv, .parquet or .json, with `layer` and `channel`.

    Raises:
        ActstatsError: it cannot be read, or has no such columns.
    """
    import pandas as pd

    from actstats.analysis.tables import from_csv

    readers: dict[str, Callable[[Path], pd.DataFrame]] = {
        # Names of layers and concepts may look like numbers, or like no value: "0.10", "null".
        ".csv": lambda path: _typed(from_csv(pd.read_csv(path, dtype=str, keep_default_na=False))),
        ".parquet": pd.read_parquet,
        ".json": lambda path: pd.DataFrame(load(path.read_text(encoding="utf-8"))),
    }
    if path.suffix not in readers:
        raise ActstatsError(f"a table of units is read from {', '.join(readers)}, not from {path.name}")
    try:
        table = readers[path.suffix](path)
    except FileNotFoundError:
        raise ActstatsError(f"no such table of units: {path}") from None
    except (OSError, ValueError, ImportError) as error:
        raise ActstatsError(f"cannot read {path}: {one_line(error)}") from None
    _require(table)
    channels = pd.to_numeric(table["channel"], errors="coerce")
    if not (channels.ge(0) & channels.mod(1).eq(0)).all():
        raise ActstatsError(
            f"{path}: a channel is an integer from 0, not {table['channel'][channels.isna()].tolist()[:1]}"
        )
    return table.assign(layer=table["layer"].astype(str), channel=channels.astype(int))


def _typed(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table of text with its numbers and flags as such; names of layers and concepts stay text."""
    import pandas as pd

    columns = {}
    for name, texts in table.items():
        if name == "layer" or str(name).endswith(("_name", "_category")):
            columns[name] = texts
        elif texts.isin(["True", "False"]).all():
            columns[name] = texts == "True"
        else:
            numbers = pd.to_numeric(texts.where(texts != ""), errors="coerce")
            columns[name] = (
                texts if (numbers.isna() & ~texts.str.lower().isin(["", "nan"])).any() else numbers
            )
    return pd.DataFrame(columns)


def _require(table: pd.DataFrame, *columns: str) -> None:
    known = [str(name) for name in table]
    for name in ("layer", "channel", *columns):
        if name not in known:
            hint = nearest(name, known) or f"; it has {', '.join(known)}"
            raise ActstatsError(f"the table of units has no column {name!r}{hint}")
