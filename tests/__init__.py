"""The tests."""

import os

# Before torch is imported, here and in the processes that tests start: several run on a few cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
