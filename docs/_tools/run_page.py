"""Run the code of a documentation page from top to bottom, as a reader would.

`python` blocks share one namespace, one with a title is also written to a file of that name, and of `sh` blocks
the lines that begin with `actstats` are run as commands. As a program, `python docs/_tools/run_page.py` draws the
tutorial's figures anew, for a light and a dark page.
"""

from __future__ import annotations

import os
import re
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1]
_FENCE = re.compile(r'^```(?P<language>\w+)(?: title="(?P<title>[^"]+)")?\n(?P<code>.*?)^```$', re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A fenced code block of a page."""

    language: str
    title: str | None
    code: str
    line: int
    """Where its code begins on the page, counted from 1."""


def blocks(page: str) -> Iterator[Block]:
    """Yield the code blocks of `docs/PAGE.md` in order."""
    text = (DOCS / f"{page}.md").read_text()
    for found in _FENCE.finditer(text):
        line = text.count("\n", 0, found.start("code")) + 1
        yield Block(found["language"], found["title"], found["code"], line)


def run(page: str, names: dict[str, Any] | None = None) -> dict[str, Any]:
    """Run a page's blocks in the working directory; return the names that its Python leaves behind."""
    names = {"__name__": "__main__"} if names is None else names
    for block in blocks(page):
        if block.language == "sh":
            for command in block.code.replace("\\\n", " ").splitlines():
                if command.startswith("actstats "):
                    run_command(command)
        elif block.language == "python":
            if block.title is not None:
                Path(block.title).write_text(block.code)
            # Blank lines before it make a traceback show the page's own line numbers.
            code = "\n" * (block.line - 1) + block.code
            exec(compile(code, str(DOCS / f"{page}.md"), "exec"), names)
    return names


def run_command(command: str) -> str:
    """Run a command line that begins with `actstats` in this process; return what it prints."""
    from click.testing import CliRunner

    from actstats_cli.main import main

    result = CliRunner().invoke(main, shlex.split(command)[1:])
    if result.exit_code:
        raise AssertionError(f"{command}\n{result.output}") from result.exception
    return result.output


def draw_figures() -> None:
    """Run the tutorial once for each style and keep its figures under `docs/assets`."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    for name, style in (("light", "default"), ("dark", "dark_background")):
        settings = {"savefig.transparent": True, "svg.fonttype": "none", "svg.hashsalt": "actstats"}
        with tempfile.TemporaryDirectory() as folder, chdir(folder), plt.style.context([style, settings]):
            run("tutorial")
            for figure in Path(folder).glob("*.svg"):
                (DOCS / "assets" / f"{figure.stem}-{name}.svg").write_bytes(figure.read_bytes())


if __name__ == "__main__":
    os.environ.setdefault("SOURCE_DATE_EPOCH", "0")  # no date in the figures
    draw_figures()
