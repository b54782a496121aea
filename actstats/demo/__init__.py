"""A standard network and a robust one side by side: four sweeps, the table of what differs, pictures.

>>> from actstats.demo.demonstration import demo
>>> demo("actstats-demo")  # doctest: +SKIP
"""

from importlib.util import find_spec

from actstats.errors import ActstatsError

for _package in ("flox", "matplotlib", "pandas", "scipy", "skimage"):
    if find_spec(_package) is None:
        raise ActstatsError(f"comparing a pair needs {_package}: pip install 'actstats[demo]'")
