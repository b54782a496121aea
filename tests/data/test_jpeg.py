"""The quick ways from a JPEG to pixels give Pillow's pixels, and its errors, for every kind of file."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image, ImageFilter

from actstats.data import jpeg, resize
from actstats.data.image import ImageError, decode
from actstats.data.preprocessing import Preprocessing
from tests.data.images import encoded, picture


def jpegs() -> Iterator[tuple[str, bytes]]:
    """JPEGs of every kind that Pillow writes."""
    smooth = picture(187, 121).filter(ImageFilter.GaussianBlur(3))
    for subsampling in ("4:4:4", "4:2:2", "4:2:0", "4:1:1"):
        for progressive in (False, True):
            for quality in (25, 75, 98):
                options = {"subsampling": subsampling, "progressive": progressive, "quality": quality}
                yield f"{subsampling} {progressive} {quality}", encoded(smooth, "JPEG", **options)
    for width, height in ((1, 1), (7, 300), (16, 16), (17, 15), (640, 3)):
        yield f"{width} x {height}", encoded(picture(width, height), "JPEG")
    yield "grey", encoded(smooth.convert("L"), "JPEG")
    yield "CMYK", encoded(smooth.convert("CMYK"), "JPEG")
    yield "RGB", encoded(smooth, "JPEG", keep_rgb=True)
    yield "restart markers", encoded(smooth, "JPEG", restart_marker_blocks=3)
    exif = Image.Exif()
    exif[0x0112] = 6
    yield "EXIF rotation", encoded(smooth, "JPEG", exif=exif)
    yield "comment", encoded(smooth, "JPEG", comment=b"x" * 300)
    multi = io.BytesIO()
    smooth.save(multi, "MPO", save_all=True, append_images=[picture(20, 20)])
    yield "two pictures", multi.getvalue()


def damaged() -> Iterator[tuple[str, bytes]]:
    """Files that are cut, overwritten, or followed by something."""
    rng = np.random.default_rng(0)
    whole = encoded(picture(60, 50), "JPEG", quality=70)
    progressive = encoded(picture(60, 50), "JPEG", progressive=True)
    for name, data in (("baseline", whole), ("progressive", progressive)):
        for share in (0.02, 0.2, 0.5, 0.9, 0.999):
            yield f"{name}, first {share}", data[: int(share * len(data))]
        for number in range(60):
            changed = bytearray(data)
            for place in rng.integers(2, len(data), 3):
                changed[place] = rng.integers(0, 256)
            yield f"{name}, changed {number}", bytes(changed)
        yield f"{name}, more behind", data + b"\0" * 500
        yield f"{name}, twice", data + data
    yield "only a beginning", b"\xff\xd8\xff"
    yield "a PNG by another name", encoded(picture(), "PNG")


def by_pillow(data: bytes) -> np.ndarray | str:
    try:
        return np.asarray(decode(data))
    except ImageError as error:
        return error.message


def quickly(data: bytes) -> np.ndarray | str:
    try:
        return np.asarray(jpeg.decode_array(data))
    except ImageError as error:
        return error.message


def test_simplejpeg_is_used_where_it_is_installed():
    pytest.importorskip("simplejpeg")
    assert jpeg._is_pillows()
    taken = [name for name, data in jpegs() if isinstance(jpeg.decode_array(data), np.ndarray)]
    assert len(taken) >= 24
    assert "CMYK" not in taken


@pytest.mark.parametrize("files", [jpegs, damaged])
def test_the_pixels_and_the_errors_are_pillows(files):
    for name, data in files():
        expected, found = by_pillow(data), quickly(data)
        assert type(found) is type(expected), name
        if isinstance(expected, str):
            assert found == expected, name
        else:
            np.testing.assert_array_equal(found, expected, name)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resized_crops_are_pillows(interpolation):
    """Of noise, which shows every rounding, in the shapes that are not left to Pillow."""
    rng = np.random.default_rng(1)
    assert resize._is_pillows()
    for width, height, shorter, crop in (
        (500, 375, 256, 224),
        (90, 150, 41, 37),
        (300, 100, 130, 7),
        (64, 64, 64, 60),
    ):
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        if (width + height) % 3:
            pixels = (pixels > 127).astype(np.uint8) * 255
        preprocessing = Preprocessing(shorter, crop, interpolation)
        kind = Image.Resampling.BILINEAR if interpolation == "bilinear" else Image.Resampling.BICUBIC
        whole = Image.fromarray(pixels).resize(preprocessing.resized((width, height)), kind)
        left, top = preprocessing.corner(whole.size)
        expected = np.asarray(whole.crop((left, top, left + crop, top + crop)))
        np.testing.assert_array_equal(preprocessing.pixels(pixels), expected)
        np.testing.assert_array_equal(preprocessing.pixels(Image.fromarray(pixels)), expected)


def test_what_is_not_resized_here_is_pillows():
    assert not resize.can_resize((50, 100), (25, 50), (0, 0), (25, 25)), "tall"
    assert not resize.can_resize((60, 60), (30, 30), (-5, -5), (40, 40)), "smaller than the crop"
    assert resize.can_resize((60, 60), (30, 30), (5, 5), (20, 20))
