"""What a sweep says of itself from Python: a bar, and tables for notebooks."""

from __future__ import annotations

import actstats
from actstats.data.preprocessing import Preprocessing
from actstats.store import Store
from tests.conftest import SmallNet

SMALL = {
    "preprocessing": Preprocessing.imagenet(size=32, resize=36),
    "partition_size": 6,
    "metrics": ["mean"],
}


def test_a_bar_is_drawn_only_where_it_is_asked_for(tmp_path, photographs, capsys):
    seen: list[int] = []
    actstats.sweep(
        SmallNet(), photographs, tmp_path / "s", on_progress=lambda p: seen.append(p.done), **SMALL
    )
    assert capsys.readouterr().err == ""
    again = {**SMALL, "progress": True, "on_progress": lambda p: seen.append(p.done)}
    actstats.sweep(SmallNet(), photographs, tmp_path / "t", **again)
    assert "14/14" in capsys.readouterr().err
    assert seen[len(seen) // 2 :] == seen[: len(seen) // 2]
    assert seen[-1] == 14


def test_tables_for_notebooks_escape_what_they_show(tmp_path, photographs):
    odd = tmp_path / "<b>odd&"
    plan = actstats.plan(SmallNet(), photographs, odd, **SMALL)
    summary = plan.run()
    for shown in (plan, summary, Store.open(odd)):
        html = shown._repr_html_()
        assert "&lt;b&gt;odd&amp;" in html
        assert "<b>odd" not in html
