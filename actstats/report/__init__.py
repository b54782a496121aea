"""The report: one page, or a page and a folder, that shows what a sweep or a pair of sweeps found.

>>> from actstats.report import write_report
>>> write_report(["standard.zarr", "robust.zarr"], "report.html")  # doctest: +SKIP

`compare` gives the same findings without a page.
"""

from actstats.report.writing import Compared, Report, compare, write_report

__all__ = ["Compared", "Report", "compare", "write_report"]
