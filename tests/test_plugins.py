"""What all tests rest on: only a lack of the machine may skip one, and each draws the same numbers in every run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the tests in a folder in a process of its own, with the plugins of this folder."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-s",
        "-p",
        "tests.machine",
        "-p",
        "tests.seeds",
        *arguments,
    ]
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "ACTSTATS_"))
    }
    return subprocess.run(
        [*command, str(folder)], cwd=ROOT, env={**kept, **environment}, capture_output=True, text=True
    )


def test_only_a_lack_of_the_machine_may_skip_a_test(tmp_path):
    (tmp_path / "test_module.py").write_text(
        "import pytest\n\npytest.importorskip('a_library_that_nobody_has')\n"
    )
    (tmp_path / "test_tests.py").write_text(
        "import pytest\n\n"
        "def test_skipped():\n    pytest.skip('without a reason')\n\n"
        "@pytest.fixture\ndef skips():\n    pytest.skip('in a fixture')\n\n"
        "def test_of_a_fixture(skips):\n    pass\n\n"
        "@pytest.mark.xfail(strict=True)\ndef test_that_fails():\n    raise AssertionError\n\n"
        "@pytest.mark.compiler\ndef test_of_a_compiler():\n    pass\n"
    )
    lacking = {"CXX": str(tmp_path / "no-compiler")}
    plain = run(tmp_path, **lacking)
    assert plain.returncode == 0
    assert "4 skipped, 1 xfailed" in plain.stdout
    strict = run(tmp_path, "--strict-skips", "--continue-on-collection-errors", **lacking)
    assert strict.returncode != 0
    for reason in ("could not import 'a_library_that_nobody_has'", "without a reason", "in a fixture"):
        assert f"skipped, which no lack of this machine explains: {reason}" in strict.stdout
    alone = run(tmp_path / "test_tests.py", "--strict-skips", "-k", "compiler or fails", **lacking)
    assert alone.returncode == 0
    assert "1 skipped" in alone.stdout


def test_numbers_depend_on_the_seed_and_the_name_of_a_test_alone(tmp_path):
    (tmp_path / "test_drawn.py").write_text(
        "import random, numpy, pytest, torch\n\n"
        "def drawn():\n    return random.random(), numpy.random.rand(), torch.rand(1).item()\n\n"
        "IMPORTED = drawn()\n\n"
        "@pytest.fixture(scope='module')\ndef made():\n    return drawn()\n\n"
        "def test_first(made):\n    drawn()\n\n"
        "def test_second(made):\n    print('DRAWN', IMPORTED, made, drawn(), drawn())\n"
    )

    def line(*arguments: str, **environment: str) -> str:
        return next(x for x in run(tmp_path, *arguments, **environment).stdout.splitlines() if "DRAWN" in x)

    usual = line().partition("DRAWN")[2]
    assert line("-k", "second").partition("DRAWN")[2] == usual
    other = line(ACTSTATS_SEED="1").partition("DRAWN")[2]
    assert not {*usual.strip(" ()").split(", ")} & {*other.strip(" ()").split(", ")}
