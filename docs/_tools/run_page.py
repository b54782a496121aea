"""Run the code of a documentation page from top to bottom, as a reader would.

`python` blocks share one namespace; one with a title is also written to a file of that name. The commands of shell
blocks (`sh`, `bash`, `shell`, and after each `$` of `console`) run in order, those that begin with `actstats` in this
process. A block after a line `<!-- not run: REASON -->` is left out; `REASONS` lists what may be said there.

As a program, `python docs/_tools/run_page.py` draws the tutorial's figures anew, for a light and a dark page.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

DOCS: Final = Path(__file__).parents[1]
ROOT: Final = DOCS.parent
PYTHON: Final = frozenset({"python", "py"})
SHELL: Final = frozenset({"sh", "bash", "shell", "console"})
REASONS: Final = {
    "downloads": "fetches weights or images",
    "installs": "changes the environment or builds an image",
    "bucket": "needs an account with a provider",
    "cluster": "needs several machines, or services that keep running",
    "GPU": "needs a GPU",
    "shell": "belongs in a file that a shell reads",
    "tests": "is run by .ci/run, or is a run of tests",
    "minutes": "takes minutes to hours: a demonstration, study or benchmark",
}
"""Why a block may be left out, and what that means."""
_FENCE: Final = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]*?) -->\n\n?)?"
    r'^```(?P<language>\w+)(?: title="(?P<title>[^"]+)")?\n(?P<code>.*?)^```$',
    re.M | re.S,
)


@dataclass(frozen=True)
class Block:
    """A fenced code block of a page.

    Attributes:
        language: the word after the fence.
        title: name of the file that it shows, if it has one.
        code: its text.
        line: where its code begins on the page, counted from 1.
        not_run: the reason why it is left out, or None.
    """

    language: str
    title: str | None
    code: str
    line: int
    not_run: str | None

    @property
    def runs(self) -> bool:
        """Whether it is code that is run."""
        return self.language in PYTHON | SHELL and self.not_run is None


def pages() -> list[str]:
    """Return the names of all pages: `running` for docs/running.md, `../README` for README.md."""
    files = [*ROOT.glob("*.md"), *DOCS.glob("*.md"), *(DOCS / "studies").glob("*.md")]
    return sorted(os.path.relpath(file, DOCS).removesuffix(".md") for file in files)


def blocks(page: str) -> Iterator[Block]:
    """Yield the code blocks of `docs/PAGE.md` in order."""
    text = (DOCS / f"{page}.md").read_text()
    for found in _FENCE.finditer(text):
        line = text.count("\n", 0, found.start("code")) + 1
        yield Block(found["language"], found["title"], found["code"], line, found["reason"])


def commands(block: Block) -> list[str]:
    r"""Return the command lines of a shell block, each in one line and without comments.

    >>> commands(
    ...     Block("console", None, "$ actstats info \\\n    s.zarr  # what it is\n8 images\n$ ls\n", 1, None)
    ... )
    ['actstats info s.zarr', 'ls']
    """
    code = re.sub(r"\s*\\\n\s*", " ", block.code)
    lines = code.splitlines()
    if block.language == "console":
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    bare = (re.sub(r"(^|\s+)#\s.*", "", line).strip() for line in lines)
    return [line for line in bare if line]


def run(page: str, names: dict[str, Any] | None = None) -> dict[str, Any]:
    """Run a page's blocks in the working directory; return the names that its Python leaves behind."""
    names = {"__name__": "__main__"} if names is None else names
    for block in blocks(page):
        if not block.runs:
            continue
        if block.language in SHELL:
            for command in commands(block):
                run_command(command)
            continue
        if block.title is not None:
            Path(block.title).write_text(block.code)
        # Blank lines before it make a traceback show the page's own line numbers.
        code = "\n" * (block.line - 1) + block.code
        exec(compile(code, str(DOCS / f"{page}.md"), "exec"), names)
    return names


def run_command(command: str) -> str:
    """Run a command line, one that begins with `actstats` in this process; return its stdout.

    Raises:
        AssertionError: it fails.
    """
    if not command.startswith("actstats "):
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        ran = subprocess.run(["bash", "-euc", command], env=environment, capture_output=True, text=True)
        if ran.returncode:
            raise AssertionError(f"{command}\n{ran.stdout}{ran.stderr}")
        return ran.stdout
    from click.testing import CliRunner

    from actstats_cli.main import main

    result = CliRunner().invoke(main, shlex.split(command)[1:])
    if result.exit_code:
        raise AssertionError(f"{command}\n{result.output}") from result.exception
    return result.stdout


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
