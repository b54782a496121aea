"""Seed every generator before each module is imported, each fixture is set up and each test is called.

`ACTSTATS_SEED` (0) chooses other numbers. What a test draws depends on that and on its own name, not on the tests
that ran before it.
"""

from __future__ import annotations

import os
import random
import zlib

import numpy as np
import pytest
import torch

SEED = int(os.environ.get("ACTSTATS_SEED", "0"))


def seed(name: str) -> None:
    """Seed Python's, NumPy's and torch's generators for what bears this name."""
    number = (zlib.crc32(name.encode()) + SEED) % 2**32
    random.seed(number)
    np.random.seed(number)  # noqa: NPY002 - also for code that draws from NumPy's global generator
    torch.manual_seed(number)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if getattr(config.option, "hypothesis_seed", None) is None:
        config.option.hypothesis_seed = str(SEED)


@pytest.hookimpl(tryfirst=True)
def pytest_make_collect_report(collector: pytest.Collector) -> None:
    seed(collector.nodeid)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[object]) -> None:
    seed(fixturedef.argname)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    seed(item.nodeid)
