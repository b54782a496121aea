"""The CPU's kernel is compiled once, however many processes start together."""

from __future__ import annotations

import os
import subprocess
import sys


def test_of_processes_that_start_together_one_compiles(tmp_path):
    program = "from actstats_kernels.cpu.fused import _worker; print(_worker().cache_hits)"
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    started = [
        subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    found = sorted(process.communicate()[0].strip() for process in started)
    assert found == ["0", "1", "1"]
