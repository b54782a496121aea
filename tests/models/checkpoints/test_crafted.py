"""Opening a checkpoint runs nothing: files that run something elsewhere, and files that would take all memory."""

import io
import pickle
import struct
import tarfile
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from actstats.errors import ActstatsError
from actstats.models.checkpoints import pickles, read_checkpoint
from tests.models.checkpoints import crafted

NOWHERE = Path("ran")
PICKLES = [what for what, _ in crafted.pickles(NOWHERE)]
TORCH_FILES = [what for what, _ in crafted.torch_files(NOWHERE)]
ARCHIVES = [what for what, _ in crafted.archives(NOWHERE)]


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the files try to create; the module `crafted_module` creates it when it is imported."""
    target = tmp_path / "ran"
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "crafted_module.py").write_text(f"open({str(target)!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(folder)
    return target


@pytest.fixture(autouse=True)
def _extension() -> Iterator[None]:
    with crafted.Extension():
        yield


def read(path: Path, data: bytes) -> str:
    """Read a file as weights; return the error's line, or what it names that was left alone."""
    path.write_bytes(data)
    try:
        return " ".join(read_checkpoint(path).foreign)
    except ActstatsError as error:
        return str(error)


def ran(target: Path) -> bool:
    """Whether the file is there, which is then removed."""
    if target.is_dir():
        target.rmdir()
        return True
    there = target.exists()
    target.unlink(missing_ok=True)
    return there


def unpack(data: bytes, folder: Path) -> None:
    """Unpack an archive as careless programs do: each member where its name says."""
    file = io.BytesIO(data)
    if data[:2] == b"PK":
        with zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                (folder / info.filename).write_bytes(archive.read(info))
    else:
        with tarfile.open(fileobj=file) as archive:
            archive.extractall(folder, filter="fully_trusted")


def test_there_are_enough() -> None:
    assert len(PICKLES) + len(TORCH_FILES) + len(ARCHIVES) >= 50


@pytest.mark.parametrize("what", PICKLES)
def test_a_crafted_pickle_runs_nothing(target: Path, what: str) -> None:
    data = dict(crafted.pickles(target))[what]
    assert read(target.with_suffix(".pt"), data)
    assert not ran(target)
    try:
        pickle.loads(data)
    except Exception as error:
        print(error)
    assert ran(target), "the file was not armed"


@pytest.mark.parametrize("what", TORCH_FILES)
def test_a_crafted_file_of_torch_runs_nothing(target: Path, what: str) -> None:
    path = target.with_suffix(".pt")
    assert read(path, dict(crafted.torch_files(target))[what])
    assert not ran(target)
    try:
        torch.load(path, weights_only=False)
    except Exception as error:
        print(error)
    assert ran(target), "the file was not armed"


@pytest.mark.parametrize("what", ARCHIVES)
def test_members_that_point_elsewhere_are_refused(target: Path, what: str) -> None:
    data = dict(crafted.archives(target))[what]
    message = read(target.with_suffix(".pt"), data)
    assert "is refused: its member" in message
    assert not ran(target)
    if "link" not in what and "pipe" not in what:
        folder = target.parent / "unpacked"
        (folder / "archive").mkdir(parents=True)
        unpack(data, folder)
        assert ran(target), "the file was not armed"


@pytest.mark.parametrize("what", crafted.BOMBS)
def test_a_bomb_is_one_line_and_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(pickles, "MOST_OPCODES", 200_000)
    tracemalloc.start()
    try:
        message = read(tmp_path / "a.pt", crafted.BOMBS[what])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "is refused" in message or "no weights file" in message
    assert peak < 200 << 20


def zipped(pickled: bytes, **members: bytes) -> bytes:
    return crafted.zip_of({"archive/data.pkl": pickled, **{f"archive/{k}": v for k, v in members.items()}})


def tensor(numel: int, size: str, stride: str, offset: str = "K\x00") -> bytes:
    """A state dict of one tensor, its numbers as opcodes, over the storage `0`."""
    code = crafted
    storage = (
        b"("
        + code.text("storage")
        + code.name("torch.FloatStorage")
        + code.text("0")
        + code.text("cpu")
        + b"J"
        + struct.pack("<i", numel)
        + b"tQ"
    )
    return code.program(
        b"}",
        code.text("weight"),
        code.call(
            code.name("torch._utils._rebuild_tensor_v2"),
            storage,
            offset.encode("latin1"),
            size.encode("latin1"),
            stride.encode("latin1"),
            b"\x89",
            b"}",
        ),
        b"s",
    )


@pytest.mark.parametrize(
    ("what", "numel", "size", "stride", "offset"),
    [
        ("more values than its file has", 1 << 30, "K\x02\x85", "K\x01\x85", "K\x00"),
        ("a shape beyond its storage", 2, "K\x09\x85", "K\x01\x85", "K\x00"),
        ("a stride beyond its storage", 2, "K\x02\x85", "K\x63\x85", "K\x00"),
        ("a stride of zero over a terabyte", 2, "\x8a\x06\x00\x00\x00\x00\x00\x01\x85", "K\x00\x85", "K\x00"),
        ("a negative offset", 2, "K\x01\x85", "K\x01\x85", "J\xff\xff\xff\xff"),
        ("a negative stride", 2, "K\x02\x85", "J\xff\xff\xff\xff\x85", "K\x00"),
        ("sizes that are texts", 2, "U\x01a\x85", "K\x01\x85", "K\x00"),
        ("more strides than sizes", 2, "K\x01\x85", "K\x01K\x01\x86", "K\x00"),
    ],
)  # fmt: skip
def test_tensors_that_cannot_be(
    tmp_path: Path, what: str, numel: int, size: str, stride: str, offset: str
) -> None:
    data = crafted.zip_of(
        {"archive/data.pkl": tensor(numel, size, stride, offset), "archive/data/0": bytes(8)}
    )
    assert "is refused: it has a tensor" in read(tmp_path / "a.pt", data)
    whole = crafted.zip_of(
        {"archive/data.pkl": tensor(2, "K\x02\x85", "K\x01\x85"), "archive/data/0": bytes(8)}
    )
    assert read(tmp_path / "b.pt", whole) == ""


def test_zip_bombs(tmp_path: Path) -> None:
    big = bytes(50_000_000)
    packed = crafted.zip_of({"archive/data.pkl": big}, zipfile.ZIP_DEFLATED)
    assert "is compressed" in read(tmp_path / "a.pt", packed)
    # Two entries of the directory over the same bytes.
    data = bytearray(zipped(b"N." + bytes(1000)))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        start = archive.start_dir
    entry, end = data[start:-22], data[-22:]
    renamed = entry.replace(b"archive/data.pkl", b"archive/data.pk2")
    count, size = 2, 2 * len(entry)
    end = end[:8] + struct.pack("<HHII", count, count, size, start) + end[20:]
    assert "claim more bytes" in read(tmp_path / "b.pt", bytes(data[:start]) + entry + renamed + end)
    for large in (False, True):
        data = bytearray(crafted.zip_of({"archive/data.pkl": b"N."}))
        data[-10:-6] = struct.pack("<I", 1 << 30)
        if large:  # as zip64 has it: a longer record, and where that is
            record = b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, 1, 1, 1 << 40, 0)
            data[-22:-22] = record + b"PK\x06\x07" + bytes(16)
        assert "far too many members" in read(tmp_path / "e.pt", bytes(data))
    assert "something else" in read(tmp_path / "c.pt", crafted.zip_of({"a/b": b""}))
    program = zipped(b"N.", **{"constants.pkl": b"N."})
    assert "TorchScript" in read(tmp_path / "d.pt", program)


def test_a_sparse_member_of_a_tar(tmp_path: Path) -> None:
    data = bytearray(crafted.tar_of({"storages": b"", "tensors": b"", "pickle": b"N."}))
    data[156:157] = b"S"  # the type of GNU's sparse files, whose size is a claim
    data[124:136] = b"77777777777\0"
    data[148:156] = b" " * 8
    data[148:156] = f"{sum(data[:512]):06o}\0 ".encode()
    message = read(tmp_path / "a.pt", bytes(data))
    assert "refused" in message or "damaged" in message


def test_nothing_is_left_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _, data in crafted.archives(NOWHERE):
        read(tmp_path / "a.pt", data)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]
