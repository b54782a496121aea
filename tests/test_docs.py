"""The documentation: its code runs as printed, its reference is complete."""

from __future__ import annotations

import ast
import inspect
import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import pytest
import torch
import torchvision

import actstats
import measure_table
import module_table
import run_page
from tests.conftest import photograph

PAGES = {page: list(run_page.blocks(page)) for page in run_page.pages()}
RUN = [page for page, blocks in PAGES.items() if any(block.runs for block in blocks)]


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
def folder(tutorial: Path) -> Iterator[Path]:
    """The working directory of a reader who follows the tutorial first, then other pages in some order."""
    with reading(tutorial) as folder:
        yield folder


def a_readers_files(folder: Path) -> None:
    """What the examples name: photographs in two classes, an archive of them, weights, a metric."""
    for index in range(4):
        path = folder / "photographs" / ("cat", "dog")[index % 2] / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph(index, (240, 230)).save(path)
    shutil.make_archive(str(folder / "val"), "tar", folder / "photographs")
    for name in ("imagenet/val", "val", "stylised-val", "broden", "stimuli"):
        shutil.copytree(folder / "photographs", folder / name)
    for name in ("s-r1", "s-r3", "matches", "units", "smooth", "subject-01", "resnet50"):
        (folder / f"{name}.csv").touch()
    metrics = next(block.code for block in PAGES["metrics"] if block.title == "my_metrics.py")
    (folder / "my_metrics.py").write_text(metrics)


def parse(line: str) -> None:
    """Parse a command line without running it; raise a `UsageError` if it is wrong."""
    from actstats_cli.main import main

    command: click.Command = main
    name, *words = shlex.split(line, comments=True)
    context = None
    while True:
        context = command.make_context(name, list(words), parent=context)
        if not isinstance(command, click.Group):
            return
        _, found, words = command.resolve_command(context, [*context._protected_args, *context.args])
        assert found is not None
        command, name = found, str(found.name)


def every_command() -> Iterator[click.Command]:
    """Each command and group of `actstats`, the root first."""
    from actstats_cli.main import main

    waiting: list[click.Command] = [main]
    while waiting:
        command = waiting.pop(0)
        yield command
        if isinstance(command, click.Group):
            context = click.Context(command)
            waiting += filter(None, (command.get_command(context, n) for n in command.list_commands(context)))


def examples_of(command: click.Command) -> list[str]:
    """The examples at the end of a command's `--help`."""
    text = re.sub(r"\s*\\\n\s*", " ", inspect.cleandoc(command.help or ""))
    return [example.partition(" | ")[0] for example in re.findall(r"^ {4}(actstats .*)$", text, re.M)]


def test_the_tutorial_leaves_its_store_and_plots(tutorial):
    assert {path.name for path in tutorial.iterdir()} >= {"demo.zarr", "roughness.svg", "spectrum.svg"}


# The pages on probing and GPUs run in the tests of their own subjects, and the first page with all versions.
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.slow if page == "../README" else pytest.mark.once)
        for page in sorted({*RUN} - {"tutorial", "probing", "gpu"})
    ],
)
def test_the_code_of_a_page_runs(folder, page):
    names = run_page.run(page)
    if page == "index":  # the same store as the tutorial's: the command finds it complete
        assert names["total_variation"].sizes == {"unit": 7280}


def test_a_block_that_is_not_run_has_a_reason():
    reasons = [block.not_run for blocks in PAGES.values() for block in blocks if block.not_run is not None]
    assert {reason.partition(":")[0] for reason in reasons} == set(run_page.REASONS)


def test_every_reason_belongs_to_a_block():
    # A comment that is not directly above a fence would leave out nothing.
    for page, blocks in PAGES.items():
        text = (run_page.DOCS / f"{page}.md").read_text()
        assert len(re.findall("^<!-- not run:", text, re.M)) == sum(
            block.not_run is not None for block in blocks
        ), page


def test_no_code_hides_in_a_block_of_text():
    for page, blocks in PAGES.items():
        for block in blocks:
            if block.language in run_page.PYTHON | run_page.SHELL | {"toml", "bibtex"}:
                continue
            assert block.language == "text", f"{page}, line {block.line}"
            assert "actstats " not in block.code.split("\n\n")[0].partition(" holds ")[0], page
            assert "import " not in block.code, f"{page}, line {block.line}"


@pytest.mark.parametrize("page", [page for page, blocks in PAGES.items() if any(b.not_run for b in blocks)])
def test_what_is_not_run_is_at_least_well_formed(tmp_path, page):
    with reading(tmp_path) as folder:
        a_readers_files(folder)
        for block in PAGES[page]:
            if block.language in run_page.PYTHON:
                ast.parse(block.code)
            elif block.language in run_page.SHELL and block.not_run is not None:
                for command in run_page.commands(block):
                    if command.startswith("actstats ") and "$" not in command:
                        parse(command)


def test_examples_of_help_are_well_formed(tmp_path):
    with reading(tmp_path) as folder:
        a_readers_files(folder)
        examples = [example for command in every_command() for example in examples_of(command)]
        assert len(examples) > 50
        for example in examples:
            parse(example)


@pytest.mark.once
def test_the_examples_of_sweep_can_be_planned_and_do_not_collide(tmp_path, monkeypatch):
    monkeypatch.setenv("ACTSTATS_CACHE", str(tmp_path / "cache"))
    stores = []
    with reading(tmp_path) as folder:
        a_readers_files(folder)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            torch.save(torchvision.models.resnet50().state_dict(), folder / "resnet50.pth")
        sweep = next(command for command in every_command() if command.name == "sweep")
        for example in examples_of(sweep):
            if "--scheduler" not in example:
                planned = json.loads(run_page.run_command(f"{example} --dry-run --json"))
                stores += [plan["store"] for plan in planned.get("sweeps", [planned])]
    assert not (tmp_path / "cache").exists()
    named = [
        store for example in examples_of(sweep) for store in re.findall(r"--out (\S+?)\"?(?: |$)", example)
    ]
    unnamed = [store for store in stores if store not in named]
    assert len(set(unnamed)) == len(unnamed) >= 3


READING = (
    "info",
    "top",
    "compare",
    "smoothness",
    "spectrum",
    "selectivity",
    "quantiles",
    "noise",
    "kernels",
    "match",
)
"""Commands whose examples need stores alone."""
ELSEWHERE = ("/moved/", "r1.zarr")
"""In examples that name what this reader does not have."""


@pytest.mark.once
def test_the_examples_of_commands_that_read_stores_run_one_after_the_other(tmp_path):
    pytest.importorskip("matplotlib").use("agg")
    names = {
        "": (("googlenet", "standard", "s", "clean", "actstats-demo/s"), ("noisy", "s-noisy")),
        "--robust": (("robust", "r", "actstats-demo/r"), ("r-noisy",)),
    }
    with reading(tmp_path) as folder:
        for robust, (clean, noisy) in names.items():
            options = f"{robust} --limit 16 --layers conv1,inception4c.branch1 --device cpu"
            run_page.run_command(
                f"actstats sweep --arch googlenet --weights demo {options} --out {clean[0]}.zarr "
                f"--changed noise:0.1={noisy[0]}.zarr"
            )
            for first, *others in (clean, noisy):
                for other in others:
                    shutil.copytree(folder / f"{first}.zarr", folder / f"{other}.zarr")
        ran = 0
        for command in every_command():
            for example in examples_of(command) if command.name in READING else ():
                if not any(word in example for word in ELSEWHERE):
                    run_page.run_command(example)
                    ran += 1
        assert ran > 20


def test_the_reference_has_every_public_name():
    shown = set((run_page.DOCS / "api.md").read_text().split())
    assert {f"actstats.{name}" for name in actstats.__all__} <= shown


def test_what_the_first_page_says_of_speed_follows_from_its_table():
    rows = (run_page.DOCS / "measured" / "peers.md").read_text().splitlines()
    cells = {
        row.split(" | ")[0].removeprefix("| "): row.split(" | ")[1] for row in rows if row.startswith("| ")
    }
    alone, plain = (
        float(cells[way].split()[0])
        for way in ("All statistics, with actstats", "No statistics, with memory reused")
    )
    share = f"{alone / plain - 1:.0%}".replace("%", " %")
    for page in ("../README", "performance"):
        assert share in (run_page.DOCS / f"{page}.md").read_text()
    assert alone < 1, "a sweep takes less time than a plain loop"


def test_the_table_of_modules_is_up_to_date():
    assert module_table.FILE.read_text() == module_table.table(), "run python docs/_tools/module_table.py"


def test_the_table_of_measures_is_up_to_date():
    assert measure_table.FILE.read_text() == measure_table.table(), "run python docs/_tools/measure_table.py"


def test_the_citation_has_the_version_of_the_package():
    root = run_page.ROOT
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
