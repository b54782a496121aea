"""The code of the page on shape, concepts and ablation runs."""

from __future__ import annotations

import run_page


def test_the_code_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run_page.run("probing")
    assert names["table"]["images"].tolist() == [16] * 3
    assert set(names["found"]["concept_name"].values.tolist()) <= {*names["names"], ""}
    assert names["found"]["iou"].max() > 0
