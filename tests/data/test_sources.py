"""Folders, tar files and the demo: what is listed, in which order, under which labels."""

import importlib.util
import json
import os
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from actstats.data import MISSING, NO_LABEL, UNREADABLE, ImageError, open_source
from actstats.data.folder import list_folder
from actstats.data.opening import expand_ranges
from actstats.data.tar import members_of
from actstats.errors import ActstatsError
from tests.data.images import encoded, picture, write_folder, write_tar

PIXELS = [np.asarray(picture(seed=seed)) for seed in range(5)]
DATA = [encoded(picture(seed=seed)) for seed in range(5)]


def _error(spec: object, **options: int) -> str:
    with pytest.raises(ActstatsError) as caught:
        open_source(str(spec), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


BY_CLASS = {
    "dog/b.png": DATA[2],
    "cat/z.png": DATA[1],
    "cat/a.PNG": DATA[0],
    "notes.txt": b"",
    "dog/._b.png": b"",
}


def _check_by_class(source, prefix: str = "") -> None:
    assert source.paths == [prefix + name for name in ("cat/a.PNG", "cat/z.png", "dog/b.png")]
    assert source.classes == ["cat", "dog"]
    np.testing.assert_array_equal(source.labels, [0, 0, 1])
    assert source.labels.dtype == np.int64
    assert len(source) == 3
    for index in range(3):
        np.testing.assert_array_equal(np.asarray(source.image(index)), PIXELS[index])


def test_folder_by_class(tmp_path: Path) -> None:
    source = open_source(write_folder(tmp_path / "set", BY_CLASS))
    _check_by_class(source)
    assert source.kind == "folder"


def test_tar_by_class_equals_its_folder(tmp_path: Path) -> None:
    folder = open_source(write_folder(tmp_path / "set", BY_CLASS))
    source = open_source(write_tar(tmp_path / "set.tar", BY_CLASS))
    _check_by_class(source)
    assert source.kind == "tar"
    assert source.fingerprint == folder.fingerprint


def test_tar_below_a_common_folder(tmp_path: Path) -> None:
    files = {f"./images/train/{name}": data for name, data in BY_CLASS.items()}
    _check_by_class(open_source(write_tar(tmp_path / "set.tar", files)), "images/train/")


def test_flat_validation_set_has_no_labels(tmp_path: Path) -> None:
    names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in (2, 1)]
    source = open_source(write_folder(tmp_path, dict(zip(names, DATA, strict=False))))
    assert source.paths == sorted(names)
    np.testing.assert_array_equal(source.labels, [NO_LABEL, NO_LABEL])
    assert source.classes == []


def test_limit_keeps_the_labels_of_the_whole_folder(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", BY_CLASS)
    write_tar(tmp_path / "set.tar", dict(sorted(BY_CLASS.items())))
    for spec in ("set", "set.tar"):
        whole, part = open_source(tmp_path / spec), open_source(tmp_path / spec, limit=2)
        assert part.paths == whole.paths[:2]
        assert part.fingerprint != whole.fingerprint
        assert len(open_source(tmp_path / spec, limit=100)) == 3
    assert open_source(tmp_path / "set", limit=1).classes == open_source(tmp_path / "set").classes
    assert "limit" in _error(tmp_path / "set", limit=0)


def test_a_limit_stops_the_listing(tmp_path: Path) -> None:
    files = {f"{kind}/{index:03}.png": b"" for kind in "abcdef" for index in range(300)}
    write_folder(tmp_path / "set", files)
    seen: list[str] = []
    listening = True
    sys.addaudithook(lambda event, args: seen.append(str(args[0])) if listening and event == "open" else None)
    names, more = list_folder(tmp_path / "set", 20)
    listening = False
    assert names == [f"a/{index:03}.png" for index in range(20)]
    assert [name.partition("/")[0] for name in more] == ["b", "c", "d", "e", "f"]
    assert not [name for name in seen if name.endswith(".png")]
    # One member more is read, as it might be the class of the last image; nothing after that.
    path = write_tar(tmp_path / "set.tar", dict.fromkeys(files, DATA[0]))
    at = members_of(path)["a/021.png"].offset
    with path.open("r+b") as file:
        file.seek(at - 512)
        file.write(b"x" * 10_000)
    assert open_source(path, limit=20).paths == names
    assert "complete tar" in _error(path)


def test_the_index_of_a_tar_is_kept_until_the_tar_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACTSTATS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("actstats.data.tar._KEPT_FROM", 2)
    path = write_tar(tmp_path / "a.tar", {"1.png": DATA[0], "1.cls": b"7", "2.png": DATA[1], "2.cls": b"3"})
    first = open_source(path)
    (kept,) = (tmp_path / "cache" / "tar").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr("actstats.data.tar._scan", lambda path: pytest.fail("the tar was read again"))
        again = open_source(path)
    assert open_source(path, limit=1).labels.tolist() == [7]
    assert (again.paths, again.labels.tolist(), again.fingerprint) == (first.paths, [7, 3], first.fingerprint)
    np.testing.assert_array_equal(np.asarray(again.image(1)), PIXELS[1])
    for damage in (
        b"",
        b"[]",
        b"[[1],[2],[3],[4],[5]]",
        b'[["a.png"],[-1],[3],[null],[null]]',
        b'[["a.png"],[1],[3],[null],[[[1]]]]',
        kept.read_bytes()[:-5],
    ):
        kept.write_bytes(damage)
        assert open_source(path).paths == first.paths
    write_tar(path, {"3.png": DATA[0]})
    assert open_source(path).paths == ["3.png"]


def test_many_processes_may_keep_the_index_of_one_tar(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {f"{index:04}.png": DATA[index % 5] for index in range(1_200)})
    code = f"from actstats.data import open_source; print(open_source({str(path)!r}).fingerprint)"
    environment = {**os.environ, "ACTSTATS_CACHE": str(tmp_path / "cache")}
    started = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    said = {process.communicate()[0] for process in started}
    assert said == {open_source(path).fingerprint + "\n"}
    (kept,) = (tmp_path / "cache" / "tar").iterdir()
    assert len(json.loads(kept.read_text())[0]) == 1_200


def test_a_folder_that_may_not_be_listed_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", {"a/1.png": DATA[0], "b/2.png": DATA[1]})
    (tmp_path / "set" / "b").chmod(0)
    for folder in (tmp_path, *list(tmp_path.parents)[:-1]):
        folder.chmod(folder.stat().st_mode | 0o055)
    # Root may list everything, so a process of someone else's tries.
    code = (
        "import os, sys\nfrom actstats.data import open_source\nfrom actstats.errors import ActstatsError\n"
        "if os.getuid() == 0:\n    os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try:\n    open_source(sys.argv[1])\nexcept ActstatsError as error:\n    print(error)\n"
    )
    try:
        said = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "set")], capture_output=True, text=True, check=True
        ).stdout
    finally:
        (tmp_path / "set" / "b").chmod(0o755)
    assert said.count("\n") == 1
    assert f"cannot list the folder {tmp_path / 'set' / 'b'}: Permission denied" in said


def test_a_class_number_that_is_none_is_named(tmp_path: Path) -> None:
    for text in (b"1" * 23, b"-4", b"cat", b"2147483648", b""):
        path = write_tar(tmp_path / "a.tar", {"x.png": DATA[0], "x.cls": text})
        assert "x.cls must contain the number of a class" in _error(path)


def test_a_damaged_sparse_header_is_one_line(tmp_path: Path) -> None:
    entry = tarfile.TarInfo("x.png")
    entry.size, entry.type = 512, tarfile.GNUTYPE_SPARSE
    header = bytearray(entry.tobuf(tarfile.GNU_FORMAT))
    header[386:398] = b"not a number"
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    (tmp_path / "a.tar").write_bytes(bytes(header) + bytes(2048))
    assert "complete tar" in _error(tmp_path / "a.tar")


def test_pipes_devices_and_loops_are_passed_over(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "set", {"a/1.png": DATA[0]})
    os.mkfifo(root / "pipe.png")
    (root / "zero.png").symlink_to("/dev/zero")
    (root / "topipe.png").symlink_to(root / "pipe.png")
    (root / "self.png").symlink_to(root / "self.png")
    (root / "gone.png").symlink_to(root / "nothing.png")
    (root / "a" / "up").symlink_to(root)
    source = open_source(root)
    assert source.paths == ["a/1.png", "gone.png", "self.png"]
    for index in (1, 2):
        with pytest.raises(ImageError):
            source.image(index)
    (root / "a" / "1.png").unlink()
    os.mkfifo(root / "a" / "1.png")  # after it was listed
    with pytest.raises(ImageError, match="not a regular file"):
        source.image(0)


@pytest.mark.parametrize("spec", ["pipe", "/dev/zero", "/dev/null"])
def test_what_is_neither_folder_nor_file_is_refused_unread(tmp_path: Path, spec: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "neither a folder nor a regular file" in _error(tmp_path / spec)


def test_a_user_who_does_not_exist_and_a_range_without_end_are_one_line_each(tmp_path: Path) -> None:
    assert "no such folder or tar file: ~nosuchuser/x" in _error("~nosuchuser/x")
    assert "no such folder or tar file" in _error(f"{tmp_path}/x{{0..99999999}}.tar")
    write_tar(tmp_path / "x0.tar", {"1.png": DATA[0]})
    assert "x1.tar" in _error(f"{tmp_path}/x{{0..999999999999}}.tar")


def test_a_folder_that_is_gone_is_not_a_missing_image(tmp_path: Path) -> None:
    source = open_source(write_folder(tmp_path / "set", {"a/1.png": DATA[0], "b/2.png": DATA[1]}))
    (tmp_path / "set" / "a" / "1.png").unlink()
    with pytest.raises(ImageError, match="the file does not exist"):
        source.image(0)
    (tmp_path / "set").rename(tmp_path / "away")
    with pytest.raises(ActstatsError, match=r"the folder .*set no longer exists; restore it"):
        source.image(1)


def test_listing_images_does_without_torch(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", {"1.png": DATA[0]})
    program = (
        "import sys; from actstats.data import open_source; from actstats.data.preprocessing import Preprocessing;"
        f"open_source({str(tmp_path / 'set')!r}).image(0); Preprocessing.imagenet(); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_fingerprint_tells_lists_apart(tmp_path: Path) -> None:
    first = open_source(write_folder(tmp_path / "a", {"1.png": DATA[0]}))
    assert first.fingerprint == open_source(write_folder(tmp_path / "b", {"1.png": DATA[0]})).fingerprint
    assert first.fingerprint != open_source(write_folder(tmp_path / "c", {"2.png": DATA[0]})).fingerprint
    assert (
        first.fingerprint != open_source(write_folder(tmp_path / "d", {"1.png": DATA[0] + b"x"})).fingerprint
    )


def test_folder_links(tmp_path: Path) -> None:
    write_folder(tmp_path / "real", {"a.png": DATA[0]})
    root = write_folder(tmp_path / "set", {"b.png": DATA[1]})
    (root / "linked").symlink_to(tmp_path / "real")
    (root / "loop").symlink_to(root)
    (root / "broken.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(root / "pipe.png")
    source = open_source(root)
    assert source.paths == ["b.png", "broken.png", "linked/a.png"]
    with pytest.raises(ImageError) as caught:
        source.image(1)
    assert caught.value.status == MISSING


def test_a_file_that_went_is_missing(tmp_path: Path) -> None:
    source = open_source(write_folder(tmp_path, {"a.png": DATA[0]}))
    (tmp_path / "a.png").unlink()
    with pytest.raises(ImageError) as caught:
        source.image(0)
    assert caught.value.status == MISSING


def test_a_folder_named_like_an_image_is_unreadable_not_fatal(tmp_path: Path) -> None:
    source = open_source(write_folder(tmp_path, {"a.png": DATA[0]}))
    (tmp_path / "a.png").unlink()
    (tmp_path / "a.png").mkdir()
    with pytest.raises(ImageError) as caught:
        source.image(0)
    assert caught.value.status == UNREADABLE


@pytest.mark.any_file_name
def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", {os.fsdecode(b"caf\xe9.png"): DATA[0]})
    source = open_source(tmp_path / "set")
    assert source.paths == [r"caf\xe9.png"]
    np.testing.assert_array_equal(np.asarray(source.image(0)), PIXELS[0])


def test_webdataset_shards(tmp_path: Path) -> None:
    shards = [
        {
            "0001.cls": b"7",
            "0001.png": DATA[1],
            "0000.jpg.png": DATA[0],
            "0000.cls": b"3\n",
            "0000.json": b"{}",
        },
        {"0000.cls": b"5", "0000.png": DATA[2], "0001.png": DATA[3]},
    ]
    for number, files in enumerate(shards):
        write_tar(tmp_path / f"train-{number:03d}.tar", files)
    braces = open_source(tmp_path / "train-{000..001}.tar")
    assert braces.paths == [
        "train-000.tar/0000.jpg.png",
        "train-000.tar/0001.png",
        "train-001.tar/0000.png",
        "train-001.tar/0001.png",
    ]
    np.testing.assert_array_equal(braces.labels, [3, 7, 5, NO_LABEL])
    assert braces.classes == []
    for index in range(4):
        np.testing.assert_array_equal(np.asarray(braces.image(index)), PIXELS[index])
    folder = open_source(tmp_path)
    assert folder.paths == braces.paths
    assert folder.fingerprint == braces.fingerprint
    assert "train-002.tar" in _error(tmp_path / "train-{000..002}.tar")


def test_a_class_member_that_is_no_number(tmp_path: Path) -> None:
    assert "0.cls" in _error(write_tar(tmp_path / "a.tar", {"0.png": DATA[0], "0.cls": b"cat"}))


def test_expand_ranges() -> None:
    assert list(expand_ranges("{0..1}/{8..10}")) == ["0/8", "0/9", "0/10", "1/8", "1/9", "1/10"]
    assert list(expand_ranges("plain")) == ["plain"]
    with pytest.raises(ActstatsError, match="empty"):
        list(expand_ranges("{3..1}"))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_in_every_tar_format(tmp_path: Path, form: int) -> None:
    name = f"{'d' * 90}/{'n' * 80}.png"
    source = open_source(write_tar(tmp_path / "a.tar", {name: DATA[0], "b.png": DATA[1]}, format=form))
    assert source.paths == ["b.png", name]
    np.testing.assert_array_equal(np.asarray(source.image(1)), PIXELS[0])


def test_tar_members_are_only_names_and_bytes(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"/etc/a.png": DATA[0], "../../b.png": DATA[1]})
    with tarfile.open(path, "a") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
            entry = tarfile.TarInfo(f"{kind.decode()}.png")
            entry.type, entry.linkname = kind, "/etc/passwd"
            archive.addfile(entry)
    source = open_source(path)
    assert source.paths == ["b.png", "etc/a.png"]
    assert sorted(tmp_path.iterdir()) == [path]


def test_the_last_of_two_members_with_one_name_counts(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"a.png": DATA[0]})
    write_tar(path, {"a.png": DATA[1]}, mode="a")
    source = open_source(path)
    assert len(source) == 1
    np.testing.assert_array_equal(np.asarray(source.image(0)), PIXELS[1])


@pytest.mark.parametrize(("mode", "tool"), [("w:gz", "gunzip"), ("w:bz2", "bunzip2"), ("w:xz", "unxz")])
def test_compressed_tars_are_refused_with_advice(tmp_path: Path, mode: str, tool: str) -> None:
    assert tool in _error(write_tar(tmp_path / "a.tar", {"a.png": DATA[0]}, mode=mode))


def test_damaged_tars_are_refused(tmp_path: Path) -> None:
    # Without its two closing blocks a tar is whole; cut within a member or a header it is not.
    path = write_tar(tmp_path / "a.tar", {"a.png": DATA[0], "b.png": DATA[1]})
    whole = path.read_bytes()
    second = members_of(path)["b.png"].offset
    for length in (second - 100, second + 10):
        path.write_bytes(whole[:length])
        assert "complete tar" in _error(path)
    path.write_bytes(whole[: second - 512] + b"x" * 512 + whole[second:])
    assert "complete tar" in _error(path)
    path.write_bytes(b"no tar at all" * 100)
    assert "complete tar" in _error(path)
    path.write_bytes(b"")
    assert "complete tar" in _error(path)


def test_a_tar_cut_after_opening(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"a.png": DATA[0]})
    source = open_source(path)
    os.truncate(path, 600)
    with pytest.raises(ImageError, match="shorter than when it was opened") as caught:
        source.image(0)
    assert caught.value.status == MISSING  # no damage of the image, which a rerun tries again


def test_a_shard_gone_after_opening(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"a.png": DATA[0]})
    source = open_source(path)
    path.unlink()
    with pytest.raises(ActstatsError, match=r"the tar file .*a\.tar no longer exists; restore it"):
        source.image(0)


def test_many_threads_read_many_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # More shards than descriptors are kept, so that they are closed and opened again under the readers.
    monkeypatch.setattr("actstats.data.tar._OPEN_SHARDS", 2)
    for shard in range(6):
        write_tar(tmp_path / f"{shard}.tar", {f"{seed}.png": DATA[seed] for seed in range(5)})
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir())) if descriptors.exists() else 0
    source = open_source(tmp_path)
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(30), 10))
    with ThreadPoolExecutor(8) as pool:
        for index, data in zip(order, pool.map(source.read, order), strict=True):
            assert data == DATA[index % 5]
    if before:
        assert len(list(descriptors.iterdir())) <= before + 2


def test_nothing_there(tmp_path: Path) -> None:
    write_folder(tmp_path, {"photographs/readme.txt": b"", "photographs/a.txt": b""})
    assert "did you mean photographs?" in _error(tmp_path / "photograps")
    assert "no image" in _error(tmp_path / "photographs")
    assert "no image" in _error(write_tar(tmp_path / "a.tar", {"a.txt": b"1"}))
    assert _error(tmp_path / "none" / "such")
    for name in ("opt", "home"):
        (tmp_path / "root" / name).mkdir(parents=True)
    assert "did you mean" not in _error(tmp_path / "root" / "nope")
    assert "complete tar" in _error(write_folder(tmp_path, {"one.png": DATA[0]}) / "one.png")


def test_demo() -> None:
    source, again = open_source("demo"), open_source("demo")
    assert len(source) == len(set(source.paths)) == 256
    assert source.paths == again.paths
    assert source.fingerprint == again.fingerprint
    np.testing.assert_array_equal(np.bincount(source.labels), [32] * 8)
    assert len(open_source("demo", limit=9)) == 9
    for index in range(0, 256, 37):
        image = source.image(index)
        assert isinstance(image, Image.Image)
        assert source.paths[index].startswith(source.classes[source.labels[index]] + "/")
        assert source.paths[index].endswith(f"-{image.width}")
        assert np.asarray(image).std() > 1


def test_demo_without_scikit_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install scikit-image" in _error("demo")
