"""Batches: in order, equal to decoding one by one, and leaving no thread behind."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from actstats.data import MISSING, OK, REFUSED, Batch, ImageError, batches, open_source
from actstats.data.preprocessing import Preprocessing
from actstats.errors import ActstatsError
from tests.data.images import picture

SMALL = Preprocessing(resize=20, crop=16)


class Pictures:
    """A source in memory; images 3 and 8 to 11 cannot be read."""

    kind = spec = "memory"
    fingerprint = ""
    bad = frozenset({3, 8, 9, 10, 11})

    def __init__(self, count: int) -> None:
        self.paths = [f"{index}.png" for index in range(count)]
        self.labels = np.full(count, -1)
        self.classes: list[str] = []
        self.asked = 0

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, index: int) -> Image.Image:
        self.asked = max(self.asked, index + 1)
        if index in self.bad:
            raise ImageError(MISSING, f"no {index}")
        return picture(seed=index)


def _ranges(count: int, size: int) -> list[tuple[int, int]]:
    return [(start, min(start + size, count)) for start in range(0, count, size)]


def _decoders() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("actstats-decode")]


def _check(batch: Batch, source: Pictures) -> None:
    good = [index for index in range(batch.start, batch.stop) if index not in source.bad]
    np.testing.assert_array_equal(batch.position + batch.start, good)
    np.testing.assert_array_equal(np.flatnonzero(batch.status == OK), batch.position)
    assert batch.status.dtype == np.int8
    assert len(batch.status) == batch.stop - batch.start
    assert batch.messages == {
        index: f"no {index}" for index in range(batch.start, batch.stop) if index in source.bad
    }
    assert batch.pixels.shape == (len(good), 16, 16, 3)
    assert batch.pixels.dtype == torch.uint8
    for row, index in zip(batch.pixels, good, strict=True):
        np.testing.assert_array_equal(row.numpy(), SMALL.pixels(picture(seed=index)))


@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize("size", [1, 4, 7, 100])
def test_batches_equal_one_by_one(workers: int, size: int) -> None:
    source = Pictures(22)
    found = list(batches(source, SMALL, _ranges(22, size), workers=workers))
    assert [(batch.start, batch.stop) for batch in found] == _ranges(22, size)
    for batch in found:
        _check(batch, source)
    assert not _decoders()


def test_ranges_may_skip(tmp_path: object) -> None:
    source = Pictures(40)
    found = list(batches(source, SMALL, iter([(30, 33), (2, 5)]), workers=2))
    assert [(batch.start, batch.stop) for batch in found] == [(30, 33), (2, 5)]
    for batch in found:
        _check(batch, source)


@pytest.mark.parametrize("workers", [1, 3])
def test_prefetch_is_bounded_and_closing_stops_the_threads(workers: int) -> None:
    source = Pictures(1000)
    running = batches(source, SMALL, _ranges(1000, 10), workers=workers)
    next(running)
    next(running)
    running.close()
    assert not _decoders()
    assert source.asked <= 50


def test_a_fault_of_the_program_is_raised_in_order() -> None:
    class Broken(Pictures):
        def image(self, index: int) -> Image.Image:
            if index == 25:
                raise ZeroDivisionError("a bug")
            return super().image(index)

    running = batches(Broken(100), SMALL, _ranges(100, 10), workers=3)
    assert [next(running).start, next(running).start] == [0, 10]
    with pytest.raises(ZeroDivisionError, match="a bug"):
        next(running)
    assert not _decoders()


@pytest.mark.parametrize("workers", [0, 3])
def test_a_source_that_is_gone_stops_the_batches(workers: int, tmp_path: Path) -> None:
    for index in range(4):
        (tmp_path / "set").mkdir(exist_ok=True)
        picture(seed=index).save(tmp_path / "set" / f"{index}.png")
    source = open_source(tmp_path / "set")
    (tmp_path / "set" / "0.png").unlink()
    [batch] = batches(source, SMALL, [(0, 4)], workers=workers)
    assert batch.status.tolist() == [MISSING, OK, OK, OK]
    (tmp_path / "set").rename(tmp_path / "away")
    with pytest.raises(ActstatsError, match="no longer exists; restore it"):
        list(batches(source, SMALL, [(0, 4)], workers=workers))
    assert not _decoders()


def test_a_thin_image_that_resizing_would_blow_up_is_refused() -> None:
    class Thin(Pictures):
        bad = frozenset()

        def image(self, index: int) -> Image.Image:
            return Image.new("RGB", (1, 60_000))

    [batch] = batches(Thin(1), Preprocessing.imagenet(), [(0, 1)], workers=0)
    assert batch.status.tolist() == [REFUSED]
    assert len(batch.pixels) == 0


def test_negative_workers() -> None:
    with pytest.raises(ActstatsError, match="workers"):
        batches(Pictures(1), SMALL, [(0, 1)], workers=-1)
