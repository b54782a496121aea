"""Every object of a store damaged in four ways: no command answers with a traceback.

    ACTSTATS_ALL_DAMAGE=1 pytest tests/hostile/test_damage.py -n 0

runs every command after every damage, which takes a while. Without the variable every fifth damage is met by one of
them in turn.
"""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from actstats_cli.main import main
from tests.conftest import damages, photograph

SWEEP = (
    "sweep --arch tests.conftest:SmallNet --preprocessing imagenet --device cpu --layers first --partition-size 2 "
    "--top-k 2 --workers 0"
)
COMMANDS = (
    "info {store}",
    "top {store} first/0",
    "analyze smoothness {store}",
    "analyze spectrum {store}",
    "analyze quantiles {store}",
    "compare {store}",
    "compare {store} --report {page} --trust",
    SWEEP + " --data {images} --out {store}",
    SWEEP + " --data {images} --out {store} --repair",
)


def run(command: str, folder: Path) -> Result:
    places = {"store": folder / "s.zarr", "images": folder / "images", "page": folder / "page.html"}
    return CliRunner().invoke(main, shlex.split(command.format(**places)))


@pytest.mark.once
def test_no_damage_is_answered_with_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for index in range(3):
        photograph(index).save(tmp_path / "images" / f"{index}.png")
    store, whole = tmp_path / "s.zarr", tmp_path / "whole.zarr"
    for command in (COMMANDS[-2], *COMMANDS):
        assert run(command, tmp_path).exit_code == 0, command
    shutil.copytree(store, whole)
    # The objects of one partition, and those that belong to all.
    objects = [
        path for path in sorted(whole.rglob("*")) if path.is_file() and not path.name.startswith("c.1")
    ]
    met = 0
    for path in objects:
        for how, data in damages(path):
            in_turn = [COMMANDS[met % len(COMMANDS)]] if met % 5 == 0 else []
            chosen = COMMANDS if os.environ.get("ACTSTATS_ALL_DAMAGE") else in_turn
            met += 1
            for command in chosen:
                damaged = store / path.relative_to(whole)
                damaged.unlink() if data is None else damaged.write_bytes(data)
                result = run(command, tmp_path)
                told = f"{path.relative_to(whole)} {how}: {command}"
                assert isinstance(result.exception, SystemExit | None), f"{told}: {result.exception!r}"
                assert result.exit_code == 0 or result.stderr.startswith("actstats: error: "), told
                shutil.rmtree(store)
                shutil.copytree(whole, store)
    print(f"{met} damages of {len(objects)} objects")
    assert met > 150
