"""What the repository keeps of itself: change fragments, supported versions, subjects of commits."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FRAGMENTS = sorted(path for path in (ROOT / "docs" / "changes").iterdir() if path.name != "README.md")


@pytest.mark.parametrize("path", FRAGMENTS, ids=lambda path: path.name)
def test_a_change_fragment_is_a_category_and_a_few_sentences(path):
    category, blank, *text = path.read_text().splitlines()
    assert path.suffix == ".md"
    assert category in ("fix", "feature", "change")
    assert blank == ""
    assert text
    assert all(text)


def test_the_workflow_tests_each_python_that_is_named():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    [tested] = re.findall(r"^ +python: \[(.*)\]$", workflow, re.M)
    assert re.findall(r"[\d.]+", tested) == named
    assert project["requires-python"] == f">={named[0]}"


@pytest.mark.parametrize(
    ("subject", "status"),
    [("S" * 72, 0), ("Schärfer " * 8, 0), ("S" * 73, 1)],
    ids=["72", "72 letters", "73"],
)
def test_a_commit_with_a_long_subject_is_refused(tmp_path, subject, status):
    message = tmp_path / "message"
    message.write_text(f"{subject}\n\n{'why ' * 40}\n")
    done = subprocess.run([ROOT / ".ci" / "subjects", message], capture_output=True, text=True)
    assert done.returncode == status
    assert ("more than 72 characters" in done.stderr) == bool(status)
