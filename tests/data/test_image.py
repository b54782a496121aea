"""Decoding: the pixels are torchvision's, and whatever is no image is told in one line."""

import io
import os
import re
import struct
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from actstats.data.image import (
    MAX_PIXELS,
    MAX_SCANS,
    REFUSED,
    UNREADABLE,
    ImageError,
    MemoryBudget,
    decode,
    is_image_name,
    refuse_many_scans,
)
from actstats.data.jpeg import decode_array
from tests.data.images import encoded, picture


def _as_torchvision(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def _refusal(data: bytes) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode(data)
    message = caught.value.message
    assert message
    assert "\n" not in message
    assert " at 0x" not in message
    return caught.value


def _png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of 8-bit RGB that says it has this size, whatever its chunks hold."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in ((b"IHDR", header), *chunks, (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + body


ORDINARY = {
    "jpeg": encoded(picture(), "JPEG", quality=90),
    "progressive jpeg": encoded(picture(), "JPEG", progressive=True),
    "grey jpeg": encoded(picture().convert("L"), "JPEG"),
    "cmyk jpeg": encoded(picture().convert("CMYK"), "JPEG"),
    "rotated by exif": encoded(
        picture(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06"
    ),
    "png": encoded(picture()),
    "palette": encoded(picture().convert("P")),
    "palette with transparency": encoded(picture().convert("P"), transparency=bytes(range(256))),
    "rgba": encoded(picture().convert("RGBA")),
    "grey with alpha": encoded(picture().convert("LA")),
    "1 bit": encoded(picture().convert("1")),
    "1x1": encoded(picture(1, 1)),
    "gif": encoded(picture().convert("P"), "GIF"),
    "animated gif": encoded(picture(), "GIF", save_all=True, append_images=[picture(seed=1)]),
    "webp": encoded(picture(), "WEBP"),
    "bmp": encoded(picture(), "BMP"),
    "tiff": encoded(picture(), "TIFF"),
    "ppm": encoded(picture(), "PPM"),
}


@pytest.mark.parametrize("kind", ORDINARY)
def test_pixels_are_those_of_torchvisions_loader(kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = _as_torchvision(ORDINARY[kind])
        image = decode(ORDINARY[kind])
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), expected)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(kind: str) -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    decoded = np.asarray(decode(encoded(Image.fromarray(values), kind)))
    np.testing.assert_array_equal(decoded, np.repeat((values >> 8)[..., None], 3, axis=2))


def test_grey_without_a_range_is_refused() -> None:
    assert _refusal(encoded(Image.fromarray(np.full((4, 4), 1e6, np.float32)), "TIFF")).status == UNREADABLE
    assert _refusal(encoded(Image.fromarray(np.full((4, 4), 10**6, np.int32)), "TIFF")).status == UNREADABLE
    # Whatever their values: those of 0 to 255 became black.
    values = np.tile(np.arange(256, dtype=np.int32), (4, 1))
    for kind in (np.int32, np.float32):
        assert _refusal(encoded(Image.fromarray(values.astype(kind)), "TIFF")).status == UNREADABLE
    assert _refusal(_grey_tiff(values.astype("<u4"), 32, 1)).status == UNREADABLE
    assert _refusal(_grey_tiff(values.astype("<i2"), 16, 2)).status == UNREADABLE


def _grey_tiff(values: np.ndarray, bits: int, sample_format: int) -> bytes:
    """An uncompressed grey TIFF, little-endian, of one strip; `values` are stored as they are."""
    height, width = values.shape
    data = values.tobytes()
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: len(data)}
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in (tags | {339: sample_format}).items()]
    return (
        struct.pack("<2sHI", b"II", 42, 8 + len(data))
        + data
        + struct.pack("<H", len(entries))
        + b"".join(entries)
        + bytes(4)
    )


def test_grey_of_12_bits_is_scaled_by_its_own_range() -> None:
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    pairs = values.reshape(-1, 2).astype(np.uint32)
    packed = np.stack(
        [pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], axis=1
    )
    data = _grey_tiff(packed.astype(np.uint8).reshape(64, -1), 12, 1)
    data = data.replace(struct.pack("<HHII", 256, 4, 1, 96), struct.pack("<HHII", 256, 4, 1, 64))
    np.testing.assert_array_equal(np.asarray(decode(data))[..., 0], values >> 4)


@pytest.mark.parametrize("most", [255, 1023, 65535])
def test_grey_of_a_portable_map_is_scaled_by_its_own_range(most: int) -> None:
    values = np.linspace(0, most, 64).astype(">u2" if most > 255 else np.uint8).reshape(8, 8)
    decoded = np.asarray(decode(b"P5 8 8 %d\n" % most + values.tobytes()))[..., 0]
    assert np.abs(decoded - values.astype(float) * 255 / most).max() <= 1


@pytest.mark.parametrize(
    ("scans", "accepted"), [(10, True), (MAX_SCANS, True), (MAX_SCANS + 1, False), (5_000, False)]
)
def test_a_jpeg_of_many_scans_is_refused(scans: int, accepted: bool) -> None:
    """Its last scan again and again, which refines nothing but takes the time of a scan."""
    data = encoded(picture(64, 48), "JPEG", progressive=True)
    places = [match.start() for match in re.finditer(rb"\xff\xda", data)]
    many = data[: places[-1]] + data[places[-1] : -2] * (scans - len(places) + 1) + data[-2:]
    for decoded in (decode, decode_array):
        if accepted:
            assert np.asarray(decoded(many)).shape == (48, 64, 3)
        else:
            with pytest.raises(ImageError, match="scans") as caught:
                decoded(many)
            assert caught.value.status == REFUSED
    # Scans in what precedes the picture, such as a thumbnail, do not count.
    thumbnail = b"\xff\xe5" + struct.pack(">H", 2 + 2 * 200) + b"\xff\xda" * 200
    assert np.asarray(decode(data[:2] + thumbnail + data[2:])).shape == (48, 64, 3)


def test_scans_of_a_large_jpeg_are_counted_by_its_pixels() -> None:
    refuse_many_scans(b"\xff\xd8" + b"\xff\xda\0\2" * 16, 9_000, 9_000)
    with pytest.raises(ImageError, match="more than 17 scans"):
        refuse_many_scans(b"\xff\xd8" + b"\xff\xda\0\2" * 18, 9_000, 9_000)


def test_decoders_share_a_budget_of_memory() -> None:
    budget, used, most, lock = MemoryBudget(100), 0, 0, threading.Lock()

    def decode_one(size: int) -> None:
        nonlocal used, most
        with budget.take(size):
            with lock:
                used += size
                most = max(most, used)
                assert used <= 100 or used == size, "more than the budget, and not alone"
            for _ in range(50):
                os.sched_yield()
            with lock:
                used -= size

    sizes = [1, 30, 60, 99, 100, 250] * 40
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(decode_one, sizes))
    assert used == 0
    assert most == 250


def test_an_image_larger_than_the_budget_is_decoded_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actstats.data.image._MEMORY", MemoryBudget(1))
    expected = np.asarray(picture())
    with ThreadPoolExecutor(4) as pool:
        for image in pool.map(decode, [encoded(picture()), encoded(picture(), "BMP")] * 8):
            np.testing.assert_array_equal(np.asarray(image), expected)


def test_what_is_no_image_is_unreadable() -> None:
    assert "empty" in _refusal(b"").message
    assert "format" in _refusal(b"<html>not found</html>").message
    # A format of PIL that is not on the list, since reading it starts a program.
    assert "format" in _refusal(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n").message


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF"])
def test_a_truncated_file_is_unreadable(kind: str) -> None:
    whole = encoded(picture(200, 150).quantize() if kind == "GIF" else picture(200, 150), kind)
    assert _refusal(whole[: len(whole) // 2]).status == UNREADABLE


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(ORDINARY)), st.integers(0), st.binary(min_size=1, max_size=8))
def test_damage_gives_an_image_or_an_image_error(kind: str, place: int, junk: bytes) -> None:
    data = bytearray(ORDINARY[kind])
    place %= len(data)
    data[place : place + len(junk)] = junk
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = decode(bytes(data))
        except ImageError:
            return
    assert image.mode == "RGB"


@pytest.mark.parametrize("side", [9_500, 50_000])  # PIL warns of the first and refuses the second.
def test_a_bomb_is_refused_from_its_header(side: int) -> None:
    assert side * side > MAX_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert _refusal(_png(side, side, (b"IDAT", zlib.compress(b"\0")))).status == REFUSED
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _refusal(_png(side, side)).status == REFUSED


def test_a_bomb_of_text_is_unreadable() -> None:
    text = b"comment\0\0" + zlib.compress(bytes(8 * 1024 * 1024))
    pixels = zlib.compress(b"\0" * 4)
    assert _refusal(_png(1, 1, (b"zTXt", text), (b"IDAT", pixels))).status == UNREADABLE


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("a.JPEG", True),
        ("a.b.webp", True),
        ("a.tif", True),
        ("a.txt", False),
        ("png", False),
        (".png", False),
        ("a/b.png", True),
        ("./a/../b.png", True),
        ("a/._b.png", False),
        (".a/b.png", False),
        ("a/.b/c/d.png", False),
    ],
)
def test_image_names(name: str, taken: bool) -> None:
    assert is_image_name(name) is taken
