"""Convert results by unit to tables, with one row per unit or per layer, and write them to files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import xarray as xr

from actstats.errors import ActstatsError
from actstats.store.dataset import plain
from actstats.support import require_package
from actstats.text import for_spreadsheet, from_spreadsheet

FORMATS: Final = (".csv", ".parquet", ".json")
_KEYS: Final = ("layer", "channel")


def unit_table(found: xr.Dataset) -> pd.DataFrame:
    """Return a result by unit as a table in memory: `layer`, `channel`, and one column per variable.

    A variable with a further dimension has one column per label, such as `share[0.015625]`.

    Raises:
        ActstatsError: the result is not by unit.
    """
    found = plain(found).compute()
    for key in _KEYS:
        if key not in found.variables or found[key].dims != ("unit",):
            raise ActstatsError(
                f"a table by unit needs the coordinate {key} along unit, which the result lacks"
            )
    return pd.DataFrame({**{key: found[key].values for key in _KEYS}, **dict(_columns(found))})


def by_layer(found: xr.Dataset) -> pd.DataFrame:
    """Summarise a result by layer, with one row per layer in order of execution.

    Columns are `layer`, `units` and, for each variable, its mean over the units (`step`), median (`step_median`),
    10th and 90th percentile (`step_p10`, `step_p90`), and the number of units with a value (`step_units`), which all
    of these are of: units without one (NaN) are left out. For a bool variable the column is the number of units for
    which it is True. Integers, such as the preferred class, have no column.
    """
    table = unit_table(found)
    flags = [str(name) for name in table if table[name].dtype == bool]
    numbers = [str(name) for name in table if table[name].dtype.kind == "f"]
    grouped = table.groupby("layer", sort=False)
    spread = {"": grouped[numbers].mean(), "_median": grouped[numbers].median()}
    spread |= {f"_p{round(100 * q)}": grouped[numbers].quantile(q) for q in (0.1, 0.9)}
    spread["_units"] = grouped[numbers].count()
    parts = [grouped.size().rename("units").to_frame(), grouped[flags].sum()]
    parts += [part.add_suffix(suffix) for suffix, part in spread.items()]
    whole = pd.concat(parts, axis=1)
    # Keep the columns of each variable together.
    order = ["units", *flags, *(f"{name}{suffix}" for name in numbers for suffix in spread)]
    return whole[order].reset_index()


def counts_of(table: pd.DataFrame, columns: Sequence[str]) -> dict[str, str]:
    """Return, of these columns of `by_layer`, those that are not of all units, with the column of their counts."""
    counts = {column: f"{column}_units" for column in columns if f"{column}_units" in table}
    return {column: count for column, count in counts.items() if (table[count] < table["units"]).any()}


def columns_of(table: pd.DataFrame, numbers: Sequence[str]) -> list[str]:
    """Return the columns of `numbers` in a table: one for each, or one per label, such as `share[0.015625]`."""
    return [
        column
        for number in numbers
        for column in map(str, table)
        if column == number or (column.startswith(f"{number}[") and column.endswith("]"))
    ]


def write_table(table: pd.DataFrame, path: str | Path) -> None:
    """Write a table as CSV, Parquet or JSON (a list of rows), depending on the extension of `path`.

    Raises:
        ActstatsError: the extension is unknown, the file cannot be written, or pyarrow (for Parquet) is not
            installed.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise ActstatsError(f"tables can be written as {', '.join(FORMATS)}, not as {path.name}")
    if path.suffix == ".parquet":
        require_package("pyarrow", "a Parquet file")
    try:
        if path.suffix == ".csv":
            write_csv(table, path)
        elif path.suffix == ".parquet":
            table.to_parquet(path, index=False)
        else:
            path.write_text(to_json(table) + "\n", encoding="utf-8")
    except OSError as error:
        raise ActstatsError(f"cannot write {path}: {error.strerror or error}") from error


def write_csv(table: pd.DataFrame, path: str | Path) -> None:
    """Write a table as CSV; texts that a spreadsheet would compute begin with an apostrophe, as `from_csv` knows."""
    _texts(table, for_spreadsheet).to_csv(path, index=False)


def from_csv(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table that pandas read from a file of `write_csv`, with its texts as they were."""
    return _texts(table, from_spreadsheet)


def _texts(table: pd.DataFrame, change: Callable[[str], str]) -> pd.DataFrame:
    changed = table.map(lambda value: change(value) if isinstance(value, str) else value)
    return changed.rename(columns=lambda name: change(name) if isinstance(name, str) else name)


def to_json(table: pd.DataFrame) -> str:
    """Return a table as a JSON list of rows, with null for NaN and infinities, which JSON does not support.

    >>> print(to_json(pd.DataFrame({"layer": ["conv1"], "step": [float("nan")]})))
    [
     {
      "layer": "conv1",
      "step": null
     }
    ]
    """
    known = table.replace([np.inf, -np.inf], np.nan).astype(object)
    return json.dumps(known.where(known.notna(), None).to_dict("records"), indent=1, allow_nan=False)


def _columns(found: xr.Dataset) -> Iterator[tuple[str, Any]]:
    for name, variable in found.data_vars.items():
        if "unit" not in variable.dims or variable.ndim > 2:
            raise ActstatsError(
                f"a table by unit needs variables along unit and at most one more dimension, and {name} is along "
                f"{', '.join(map(str, variable.dims)) or 'none'}"
            )
        if variable.ndim == 1:
            yield str(name), variable.values
            continue
        (extra,) = (dim for dim in variable.dims if dim != "unit")
        labels = found[extra].values if extra in found.coords else np.arange(found.sizes[extra])
        for label, values in zip(labels.tolist(), variable.transpose(extra, "unit").values, strict=True):
            yield f"{name}[{label}]", values
