"""Matching, CKA and RSA: networks whose relation is known, and the published formulas in NumPy float64."""

from __future__ import annotations

import shlex

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from scipy.stats import spearmanr

from actstats.analysis import match, similarity
from actstats.errors import ActstatsError
from actstats_cli.main import main
from tests.analysis.made import make_store

IMAGES, UNITS = 120, 24


def maps(features: np.ndarray) -> np.ndarray:
    """Maps [N, C, 2, 2] whose means are `features`."""
    return np.broadcast_to(features[:, :, None, None], (*features.shape, 2, 2)).astype(np.float32)


def stored(path, *layers: np.ndarray, **options):
    named = {f"layer{at}": maps(layer) for at, layer in enumerate(layers)}
    return make_store(path, named, partition_size=32, **options)


@pytest.fixture
def features():
    rng = np.random.default_rng(3)
    return [rng.normal(size=(IMAGES, UNITS)) + 3, rng.normal(size=(IMAGES, 2 * UNITS))]


def rotation(size: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(5).normal(size=(size, size)))[0]


def test_a_permutation_of_the_channels_is_recovered(tmp_path, features):
    orders = [np.random.default_rng(7).permutation(layer.shape[1]) for layer in features]
    a = stored(tmp_path / "a.zarr", *features)
    b = stored(tmp_path / "b.zarr", *(layer[:, order] for layer, order in zip(features, orders, strict=True)))
    found = match(a, b)
    expected = np.concatenate([np.argsort(order) for order in orders])
    np.testing.assert_array_equal(found["counterpart_channel"], expected)
    np.testing.assert_array_equal(found["partner_channel"], expected)
    np.testing.assert_array_equal(found["counterpart"], expected + np.repeat([0, UNITS], [UNITS, 2 * UNITS]))
    np.testing.assert_allclose(found["held_out"], 1, atol=1e-6)
    alike = similarity({"a": a, "b": b})
    for name in ("cka", "cka_unbiased", "rsa"):
        values = alike[name].values
        np.testing.assert_allclose([values[0, 2], values[1, 3]], 1, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("kind", ["rotated", "noise"])
def test_rotated_features_and_noise_have_no_counterparts(tmp_path, kind):
    rng = np.random.default_rng(1)
    features = rng.normal(size=(400, 64))
    other = features @ rotation(64) if kind == "rotated" else rng.normal(size=features.shape)
    a, b = stored(tmp_path / "a.zarr", features), stored(tmp_path / "b.zarr", other)
    found = match(a, b)
    assert (found["counterpart"] == -1).all()
    alike = similarity({"a": a, "b": b})
    if kind == "rotated":
        assert float(alike["cka"][0, 1]) == pytest.approx(1, abs=1e-6)
    else:
        assert abs(float(alike["cka_unbiased"][0, 1])) < 0.05


def test_correlations_are_numpys(tmp_path, features):
    rng = np.random.default_rng(2)
    other = features[0] @ rotation(UNITS) * 0.5 + rng.normal(size=features[0].shape) + 1e3
    found = match(stored(tmp_path / "a.zarr", features[0]), stored(tmp_path / "b.zarr", other))
    x, y = (np.float32(values).astype(np.float64) for values in (features[0], other))
    whole = np.corrcoef(x.T, y.T)[:UNITS, UNITS:]
    ranked = np.sort(whole, 1)
    np.testing.assert_allclose(found["correlation"], ranked[:, -1], atol=1e-6)
    np.testing.assert_allclose(found["margin"], ranked[:, -1] - ranked[:, -2], atol=1e-6)
    np.testing.assert_allclose(found["same_channel"], np.diag(whole), atol=1e-6)


def cka(x: np.ndarray, y: np.ndarray) -> float:
    """Kornblith et al. 2019, with kernels."""
    n = len(x)
    centre = np.eye(n) - 1 / n
    k, m = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre
    return (k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum())


def cka_unbiased(x: np.ndarray, y: np.ndarray) -> float:
    """Song et al. 2012, equation 5, with kernels that are not centred."""

    def hsic(k: np.ndarray, m: np.ndarray) -> float:
        n = len(k)
        k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
        one = np.ones(n)
        between = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
        return (np.trace(k @ m) + between - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3))

    k, m = x @ x.T, y @ y.T
    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


def rsa(x: np.ndarray, y: np.ndarray) -> float:
    upper = np.triu_indices(len(x), 1)
    return spearmanr(1 - np.corrcoef(x)[upper], 1 - np.corrcoef(y)[upper]).statistic


@pytest.mark.parametrize("measure", [cka, cka_unbiased, rsa])
def test_measures_are_the_published_formulas(tmp_path, features, measure):
    features[1][:, :UNITS] += features[0]
    alike = similarity({"a": stored(tmp_path / "a.zarr", *features)})[measure.__name__]
    x, y = (np.float32(values).astype(np.float64) for values in features)
    assert float(alike[0, 1]) == pytest.approx(measure(x, y), abs=1e-6)
    np.testing.assert_allclose(np.diag(alike), 1, atol=1e-9)
    np.testing.assert_array_equal(alike, alike.T)


def test_constant_units_and_images_without_values_are_left_out(tmp_path, features):
    features[0][:, 3] = 0.1
    broken = features[0].copy()
    broken[5, 2] = np.nan
    a = stored(tmp_path / "a.zarr", features[0], unreadable=[7])
    b = stored(tmp_path / "b.zarr", broken)
    found = match(a, b)
    assert found["counterpart"][3] == -1
    assert np.isnan(found["correlation"][3])
    assert (np.delete(found["counterpart"].values, 3) >= 0).all()
    assert found.attrs["images_not_finite"] == 1
    assert found.attrs["images_read"] == IMAGES - 2
    alike = similarity({"a": a, "b": b})
    assert alike.attrs["images_read"] == IMAGES - 2
    assert np.isfinite(alike["cka"]).all()


def test_stores_that_cannot_be_compared_are_refused(tmp_path, features):
    a = stored(tmp_path / "a.zarr", features[0])
    few = stored(tmp_path / "few.zarr", features[0][:3])
    names = [f"{index}.png" for index in range(IMAGES)][::-1]
    turned = stored(tmp_path / "turned.zarr", features[0], paths=names)
    other = make_store(tmp_path / "other.zarr", {"head": maps(features[0])}, partition_size=32)
    for b, text in ((few, "other images"), (turned, "another order"), (other, "no layer in common")):
        with pytest.raises(ActstatsError, match=text):
            match(a, b)
    with pytest.raises(ActstatsError, match="8 images or more"):
        match(few, few)
    with pytest.raises(ActstatsError, match="4 images or more"):
        similarity({"few": few})


def test_the_commands_write_tables_and_a_heat_map(tmp_path, features):
    for name in ("a", "b"):
        stored(tmp_path / f"{name}.zarr", *features)
    pair = f"{tmp_path}/a.zarr {tmp_path}/b.zarr"
    for command, rows in (
        (f"match {pair} --out {tmp_path}/layers.csv", 2),
        (f"match {pair} --by unit --out {tmp_path}/units.csv", 3 * UNITS),
        (f"similarity {pair} --name S --name R --out {tmp_path}/alike.csv --plot {tmp_path}/alike.svg", 10),
    ):
        result = CliRunner().invoke(main, shlex.split(f"analyze {command}"), catch_exceptions=False)
        assert result.exit_code == 0, result.output
        assert len(pd.read_csv(command.split("--out ")[1].split()[0])) == rows
    assert (tmp_path / "alike.svg").stat().st_size > 1000
