"""The demo: sweep and compare the embedded pair of networks, one standard and one robust.

>>> from actstats.demo.demonstration import demo
>>> demo("actstats-demo")  # doctest: +SKIP
"""

from importlib.util import find_spec

from actstats.errors import ActstatsError

for _package in ("flox", "matplotlib", "pandas", "scipy", "skimage"):
    if find_spec(_package) is None:
        raise ActstatsError(f"the demo needs {_package}: pip install 'actstats[demo]'")
