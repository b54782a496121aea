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


def sampled(*factors: tuple[int, int], width: int = 64, height: int = 48) -> bytes:
    """A baseline JPEG whose components have these sampling factors: blocks of random brightness, without detail."""
    rng = np.random.default_rng(len(factors))
    across, down = (8 * max(pair[axis] for pair in factors) for axis in (0, 1))
    last, bits = [0] * len(factors), ""
    for _ in range(-(-width // across) * -(-height // down)):
        for number, (h, v) in enumerate(factors):
            for value in rng.integers(-90, 90, h * v).tolist():
                step, last[number] = value - last[number], value
                size = abs(step).bit_length()
                low = step if step > 0 else step + (1 << size) - 1
                bits += f"{size:04b}" + (f"{low:0{size}b}" if size else "") + "0"
    bits += "1" * (-len(bits) % 8)
    scan = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")

    def segment(marker: int, content: bytes) -> bytes:
        return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content

    numbered = list(enumerate(factors, 1))
    frame = b"\x08" + height.to_bytes(2, "big") + width.to_bytes(2, "big") + bytes([len(factors)])
    return b"".join(
        [
            b"\xff\xd8",
            segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0"),
            segment(0xDB, b"\0" + b"\x06" * 64),
            segment(0xC0, frame + b"".join(bytes([n, h << 4 | v, 0]) for n, (h, v) in numbered)),
            segment(0xC4, b"\0" + bytes([0, 0, 0, 12] + [0] * 12) + bytes(range(12))),
            segment(0xC4, b"\x10" + bytes([1] + [0] * 15) + b"\0"),
            segment(0xDA, bytes([len(factors)]) + b"".join(bytes([n, 0]) for n, _ in numbered) + b"\0\x3f\0"),
            scan,
            b"\xff\xd9",
        ]
    )


SAMPLINGS = [
    ((h, v), (1, 1), (1, 1))
    for h, v in ((1, 1), (2, 1), (1, 2), (2, 2), (4, 1), (1, 4), (4, 2), (2, 4), (3, 1))
]
SAMPLINGS += [((1, 1),), ((2, 2),), ((2, 1),) * 3, ((2, 2), (2, 1), (2, 1)), ((1, 1), (2, 1), (1, 1))]
SAMPLINGS += [((1, 1),) * 4, ((1, 1),) * 2]


def every_sampling() -> Iterator[tuple[str, bytes]]:
    """JPEGs of every sampling of the colours, many of which Pillow does not write."""
    for factors in SAMPLINGS:
        for width, height in ((64, 48), (37, 51)):
            yield f"{factors} {width}", sampled(*factors, width=width, height=height)


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


def test_a_picture_rotated_by_a_camera_is_read():
    """In 4:4:1, for which simplejpeg raises a KeyError."""
    with Image.open(io.BytesIO(sampled((1, 4), (1, 1), (1, 1)))) as image:
        expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(np.asarray(jpeg.decode_array(sampled((1, 4), (1, 1), (1, 1)))), expected)


@pytest.mark.parametrize("error", [KeyError(6), RuntimeError("no"), OSError(5, "no"), MemoryError()])
def test_whatever_simplejpeg_raises_pillow_decides(error, monkeypatch):
    simplejpeg = pytest.importorskip("simplejpeg")
    data = encoded(picture(), "JPEG")
    assert jpeg._is_pillows()

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(simplejpeg, "decode_jpeg", fail)
    np.testing.assert_array_equal(quickly(data), by_pillow(data))


@pytest.mark.parametrize("files", [jpegs, every_sampling, damaged])
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
