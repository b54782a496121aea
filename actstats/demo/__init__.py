"""The demo: sweep and compare the embedded pair of networks, one standard and one robust.

>>> from actstats.demo.demonstration import demo
>>> demo("actstats-demo")  # doctest: +SKIP
"""

from importlib.util import find_spec

from actstats.errors import ActstatsError
from actstats.support import install, installable

_missing = [name for name in ("flox", "matplotlib", "pandas", "scipy", "skimage") if find_spec(name) is None]
if _missing:
    raise ActstatsError(f"the demo needs {', '.join(map(installable, _missing))}: {install(_missing)}")
