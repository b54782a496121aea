"""Write the report: an HTML page, or a page and a folder from which it loads data on demand.

The page's content security policy admits only its own style and script, by their hashes, and forbids connections.
Text from users, such as names of files and classes, is escaped in the markup and otherwise only ever set as text.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import math
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, TypedDict, Unpack
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from actstats.analysis.plotting import COLOURS, colours, shades
from actstats.data import Source
from actstats.errors import ActstatsError, listed
from actstats.passes.images import OnProgress
from actstats.report.contents import (
    SHOWN,
    ClassTable,
    Side,
    class_names,
    layer_parts,
    overview_part,
    pack,
    read_side,
    top_maps,
)
from actstats.report.findings import ELSEWHERE, PAPER, Compared, Finding, compare
from actstats.report.networks import swept_fields
from actstats.report.pictures import Collection
from actstats.report.verdicts import rule
from actstats.store.manifest import Manifest, versions
from actstats.store.merging import hold
from actstats.store.sweep import Sweep, open_sweep
from actstats.support import replace_file

LARGEST_PAGE: Final = 32_000_000
"""Size in bytes up to which a report is one file."""
_THUMBNAIL: Final = 5_000
"""Typical size in bytes of a thumbnail in the page."""
_SCRIPTS: Final = ("dom.js", "parts.js", "plots.js", "views.js", "main.js")

Overview = Callable[[Sequence[bool]], str]
"""Makes the part `overview`, once it is known which pictures have thumbnails."""


@dataclass(frozen=True)
class Report:
    """A report that was written.

    Attributes:
        page: the HTML file.
        folder: the folder beside it, or None if the report is one file.
        bytes: size of all files.
        names: names of the stores.
        findings: the overview.
        notes: what a reader has to know about the stores, one line each.
        columns: what the values of a finding are of: the names of the stores, or both groups.
    """

    page: Path
    folder: Path | None
    bytes: int
    names: list[str]
    findings: list[Finding]
    notes: list[str]
    columns: list[str]


def write_report(
    stores: Sequence[str | Path],
    page: str | Path,
    *,
    against: Sequence[str | Path] = (),
    names: Sequence[str] = (),
    noisy: Sequence[str | Path] = (),
    data: str | Path | Source | None = None,
    top: int = 8,
    largest_page: float = LARGEST_PAGE,
    pair: str = "match",
    matches: Sequence[str | Path] = (),
    trust: bool = False,
    maps: bool = False,
    on_progress: OnProgress | None = None,
) -> Report:
    """Write the report of one store, or of several with the same layers, the first of which is S, or of two groups.

    A small report is one HTML file. A large one keeps its data and thumbnails in a folder beside the page,
    PAGE_files, and loads them on demand. Both open from disk and load nothing from a network.

    Args:
        stores: stores written by `actstats sweep`; the standard network's, S, comes first.
        page: path of the HTML file.
        against: stores of the robust networks, if groups of networks are compared, as in `compare`.
        names: names of the stores, those of `against` last. Default: their file names.
        noisy: for each store, in the same order, a sweep of the same network over the same images with noise.
        data: the swept images, if they were moved since or came from a `Source` of your own: a path, or the source.
        top: largest number of top images shown per unit.
        largest_page: size in bytes beyond which the report gets a folder: 0 for always, `math.inf` for never.
        pair: what to show beside a unit: its counterpart (`match`), or the unit of the same index (`index`).
        matches: files of `actstats analyze match --by unit` to pair by.
        trust: use the factory, weights file or address that a store names, as `compare` does.
        maps: draw the activation map of each unit over its top images. The networks are run on these images again.
        on_progress: with `maps`, called after each batch of images.

    Raises:
        ActstatsError: as `compare`, or `page` cannot be written, or `largest_page` is negative or NaN. Missing images
            only raise with `maps`; otherwise the page shows placeholders and a note.
    """
    page = Path(page)
    if page.suffix.lower() not in (".html", ".htm"):
        raise ActstatsError(f"the report is a web page: give a name that ends in .html, not {page.name}")
    if math.isnan(largest_page) or largest_page < 0:
        raise ActstatsError(f"the largest page must be a size of 0 or more, not {largest_page}")
    sweeps, others = ([open_sweep(store, trust=trust) for store in group] for group in (stores, against))
    opened = [*sweeps, *others]
    _require_same_sizes([sweep.manifest for sweep in opened])
    for sweep, held in zip(opened, hold([sweep.dataset for sweep in opened], SHOWN), strict=True):
        sweep.dataset = held
    compared = compare(
        sweeps, against=others, names=names, noisy=noisy, pair=pair, matches=matches, trust=trust
    )
    sweeps, manifests = compared.sweeps, compared.manifests
    first, *_ = manifests
    classes = class_names([(sweep.dataset["label"].values, sweep.manifest.data.classes) for sweep in sweeps])
    sides = [
        read_side(sweep.dataset, top, table) for sweep, table in zip(sweeps, classes.tables, strict=True)
    ]
    collection = Collection()
    numbers = [_numbered(collection, *each, data) for each in zip(sweeps, sides, classes.tables, strict=True)]
    pictures = collection.pictures()
    laid: list[dict[str, NDArray[np.uint8]]] = [{} for _ in sides]
    if maps:
        from actstats.probing.forward import Passes

        passes = Passes(on_progress=on_progress)
        laid = [top_maps(sweep, side, data, passes) for sweep, side in zip(sweeps, sides, strict=True)]
    layers = dict(layer_parts(first, sides, numbers, laid))
    fields = swept_fields(first, compared.networks[0])
    title = f"{first.arch}: {listed(compared.names)}"
    notes = [*compared.notes, *collection.notes]
    several = len(manifests) > 1
    context = {
        "title": title,
        "stores": [{"name": n, "facts": _facts(m)} for n, m in zip(compared.names, manifests, strict=True)],
        "notes": notes,
        "findings": compared.findings,
        "source": f"{PAPER}. {_sides(compared)}" if several else "Medians over all units.",
        "rule": rule(groups=bool(compared.against)) if several else "",
        "columns": _columns(compared),
        "colours": _colours(compared),
        "robust": _robust(compared),
        "elsewhere": ELSEWHERE if several else (),
        "version": versions().get("actstats", ""),
    }

    def overview(kept: Sequence[bool]) -> str:
        return overview_part(title, compared, sides, classes.names, fields, pictures, kept)

    large = sum(map(len, layers.values())) + pictures.at_hand * _THUMBNAIL > largest_page
    folder = page.with_name(f"{page.stem}_files") if large else None
    size, parts = 0, {}
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        if folder:
            size = _write_folder(folder, layers, pictures.thumbnails(), overview)
        else:
            parts = _embedded(layers, pictures.thumbnails(), overview)
        html = _html(context, parts, quote(folder.name) if folder else "").encode()
        replace_file(page, html)
    except OSError as error:
        raise ActstatsError(f"cannot write the report {page}: {error.strerror or error}") from error
    return Report(page, folder, size + len(html), compared.names, compared.findings, notes, compared.columns)


@dataclass(frozen=True)
class Embedded:
    """A report in a notebook cell. The notebook's file contains the whole page.

    Attributes:
        html: the page.
        height: height of its frame in pixels.
        report: the findings and notes; its `page` was temporary and no longer exists.
    """

    html: str
    height: int
    report: Report

    def _repr_html_(self) -> str:
        # The page's scripts cannot reach the notebook: without `allow-same-origin` the frame has its own origin.
        # With `srcdoc`, links between the page's views would resolve against the notebook's address.
        page = base64.b64encode(self.html.encode()).decode()
        allowed = "allow-scripts allow-downloads allow-popups"
        return (
            f'<iframe src="data:text/html;charset=utf-8;base64,{page}" sandbox="{allowed}" '
            f'style="width: 100%; height: {self.height}px; border: 1px solid #8888"></iframe>'
        )


class ReportOptions(TypedDict, total=False):
    """The keyword arguments of `write_report`, apart from `largest_page`."""

    against: Sequence[str | Path]
    names: Sequence[str]
    noisy: Sequence[str | Path]
    data: str | Path | Source | None
    top: int
    pair: str
    matches: Sequence[str | Path]
    trust: bool
    maps: bool
    on_progress: OnProgress | None


def show(*stores: str | Path, height: int = 800, **options: Unpack[ReportOptions]) -> Embedded:
    """Return the report of one store, or of several with the same layers, for display in a notebook cell.

    Args:
        *stores: stores written by `actstats sweep`; the standard network's, S, comes first.
        height: height of the frame in pixels.
        **options: arguments of `write_report`, except `page` and `largest_page`.

    Raises:
        ActstatsError: as `write_report`.
    """
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        report = write_report(stores, page, largest_page=math.inf, **options)
        return Embedded(page.read_text(encoding="utf-8"), height, report)


def _sides(compared: Compared) -> str:
    """Return which stores are S and which R, unless their names say so."""
    names, against = compared.names, compared.against
    if against:
        return f"S is {listed(names[:-against])}; R is {listed(names[-against:])}."
    if names == ["S", "R"]:
        return ""
    return f"S is {names[0]}, R is {names[1] if len(names) == 2 else 'each of the others'}."


def _robust(compared: Compared) -> list[int]:
    """Return the numbers of the stores that are drawn as R: the second one, or those of the group."""
    first = len(compared.names) - compared.against
    return list(range(first, len(compared.names))) if compared.against else [1]


def _columns(compared: Compared) -> list[dict[str, Any]]:
    """Return name and store of each column of values: a store, or the first one of a group."""
    stores = [0, _robust(compared)[0]] if compared.against else range(len(compared.names))
    return [{"name": name, "store": store} for name, store in zip(compared.columns, stores, strict=True)]


def _colours(compared: Compared) -> list[str]:
    """Return a colour for each store; networks of a group have shades of one."""
    robust = _robust(compared)
    if not compared.against:
        return colours(len(compared.names))
    return [*shades(COLOURS["S"], robust[0]), *shades(COLOURS["R"], len(robust))]


def _numbered(
    collection: Collection,
    sweep: Sweep,
    side: Side,
    classes: ClassTable,
    data: str | Path | Source | None,
) -> NDArray[np.int32] | None:
    if side.top is None:
        return None
    return collection.number(sweep, classes[sweep.dataset["label"].values], side.top[1], data)


def _require_same_sizes(manifests: Sequence[Manifest]) -> None:
    """Raise an `ActstatsError` that names a layer whose maps differ in size: the page has one size per layer."""
    for other in manifests[1:]:
        for one, two in zip(manifests[0].layers, other.layers, strict=False):
            sizes = [f"{layer.height} x {layer.width}" for layer in (one, two)]
            if one.name == two.name and sizes[0] != sizes[1]:
                raise ActstatsError(
                    f"layer {one.name} has maps of {sizes[0]} in the first store and {sizes[1]} in another: sweep "
                    "all with the same input size, or compare without --report"
                )


def _facts(manifest: Manifest) -> list[tuple[str, str]]:
    """Return the facts about a store in the header of the report."""
    weights, data = manifest.weights, manifest.data
    channels, height, width = manifest.preprocessing.shape
    source = f"random, seed {weights.seed}" if weights.source == "none" else weights.source
    distorted = [("distorted", " + ".join(manifest.distort))] if manifest.distort else []
    precision = [] if manifest.amp == "off" else [str(manifest.amp)]
    if manifest.bitround is not None:
        precision.append(f"stored with {manifest.bitround} bits")
    return [
        ("network", f"{manifest.arch}, {manifest.units:,} units in {len(manifest.layers)} layers"),
        ("weights", f"{source}, SHA-256 {weights.sha256[:12]}"),
        ("images", f"{data.images:,} of {data.spec}"),
        *distorted,
        ("input", f"{height} x {width} pixels{'' if channels == 3 else f' in {channels} channels'}"),
        *([("precision", ", ".join(precision))] if precision else []),
        ("swept", manifest.created[:10]),
    ]


def _embedded(
    layers: Mapping[str, str], thumbnails: Iterable[bytes | None], overview: Overview
) -> dict[str, str]:
    """Return the parts of a report in one file."""
    images = list(thumbnails)
    ends = np.cumsum([len(image or b"") for image in images], dtype=np.int32)
    data = np.frombuffer(b"".join(image or b"" for image in images), dtype=np.uint8)
    pictures = pack({}, {"ends": ends, "bytes": data})
    return {"overview": overview([image is not None for image in images]), **layers, "pictures": pictures}


def _write_folder(
    folder: Path, layers: Mapping[str, str], thumbnails: Iterable[bytes | None], overview: Overview
) -> int:
    """Write the folder that a report loads from; return the size of its files in bytes.

    Raises:
        ActstatsError: something other than a report's folder is in its place.
    """
    if folder.exists() and not (folder / "overview.js").is_file():
        raise ActstatsError(
            f"{folder} exists and is not a report's folder; remove it, or write the report elsewhere"
        )
    making = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    (making / "pictures").mkdir(parents=True)
    try:
        size, kept = 0, []
        for index, image in enumerate(thumbnails):
            kept.append(image is not None)
            if image is not None:
                size += (making / "pictures" / f"{index}.jpg").write_bytes(image)
        for name, text in itertools.chain([("overview", overview(kept))], layers.items()):
            # The text is base64 and the name is one of ours, so both only need quotes.
            size += (making / f"{name}.js").write_text(
                f"actstatsPart({json.dumps(name)},{json.dumps(text)});\n"
            )
        shutil.rmtree(folder, ignore_errors=True)
        making.rename(folder)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return size


def _html(context: Mapping[str, Any], parts: Mapping[str, str], folder: str) -> str:
    source = files("actstats.report") / "page"
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters["minus"] = _with_minus
    environment.filters["short"] = _shortened
    render = environment.from_string
    style = render((source / "page.css").read_text("utf-8")).render(
        colours=context["colours"], robust=context["robust"]
    )
    # Wrapped in a function to keep its names out of the global scope.
    script = "\n".join((source / name).read_text("utf-8") for name in _SCRIPTS)
    script = f'"use strict";\n(() => {{\n{script}}})();\n'
    return render((source / "page.html").read_text("utf-8")).render(
        **context,
        folder=folder,
        parts=list(parts.items()),
        style=Markup(style),
        script=Markup(script),
        policy=_policy(style, script, bool(folder)),
    )


def _with_minus(text: str) -> str:
    """Return the text with typographic minus signs before numbers, as the script writes them.

    >>> _with_minus("delta -0.13, kernels of ResNet-50")
    'delta \u22120.13, kernels of ResNet-50'
    """
    return re.sub(r"(?<!\w)-(?=\d)", "\N{MINUS SIGN}", text)


def _shortened(name: str, most: int = 24) -> str:
    """Return a name shortened in the middle, as `shortName` in the script: names differ at both ends.

    >>> _shortened("googlenet"), _shortened("imagenet-resnet50-l2-eps3", 16)
    ('googlenet', 'imagenet-…2-eps3')
    """
    tail = int((most - 1) * 0.4)
    return name if len(name) <= most else f"{name[: most - 1 - tail]}…{name[len(name) - tail :]}"


def _policy(style: str, script: str, folder: bool) -> str:
    """Return the page's content security policy: its own style and script, no connection, no markup from text."""
    # 'strict-dynamic' admits the parts that our script loads from the folder, and `file:` pictures on disk.
    scripts, images = (" 'strict-dynamic'", "'self' file:") if folder else ("", "blob:")
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {_hash(script)}{scripts}",
            f"style-src {_hash(style)}",
            f"img-src {images}",
            "base-uri 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types parts",
        ]
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
