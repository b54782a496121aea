"""Commands that read a store do without torch, which takes seconds and half a gigabyte to import."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.once


@pytest.mark.parametrize(
    "command",
    [
        "sweep --help", "info {store} --verify", "top {store} features.1/0",
        "top {store} features.1/0 --out {sheet}", "analyze selectivity {store}",
    ],
)  # fmt: skip
def test_reading_a_store_does_without_torch(command, store, tmp_path):
    arguments = command.format(store=store, sheet=tmp_path / "sheet.png").split()
    program = (
        "import sys; from actstats_cli.main import main;"
        f"main({arguments!r}, standalone_mode=False);"
        "sys.exit('torch was imported' if 'torch' in sys.modules else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
