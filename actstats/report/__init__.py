"""The report: one HTML page about one sweep, or about a standard network and others side by side.

>>> from actstats.report import write_report
>>> write_report(["standard.zarr", "robust.zarr"], "report.html")  # doctest: +SKIP

`compare` returns the same findings without writing a page; `show` displays the page in a notebook cell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from actstats.support import lazy_exports

if TYPE_CHECKING:
    from actstats.report.findings import Compared, Finding, compare, finding
    from actstats.report.writing import Embedded, Report, show, write_report

__all__ = ["Compared", "Embedded", "Finding", "Report", "compare", "finding", "show", "write_report"]

# The contact sheet is in this package too and must not wait for torch and pandas.
__getattr__, __dir__ = lazy_exports(
    __name__,
    __all__,
    {"findings": "Compared Finding compare finding", "writing": "Embedded Report show write_report"},
)
