"""The Triton kernels without a GPU: `interpreted.py` in a process of its own, and the ranking in plain torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

import run_page
from actstats_kernels import reference
from tests.kernels.strategies import draw_values
from tests.machine import need

need("linux")  # Triton has no build for other systems

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_kernels_equal_the_reference_in_the_interpreter(tmp_path):
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "TRITON_CACHE_DIR": str(tmp_path),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/kernels/interpreted.py"]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-1000:]
    assert " passed" in ran.stdout


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 50), st.integers(0, 2**31), st.booleans())
def test_ranking_equals_the_reference(rows, units, k, seed, ties):
    from actstats_kernels.gpu.ranking import top_k

    maximum = draw_values("normal", (rows, units, 1, 1), seed).reshape(rows, units)
    if ties:
        maximum = maximum.round() * torch.tensor([1.0, -1.0])[torch.arange(units) % 2]
    generator = torch.Generator().manual_seed(seed)
    maximum[torch.rand(rows, units, generator=generator) < 0.2] = torch.nan
    position = torch.randint(0, 100, (rows, units), generator=generator).int()
    for found, expected in zip(
        top_k(maximum, position, k), reference.top_k(maximum, position, k), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_the_code_of_the_page_runs_and_leaves_the_precision_as_it_was():
    from actstats_kernels import gpu

    assert run_page.run("gpu")["before"] == gpu.set_precision()
    with pytest.raises(ValueError, match="`precision=` is 'f8'"):
        gpu.set_precision("f8")
