"""The spectrum's summaries, on gratings and noise whose spectra are known."""

from __future__ import annotations

import numpy as np
import pytest

from actstats.analysis import by_layer, spectrum
from actstats.analysis.spectra import per_coefficient
from tests.analysis.made import grating, make_store


@pytest.mark.parametrize(("cycles", "high"), [(3, 0.0), (13, 0.0), (16, 0.0), (17, 1.0), (30, 1.0)])
def test_a_grating_has_its_own_frequency_for_centroid(tmp_path, cycles, high):
    size = 64
    images = [[grating(size, cycles, axis=axis, phase=phase) for axis in (0, 1)] for phase in (0.0, 1.0, 2.0)]
    found = spectrum(make_store(tmp_path / "g.zarr", {"layer": 5 + np.array(images)})).compute()
    # The bin is 1/32 wide, so the centroid is within half of that.
    np.testing.assert_allclose(found["centroid"], cycles / size, atol=1 / 64)
    np.testing.assert_allclose(found["high_share"], high, atol=1e-9)
    np.testing.assert_allclose(found["power"].sum("frequency"), 25.5, rtol=1e-5)
    np.testing.assert_allclose(found["dc_share"], 25 / 25.5, rtol=1e-5)
    np.testing.assert_allclose(found["share"].sum("frequency"), 1)
    np.testing.assert_allclose(found["share"].max("frequency"), 1, rtol=1e-6)


def test_two_gratings_of_known_power_have_the_centroid_between_them(tmp_path):
    # 4 and 12 cycles of 16: amplitudes 1 and 2, so powers 1 to 4, at 0.25 and 0.4375 (7 cycles of 16).
    maps = (grating(16, 4, phase=0.3) + 2 * grating(16, 7, phase=0.3, axis=1))[None, None]
    found = spectrum(make_store(tmp_path / "g.zarr", {"layer": maps})).compute()
    np.testing.assert_allclose(found["high_share"], 0.8, rtol=1e-5)
    np.testing.assert_allclose(found["centroid"], 0.2 * 4 / 16 + 0.8 * 7 / 16, atol=1 / 64)


@pytest.mark.parametrize("exponent", [0.0, -1.0, -2.0])
def test_the_slope_is_the_exponent_of_a_coefficients_power(tmp_path, exponent):
    rng = np.random.default_rng(0)
    radius = np.hypot(np.fft.fftfreq(96)[:, None], np.fft.fftfreq(96))
    radius[0, 0] = 1
    spectra = np.fft.fft2(rng.normal(size=(6, 2, 96, 96))) * radius ** (exponent / 2)
    maps = np.fft.ifft2(spectra).real.astype(np.float32)
    found = spectrum(make_store(tmp_path / "n.zarr", {"layer": maps})).compute()
    np.testing.assert_allclose(found["slope"], exponent, atol=0.1)


def test_small_maps_have_only_what_they_resolve(tmp_path):
    rng = np.random.default_rng(0)
    maps = {f"m{size}": rng.normal(size=(5, 1, size, size)).astype(np.float32) for size in (1, 2, 7)}
    maps["dead"] = np.zeros((5, 1, 7, 7), dtype=np.float32)
    found = spectrum(make_store(tmp_path / "s.zarr", maps)).compute()
    one, two, seven, dead = (found.isel(unit=unit) for unit in range(4))
    for name in ("share", "centroid", "high_share", "slope"):
        assert one[name].isnull().all(), name
        assert dead[name].isnull().all(), name
    assert float(one["dc_share"]) == 1
    assert float(one["power"][0]) == pytest.approx(float((maps["m1"] ** 2).mean()), rel=1e-5)
    assert np.isnan(dead["dc_share"])
    assert np.isnan(two["slope"])
    assert 0.5 <= float(two["centroid"]) <= np.sqrt(0.5)
    assert np.isfinite(seven["slope"])
    assert by_layer(found)["centroid"].notna().tolist() == [False, True, True, False]


def test_power_is_the_mean_over_the_images_that_were_read(tmp_path):
    maps = np.stack([grating(8, 2)[None] * scale for scale in (1, 2, 3, 4, 5, 6)])
    dataset = make_store(tmp_path / "s.zarr", {"layer": maps}, unreadable=[1], stop_after=1)
    found = spectrum(dataset).compute()
    np.testing.assert_allclose(found["power"].sum("frequency"), (1 + 9 + 16) / 3 / 2, rtol=1e-5)


def test_white_noise_is_flat_per_coefficient_into_the_corners(tmp_path):
    maps = np.random.default_rng(0).normal(size=(40, 2, 32, 48)).astype(np.float32)
    density, frequency = per_coefficient(spectrum(make_store(tmp_path / "n.zarr", {"layer": maps})).compute())
    flat = density.values[:, 1:] * (32 * 48 - 1)
    assert np.isfinite(flat).all()
    np.testing.assert_allclose(flat, 1, atol=0.2)
    assert np.isnan(density[:, 0]).all()
    assert 0.5 < float(frequency.max()) <= np.sqrt(0.5)
