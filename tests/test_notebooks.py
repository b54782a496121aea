"""The notebooks of the documentation, executed in a kernel as a reader would, and what their cells show."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = Path(__file__).parents[1] / "docs" / "notebooks"
SHOWN = {
    "first-sweep": ("Plan of a sweep", "<b>Sweep</b>", "xarray.Dataset", "inception3a.branch2.1", "<iframe"),
    "standard-and-robust": ("activation maps are smoother", "verdict", "<iframe"),
    "own-metric": ("fire in fewer places", "lower in"),
}
"""What has to be in the HTML of a notebook's outputs."""


def executed(name: str, folder: Path) -> Any:
    """The notebook after all its cells have run in `folder`."""
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    client = nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(folder)}})
    client.execute()
    return notebook


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One working directory for all notebooks: a reader has them side by side."""
    return tmp_path_factory.mktemp("notebooks")


@pytest.mark.once
@pytest.mark.parametrize("name", SHOWN)
def test_a_notebook_runs_and_shows_what_it_says(folder, name):
    notebook = executed(name, folder)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not [output for output in outputs if output["output_type"] == "error"]
    html = "".join(output["data"].get("text/html", "") for output in outputs if "data" in output)
    for text in SHOWN[name]:
        assert text in html, text
    # tqdm's bar, not a line of text for every batch.
    assert any("application/vnd.jupyter.widget-view+json" in output.get("data", {}) for output in outputs)
    if "<iframe" in html:
        framed = re.search('<iframe src="data:text/html;charset=utf-8;base64,([^"]*)"', html)
        assert framed
        assert b"<script" in base64.b64decode(framed[1])
        assert "allow-same-origin" not in html


def test_all_notebooks_are_tested_and_listed():
    names = {path.stem for path in NOTEBOOKS.glob("*.ipynb")}
    assert names == set(SHOWN)
    page = (NOTEBOOKS.parent / "notebooks.md").read_text()
    assert all(f"notebooks/{name}.ipynb" in page for name in names)
