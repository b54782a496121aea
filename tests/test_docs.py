"""The documentation: its code runs, its reference is complete."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import actstats
import module_table
import run_page


@contextmanager
def reading(folder: Path) -> Iterator[Path]:
    """Work in a folder as a reader does; forget the modules that a page wrote there."""
    modules = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        yield folder
    for name in set(sys.modules) - modules:
        if str(folder) in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A reader's working directory after the tutorial."""
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    with reading(tmp_path_factory.mktemp("reader")) as folder:
        run_page.run("tutorial")
    yield folder
    matplotlib.pyplot.close("all")


@pytest.fixture
def folder(tutorial: Path, tmp_path: Path) -> Iterator[Path]:
    """A working directory with what the tutorial left, and nothing of other pages."""
    with reading(shutil.copytree(tutorial, tmp_path / "reader")) as folder:
        yield folder


def test_the_tutorial_leaves_its_store_and_plots(tutorial):
    assert {path.name for path in tutorial.iterdir()} >= {"demo.zarr", "roughness.svg", "spectrum.svg"}


@pytest.mark.parametrize(
    "page", ["store", "data", "models", "distortions", "layers", "metrics", "running", "analysis", "report"]
)
def test_the_code_of_a_page_runs(folder, page):
    assert run_page.run(page)


def test_the_first_page_shows_what_the_tutorial_does(folder):
    # The same store: the command finds it complete.
    assert run_page.run("index")["total_variation"].sizes == {"unit": 7280}


def test_the_reference_has_every_public_name():
    shown = set((run_page.DOCS / "api.md").read_text().split())
    assert {f"actstats.{name}" for name in actstats.__all__} <= shown


def test_the_table_of_modules_is_up_to_date():
    assert module_table.FILE.read_text() == module_table.table(), "run python docs/_tools/module_table.py"


def test_the_citation_has_the_version_of_the_package():
    root = run_page.DOCS.parent
    version = actstats.__version__
    citation = (root / "CITATION.cff").read_text().splitlines()
    assert f"version: {version}" in citation
    # What the format requires of every file.
    assert {"cff-version", "message", "title", "authors"} <= {line.partition(":")[0] for line in citation}
    assert f"version = {{{version}}}" in " ".join((run_page.DOCS / "citing.md").read_text().split())
    assert f"## {version}" in (run_page.DOCS / "changelog.md").read_text()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shells_named_are_completed(shell):
    from click.testing import CliRunner

    from actstats_cli.main import main

    assert f"_ACTSTATS_COMPLETE={shell}_source actstats" in (run_page.DOCS / "installation.md").read_text()
    environment = {"_ACTSTATS_COMPLETE": f"{shell}_complete", "COMP_WORDS": "actstats com", "COMP_CWORD": "1"}
    if shell == "fish":
        environment["COMP_CWORD"] = "com"
    offered = CliRunner().invoke(main, env=environment, prog_name="actstats").output
    assert "compare" in offered.replace(",", "\n").split()
