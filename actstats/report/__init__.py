"""The report: one HTML page about one sweep, or about a standard network and others side by side.

>>> from actstats.report import write_report
>>> write_report(["standard.zarr", "robust.zarr"], "report.html")  # doctest: +SKIP

`compare` returns the same findings without writing a page; `show` displays the page in a notebook cell.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from actstats.report.findings import Compared, Finding, compare, finding
    from actstats.report.writing import Embedded, Report, show, write_report

__all__ = ["Compared", "Embedded", "Finding", "Report", "compare", "finding", "show", "write_report"]

# Imported on first use: the contact sheet is in this package too and must not wait for torch and pandas.
_HOMES = {
    "Compared": "findings",
    "Embedded": "writing",
    "Finding": "findings",
    "Report": "writing",
    "compare": "findings",
    "finding": "findings",
    "show": "writing",
    "write_report": "writing",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'actstats.report' has no attribute {name!r}")
    value = getattr(import_module(f"actstats.report.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
