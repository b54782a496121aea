"""A store that the command itself made, of images some of which cannot be read."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from actstats_cli.main import main
from tests.conftest import photograph

COMMAND = [sys.executable, "-c", "from actstats_cli.main import run; run()"]
"""The command in a process of its own."""
SWEEP = "sweep --arch squeezenet1_1 --weights none --device cpu --layers features.1,features.3"


def actstats(command: str) -> Result:
    """Run a command line in this process; a fault of the program, which has a traceback, is raised."""
    return CliRunner().invoke(main, shlex.split(command), catch_exceptions=False)


def output_of(command: str) -> str:
    """What a command that ends well prints on stdout."""
    result = actstats(command)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine photographs of odd sizes in two classes, the second a text and the sixth cut short."""
    folder = tmp_path_factory.mktemp("images")
    for index in range(9):
        path = folder / ("cat", "dog")[index // 5] / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        photograph(index, (300 + 20 * index, 280)).save(path)
    (folder / "cat" / "1.png").write_text("no image")
    whole = (folder / "dog" / "5.png").read_bytes()
    (folder / "dog" / "5.png").write_bytes(whole[: len(whole) // 2])
    return folder


@pytest.fixture(scope="session")
def store(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The statistics of `images`, in partitions of four."""
    path = tmp_path_factory.mktemp("store") / "s.zarr"
    output_of(f"{SWEEP} --data {images} --out {path} --partition-size 4 --batch-size 2 --top-k 5")
    return path
