"""The page's file, and the folder of what it loads when needed; nothing in either comes from a network.

The page's policy (CSP) allows its own style and script, known by their hashes, and forbids every connection. Text of
users, names of files and of classes, is escaped in the markup, and is only ever set as text by the script.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from actstats.errors import ActstatsError
from actstats.report.parts import pack

_SCRIPTS: Final = ("dom.js", "parts.js", "plots.js", "views.js", "main.js")

Overview = Callable[[Sequence[bool]], str]
"""Makes the part `overview` when it is known of which pictures there are thumbnails."""


def write_single(
    page: Path,
    context: Mapping[str, Any],
    layers: Mapping[str, str],
    thumbnails: Iterable[bytes | None],
    overview: Overview,
) -> int:
    """Write the report as one file; return its size in bytes."""
    images = list(thumbnails)
    ends = np.cumsum([len(image or b"") for image in images], dtype=np.int32)
    data = np.frombuffer(b"".join(image or b"" for image in images), dtype=np.uint8)
    pictures = pack({}, {"ends": ends, "bytes": data})
    parts = {"overview": overview([image is not None for image in images]), **layers, "pictures": pictures}
    return _write(page, _html(context, parts, "").encode())


def write_with_folder(
    page: Path,
    context: Mapping[str, Any],
    layers: Mapping[str, str],
    thumbnails: Iterable[bytes | None],
    overview: Overview,
) -> int:
    """Write the report as a page and a folder beside it; return the size of all files in bytes.

    Raises:
        ActstatsError: something else than a report's folder is in its place.
    """
    folder = folder_of(page)
    if folder.exists() and not (folder / "overview.js").is_file():
        raise ActstatsError(
            f"{folder} is in the way of the report's files; remove it, or choose another --report"
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
            # The text is base64 and the name our own: neither needs more than quotes.
            size += (making / f"{name}.js").write_text(
                f"actstatsPart({json.dumps(name)},{json.dumps(text)});\n"
            )
        shutil.rmtree(folder, ignore_errors=True)
        making.rename(folder)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return size + _write(page, _html(context, {}, quote(folder.name)).encode())


def folder_of(page: Path) -> Path:
    """Return the folder beside a page that holds what it loads: `report_files` of `report.html`."""
    return page.with_name(f"{page.stem}_files")


def _html(context: Mapping[str, Any], parts: Mapping[str, str], folder: str) -> str:
    source = files("actstats.report") / "page"
    style = (source / "page.css").read_text("utf-8")
    # In a function of its own, so that nothing of it is visible outside, in a fixed order.
    script = "\n".join((source / name).read_text("utf-8") for name in _SCRIPTS)
    script = f'"use strict";\n(() => {{\n{script}}})();\n'
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(
        (source / "page.html").read_text("utf-8")
    )
    return template.render(
        **context,
        folder=folder,
        parts=list(parts.items()),
        style=Markup(style),
        script=Markup(script),
        policy=_policy(style, script, bool(folder)),
    )


def _policy(style: str, script: str, folder: bool) -> str:
    """Return the page's content security policy: its own style and script, no connection, no markup from text."""
    # What a trusted script loads is trusted too: the folder's parts. `file:` is where a page from a disk lies.
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


def _write(path: Path, data: bytes) -> int:
    """Write a file beside its place and move it there; return its size."""
    making = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        making.write_bytes(data)
        making.replace(path)
    finally:
        making.unlink(missing_ok=True)
    return len(data)
