"""Damage of each kind of object through the command line and a named architecture: noticed, refused, repaired."""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
from pathlib import Path

import numpy as np
import obstore
import pytest
import xarray as xr
import zarr
from click.testing import CliRunner, Result

import actstats
from actstats.remote import opened
from actstats.store.sweep import open_sweep
from actstats.support import URL
from actstats_cli.main import main
from tests.conftest import photograph, reseal

SWEEP = (
    "sweep --arch squeezenet1_1 --weights none --device cpu --workers 0 --layers features.0,features.3.squeeze "
    "--partition-size 2 --batch-size 2 --top-k 2 --data {images} --out {store}"
)
READING = (
    "info {store}",
    "top {store} features.0/3",
    "analyze smoothness {store}",
    "analyze spectrum {store}",
    "analyze quantiles {store}",
)


def run(command: str, store: Path | str, images: Path | str = "") -> Result:
    result = CliRunner().invoke(main, shlex.split(command.format(store=store, images=images)))
    assert isinstance(result.exception, SystemExit | None), (command, result.exception)
    assert result.exit_code == 0 or result.stderr.count("\n") == 1 + result.stderr.count("\nnote: "), (
        result.stderr
    )
    return result


def objects(store: Path) -> dict[str, bytes]:
    """All objects but the records of when and where a partition was computed."""
    files = {str(path.relative_to(store)): path for path in store.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if not name.startswith("provenance/c")}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for index in range(5):
        photograph(index).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def sound(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete store of three partitions, which no test changes."""
    store = tmp_path_factory.mktemp("sound") / "s.zarr"
    assert run(SWEEP, store, images).exit_code == 0
    return store


@pytest.fixture
def store(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "s.zarr"))


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def piped(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGE = {
    "a flipped bit of a variable": (lambda s: flipped(s / "mean/c.1.0"), "mean of partition 1"),
    "a variable copied over another": (
        lambda s: shutil.copy(s / "mean/c.0.0", s / "variance/c.0.0"),
        "variance of partition 0",
    ),
    "a partition copied over another": (
        lambda s: shutil.copy(s / "histogram/c.0.0.0", s / "histogram/c.1.0.0"),
        "histogram of partition 1",
    ),
    "a swapped status": (
        lambda s: (s / "status/c.1").write_bytes((s / "status/c.2").read_bytes()[::-1]),
        "status of partition 1",
    ),
    "a copied record": (
        lambda s: shutil.copy(s / "provenance/c.0", s / "provenance/c.1"),
        "provenance of partition 1",
    ),
    "a lost record": (lambda s: (s / "provenance/c.1").unlink(), "provenance of partition 1"),
    "a coordinate of zeros": (lambda s: (s / "path/c.0").write_bytes(bytes(40)), "path"),
    "an empty coordinate": (lambda s: (s / "bin_left/c.0").write_bytes(b""), "bin_left"),
    "a coordinate copied over another": (lambda s: shutil.copy(s / "channel/c.0", s / "width/c.0"), "width"),
    "metadata of another array": (
        lambda s: shutil.copy(s / "mean/zarr.json", s / "variance/zarr.json"),
        "variance/zarr.json",
    ),
    "a root cut short": (lambda s: (s / "zarr.json").write_bytes(b'{"attributes": {'), "zarr.json"),
    "a byte appended to the root": (
        lambda s: (s / "zarr.json").write_bytes((s / "zarr.json").read_bytes() + b"\n"),
        "zarr.json",
    ),
    "a flipped bit of the second manifest": (lambda s: flipped(s / "manifest.json"), "manifest.json"),
    "a pipe in place of a variable": (lambda s: piped(s / "mean/c.1.0"), "mean of partition 1"),
    "a pipe in place of a record": (lambda s: piped(s / "provenance/c.2"), "provenance of partition 2"),
    "a pipe in place of a coordinate": (lambda s: piped(s / "label/c.0"), "label"),
    "a pipe in place of the root": (lambda s: piped(s / "zarr.json"), "zarr.json"),
    "a flag of zeros": (lambda s: (s / "completed/c.1").write_bytes(bytes(5)), "completed of partition 1"),
}


def answers(store: Path) -> dict[str, str | None]:
    """What each reading command answers; None if it refuses the store."""
    results = {command: run(command, store) for command in READING}
    # Below an empty line, `info` prints the sizes of the objects, whatever they are.
    return {
        command: None if result.exit_code else result.stdout.replace(str(store), "STORE").partition("\n\n")[0]
        for command, result in results.items()
    }


@pytest.fixture(scope="module")
def right(sound: Path) -> dict[str, str | None]:
    """The answers for the sound store."""
    return answers(sound)


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_named_refused_and_repaired_to_the_same_bytes(
    what: str, store: Path, sound: Path, right: dict[str, str | None]
) -> None:
    damage, name = DAMAGE[what]
    damage(store)
    verified = run("info {store} --verify", store)
    assert verified.exit_code == 1
    assert name in verified.output.replace(str(store), "")
    assert f"run `actstats repair {store}`" in verified.stderr
    for command, answer in answers(store).items():
        assert answer in (None, right[command]), command
    try:
        found = actstats.open_dataset(store).load().drop_vars("provenance")
    except ValueError as error:  # of Zarr, about a chunk
        found, refused = None, str(error)
        assert "checksum do not match" in refused
    except actstats.ActstatsError as error:
        found, refused = None, str(error)
        assert name.partition(" ")[0] in refused
    if found is not None:
        xr.testing.assert_identical(found, actstats.open_dataset(sound).load().drop_vars("provenance"))
    repaired = run("repair {store}", store)
    assert repaired.exit_code == 0, repaired.output
    assert objects(store) == objects(sound)
    assert run("info {store} --verify", store).exit_code == 0


def test_a_lost_flag_is_named_and_its_partition_counts_as_incomplete(store: Path, sound: Path) -> None:
    (store / "completed/c.1").unlink()
    verified = json.loads(run("info {store} --verify --json", store).stdout)
    assert [(entry["variable"], entry["partition"]) for entry in verified["damage"]] == [("completed", 1)]
    assert "counts as incomplete" in verified["damage"][0]["reason"]
    assert actstats.open_dataset(store)["completed"].values.tolist() == [True, False, True]
    assert run("repair {store}", store).exit_code == 0
    assert objects(store) == objects(sound)


def test_a_read_of_one_unit_notices_an_object_of_another_partition(store: Path) -> None:
    first, second = (store / "top_value" / name for name in ("c.0.0.0", "c.1.0.0"))
    first.write_bytes(second.read_bytes())
    with pytest.raises(
        actstats.ActstatsError, match=r"top_value of partition 0 is not the object.*actstats repair"
    ):
        open_sweep(store).top("features.3.squeeze/1")
    with pytest.raises(actstats.ActstatsError, match=r"top_value of partition 0 is not the object"):
        actstats.open_dataset(store)["top_value"].isel(unit=70, partition=0).load()


def test_a_copied_object_is_noticed_without_compression_where_its_index_is_the_same(
    images: Path, tmp_path: Path
) -> None:
    store = tmp_path / "s.zarr"
    assert run(f"{SWEEP} --compression none --metrics top", store, images).exit_code == 0
    files = [store / "top_value" / name for name in ("c.0.0.0", "c.1.0.0")]
    first, second = (path.read_bytes() for path in files)
    assert first[-36:] == second[-36:]  # the index of two chunks
    files[0].write_bytes(second)
    assert "top_value of partition 0 is not the object" in run("top {store} features.0/3", store).stderr


def test_a_flipped_bit_of_metadata_is_refused_or_read_correctly(
    store: Path, right: dict[str, str | None]
) -> None:
    rng = random.Random(0)
    documents = [store / "zarr.json", *sorted(store.glob("*/zarr.json"))]
    for number in range(60):
        document = documents[0] if number % 3 else rng.choice(documents)
        data = document.read_bytes()
        flipped = bytearray(data)
        flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        document.write_bytes(flipped)
        command = READING[number % len(READING)]
        answer = run(command, store)
        text = answer.stdout.replace(str(store), "STORE").partition("\n\n")[0]
        assert answer.exit_code == 1 or text == right[command], (document, number, command)
        document.write_bytes(data)


def test_both_copies_of_the_manifest_damaged_or_the_images_gone_is_one_line(
    store: Path, images: Path, tmp_path: Path
) -> None:
    flipped(store / "manifest.json")
    (store / "path/c.0").unlink()
    images.rename(tmp_path / "moved")
    try:
        assert "pass their new location as --data" in run("repair {store}", store).stderr
        assert run(f"repair {{store}} --data {tmp_path / 'moved'}", store).exit_code == 0
    finally:
        (tmp_path / "moved").rename(images)
    for name in ("manifest.json", "zarr.json"):
        (store / name).write_text("{}")
    assert "has no intact copy of its manifest" in run("repair {store}", store).stderr
    (store / "zarr.json").unlink()
    (store / "zarr.json").mkdir()
    with pytest.raises(actstats.ActstatsError, match="has no intact copy of its manifest"):
        actstats.repair(store, repair=True)


def test_images_that_can_no_longer_be_read_are_reported(store: Path, images: Path) -> None:
    flipped(store / "mean/c.1.0")
    image, content = images / "3.png", (images / "3.png").read_bytes()
    try:
        image.write_bytes(bytes(len(content)))
        repaired = run("repair {store}", store)
        assert repaired.exit_code == 0
        assert "1 image could not be read and is excluded:\n  3.png: " in repaired.stdout
    finally:
        image.write_bytes(content)


def test_a_sweep_with_repair_restores_what_all_partitions_share(
    store: Path, sound: Path, images: Path
) -> None:
    for name in ("zarr.json", "layer/c.0", "top_image/zarr.json", "mean/c.2.0"):
        (store / name).unlink()
    assert run(f"{SWEEP} --repair", store, images).exit_code == 0
    assert objects(store) == objects(sound)


def test_partitions_without_digests_are_read_and_reported(store: Path, right: dict[str, str | None]) -> None:
    """As in stores of earlier versions, of which the metadata are compared when they are opened."""
    group = zarr.open_group(store, mode="r+")
    records = [json.loads(text) for text in group["provenance"][:]]
    for name in ("partition", "digests"):
        records = [{key: value for key, value in record.items() if key != name} for record in records]
    group["provenance"][:] = np.array([json.dumps(record) for record in records], dtype=object)
    reseal(store, lambda root: root["attributes"].pop("digests"))
    (store / "manifest.json").unlink()
    assert {c: text for c, text in answers(store).items() if "info" not in c} == {
        c: text for c, text in right.items() if "info" not in c
    }
    verified = run("info {store} --verify", store)
    assert (verified.exit_code, "3 partitions" in verified.stdout) == (0, True)
    flipped(store / "mean/c.0.0")
    (store / "channel/c.0").unlink()
    assert run("repair {store}", store).exit_code == 0
    flipped(store / "mean/zarr.json")
    assert "mean/zarr.json" in run("analyze smoothness {store}", store).stderr
    assert run("repair {store}", store).exit_code == 0
    assert (
        run("analyze smoothness {store}", store).stdout.replace(str(store), "STORE")
        == right["analyze smoothness {store}"]
    )


def test_a_store_in_a_bucket_is_verified_and_repaired(images: Path, sound: Path) -> None:
    url = "memory://test-repair/s.zarr"
    assert run(SWEEP, url, images).exit_code == 0
    bucket = opened(URL(url))
    keys = [meta["path"] for batch in obstore.list(bucket) for meta in batch]
    original = {key: bytes(obstore.get(bucket, key).bytes()) for key in keys if "provenance/c" not in key}
    for key, data in original.items():
        if not key.endswith("json"):
            assert data == (sound / key).read_bytes(), key
    obstore.put(bucket, "mean/c.0.0", original["mean/c.1.0"])
    obstore.put(bucket, "path/c.0", b"")
    obstore.delete(bucket, "zarr.json")
    assert "zarr.json is missing" in run("info {store} --verify", url).stderr
    assert run("repair {store}", url).exit_code == 0
    assert {key: bytes(obstore.get(bucket, key).bytes()) for key in original} == original
