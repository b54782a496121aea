"""Distortions of one image: what each does to the pixels, and that only the index decides what is random."""

from __future__ import annotations

import os
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from actstats.data import MISSING, UNREADABLE, ImageError
from actstats.data.preprocessing import Preprocessing
from actstats.distort import Place, parse
from actstats.errors import ActstatsError
from tests.conftest import photograph


def place(
    index: int = 0, path: str = "cat/0.jpg", size: tuple[int, int] | None = None, crop: int = 32
) -> Place:
    return Place(index, path, Preprocessing(None, crop), size)


def distorted(spec: str, pixels: np.ndarray, index: int = 0, **options: object) -> np.ndarray:
    return parse([spec]).image(pixels, place(index, crop=len(pixels), **options))


def scene(side: int = 32, seed: int = 0) -> np.ndarray:
    return np.asarray(photograph(seed, (side, side)))


def level(value: int, side: int = 64) -> np.ndarray:
    return np.full((side, side, 3), value, np.uint8)


def images(sides: st.SearchStrategy[int]) -> st.SearchStrategy[np.ndarray]:
    return sides.flatmap(lambda side: arrays.arrays(np.uint8, (side, side, 3)))


def test_no_distortion_is_division_by_255():
    pixels = scene()
    chain = parse([])
    assert not chain
    np.testing.assert_array_equal(chain.image(pixels, place()), pixels.astype(np.float32) / 255)


@pytest.mark.parametrize("spec", ["noise:0.2", "scramble:4", "scramble:4+noise:0.1+noise:0.1"])
def test_what_is_random_depends_on_the_index_alone(spec):
    pixels = scene()
    np.testing.assert_array_equal(distorted(spec, pixels, 7), distorted(spec, pixels.copy(), 7, path="else"))
    assert (distorted(spec, pixels, 7) != distorted(spec, pixels, 8)).any()


def test_noise_has_its_standard_deviation_and_stays_in_range():
    noise = distorted("noise:0.1", level(128)) - 128 / 255
    assert noise.std() == pytest.approx(0.1, rel=0.03)
    assert abs(noise.mean()) < 0.003
    assert np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1] == pytest.approx(0, abs=0.05)
    edge = distorted("noise:0.5", level(250))
    assert edge.min() >= 0
    assert edge.max() == 1


def test_two_steps_of_noise_are_independent():
    once, twice = (distorted(spec, level(128)) for spec in ("noise:0.05", "noise:0.05+noise:0.05"))
    assert twice.std() == pytest.approx(0.05 * 2**0.5, rel=0.03)
    assert once.std() == pytest.approx(0.05, rel=0.03)


def test_noise_is_the_same_whatever_comes_before_it():
    pixels = level(128)
    np.testing.assert_array_equal(distorted("scramble:2+noise:0.1", pixels), distorted("noise:0.1", pixels))


@settings(deadline=None)
@given(images(st.integers(8, 23)), st.integers(2, 5), st.integers(0, 10**6))
def test_scrambling_permutes_the_patches(pixels, grid, index):
    side = len(pixels)
    patch, first = side // grid, side % grid // 2
    after = (distorted(f"scramble:{grid}", pixels, index) * 255).round().astype(np.uint8)

    def patches(image: np.ndarray) -> list[bytes]:
        corners = [first + patch * k for k in range(grid)]
        return sorted(image[i : i + patch, j : j + patch].tobytes() for i in corners for j in corners)

    assert patches(after) == patches(pixels)
    inner = slice(first, first + grid * patch)
    border = np.ones((side, side), bool)
    border[inner, inner] = False
    np.testing.assert_array_equal(after[border], pixels[border])


def test_scrambling_always_moves_something():
    pixels = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)
    still = pixels.astype(np.float32) / 255
    for index in range(200):  # One of 24 orders would be the old one.
        assert (distorted("scramble:2", pixels, index) != still).any()


@settings(deadline=None)
@given(images(st.integers(4, 32)), st.floats(0.5, 2))
def test_low_and_high_frequencies_add_up_to_the_image(pixels, cycles):
    image = pixels.astype(np.float32) / 255
    low = distorted(f"lowpass:{cycles!r}", pixels)
    high = distorted(f"highpass:{cycles!r}", pixels)
    expected = image - low + image.mean((0, 1))
    np.testing.assert_allclose(high, expected.clip(0, 1), atol=1e-5)


@pytest.mark.parametrize(("cycles", "kept"), [(2, 2**-0.25), (4, 0.5), (8, 1 / 16)])
def test_the_given_frequency_passes_at_half_its_amplitude(cycles, kept):
    # A cosine that is even about both edges, so that mirroring continues it.
    wave = np.cos(2 * np.pi * cycles * (np.arange(128) + 0.5) / 128)
    pixels = np.broadcast_to((127.5 + 120 * wave)[None, :, None], (128, 128, 3)).round().astype(np.uint8)
    low = distorted("lowpass:4", pixels).mean((0, 2)) - 0.5
    assert 2 * (low * wave).mean() * 255 / 120 == pytest.approx(kept, abs=0.01)


@pytest.mark.parametrize("side", [63, 64, 97])
@pytest.mark.parametrize("share", [0.03, 0.1, 0.25, 0.36, 0.45, 0.5])
def test_any_frequency_passes_at_half_its_amplitude_up_to_the_limit_of_sampling(side, share):
    cycles = min(round(2 * share * side), side - 1) / 2  # mirrored, half cycles continue as a cosine
    wave = np.cos(2 * np.pi * cycles * (np.arange(side) + 0.5) / side)
    pixels = np.broadcast_to((127.5 + 120 * wave)[None, :, None], (side, side, 3)).round().astype(np.uint8)

    def amplitude(row: np.ndarray) -> float:
        return float(((row - row.mean()) * (wave - wave.mean())).mean())

    low = distorted(f"lowpass:{cycles!r}", pixels)[0, :, 0]
    assert amplitude(low) / amplitude(pixels[0, :, 0] / 255) == pytest.approx(0.5, abs=2e-3)


@pytest.mark.parametrize("spec", ["lowpass:17", "highpass:16.5"])
def test_a_frequency_beyond_the_limit_of_sampling_is_refused(spec):
    with pytest.raises(ActstatsError, match="32 pixels per side have at most 16 cycles"):
        parse([spec]).check(Preprocessing(None, 32))
    with pytest.raises(ActstatsError, match="at most 16 cycles"):
        distorted(spec, scene())


@pytest.mark.parametrize("side", [7, 64, 385])
@pytest.mark.parametrize("value", [1, 100, 240, 255])
def test_the_high_frequencies_of_a_constant_image_are_its_colour(side, value):
    np.testing.assert_allclose(distorted("highpass:3", level(value, side)), value / 255, atol=1e-6)


def blurred(pixels: np.ndarray, cycles: float) -> np.ndarray:
    """The image in [0, 1] under a sampled Gaussian, as a product of float64 matrices; of a few cycles only."""
    side = len(pixels)
    sigma = np.sqrt(np.log(2) / 2) / np.pi * side / cycles
    taps = np.arange(-int(4 * sigma + 0.5), int(4 * sigma + 0.5) + 1)
    weights = np.exp(-0.5 * (taps / sigma) ** 2)
    weights /= weights.sum()
    # Mirrored at the outer edges of the border pixels: d c b a | a b c d | d c b a.
    at = (np.arange(side)[:, None] + taps) % (2 * side)
    matrix = np.zeros((side, side))
    np.add.at(matrix, (np.arange(side)[:, None], np.where(at < side, at, 2 * side - 1 - at)), weights)
    return np.einsum("ij,jkc,lk->ilc", matrix, pixels / 255, matrix)


@pytest.mark.parametrize("side", [33, 50, 97])
def test_each_distortion_equals_float64_code(side):
    from skimage.feature import canny

    pixels, cycles = scene(side), 4
    image, low = pixels / 255, blurred(pixels, cycles)
    grey = image @ [0.299, 0.587, 0.114]
    draws = np.random.default_rng([7, zlib.crc32(b"noise"), 0]).standard_normal(image.shape, dtype=np.float32)
    expected = {
        f"lowpass:{cycles}": low,
        f"highpass:{cycles}": np.clip(image - low + image.mean((0, 1)), 0, 1),
        "greyscale": np.repeat(grey[..., None], 3, 2),
        "noise:0.2": np.clip(image + 0.2 * draws.astype(np.float64), 0, 1),
    }
    for spec, right in expected.items():
        np.testing.assert_allclose(distorted(spec, pixels, 7), right, atol=2e-6, err_msg=spec)
    edges = canny(grey, sigma=0.4, low_threshold=0.35, high_threshold=0.9)
    assert (
        (distorted("contour", pixels)[..., 0] == 0) == edges
    ).mean() > 0.999  # but for ties at a threshold


def test_greyscale_is_pil_s():
    grey = distorted("greyscale", scene())
    assert (grey == grey[..., :1]).all()
    expected = np.asarray(Image.fromarray(scene()).convert("L")) / 255
    np.testing.assert_allclose(grey[..., 0], expected, atol=1 / 255)


def test_contours_are_black_lines_where_the_image_has_edges():
    pixels = level(0)
    pixels[16:48, 16:48] = 255
    drawn = distorted("contour", pixels)
    assert set(np.unique(drawn)) == {0, 1}
    rows = np.flatnonzero((drawn[..., 0] == 0).any(1))
    assert rows.min() in (15, 16)
    assert rows.max() in (47, 48)
    assert (drawn[20:44, 20:44] == 1).all()
    assert (distorted("contour", level(90)) == 1).all()


def test_silhouettes_are_the_masks_cropped_with_their_image(tmp_path):
    (tmp_path / "cat").mkdir()
    mask = np.zeros((40, 60), np.uint8)
    mask[:, 30:] = 3
    Image.fromarray(mask).save(tmp_path / "cat" / "0.png")
    os.mkfifo(tmp_path / "cat" / "1.png")  # not a mask, and not opened, which would wait for a writer
    chain = parse([f"silhouette:{tmp_path}"])
    preprocessing = Preprocessing(resize=32, crop=32)
    at = Place(0, "cat/0.jpg", preprocessing, (60, 40))
    outline = chain.image(level(7, 32), at)
    assert (outline[:, :16] == 1).all()
    assert (outline[:, 16:] == 0).all()
    assert chain.record() == {"distort": [f"silhouette:{tmp_path}"], "masks": chain.steps[0].fingerprint}
    with pytest.raises(ImageError, match="has no mask") as missing:
        chain.image(level(7, 32), Place(1, "cat/1.jpg", preprocessing, (60, 40)))
    assert missing.value.status == MISSING
    with pytest.raises(ImageError, match=r"has \(60, 40\) pixels, not \(61, 40\)"):
        chain.image(level(7, 32), Place(0, "cat/0.jpg", preprocessing, (61, 40)))
    (tmp_path / "cat" / "0.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match="cannot be read") as damaged:
        chain.image(level(7, 32), at)
    assert damaged.value.status == UNREADABLE


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "P", "I;16"])
def test_a_mask_may_have_any_mode(tmp_path, mode):
    mask = np.zeros((32, 32), np.uint8)
    mask[8:24, 8:24] = 255
    drawn = Image.fromarray(mask)
    drawn.convert("RGB").convert(mode).save(tmp_path / "0.png") if mode != "I;16" else Image.fromarray(
        mask.astype(np.uint16)
    ).save(tmp_path / "0.png")
    at = Place(0, "0.jpg", Preprocessing(None, 32), (32, 32))
    outline = parse([f"silhouette:{tmp_path}"]).image(level(9, 32), at)
    np.testing.assert_array_equal(outline[..., 0] == 0, mask > 0)


@pytest.mark.parametrize("colour", [0, 255])
def test_a_mask_may_be_drawn_in_transparency(tmp_path, colour):
    mask = np.zeros((32, 32, 4), np.uint8)
    mask[..., :3] = colour
    mask[8:24, 8:24, 3] = 255
    Image.fromarray(mask).save(tmp_path / "0.png")
    at = Place(0, "0.jpg", Preprocessing(None, 32), (32, 32))
    outline = parse([f"silhouette:{tmp_path}"]).image(level(9, 32), at)
    np.testing.assert_array_equal(outline[..., 0] == 0, mask[..., 3] > 0)


def test_a_chain_applies_its_steps_in_order():
    pixels = scene()
    both = distorted("lowpass:4+scramble:4", pixels)
    other = distorted("scramble:4+lowpass:4", pixels)
    assert np.abs(both - other).max() > 0.01
    # Blurred first, the patches have sharp edges: their multiset is that of the blurred image.
    np.testing.assert_array_equal(np.sort(both.ravel()), np.sort(distorted("lowpass:4", pixels).ravel()))


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        ("scrambel:4", "unknown distortion 'scrambel:4'; did you mean scramble?"),
        ("blur", "unknown distortion 'blur'; choose from scramble, noise"),
        ("", "unknown distortion ''"),
        ("noise:0.1+", "unknown distortion ''"),
        ("noise", "invalid distortion 'noise'; use noise:SIGMA, as in noise:0.1"),
        ("noise:", "use noise:SIGMA"),
        ("noise:loud", "use noise:SIGMA"),
        ("noise:-1", "noise:-1 needs a positive standard deviation"),
        ("noise:nan", "noise:nan needs a positive"),
        ("scramble:2.5", "use scramble:GRID"),
        ("scramble:1", "scramble:1 has no effect"),
        ("lowpass:0", "lowpass:0 needs a positive frequency"),
        ("highpass:4:4", "use highpass:CYCLES"),
        ("greyscale:2", "use greyscale, which takes no value"),
        ("silhouette", "use silhouette:FOLDER"),
        ("silhouette:/no/such", "silhouette:/no/such is not a folder"),
        ("contour:1", "use contour, which takes no value"),
        ("pgd:linf:8:20", "pgd supports the norm l2, not 'linf'"),
        ("pgd:l2:0.5", "use pgd:l2:EPSILON:STEPS"),
        ("pgd:l2:0:20", "pgd:l2:0:20 needs a positive epsilon"),
        ("pgd:l2:0.5:0", "pgd:l2:0.5:0 needs at least 1 step"),
    ],
)
def test_a_bad_spec_is_one_line_that_says_what_to_write(spec, line):
    with pytest.raises(ActstatsError) as error:
        parse([spec])
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_what_cannot_be_combined_is_refused(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "0.png")
    with pytest.raises(ActstatsError, match="must be the first"):
        parse(["noise:0.1", f"silhouette:{tmp_path}"])
    with pytest.raises(
        ActstatsError, match="scramble:33 needs images of at least 33 pixels per side, got 32"
    ):
        parse(["scramble:33"]).check(Preprocessing(None, 32))
    (tmp_path / "0.png").unlink()
    with pytest.raises(ActstatsError, match="contains no images"):
        parse([f"silhouette:{tmp_path}"])


@pytest.mark.parametrize(
    "specs",
    [
        ["greyscale", "scramble:4+noise:0.1"],
        ["pgd:l2:0.5:20", "contour"],
        ["lowpass:2.5", "highpass:3"],
        [f"noise:{8 / 255!r}", "noise:1e+3+noise:0.5"],
    ],
)
def test_the_specs_of_a_chain_make_an_equal_chain(specs):
    chain = parse(specs)
    assert parse(chain.specs) == chain


@given(st.floats(min_value=0, exclude_min=True, allow_infinity=False), st.integers(1, 10**9))
def test_specs_keep_every_digit(value, steps):
    for chain in (parse([f"noise:{value!r}+noise:0.5"]), parse([f"pgd:l2:{value!r}:{steps}"])):
        assert parse("+".join(chain.specs)) == chain
