"""`write_report`: from one store or two to a page, or to a page and a folder of what it loads when needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from actstats.analysis.coverage import notes as coverage_notes
from actstats.analysis.coverage import open_dataset, usable
from actstats.analysis.pairing import require_same_units
from actstats.errors import ActstatsError
from actstats.report.contents import layer_parts, overview_part
from actstats.report.findings import ELSEWHERE, PAPER, RULE, Finding, findings
from actstats.report.measures import Measure, measure_units, shown
from actstats.report.networks import rebuild, swept_fields
from actstats.report.page import folder_of, write_single, write_with_folder
from actstats.report.pictures import Collection
from actstats.report.sides import Side, class_names, read_side
from actstats.store.manifest import versions

LARGEST_PAGE: Final = 32_000_000
"""Bytes up to which a report is one file."""
_A_THUMBNAIL: Final = 5_000
"""Bytes of a thumbnail in the page, about."""


@dataclass(frozen=True)
class Report:
    """What was written: the page, the folder beside it if there is one, bytes of all, the overview, and notes."""

    page: Path
    folder: Path | None
    bytes: int
    names: list[str]
    findings: list[Finding]
    notes: list[str]


@dataclass(frozen=True)
class Compared:
    """One store or two, S and R, with what is measured of their units."""

    names: list[str]
    datasets: list[xr.Dataset]
    measured: list[xr.Dataset]
    measures: list[Measure]
    networks: list[Any]
    findings: list[Finding]
    notes: list[str]

    @property
    def manifests(self) -> list[dict[str, Any]]:
        """The stores' attributes."""
        return [dict(dataset.attrs) for dataset in self.datasets]


def compare(
    stores: Sequence[str | Path], *, names: Sequence[str] = (), noisy: Sequence[str | Path] = ()
) -> Compared:
    """Measure every unit of one store, or of two of the same layers, and set the two side by side: S and R.

    Args:
        stores: what `actstats sweep` wrote, one or two; of two, S and R.
        names: how the stores are called; none: by their file names.
        noisy: for each store a sweep of the same network on the same images with noise, or none.

    Raises:
        ActstatsError: no store, two of other layers, nothing in them that could be measured, a missing extra.
    """
    if len(stores) not in (1, 2):
        raise ActstatsError(f"one store or two can be compared, not {len(stores)}")
    if noisy and len(noisy) != len(stores):
        raise ActstatsError(f"give a noisy sweep for each of the {len(stores)} stores, not {len(noisy)}")
    called = _names(stores, names)
    datasets = [open_dataset(store) for store in stores]
    if len(datasets) == 2:
        require_same_units(*datasets)
    against = [open_dataset(store) for store in noisy] if noisy else [None] * len(datasets)
    measured, notes = [], []
    for name, dataset, other in zip(called, datasets, against, strict=True):
        units, problems = measure_units(dataset, other)
        measured.append(units)
        notes += [f"{name}: {line}" for line in (*coverage_notes(usable(dataset, "the report")), *problems)]
    measures = shown(measured)
    networks = [rebuild(dataset.attrs) for dataset in datasets]
    lines = findings(measured, measures, networks)
    return Compared(called, datasets, measured, measures, networks, lines, notes)


def write_report(
    stores: Sequence[str | Path],
    page: str | Path,
    *,
    names: Sequence[str] = (),
    noisy: Sequence[str | Path] = (),
    data: str | None = None,
    top: int = 8,
    largest_page: int = LARGEST_PAGE,
) -> Report:
    """Write the report of one store, or of two of the same layers set side by side: S and R.

    It is one HTML file while that is small; else its data and thumbnails lie in a folder beside it, PAGE_files, and
    are loaded when they are looked at. Both open from a disk, and ask nothing of a network.

    Args:
        stores: as for `compare`, like `names` and `noisy`.
        page: where the HTML file shall be.
        names: how the stores are called in it.
        noisy: sweeps with noise.
        data: where the images lie now, if they were moved since they were swept.
        top: top images of a unit that are shown, at most.
        largest_page: bytes beyond which a folder is made.

    Raises:
        ActstatsError: as `compare`, and where the page cannot be written. Images that are not at hand stop nothing:
            the report notes it.
    """
    page = Path(page)
    if page.suffix.lower() not in (".html", ".htm"):
        raise ActstatsError(f"the report is a web page: give a name that ends in .html, not {page.name}")
    _require_same_sizes([open_dataset(store) for store in stores])
    compared = compare(stores, names=names, noisy=noisy)
    first, *_ = manifests = compared.manifests
    classes, sides = class_names(compared.datasets), []
    for dataset, table in zip(compared.datasets, classes.tables, strict=True):
        sides.append(read_side(dataset, top, table))
    collection = Collection()
    numbers = [
        _numbered(collection, *each, data)
        for each in zip(compared.datasets, sides, classes.tables, strict=True)
    ]
    pictures = collection.pictures()
    layers = dict(layer_parts(first, sides, numbers))
    fields = swept_fields(first, compared.networks[0])
    title = f"{first['arch']}: {' and '.join(compared.names)}"
    notes = [*compared.notes, *collection.notes]
    two = len(manifests) == 2
    context = {
        "title": title,
        "stores": [{"name": n, "facts": _facts(m)} for n, m in zip(compared.names, manifests, strict=True)],
        "notes": notes,
        "findings": compared.findings,
        "source": f"{PAPER}. {_sides(compared.names)}" if two else "Medians over all units.",
        "rule": RULE if two else "",
        "elsewhere": ELSEWHERE if two else (),
        "version": versions().get("actstats", ""),
    }

    def overview(kept: Sequence[bool]) -> str:
        return overview_part(
            title,
            compared.names,
            first,
            classes.names,
            compared.measures,
            compared.measured,
            fields,
            pictures,
            kept,
        )

    large = sum(map(len, layers.values())) + pictures.at_hand * _A_THUMBNAIL > largest_page
    write = write_with_folder if large else write_single
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        size = write(page, context, layers, pictures.thumbnails(), overview)
    except OSError as error:
        raise ActstatsError(f"cannot write the report {page}: {error.strerror or error}") from error
    return Report(page, folder_of(page) if large else None, size, compared.names, compared.findings, notes)


def _names(stores: Sequence[str | Path], names: Sequence[str]) -> list[str]:
    if names and len(names) != len(stores):
        raise ActstatsError(f"give a name for each of the {len(stores)} stores, not {len(names)}")
    found = list(names) or [Path(store).name.removesuffix(".zarr") for store in stores]
    if len(set(found)) < len(found):
        if names:
            raise ActstatsError(f"both stores are called {found[0]}; give two names")
        found = [f"{name} ({letter})" for name, letter in zip(found, "SR", strict=False)]
    return found


def _sides(names: Sequence[str]) -> str:
    """Return which store is S and which R, unless their names say so."""
    return "" if list(names) == ["S", "R"] else f"S is {names[0]}, R is {names[1]}."


def _numbered(
    collection: Collection, dataset: xr.Dataset, side: Side, classes: NDArray[np.int32], data: str | None
) -> NDArray[np.int32] | None:
    if side.top is None:
        return None
    labels = classes[dataset["label"].values]
    return collection.number(dataset.attrs, dataset["path"].values, labels, side.top[1], data)


def _require_same_sizes(datasets: Sequence[xr.Dataset]) -> None:
    """Raise an `ActstatsError` that names a layer whose maps have not one size: a page has one place for each."""
    first, last = datasets[0].attrs["layers"], datasets[-1].attrs["layers"]
    for one, other in zip(first, last, strict=False):
        sizes = [f"{entry['height']} x {entry['width']}" for entry in (one, other)]
        if one["name"] == other["name"] and sizes[0] != sizes[1]:
            raise ActstatsError(
                f"layer {one['name']} has maps of {sizes[0]} in the first store and {sizes[1]} in the second: sweep "
                "both with one size of input, or compare without --report"
            )


def _facts(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what is said of a store at the head of the report."""
    weights, data, preprocessing = manifest["weights"], manifest["data"], manifest["preprocessing"]
    source = "random, seed " + str(weights["seed"]) if weights["source"] == "none" else weights["source"]
    units = sum(entry["units"] for entry in manifest["layers"])
    distorted = [("distorted", " + ".join(manifest["distort"]))] if "distort" in manifest else []
    return [
        ("network", f"{manifest['arch']}, {units:,} units in {len(manifest['layers'])} layers"),
        ("weights", f"{source}, SHA-256 {weights['sha256'][:12]}"),
        ("images", f"{data['images']:,} of {data['spec']}"),
        *distorted,
        ("input", f"{preprocessing['crop']} x {preprocessing['crop']} pixels"),
        ("swept", manifest["created"][:10]),
    ]
