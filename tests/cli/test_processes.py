"""The command as a process: what Ctrl-C leaves, and what is on stdout and stderr."""

from __future__ import annotations

import json
import os
import pty
import shlex
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
import zarr

from tests.cli.conftest import COMMAND, SWEEP, output_of
from tests.conftest import files_of

pytestmark = pytest.mark.once

METRIC = '''
import os, time
from actstats import Metric, Output

class Slow(Metric):
    """Takes its time where it is told to."""

    outputs = (Output("slow"),)

    def update(self, activation, state):
        time.sleep(float(os.environ.get("SLOWLY", 0)))
        return {"slow": activation.sum((2, 3))}
'''


@pytest.fixture
def slow(tmp_path, monkeypatch):
    """A working directory with the metric `slow:Slow`."""
    (tmp_path / "slow.py").write_text(METRIC)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("slow", None)


def completed(store: Path) -> int:
    """How many partitions a store has, that another process is writing."""
    return int(zarr.open_array(store / "completed", mode="r")[:].sum()) if store.exists() else 0


def test_ctrl_c_finishes_nothing_half_and_says_how_to_go_on(images, slow):
    options = f"{SWEEP} --data {images} --metric slow:Slow --partition-size 2 --batch-size 1 --out"
    screen, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 100))
    process = subprocess.Popen(
        [*COMMAND, *options.split(), "stopped.zarr"],
        stderr=terminal, stdout=subprocess.PIPE, cwd=slow, env={**os.environ, "SLOWLY": "0.3"},
    )  # fmt: skip
    os.close(terminal)
    while not completed(slow / "stopped.zarr"):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    shown = b""
    while chunk := _read(screen):
        shown += chunk
    os.close(screen)
    out, _ = process.communicate()
    assert process.returncode == 130
    assert out == b""
    text = shown.decode()
    assert "images/s" in text
    assert "waiting for data" in text
    done = completed(slow / "stopped.zarr")
    assert 1 <= done < 5
    last = text.splitlines()[-1]
    assert last.startswith("actstats: stopped; ")
    assert last.endswith(f"{done} of 5 partitions complete in stopped.zarr; rerun the same command to resume")

    output_of(f"{options} stopped.zarr")
    output_of(f"{options} whole.zarr")
    assert files_of(slow / "stopped.zarr") == files_of(slow / "whole.zarr")


STREAMS = ["2>/dev/full", "2>&-", "2> >(true)"]
"""A full disk under stderr, none at all, and one that no one reads any more."""


def in_shell(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", f"{shlex.join(COMMAND)} {command}"], stdout=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("stream", STREAMS)
def test_an_error_that_cannot_be_written_is_still_an_exit_status(stream):
    assert in_shell(f"info nowhere.zarr {stream}").returncode == 1


@pytest.mark.parametrize("options", ["--help", "--version", "sweep --help"])
def test_help_that_cannot_be_written_is_one_line(options):
    done = subprocess.run(
        ["bash", "-c", f"{shlex.join(COMMAND)} {options} >/dev/full"], stderr=subprocess.PIPE, text=True
    )
    assert done.returncode == 1
    assert done.stderr == "actstats: error: No space left on device\n"


@pytest.mark.parametrize("stream", STREAMS[:2])
def test_messages_that_cannot_be_written_do_not_stop_a_sweep(stream, images, store, tmp_path):
    options = f"--data {images} --out {tmp_path / 's.zarr'} --partition-size 4 --batch-size 2 --top-k 5"
    found = in_shell(f"{SWEEP} {options} {stream}")
    assert found.returncode == 0
    assert "2 images could not be read" in found.stdout
    assert files_of(tmp_path / "s.zarr") == files_of(store)


def _read(screen: int) -> bytes:
    try:
        return os.read(screen, 4096)
    except OSError:  # what Linux says when the last writer has gone
        return b""


def test_away_from_a_terminal_progress_is_plain_lines_and_json_is_all_of_stdout(images, tmp_path):
    command = f"{SWEEP} --data {images} --out {tmp_path / 's.zarr'} --metrics mean --batch-size 4 --json"
    done = subprocess.run([*COMMAND, *command.split()], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["complete"]
    lines = done.stderr.splitlines()
    assert lines[0].startswith("squeezenet1_1: 2 layers, 192 units, 9 images in 1 partition, to ")
    assert lines[-1].startswith("9 of 9 images (100%), ")
    assert lines[-1].endswith(" waiting for data")
    assert "\r" not in done.stderr


def test_what_a_command_registered_for_the_exit_runs_and_is_written(images, slow):
    (slow / "slow.py").write_text(METRIC + "\nimport atexit\natexit.register(print, 'the end', end='')\n")
    command = f"{SWEEP} --data {images} --out s.zarr --metric slow:Slow"
    done = subprocess.run([*COMMAND, *command.split()], capture_output=True, text=True, check=True, cwd=slow)
    assert done.stdout.endswith("the end")


def test_an_error_that_is_a_bug_has_a_traceback_and_an_exit_status():
    program = "from actstats_cli import main as module; module.main = lambda **_: 1 / 0; module.run()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "ZeroDivisionError: division by zero"
