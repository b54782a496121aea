"""JPEGs decoded by torchcodec: near what Pillow makes of them, and all else still by Pillow."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from PIL import Image

from actstats import Preprocessing, sweep
from actstats.data import OK, REFUSED, UNREADABLE, Batch, batches, open_source
from actstats.data.on_device import DeviceDecoder
from actstats.errors import ActstatsError
from tests.conftest import SmallNet, photograph
from tests.data.images import encoded, require_torchcodec, write_folder

require_torchcodec()

CPU = torch.device("cpu")
BILINEAR = Preprocessing.imagenet(size=64, resize=72)


def _jpeg(index: int, size: tuple[int, int] = (150, 110), **options: object) -> bytes:
    return encoded(photograph(index).resize(size), "JPEG", **options)


def _both(folder: Path, preprocessing: Preprocessing, workers: int = 2) -> tuple[list[Batch], list[Batch]]:
    """All batches of 3 images by the decoder, and by Pillow."""
    source = open_source(folder)
    ranges = [(start, min(start + 3, len(source))) for start in range(0, len(source), 3)]
    decoder = DeviceDecoder(source, preprocessing, CPU)
    return (
        list(batches(source, preprocessing, ranges, workers=workers, decoder=decoder)),
        list(batches(source, preprocessing, ranges, workers=workers)),
    )


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize(
    "preprocessing",
    [
        BILINEAR,
        Preprocessing(resize=None, crop=64),
        Preprocessing(resize=None, crop=201),
        Preprocessing(50, 73),
    ],
    ids=["resized", "as they are", "smaller than the crop", "narrower than the crop"],
)
def test_photographs_are_within_one_level_of_pillow(tmp_path, preprocessing, workers):
    sizes = [(150, 110), (90, 200), (72, 72), (131, 77)]
    files = {f"{n}.jpg": _jpeg(n, size, quality=85 + n) for n, size in enumerate(sizes)}
    files["grey.jpg"] = encoded(photograph(7).convert("L"), "JPEG")
    files["progressive.jpg"] = _jpeg(8, progressive=True)
    files["turned.jpg"] = _jpeg(9, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0")
    found, wanted = _both(write_folder(tmp_path, files), preprocessing, workers)
    for here, there in zip(found, wanted, strict=True):
        assert (here.status == OK).all()
        assert here.pixels.dtype == torch.uint8
        assert here.pixels.shape == there.pixels.shape
        np.testing.assert_allclose(here.pixels.int(), there.pixels.int(), atol=1)


def test_bicubic_differs_where_pillow_cuts_off_between_its_passes(tmp_path):
    folder = write_folder(tmp_path, {f"{n}.jpg": _jpeg(n) for n in range(6)})
    for here, there in zip(*_both(folder, Preprocessing(72, 64, "bicubic")), strict=True):
        assert (here.pixels.int() - there.pixels.int()).abs().float().mean() < 0.5


def test_all_else_is_left_to_pillow_and_keeps_its_place(tmp_path):
    whole = _jpeg(1)
    files = {
        "a.jpg": whole,
        "b.png": encoded(photograph(2)),
        "c.jpg": encoded(photograph(3).convert("CMYK"), "JPEG"),
        "d.jpg": whole[: len(whole) // 2],
        "e.jpg": b"",
        "f.jpg": whole[:2] + whole[300:],
        "g.jpg": encoded(photograph(4)),
        "h.jpg": whole + bytes(100),
        "i.jpg": encoded(Image.new("L", (1, 60_000)), "JPEG"),
    }
    found, wanted = _both(write_folder(tmp_path, files), BILINEAR)
    for here, there in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(here.position, there.position)
        np.testing.assert_array_equal(here.status, there.status)
        assert here.messages == there.messages
        np.testing.assert_allclose(here.pixels.int(), there.pixels.int(), atol=1)
    assert np.concatenate([batch.status for batch in found]).tolist() == [
        *(OK, OK, OK, UNREADABLE, UNREADABLE, UNREADABLE, OK, OK, REFUSED)
    ]


def test_one_that_the_decoder_alone_finds_damaged_spoils_no_other(tmp_path):
    class Strict(DeviceDecoder):
        """Hands a damaged file on to torchcodec, as one whose damage the header and the end do not show."""

        def take(self, index: int) -> torch.Tensor | Image.Image:
            data = super().take(index)
            return data[: len(data) // 2] if index == 1 and isinstance(data, torch.Tensor) else data

    source = open_source(write_folder(tmp_path, {f"{n}.jpg": _jpeg(n) for n in range(3)}))
    decoder = Strict(source, BILINEAR, CPU)
    [batch] = batches(source, BILINEAR, [(0, 3)], workers=1, decoder=decoder)
    assert batch.position.tolist() == [0, 1, 2]
    pillow = BILINEAR.pixels(source.image(1))
    np.testing.assert_array_equal(batch.pixels[1].numpy(), pillow)


def test_a_sweep_so_decoded_says_so_and_is_another_sweep(tmp_path):
    folder = write_folder(tmp_path / "images", {f"{n}.jpg": _jpeg(n) for n in range(7)})
    settings = {"preprocessing": BILINEAR, "device": "cpu", "batch_size": 3, "partition_size": 4}
    torch.manual_seed(0)
    net = SmallNet()
    sweep(net, folder, tmp_path / "device.zarr", decode="device", **settings)
    sweep(net, folder, tmp_path / "pillow.zarr", **settings)
    found, wanted = (xr.open_zarr(tmp_path / f"{name}.zarr") for name in ("device", "pillow"))
    assert (found.attrs["decode"], wanted.attrs["decode"]) == ("device", "pillow")
    np.testing.assert_allclose(found["total_variation"], wanted["total_variation"], rtol=0.05, atol=0.05)
    assert not found["mean"].equals(wanted["mean"])
    with pytest.raises(ActstatsError, match="decode is 'pillow' in the store and 'device' in this sweep"):
        sweep(net, folder, tmp_path / "pillow.zarr", decode="device", **settings)


@pytest.mark.parametrize(
    ("images", "more", "line"),
    [
        ("demo", {}, "demo has no files to decode; use `decode=pillow`"),
        ("folder", {"distort": ["greyscale"]}, "distortions run on the CPU"),
        ("folder", {"decode": "nvjpeg"}, "decode is 'nvjpeg'; choose from pillow, device"),
    ],
)
def test_what_does_not_go_together_is_refused_before_a_store_is_made(tmp_path, images, more, line):
    folder = write_folder(tmp_path / "images", {"a.jpg": _jpeg(1)})
    settings = {"preprocessing": BILINEAR, "device": "cpu", "decode": "device", **more}
    with pytest.raises(ActstatsError, match=re.escape(line)):
        sweep(SmallNet(), folder if images == "folder" else images, tmp_path / "s.zarr", **settings)
    assert not (tmp_path / "s.zarr").exists()


def test_a_device_without_a_decoder_is_named(tmp_path):
    source = open_source(write_folder(tmp_path, {"a.jpg": _jpeg(1)}))
    with pytest.raises(ActstatsError, match="torchcodec cannot decode JPEGs on cuda"):
        DeviceDecoder(source, BILINEAR, torch.device("cuda:99"))
