"""Decoding: the pixels are torchvision's, and whatever is no image is told in one line."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from actstats.data.image import MAX_PIXELS, REFUSED, UNREADABLE, ImageError, decode, is_image_name
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
    ],
)
def test_image_names(name: str, taken: bool) -> None:
    assert is_image_name(name) is taken
