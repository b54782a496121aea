"""Tars hold what their folder holds: links, files with holes, and nothing that is hidden."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from actstats.data import REFUSED, UNREADABLE, ImageError, open_source
from actstats.errors import ActstatsError
from tests.data.images import encoded, picture, write_folder, write_tar

DATA = [encoded(picture(seed=seed)) for seed in range(4)]


def tar_of(folder: Path, *options: str) -> Path:
    """A tar of `folder` written by GNU tar."""
    target = folder.with_suffix(".tar")
    subprocess.run(["tar", "-cf", target, "--sort=name", *options, "-C", folder, "."], check=True)
    return target


def link(path: Path, name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> None:
    """Append a link to a tar."""
    with tarfile.open(path, "a") as archive:
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname = kind, target
        archive.addfile(entry)


def assert_same(tar: Path, folder: Path) -> None:
    """Check that both have the same images, with the bytes of the files in the folder."""
    found, expected = open_source(tar), open_source(folder)
    assert found.paths == expected.paths
    assert (found.labels.tolist(), found.classes) == (expected.labels.tolist(), expected.classes)
    assert found.fingerprint == expected.fingerprint
    for index, path in enumerate(found.paths):
        assert found.read(index) == (folder / path).read_bytes(), path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_folder(
        tmp_path / "set",
        {"cat/1.png": DATA[0], "cat/2.png": DATA[1], "dog/3.png": DATA[2], "x/blob": DATA[3]},
    )


def test_hard_links_are_images_of_their_own(tree: Path) -> None:
    os.link(tree / "cat/2.png", tree / "dog/0.png")
    os.link(tree / "cat/2.png", tree / "dog/9.png")
    os.link(tree / "x/blob", tree / "x/z.png")  # the first name of these bytes is not that of an image
    assert_same(tar_of(tree), tree)
    assert len(open_source(tree)) == 6


def test_symbolic_links_are_followed_within_the_tar(tree: Path) -> None:
    (tree / "dog/0.png").symlink_to("../cat/1.png")
    (tree / "dog/1.png").symlink_to("0.png")
    (tree / "cat/blob.png").symlink_to("../x/./blob")
    (tree / "owl").symlink_to("dog")
    (tree / "dog/4.png").symlink_to("../owl/3.png")
    (tree / "dog/loop").symlink_to("..")
    (tree / "yak").mkdir()
    (tree / "yak/inner").symlink_to("../owl")
    assert_same(tar_of(tree), tree)
    found = open_source(tree.with_suffix(".tar"))
    assert "owl/4.png" in found.paths
    assert "yak/inner/3.png" in found.paths
    assert "owl/loop/cat/1.png" not in found.paths


def test_a_tree_with_absolute_names_may_have_absolute_links(tree: Path) -> None:
    (tree / "dog/0.png").symlink_to(tree / "cat/1.png")
    subprocess.run(
        ["tar", "-cPf", tree.with_suffix(".tar"), tree / "cat", tree / "dog"],
        check=True,
        stderr=subprocess.DEVNULL,
    )
    found = open_source(tree.with_suffix(".tar"))
    prefix = str(tree).lstrip("/")
    assert found.paths == [
        f"{prefix}/{name}" for name in ("cat/1.png", "cat/2.png", "dog/0.png", "dog/3.png")
    ]
    assert found.read(2) == DATA[0]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_that_leave_the_tar_or_lead_nowhere_are_skipped(tmp_path: Path, kind: bytes) -> None:
    (tmp_path / "secret.png").write_bytes(DATA[3])
    path = write_tar(tmp_path / "a.tar", {"cat/1.png": DATA[0], "secret/x.png": DATA[1]})
    for number, target in enumerate(
        (
            "../../secret.png",
            f"{tmp_path}/secret.png",
            "gone.png",
            "self.png",
            "cat",
            "../cat/../../a.png",
            "",
        )
    ):
        link(path, f"cat/{number}-away.png", target, kind)
    link(path, "cat/self.png", "self.png", kind)
    for one, other in (("a", "b"), ("b", "a")):
        link(path, f"cat/{one}.png", f"{other}.png", kind)
    assert open_source(path).paths == ["cat/1.png", "secret/x.png"]


def test_links_in_each_other_are_refused_or_read_in_little_time(tmp_path: Path) -> None:
    # Two links at each of 40 levels to the next: a million million paths to one image.
    path = write_tar(tmp_path / "a.tar", {"40/1.png": DATA[0]})
    with tarfile.open(path, "a") as archive:
        for level in range(40):
            for name in ("a", "b"):
                entry = tarfile.TarInfo(f"{level}/{name}")
                entry.type, entry.linkname = tarfile.SYMTYPE, f"../{level + 1}"
                archive.addfile(entry)
    with pytest.raises(ActstatsError, match="too many links"):
        open_source(path)
    # A chain that is longer than a file system would follow.
    path = write_tar(tmp_path / "b.tar", {"0.png": DATA[0]})
    for number in range(1, 60):
        link(path, f"{number}.png", f"{number - 1}.png")
    assert len(open_source(path)) == 41


def test_a_later_member_replaces_an_earlier_one_of_its_name(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"a.png": DATA[0], "b.png": DATA[1]})
    link(path, "a.png", "b.png")
    assert [open_source(path).read(index) for index in range(2)] == [DATA[1], DATA[1]]
    with tarfile.open(path, "a") as archive:
        entry = tarfile.TarInfo("a.png")
        entry.size = len(DATA[2])
        archive.addfile(entry, io.BytesIO(DATA[2]))
    assert [open_source(path).read(index) for index in range(2)] == [DATA[2], DATA[1]]


def test_a_linked_class_number_is_read(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"0.png": DATA[0], "0.cls": b"7", "1.png": DATA[1]})
    link(path, "1.cls", "0.cls")
    assert open_source(path).labels.tolist() == [7, 7]


@pytest.mark.parametrize("form", ["gnu", "pax"])
@pytest.mark.parametrize("version", ["0.0", "0.1", "1.0"])
def test_files_with_holes_are_whole(tmp_path: Path, form: str, version: str) -> None:
    values = np.zeros((600, 400, 3), np.uint8)
    values[200:210] = 77
    values[590:] = 99
    data = encoded(Image.fromarray(values), "BMP")
    root = write_folder(tmp_path / "set", {"a.png": DATA[0]})
    with (root / "holes.bmp").open("wb") as file:
        for start in range(0, len(data), 4096):
            block = data[start : start + 4096]
            if any(block):
                file.write(block)
            else:
                file.seek(len(block), os.SEEK_CUR)
        file.truncate(len(data))
    assert (root / "holes.bmp").stat().st_blocks * 512 < len(data) / 2
    sparse = tar_of(
        root, "--sparse", f"--format={form}", *([f"--sparse-version={version}"] * (form == "pax"))
    )
    assert sparse.stat().st_size < len(data) / 2
    assert_same(sparse, root)
    np.testing.assert_array_equal(np.asarray(open_source(sparse).image(1)), values)


def sparse_member(path: Path, size: int, pieces: str) -> Path:
    """A tar with a sparse member in the pax format 0.1, which says what it likes."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        entry = tarfile.TarInfo("a.png")
        entry.size = len(DATA[0])
        entry.pax_headers = {
            "GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.size": str(size),
            "GNU.sparse.map": pieces, "GNU.sparse.numblocks": "1",
        }  # fmt: skip
        archive.addfile(entry, io.BytesIO(DATA[0]))
    return path


def test_impossible_holes_are_damage_of_that_image(tmp_path: Path) -> None:
    for size, pieces, status in (
        (100, "90,20", UNREADABLE),
        (100, "0,-5", UNREADABLE),
        (100, "-5,5", UNREADABLE),
        (1 << 50, "0,5", REFUSED),
        (100, f"0,{1 << 50}", REFUSED),
    ):
        source = open_source(sparse_member(tmp_path / "a.tar", size, pieces))
        with pytest.raises(ImageError) as caught:
            source.image(0)
        assert caught.value.status == status, pieces


HIDDEN = {
    "cat/1.png": DATA[0],
    "dog/2.png": DATA[1],
    "dog/._2.png": b"AppleDouble",
    ".ipynb_checkpoints/1-checkpoint.png": DATA[2],
    "dog/.thumbs/deep/2.png": DATA[3],
    "dog/.3.cls": b"4",
}


def test_hidden_folders_are_no_classes_in_a_folder_or_its_tar(tmp_path: Path) -> None:
    tree = write_folder(tmp_path / "set", HIDDEN)
    assert_same(tar_of(tree), tree)
    assert open_source(tree).paths == ["cat/1.png", "dog/2.png"]
    # The folder that the user names, or a link's target, may be hidden.
    assert len(open_source(write_folder(tmp_path / ".cache/set", HIDDEN))) == 2
    (tree / "dog/9.png").symlink_to("../.ipynb_checkpoints/1-checkpoint.png")
    assert_same(tar_of(tree), tree)
    assert len(open_source(tree)) == 3


def test_hidden_files_beside_shards_are_skipped(tmp_path: Path) -> None:
    for shard in range(2):
        write_tar(tmp_path / f"val-{shard}.tar", {f"{shard}.png": DATA[shard]})
    (tmp_path / "._val-0.tar").write_bytes(bytes.fromhex("0005160700020000") + bytes(4096))
    assert open_source(tmp_path).paths == ["val-0.tar/0.png", "val-1.tar/1.png"]


def test_headers_in_headers_are_one_line(tmp_path: Path) -> None:
    for kind in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE):
        entry = tarfile.TarInfo("././@LongLink")
        entry.type, entry.size = kind, 5
        header = entry.tobuf(tarfile.GNU_FORMAT) + b"aaaa\0" + bytes(507)
        (tmp_path / "chain.tar").write_bytes(header * 5_000 + bytes(1024))
        with pytest.raises(ActstatsError) as caught:
            open_source(tmp_path / "chain.tar")
        assert "\n" not in str(caught.value)


def test_a_header_that_claims_gigabytes_is_not_read(tmp_path: Path) -> None:
    for kind in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):
        entry = tarfile.TarInfo("long")
        entry.type, entry.size = kind, 30 << 30
        path = tmp_path / "a.tar"
        path.write_bytes(entry.tobuf(tarfile.GNU_FORMAT))
        os.truncate(path, 31 << 30)  # holes
        with pytest.raises(ActstatsError, match="not a complete tar file"):
            open_source(path)
