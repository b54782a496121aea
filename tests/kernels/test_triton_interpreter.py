"""The Triton kernels without a GPU: `interpreted.py` in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import run_page
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


def test_the_code_of_the_page_runs_and_leaves_the_precision_as_it_was():
    from actstats_kernels import gpu

    assert run_page.run("gpu")["before"] == gpu.set_precision()
    with pytest.raises(ValueError, match="`precision=` is 'f8'"):
        gpu.set_precision("f8")
