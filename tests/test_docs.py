"""The documentation: its code runs, its reference is complete."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import actstats
from docs import run_page
from tests.test_house import MODULES


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A reader's working directory, after the tutorial."""
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    folder = tmp_path_factory.mktemp("reader")
    modules = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        run_page.run("tutorial")
        yield folder
        matplotlib.pyplot.close("all")
    for name in set(sys.modules) - modules:
        if str(folder) in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]


def test_the_tutorial_leaves_its_store_and_plots(folder):
    assert {path.name for path in folder.iterdir()} >= {"demo.zarr", "roughness.svg", "spectrum.svg"}


@pytest.mark.parametrize(
    "page", ["store", "data", "models", "distortions", "layers", "metrics", "analysis", "report"]
)
def test_the_code_of_a_page_runs(folder, page):
    assert run_page.run(page)


def test_the_first_page_shows_what_the_tutorial_does(folder):
    # The same store: the command finds it complete.
    assert run_page.run("index")["total_variation"].sizes == {"unit": 7280}


def test_the_reference_has_every_public_name():
    shown = set((run_page.DOCS / "api.md").read_text().split())
    assert {f"actstats.{name}" for name in actstats.__all__} <= shown


def test_the_architecture_names_every_module():
    text = (run_page.DOCS / "architecture.md").read_text()
    for floor, path in MODULES:
        # `data/tar.py` in the table of its floor; a package's `__init__` goes with its folder.
        name = str(path.relative_to(run_page.DOCS.parent)).partition(f"{floor}/")[2]
        if path.name != "__init__.py":
            assert f"`{name}`" in text, f"{floor}: {name}"
