"""The embedded pair, a standard and a robust network: four sweeps, a table of how they differ, pictures and a report.

>>> from actstats.demo.demonstration import demo
>>> demo("actstats-demo")  # doctest: +SKIP
"""

from importlib.util import find_spec

from actstats.errors import ActstatsError

for _package in ("flox", "matplotlib", "pandas", "scipy", "skimage"):
    if find_spec(_package) is None:
        raise ActstatsError(f"the demo needs {_package}: pip install 'actstats[demo]'")
