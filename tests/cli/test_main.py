"""The command as a whole: help, errors as one line, exit statuses."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from actstats.errors import ActstatsError
from actstats_cli.main import COMMANDS, Main, main
from tests.cli.conftest import COMMAND, actstats, output_of


def test_help_lists_every_command_with_a_line():
    text = output_of("--help")
    listed = text[text.index("Commands:") :].splitlines()[1:]
    assert [line.split()[0] for line in listed if line[:3].strip()] == list(COMMANDS)
    assert all(len(line.split()) > 3 for line in listed)


@pytest.mark.parametrize(
    "line",
    [
        "compare a.zarr b.zarr --report", "top a.zarr conv/0 --out", "analyze smoothness a.zarr --out",
        "analyze smoothness a.zarr --plot", "analyze shape-bias a.zarr --save-decisions", "demo --out",
    ],
)  # fmt: skip
def test_a_file_or_folder_to_write_is_no_url(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = actstats(f"{line} s3://bucket/x.csv")
    assert result.exit_code == 2
    assert "s3://bucket/x.csv is a URL; only stores can be written there" in result.stderr
    assert not list(tmp_path.iterdir())


def commands(group: click.Group, above: str = "") -> Iterator[tuple[str, click.Command]]:
    """Every command under a group, and the line that calls it."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None, name
        yield f"{above}{name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{above}{name} ")


def test_each_command_has_help_with_an_example_and_a_text_for_each_option():
    for line, command in commands(main):
        # Indented: lines that click was told to leave alone.
        assert re.search(rf"^    +actstats {line} ", output_of(f"{line} --help"), re.M), line
        for option in command.params:
            assert isinstance(option, click.Argument) or getattr(option, "help", None), (line, option.name)


def test_help_of_sweep_has_each_option_once_under_a_heading():
    from actstats_cli.options import GROUPS
    from actstats_cli.sweep import sweep

    text = output_of("sweep --help")
    for heading in (*GROUPS, "Other options"):
        assert f"\n{heading}:\n" in text
    listed = re.findall(r"^  (?:-h, )?(--[a-z-]+)", text, re.M)
    assert sorted(listed) == sorted([*(param.opts[0] for param in sweep.params), "--help"])
    assert set(re.findall(r"^  (?:-h, )?(--[a-z-]+)", text.partition("\nOther options:")[2], re.M)) == {
        "--json",
        "--help",
    }


def test_help_and_version_do_not_wait_for_torch():
    code = (
        "import sys; from actstats_cli.main import main\n"
        "for option in sys.argv[1:]:\n"
        "    main([option], standalone_mode=False)\n"
        "slow = {'torch', 'numba', 'xarray', 'zarr', 'dask', 'matplotlib'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
    subprocess.run([sys.executable, "-c", code, "--help", "--version"], check=True, capture_output=True)


def test_a_reader_that_has_had_enough_ends_it_quietly():
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        done = subprocess.run([*COMMAND, "--help"], stdout=closed, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("swep", "no command is named 'swep'; did you mean sweep?"),
        ("", "Usage: "),
        ("sweep --data demo", "Missing option '--arch'"),
        ("sweep --arch alexnet --data demo --measure", "--measure requires --dry-run"),
        ("sweep --arch alexnet --data demo --out s.zarr --batch-size 0", "--batch-size"),
        ("sweep --arch alexnet --data demo --out s.zarr --part 3/2", "I/N with 0 <= I < N"),
        ("sweep --arch alexnet --data demo --out s.zarr --part second", "I/N with 0 <= I < N"),
        ("sweep --arch alexnet --data demo --out s.zarr --metrics ,", "it contains no names"),
        ("layers --arch alexnet --amp fp8", "--amp"),
        ("info", "Missing argument 'STORE'"),
    ],
)
def test_what_is_no_command_is_an_error_of_usage(line, said):
    result = actstats(line)
    assert result.exit_code == 2
    assert said in result.output


@pytest.mark.parametrize(
    ("arguments", "after"),
    [
        (["analyze", "ablate", "googlenet", "--stimuli", ""], "empty: --stimuli"),
        (["analyze", "ablate", "googlenet", "--stimuli="], "empty: --stimuli"),
        (["sweep", "--arch", "googlenet", "--data", "", "--out", "a.zarr"], "empty: --data"),
        (["compare", "a.zarr", ""], "empty: the one after 'a.zarr'"),
        ([""], "empty: the first"),
    ],
)
def test_an_empty_argument_is_refused(arguments, after):
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert after in result.output


def raised(error: BaseException, **options: bool) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command in which `error` is raised."""

    class One(Main):
        def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
            def fail() -> None:
                click.echo("before")
                raise error

            return click.Command(cmd_name, callback=fail)

    result = CliRunner().invoke(One(table=COMMANDS), ["info"], **options)
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ActstatsError("a is wrong;\n  do b"), 1, "actstats: error: a is wrong; do b"),
        (KeyboardInterrupt(), 130, "actstats: stopped"),
        (KeyboardInterrupt("run it again"), 130, "actstats: stopped; run it again"),
        (MemoryError(), 1, "actstats: error: out of memory; close other programs, or compute less at once"),
        (
            PermissionError(errno.EACCES, "Permission denied", "a.png"),
            1,
            "actstats: error: a.png: Permission denied",
        ),
        (OSError("no such luck"), 1, "actstats: error: no such luck"),
    ],
)
def test_what_a_user_can_act_on_is_one_line(error, status, line):
    assert raised(error) == (status, "before\n", f"{line}\n")


def test_a_fault_of_the_program_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        raised(ZeroDivisionError(), catch_exceptions=False)


def test_a_command_of_a_group_is_pointed_to():
    result = actstats("smoothness s.zarr")
    assert result.exit_code == 2
    assert "no command is named 'smoothness'; did you mean main analyze smoothness?" in result.output
