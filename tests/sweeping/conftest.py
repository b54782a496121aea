"""What tests of sweeps share."""

from __future__ import annotations

import pytest

from tests.cluster import live_cluster


@pytest.fixture(scope="module")
def cluster(folder):
    """A cluster of two workers in the module's `folder`."""
    with live_cluster(folder) as started:
        started.add(2)
        started.wait()
        yield started
