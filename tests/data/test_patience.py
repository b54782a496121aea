"""Errors of the machine are tried again, and are not taken for damage; damage is final."""

from __future__ import annotations

import errno
import http.client
import os
import subprocess
import sys
import tarfile
import threading
import urllib.error
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, default_collate

import actstats
from actstats.data import MISSING, REFUSED, UNREADABLE, ImageError, open_source
from actstats.data.image import MAX_BYTES
from actstats.data.loader import View, joint_batches
from actstats.data.patience import MachineError, image_error
from actstats.data.preprocessing import Preprocessing
from actstats.errors import ActstatsError
from tests.cli.conftest import actstats as command
from tests.conftest import SmallNet, files_of, photograph
from tests.data.images import encoded, picture, write_folder, write_tar

SMALL = Preprocessing.imagenet(size=16, resize=16)
FAILS_TO_READ = Path("/proc/self/mem")
"""A regular file of Linux whose first bytes cannot be read: EIO."""


OF_THE_MACHINE = [
    getattr(errno, f"E{name}")
    for name in [
        "MFILE",
        "NFILE",
        "STALE",
        "IO",
        "NOMEM",
        "TIMEDOUT",
        "ACCES",
        "PERM",
        "AGAIN",
        "BUSY",
        "NOTCONN",
        "HOSTDOWN",
        "NETUNREACH",
    ]
]
GONE = [errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG]


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actstats.data.patience.WAITS", (0.002,) * 4)


@pytest.mark.parametrize(
    ("error", "status", "of_machine"),
    [
        *((OSError(number, os.strerror(number)), MISSING, True) for number in OF_THE_MACHINE),
        *((OSError(number, os.strerror(number)), MISSING, False) for number in GONE),
        *((OSError(number, os.strerror(number)), UNREADABLE, False) for number in (errno.EISDIR, errno.EINVAL)),
        (RuntimeError("[Errno 24] Too many open files: 'a.png'"), MISSING, True),  # torchvision.io.read_file
        (RuntimeError("[Errno 2] No such file or directory: 'a.png'"), MISSING, False),
        (OSError("Can't read data (errno = 5, error message = 'Input/output error')"), MISSING, True),  # HDF5
        (TimeoutError(), MISSING, True),
        (ConnectionResetError("by peer"), MISSING, True),
        (http.client.IncompleteRead(b"", 5), MISSING, True),
        (requests.ConnectionError("refused"), MISSING, True),
        (urllib.error.HTTPError("http://a", 503, "busy", None, None), MISSING, True),  # type: ignore[arg-type]
        (urllib.error.HTTPError("http://a", 404, "gone", None, None), MISSING, False),  # type: ignore[arg-type]
        (OSError("image file is truncated"), UNREADABLE, False),
        (SyntaxError("broken PNG file"), UNREADABLE, False),
        (Image.DecompressionBombError("large"), UNREADABLE, False),
        (KeyError("x"), UNREADABLE, False),
        (ValueError("errno 3 of our own 99999"), MISSING, True),
        (ValueError("item 24 of 30"), UNREADABLE, False),
        (AssertionError(), UNREADABLE, False),
    ],
)  # fmt: skip
def test_what_is_the_machines_is_told_from_damage(error: Exception, status: int, of_machine: bool) -> None:
    found = image_error(error)
    assert (found.status, isinstance(found, MachineError)) == (status, of_machine)
    assert found.message
    assert "\n" not in found.message
    if status == UNREADABLE and type(error) is not OSError:
        assert type(error).__name__ in found.message


class Flaky:
    """Images of which some fail, a number of times or always, with errors of the system."""

    kind = spec = "flaky"
    classes: Sequence[str] = ()

    def __init__(self, count: int, fails: dict[int, int], error: type[Exception] = OSError) -> None:
        self.paths = [f"{index:02}" for index in range(count)]
        self.labels = np.full(count, -1, np.int64)
        self.fingerprint = f"flaky {count}"
        self.fails, self.error = fails, error
        self.tries: Counter[int] = Counter()
        self.may_fail = threading.Event()
        self.may_fail.set()

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, index: int) -> Image.Image:
        self.tries[index] += 1
        if self.tries[index] <= self.fails.get(index, 0):
            self.may_fail.wait()
            if self.error is OSError:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            raise ImageError(UNREADABLE, "damaged")
        return photograph(index)


def read(source: Any, workers: int) -> tuple[list[int], dict[int, str], set[int]]:
    """The status, the message and whether it was the machine, of all images, read in batches of four."""
    ranges = [(start, min(start + 4, len(source))) for start in range(0, len(source), 4)]
    status, messages, unavailable = [], {}, set()
    for (batch,) in joint_batches(source, [View(SMALL)], ranges, workers=workers):
        status += batch.status.tolist()
        messages |= batch.messages
        unavailable |= batch.unavailable
    return status, messages, unavailable


@pytest.mark.parametrize("workers", [0, 3])
def test_an_image_is_tried_five_times(workers: int) -> None:
    source = Flaky(12, {1: 1, 5: 4, 6: 5, 11: 99})
    status, messages, unavailable = read(source, workers)
    assert status == [0] * 6 + [MISSING] + [0] * 4 + [MISSING]
    assert unavailable == {6, 11}
    assert messages == dict.fromkeys((6, 11), "cannot be read: Stale file handle")
    assert [source.tries[index] for index in (0, 1, 5, 6, 11)] == [1, 2, 5, 5, 5]


def test_damage_is_not_tried_again() -> None:
    source = Flaky(8, {3: 99}, ImageError)
    status, _, unavailable = read(source, 2)
    assert (status[3], source.tries[3], unavailable) == (UNREADABLE, 1, set())


@pytest.mark.parametrize("workers", [0, 4])
def test_32_in_a_row_stop_it(workers: int) -> None:
    source = Flaky(200, dict.fromkeys(range(40, 200), 99))
    with pytest.raises(ActstatsError, match=r"32 images in a row could not be read \(cannot be read: Stale"):
        read(source, workers)
    assert sum(source.tries[index] > 0 for index in range(40, 200)) < 60
    # Fewer, again and again, do not.
    status, _, _ = read(Flaky(100, dict.fromkeys((i for i in range(100) if i % 25), 99)), 0)
    assert status.count(0) == 4


def test_a_long_outage_does_not_take_five_tries_for_each_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actstats.data.patience._OUTAGE", 0.0)
    source = Flaky(20, dict.fromkeys(range(4, 20), 99))
    assert read(source, 0)[0] == [0] * 4 + [MISSING] * 16
    assert sum(source.tries.values()) < 4 + 16 + 5


def test_closing_the_batches_ends_all_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actstats.data.patience.WAITS", (3600.0,) * 4)
    source = Flaky(40, dict.fromkeys(range(4, 40), 99))
    batches = joint_batches(source, [View(SMALL)], [(0, 4), (4, 8), (8, 12)], workers=4)
    # The first batch would wait for an hour, too, if an image failed before it was read.
    source.may_fail.clear()
    next(batches)
    source.may_fail.set()
    while not source.tries[4]:
        threading.Event().wait(0.01)
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("actstats-decode")]


@pytest.mark.linux
def test_a_disk_that_fails_is_not_damage_of_a_file_or_of_a_tar(tmp_path: Path) -> None:
    data = {f"{index}.png": encoded(picture(seed=index)) for index in range(4)}
    folder, tar = write_folder(tmp_path / "set", data), write_tar(tmp_path / "set.tar", data)
    sources = [open_source(folder), open_source(tar)]
    (folder / "2.png").unlink()
    (folder / "2.png").symlink_to(FAILS_TO_READ)
    tar.unlink()
    tar.symlink_to(FAILS_TO_READ)
    for source, expected in zip(sources, ([2], [0, 1, 2, 3]), strict=True):
        status, messages, unavailable = read(source, 2)
        assert [index for index, value in enumerate(status) if value == MISSING] == expected
        assert unavailable == set(expected)
        assert set(messages.values()) == {"cannot be read: Input/output error"}


@pytest.mark.parametrize("what", ["folder", "tar"])
def test_a_process_without_descriptors_waits_for_one(what: str, tmp_path: Path) -> None:
    """In a process of its own, whose descriptors another thread takes for a moment."""
    data = {f"{index:02}.png": encoded(picture(seed=index)) for index in range(24)}
    spec = write_folder(tmp_path / "set", data) if what == "folder" else write_tar(tmp_path / "set.tar", data)
    code = f"""
import os, resource, threading
from actstats.data import open_source
from actstats.data.loader import View, joint_batches
from actstats.data.preprocessing import Preprocessing
source = open_source({str(spec)!r})
source.image(0)  # all that is imported lazily
if hasattr(source, "_descriptor"):
    source._descriptor.cache_clear()  # so that the tar is opened again
resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
taken = []
try:
    while True:
        taken.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
threading.Timer(0.3, lambda: [os.close(number) for number in taken]).start()
batches = joint_batches(source, [View(Preprocessing.imagenet(16, 16))], [(0, 12), (12, 24)], workers=3)
print([status for (batch,) in batches for status in batch.status.tolist()])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{[0] * 24}\n", done.stdout + done.stderr


SWEEP: dict[str, Any] = {
    "preprocessing": SMALL, "partition_size": 4, "batch_size": 2, "metrics": ["mean", "top"], "device": "cpu"
}  # fmt: skip


def test_a_rerun_ends_with_the_bytes_of_a_sweep_without_the_error(tmp_path: Path) -> None:
    actstats.sweep(SmallNet(), Flaky(12, {}), tmp_path / "whole.zarr", **SWEEP)
    source = Flaky(12, {6: 5, 10: 4})
    first = actstats.sweep(SmallNet(), source, tmp_path / "s.zarr", **SWEEP)
    assert (first.complete, first.progress.unavailable) == (True, 1)
    assert first.failures == {"06": "cannot be read: Stale file handle"}
    assert "to try again" in first._repr_html_()
    second = actstats.sweep(SmallNet(), source, tmp_path / "s.zarr", **SWEEP)
    assert (second.partitions, second.failures, second.progress.unavailable) == (1, {}, 0)
    assert files_of(tmp_path / "s.zarr") == files_of(tmp_path / "whole.zarr")
    assert actstats.sweep(SmallNet(), source, tmp_path / "s.zarr", **SWEEP).partitions == 0


def test_networks_in_one_pass_count_an_image_once(tmp_path: Path) -> None:
    source = Flaky(12, {6: 5})
    plans = [
        actstats.plan(
            SmallNet(), source, tmp_path / f"{name}.zarr", **SWEEP | {"preprocessing": preprocessing}
        )
        for name, preprocessing in (("a", SMALL), ("b", Preprocessing.imagenet(size=20, resize=20)))
    ]
    summaries = actstats.sweep_together(plans)
    assert [summary.progress.unavailable for summary in summaries] == [1, 1]
    assert [summary.failures for summary in summaries] == [{"06": "cannot be read: Stale file handle"}] * 2
    assert source.tries[6] == 5, "shared by the networks"


@pytest.mark.linux
def test_the_command_ends_with_status_1_and_a_rerun_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {f"cat/{index}.png": encoded(photograph(index)) for index in range(4)}
    folder = write_folder(tmp_path / "set", data)
    (tmp_path / "taken_away.py").write_text(
        "import os, pathlib\n"
        "from actstats import Metric, Output\n\n"
        "class Away(Metric):\n"
        "    outputs = (Output('away'),)\n\n"
        "    def update(self, activation, state):\n"
        "        file = pathlib.Path(os.environ['AWAY'])\n"
        "        if file.name:\n"
        "            file.unlink()\n"
        f"            file.symlink_to({str(FAILS_TO_READ)!r})\n"
        "            os.environ['AWAY'] = ''\n"
        "        return {'away': activation.sum((2, 3))}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    sweep = (
        "sweep --arch squeezenet1_1 --weights none --device cpu --layers features.1 --metrics mean "
        f"--metric taken_away:Away --data {folder} --partition-size 2 --batch-size 1 --workers 0 --out"
    )
    monkeypatch.setenv("AWAY", "")
    assert command(f"{sweep} whole.zarr").exit_code == 0
    monkeypatch.setenv("AWAY", str(folder / "cat/3.png"))
    first = command(f"{sweep} s.zarr")
    assert first.exit_code == 1
    assert first.stderr.splitlines()[-1].endswith(
        "the machine failed to read an image, recorded as missing in s.zarr; rerun the same command to try again"
    )
    assert "cat/3.png" in command("info s.zarr --json").stdout
    assert "missing" in command("info s.zarr").stdout
    (folder / "cat/3.png").unlink()
    (folder / "cat/3.png").write_bytes(data["cat/3.png"])
    again = command(f"{sweep} s.zarr")
    assert again.exit_code == 0, again.output
    assert "trying them again" in again.stderr
    assert files_of(tmp_path / "s.zarr") == files_of(tmp_path / "whole.zarr")
    sys.modules.pop("taken_away", None)


def test_a_file_or_member_too_large_for_an_image_is_refused_unread(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set", {"a.png": encoded(picture()), "b.jpg": b""})
    os.truncate(folder / "b.jpg", 40 << 30)  # one hole
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        archive.add(folder / "a.png", "a.png")
        entry = tarfile.TarInfo("b.jpg")
        entry.size = 40 << 30
        archive.fileobj.write(entry.tobuf(tarfile.GNU_FORMAT))  # type: ignore[union-attr]
        at = archive.fileobj.tell()  # type: ignore[union-attr]
    os.truncate(tmp_path / "set.tar", at + (40 << 30) + 1024)
    for spec in (folder, tmp_path / "set.tar"):
        status, messages, _ = read(open_source(spec), 2)
        assert status == [0, REFUSED]
        assert messages[1] == f"file of {40 << 30:,} bytes, more than {MAX_BYTES >> 20} MiB"


class Items(Dataset[Any]):
    """Images of which some raise, or are something else."""

    def __init__(self, bad: dict[int, Any], count: int = 12) -> None:
        self.bad, self.count = bad, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        found = self.bad.get(index, torch.full((3, 8, 8), float(index)))
        if isinstance(found, BaseException):
            raise found
        return found


def pointwise() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 2, 1)).eval()


BAD: dict[int, Any] = {
    1: SyntaxError("broken PNG file"),
    2: None,
    4: Image.DecompressionBombError("too large"),
    5: {"text": "no image"},
    6: IndexError(),
    8: StopIteration(),
    10: ZeroDivisionError("none"),
}


def without_none(items: list[Any]) -> Any:
    return default_collate([item for item in items if item is not None])


@pytest.mark.parametrize("how", ["dataset", "loader", "collate", "workers"])
def test_items_that_raise_are_unreadable(how: str, tmp_path: Path) -> None:
    data: Any = Items(BAD)
    if how != "dataset":
        more = {"collate_fn": without_none} if how != "loader" else {}
        data = DataLoader(data, batch_size=3, num_workers=2 * (how == "workers"), **more)
    summary = actstats.sweep(pointwise(), data, tmp_path / "s", fingerprint="x", device="cpu")
    status = actstats.open_dataset(tmp_path / "s")["status"].values
    assert status.tolist() == [UNREADABLE if index in BAD else 0 for index in range(12)]
    for index, error in BAD.items():
        kind = "NoneType" if error is None and how in ("dataset", "loader") else type(error).__name__
        if isinstance(error, Exception) or (error is None and how in ("dataset", "loader")):
            assert kind in summary.failures[f"{index:02}"]


def test_a_dataset_whose_first_eight_items_raise_has_a_bug(tmp_path: Path) -> None:
    for count in (12, 3, 1):
        bad = dict.fromkeys(range(min(8, count)), KeyError("label"))
        with pytest.raises(
            ActstatsError, match=r"fails at .*KeyError: 'label' \(test_patience.py:\d+\)"
        ) as caught:
            actstats.sweep(pointwise(), Items(bad, count), tmp_path / "s", fingerprint="x")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "s").exists()
    most = dict.fromkeys(range(7), KeyError("label"))
    assert len(actstats.sweep(pointwise(), Items(most), tmp_path / "s", fingerprint="x").failures) == 7


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), SystemExit(3)])
def test_what_is_no_damage_stops_a_dataset(error: BaseException, tmp_path: Path) -> None:
    with pytest.raises((type(error), ActstatsError)):
        actstats.sweep(pointwise(), Items({3: error}), tmp_path / "s", fingerprint="x")


@pytest.mark.parametrize(
    ("shape", "kind"),
    [(shape, "tensor") for shape in ((3, 1, 12), (3, 12, 1), (3, 1, 1), (1, 1, 12), (1, 12, 1))]
    + [(shape, "array") for shape in ((1, 12, 3), (12, 1, 3), (1, 12, 1), (1, 12), (12, 1))],
)
def test_images_one_pixel_high_or_wide_keep_their_colours(shape: tuple[int, ...], kind: str) -> None:
    values = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    item = torch.from_numpy(values) if kind == "tensor" else values
    expected = values.transpose(1, 2, 0) if kind == "tensor" else values
    expected = expected if expected.ndim == 3 else expected[..., None]
    image = open_source([item], fingerprint="x").image(0)
    np.testing.assert_array_equal(np.asarray(image), np.broadcast_to(expected, (*expected.shape[:2], 3)))
