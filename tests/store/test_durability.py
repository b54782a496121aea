"""What a store promises: a power cut, damage, another process and a moved folder are noticed or do no harm."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr

import actstats
from actstats.data.preprocessing import Preprocessing
from actstats.errors import ActstatsError
from actstats.store import Store, open_dataset
from tests.conftest import SmallNet, damages, files_of

SMALL = Preprocessing.imagenet(size=32, resize=36)


def sweep(images: Path, store: Path, **options):
    settings = {"batch_size": 4, "partition_size": 5, "top_k": 3, "device": "cpu", "workers": 0}
    return actstats.sweep(SmallNet(), images, store, preprocessing=SMALL, **{**settings, **options})


@pytest.fixture(scope="module")
def whole(photographs, tmp_path_factory) -> Path:
    """A complete store of three partitions, which no test changes."""
    path = tmp_path_factory.mktemp("whole") / "s.zarr"
    sweep(photographs, path)
    return path


def noticed(path: Path) -> set[str]:
    """The names of what is damaged in a store, `opening` for one that cannot be opened."""
    try:
        return {name for name, _, _ in Store.open(path).damage()}
    except ActstatsError:
        return {"opening"}


def test_every_object_damaged_in_four_ways_is_noticed_and_repaired(photographs, whole, tmp_path):
    original = files_of(whole)
    objects = [path.relative_to(whole) for path in sorted(whole.rglob("*")) if path.is_file()]
    assert len(objects) > 60
    path = tmp_path / "s.zarr"
    shutil.copytree(whole, path)
    for name in objects:
        for how, data in damages(whole / name):
            if data is None:
                (path / name).unlink()
            else:
                (path / name).write_bytes(data)
            variable = name.parts[0]
            if (
                variable == "completed"
                and name.name != "zarr.json"
                and how in ("deleted", "emptied", "truncated")
            ):
                # Not complete, which is not damage: the sweep computes it again.
                assert not Store.open(path).completed.all()
            else:
                assert noticed(path) & {variable, str(name), "opening"}, (name, how)
            shutil.copyfile(whole / name, path / name)
    outputs = Store.open(whole).manifest.outputs
    for name in (name for name in objects if name.parts[0] in outputs and name.name.startswith("c.1")):
        for _, data in damages(whole / name):
            (path / name).write_bytes(b"" if data is None else data)
    summary = sweep(photographs, path, repair=True)
    assert (summary.partitions, summary.complete) == (1, True)
    assert files_of(path) == original


def test_a_missing_object_is_an_error_and_no_plausible_number(photographs, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "s.zarr")
    (tmp_path / "s.zarr" / "total_variation" / "c.1.0").unlink()
    message = r"total_variation of partition 1 is missing or empty; .*sweep again with `repair=True`"
    for attempt in (open_dataset, lambda path: sweep(photographs, path)):
        with pytest.raises(ActstatsError, match=message):
            attempt(tmp_path / "s.zarr")
    notes: list[str] = []
    sweep(photographs, tmp_path / "s.zarr", repair=True, on_start=lambda start: notes.extend(start.notes))
    assert notes == ["partition 1 is damaged (total_variation); computing it again"]
    assert files_of(tmp_path / "s.zarr") == files_of(whole)


@pytest.mark.parametrize("name", ["path", "layer", "height", "bin_left"])
def test_zeroed_coordinates_stop_a_sweep_that_would_go_on(name, photographs, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "s.zarr")
    (tmp_path / "s.zarr" / "completed" / "c.2").unlink()
    (tmp_path / "s.zarr" / name / "c.0").unlink()
    with pytest.raises(ActstatsError, match=f"damaged: .*{name}"):
        sweep(photographs, tmp_path / "s.zarr")


def test_overwriting_keeps_the_progress_of_the_very_same_sweep(photographs, tmp_path):
    sweep(photographs, tmp_path / "s.zarr", part=(0, 2))
    inode = (tmp_path / "s.zarr").stat().st_ino
    summary = sweep(photographs, tmp_path / "s.zarr", overwrite=True)
    assert (tmp_path / "s.zarr").stat().st_ino == inode
    assert (summary.partitions, summary.complete) == (1, True)


def test_a_store_in_use_is_not_overwritten(photographs, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "s.zarr")
    program = (
        "import sys, pathlib; from actstats.store.files import InUse; use = InUse(pathlib.Path(sys.argv[1]));"
        "print('in use', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "s.zarr")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"in use\n"
        with pytest.raises(ActstatsError, match="is in use by another process"):
            sweep(photographs, tmp_path / "s.zarr", batch_size=3, overwrite=True)
        other.communicate()
    assert files_of(tmp_path / "s.zarr") == files_of(whole)
    assert sweep(photographs, tmp_path / "s.zarr", batch_size=3, overwrite=True).partitions == 3


def test_what_killed_processes_left_is_swept_up_and_nothing_else(photographs, tmp_path):
    for name in (".s.zarr.0123abcd", ".s.zarr.notes", ".other.zarr.0123abcd"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("")
    sweep(photographs, tmp_path / "s.zarr", limit=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".other.zarr.0123abcd",
        ".s.zarr.notes",
        "s.zarr",
    ]


def test_a_store_moved_while_it_is_written_is_noticed(photographs, tmp_path):
    def move(progress):
        if progress.done == 5:
            (tmp_path / "s.zarr").rename(tmp_path / "moved.zarr")

    with pytest.raises(ActstatsError, match="was moved, removed or replaced while its sweep was running"):
        sweep(photographs, tmp_path / "s.zarr", on_progress=move)
    assert not (tmp_path / "s.zarr").exists()


def test_missing_images_are_tried_again_and_unreadable_ones_are_not(photographs, whole, tmp_path):
    images = tmp_path / "photos"
    shutil.copytree(photographs, images)
    (images / "cat" / "06.png").rename(tmp_path / "06.png")
    source = actstats.open_source(photographs)  # lists what is away for a moment

    def read(index: int, inner=source.read):
        path = images / source.paths[index]
        if not path.exists():
            from actstats.data import MISSING, ImageError

            raise ImageError(MISSING, "is not there")
        return inner(index)

    source.read = read
    first = sweep(source, tmp_path / "s.zarr")
    assert set(first.failures) == {"cat/06.png"}
    (tmp_path / "06.png").rename(images / "cat" / "06.png")
    notes: list[str] = []
    second = sweep(source, tmp_path / "s.zarr", on_start=lambda start: notes.extend(start.notes))
    assert notes == ["1 partition had missing images; trying them again"]
    assert (second.partitions, second.failures) == (1, {})
    assert files_of(tmp_path / "s.zarr") == files_of(whole)


def test_a_store_of_format_1_is_read_and_not_continued(photographs, tmp_path):
    path = tmp_path / "old.zarr"
    sweep(photographs, path)
    group = zarr.open_group(path, mode="r+")
    old = tmp_path / "s.zarr"
    manifest = {**group.attrs.asdict(), "actstats": 1}
    for later in ("checksum", "digests"):
        del manifest[later]
    made = zarr.create_group(old, zarr_format=3, attributes=manifest)
    for name, array in group.arrays():
        if name == "provenance":
            continue
        chunks = tuple(max(1, n) for n in array.shape)
        if name in manifest["outputs"] or name in ("status", "completed"):
            chunks = (array.chunks[0], *chunks[1:])
        layout = {"chunks": chunks}
        if name in manifest["outputs"]:
            layout |= {"shards": chunks, "compressors": zarr.codecs.ZstdCodec(level=1)}
        if name == "completed":
            layout |= {"compressors": None}
        values = array[...]
        copy = made.create_array(
            name, shape=array.shape, dtype=str if values.dtype.kind in "OT" else array.dtype, **layout,
            fill_value=array.fill_value, dimension_names=array.metadata.dimension_names, attributes=dict(array.attrs),
        )  # fmt: skip
        copy[...] = values
    zarr.consolidate_metadata(old)
    found, expected = open_dataset(old).load(), open_dataset(path).load()
    for name in expected.data_vars:
        np.testing.assert_array_equal(found[name], expected[name])
    assert Store.open(old).completed.all()
    assert list(Store.open(old).damage()) == []
    with pytest.raises(ActstatsError, match=r"has store format 1, .* sweep again only if it is damaged"):
        actstats.repair(old)
    with pytest.raises(
        ActstatsError, match="has store format 1, which this version of actstats reads but does not"
    ):
        sweep(photographs, old)
