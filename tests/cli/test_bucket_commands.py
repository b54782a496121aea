"""Every command reads a store in a bucket, and says in one line what it cannot open."""

from __future__ import annotations

import pytest

from actstats import remote
from actstats.store import bucket
from tests.cli.conftest import SWEEP, output_of
from tests.cli.conftest import actstats as command
from tests.s3 import BUCKET, refused_after

URL = f"s3://{BUCKET}/s.zarr"


def test_every_command_reads_a_store_in_a_bucket(images, s3, tmp_path):
    options = f"--data {images} --partition-size 4 --batch-size 2 --top-k 5"
    local, url = tmp_path / "s.zarr", URL
    for store in (local, url):
        output_of(f"{SWEEP} {options} --out {store}")
    assert "already complete" in output_of(f"{SWEEP} {options} --out {url}")
    assert "a sweep would resume or refuse it" in output_of(f"{SWEEP} {options} --out {url} --dry-run")
    for text in (
        "info {}", "info {} --verify", "top {} features.1/0", "analyze selectivity {}", "analyze spectrum {}",
        "compare {}",
    ):  # fmt: skip
        here, there = (output_of(text.format(store)).replace(str(store), "STORE") for store in (local, url))
        assert [line for line in there.splitlines() if not line.startswith("made")] == [
            line for line in here.splitlines() if not line.startswith("made")
        ]
    output_of(f"compare {local} {url} --name a --name b --report {tmp_path / 'report.html'}")
    output_of(f"top {url} features.1/0 --out {tmp_path / 'top.png'}")


def ended(text: str) -> str:
    """The one line with which a command fails."""
    result = command(text)
    assert result.exit_code == 1, result.output
    assert len(result.stderr.splitlines()) == 1, result.stderr
    return result.stderr


def test_what_cannot_be_opened_is_told_in_one_line(images, s3, monkeypatch):
    swept = f"{SWEEP} --data {images} --out"
    for text in (f"{swept} s3://not-there/s.zarr", "info s3://not-there/s.zarr"):
        assert ended(text) == "actstats: error: bucket s3://not-there does not exist\n"
    assert "has no bucket" in ended(f"{swept} s3:///s.zarr")
    assert "no store at" in ended(f"info {URL}")
    assert "cannot open" in ended(f"{swept} ftp://host/s.zarr")
    monkeypatch.setattr(remote, "FIRST_PATIENCE", 0.5)
    monkeypatch.setattr(bucket, "FIRST_PATIENCE", 0.5)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert f"s3://{BUCKET} does not respond (" in ended(f"info {URL}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    assert ended(f"{swept} {URL}").startswith(
        f"actstats: error: no credentials for {URL}: set AWS_ACCESS_KEY_ID and"
    )


@pytest.mark.parametrize("option", ["", "--repair", "--overwrite"])
def test_a_creation_that_was_interrupted_is_finished_by_the_same_command(option, images, s3):
    sweep = f"{SWEEP} --data {images} --limit 1 --metrics mean --out {URL}"
    none, s3.fault = s3.fault, refused_after(1)
    assert "Access" in ended(sweep) or "denied" in ended(sweep)
    assert "creation was interrupted" in ended(f"info {URL}")
    s3.fault = none
    assert "1 image in" in output_of(f"{sweep} {option}")
    assert "intact" in output_of(f"info {URL} --verify")


def test_a_complete_store_of_the_same_sweep_is_kept_with_a_note(images, tmp_path):
    sweep = f"{SWEEP} --data {images} --limit 1 --metrics mean --out {tmp_path / 's.zarr'} --overwrite"
    output_of(sweep)
    result = command(sweep)
    assert "already complete" in result.stdout
    assert "is the store of this very sweep and is kept" in result.stderr
