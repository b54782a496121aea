"""Matching, CKA and RSA: networks whose relation is known, and the published formulas in NumPy float64."""

from __future__ import annotations

import shlex

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from click.testing import CliRunner
from scipy.stats import false_discovery_control, norm, spearmanr

from actstats.analysis import aligned, by_layer, match, match_table, representations, similarity, write_table
from actstats.analysis.counterparts import match_both, read_matches, select_matches
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


def test_counterparts_are_found_in_other_layers(tmp_path, features):
    a = stored(tmp_path / "a.zarr", *features)
    b = stored(tmp_path / "b.zarr", features[1][:, ::-1], features[0][:, ::-1])
    assert (match(a, b)["counterpart"] == -1).all()
    found = match(a, b, across=True)
    np.testing.assert_array_equal(found["counterpart"], np.arange(3 * UNITS)[::-1])
    assert found["counterpart_layer"].values.tolist() == ["layer1"] * UNITS + ["layer0"] * 2 * UNITS
    expected = np.concatenate([np.arange(UNITS)[::-1], np.arange(2 * UNITS)[::-1]])
    np.testing.assert_array_equal(found["counterpart_channel"], expected)
    # Partners are of the same layer, in which there is nothing alike.
    assert (found["partner"][:UNITS] < 2 * UNITS).all()
    assert float(abs(found["partner_correlation"]).max()) < 0.5


def test_strips_of_units_and_blocks_of_images_change_nothing(tmp_path, features, monkeypatch):
    rng = np.random.default_rng(4)
    other = [layer + rng.normal(size=layer.shape) for layer in features]
    other[0][9, 3] = np.nan
    a = stored(tmp_path / "a.zarr", *features, unreadable=[40])
    b = stored(tmp_path / "b.zarr", *other, unreadable=[41])
    whole = [match(a, b, across=across) for across in (False, True)] + [similarity({"a": a, "b": b})]
    monkeypatch.setattr(aligned, "_STRIP", 1)
    monkeypatch.setattr(aligned, "_ROWS", 5)
    for before, after in zip(
        whole,
        [match(a, b), match(a, b, across=True), similarity({"a": a, "b": b})],
        strict=True,
    ):
        xr.testing.assert_allclose(before, after, rtol=0, atol=1e-12)
        assert before.attrs == after.attrs
        assert before.attrs["images_read"] == IMAGES - 3
        assert before.attrs["images_unreadable"] == 2
        assert before.attrs["images_not_finite"] == 1


def test_both_directions_at_once_are_what_each_gives(tmp_path, features):
    rng = np.random.default_rng(4)
    other = [layer[:, ::-1] + rng.normal(size=layer.shape) for layer in features]
    a, b = stored(tmp_path / "a.zarr", *features), stored(tmp_path / "b.zarr", *other)
    there, back = match_both(a, b)
    xr.testing.assert_identical(there, match(a, b))
    expected = match(b, a)
    for name in ("counterpart", "correlation", "margin", "same_channel", "partner"):
        xr.testing.assert_allclose(back[name], expected[name], atol=1e-12)


@pytest.mark.parametrize("ending", ["csv", "json", "parquet"])
def test_a_table_of_matches_is_read_as_it_was_written(tmp_path, features, ending):
    features[0][:, 3] = 1  # without a counterpart, and without a number
    a, b = (
        stored(tmp_path / "a.zarr", *features),
        stored(tmp_path / "b.zarr", features[0][:, ::-1], features[1]),
    )
    found, path = match(a, b), tmp_path / f"matches.{ending}"
    write_table(match_table(found), path)
    selected = select_matches(read_matches([path]), a, b)
    xr.testing.assert_allclose(selected, found[list(selected)].reset_coords(drop=True))
    assert selected["counterpart"][3] == -1
    c = stored(tmp_path / "c.zarr", *features, weights={"source": "module", "sha256": "c" * 64})
    assert select_matches(read_matches([path]), a, c) is None
    other = stored(tmp_path / "other.zarr", features[1])
    with pytest.raises(ActstatsError, match="of other units"):
        select_matches(read_matches([path]), other, b)
    bad = tmp_path / f"bad.{ending}"
    write_table(by_layer(found), bad)
    with pytest.raises(ActstatsError, match=r"holds no matches by unit: it lacks .*channel"):
        read_matches([bad])
    bad.write_bytes(b"\x00nonsense")
    with pytest.raises(ActstatsError, match=r"cannot read the matches|holds no matches"):
        read_matches([bad])


@pytest.mark.parametrize(
    ("column", "value", "text"),
    [
        ("counterpart", "none", "counterpart is 'none', not an integer"),
        ("counterpart", "", "counterpart is '', not an integer"),
        ("counterpart", "-7", "counterpart is -7, not an integer"),
        ("best", "0.5", "best is 0.5, not an integer"),
        ("channel", "x", "channel is 'x', not an integer"),
        ("held_out", "0,9", "held_out is '0,9', not a number"),
    ],
)
def test_a_table_of_matches_edited_in_a_spreadsheet_is_refused(tmp_path, features, column, value, text):
    a = stored(tmp_path / "a.zarr", *features)
    write_table(match_table(match(a, a)), tmp_path / "matches.csv")
    table = pd.read_csv(tmp_path / "matches.csv", dtype=str, keep_default_na=False)
    table.iloc[:-1].to_csv(tmp_path / "short.csv", index=False)
    with pytest.raises(ActstatsError, match="the matches have 71 of the 72 units of the store"):
        select_matches(read_matches([tmp_path / "short.csv"]), a, a)
    table.loc[5, column] = value
    table.to_csv(tmp_path / "edited.csv", index=False)
    with pytest.raises(ActstatsError, match=text):
        read_matches([tmp_path / "edited.csv"])


def test_units_that_are_constant_in_one_half_have_no_choice_and_no_test(tmp_path):
    """Sparse units: off their mean over all images, the sums of a constant half are constant but for rounding."""
    chosen = np.random.default_rng(0).permutation(IMAGES)[: IMAGES // 2]
    other = np.setdiff1d(np.arange(IMAGES), chosen)
    rng = np.random.default_rng(3)
    features = rng.normal(size=(IMAGES, 8)) + 3
    sparse = np.zeros((IMAGES, 16))
    sparse[other[:5]] = rng.random((5, 16))
    first = stored(tmp_path / "a.zarr", np.concatenate([features, sparse], 1))
    second = stored(tmp_path / "b.zarr", np.concatenate([sparse[:, :1], features], 1))
    found = match(first, second)
    np.testing.assert_array_equal(found["counterpart"], [*range(1, 9), *[-1] * 16])
    assert np.isfinite(found["correlation"]).all()
    assert not found["stable"][8:].any()
    for name in ("held_out", "p", "q"):
        np.testing.assert_array_equal(np.isnan(found[name]), np.arange(24) >= 8)


def sparse(rng: np.random.Generator, images: int, units: int, active: int) -> np.ndarray:
    """Units that are zero but for `active` images each."""
    values = np.zeros((images, units))
    for unit in values.T:
        unit[rng.choice(images, active, replace=False)] = 1 + rng.random(active)
    return values


@pytest.fixture(scope="module")
def related(tmp_path_factory):
    """Two stores of 300 images whose layers are related in known ways, and how many units of each layer are so.

    Related units of a layer have the same channel. Every kind is drawn several times.
    """
    images, draws = 300, 2
    rng = np.random.default_rng(11)

    def noisy(units: int, draw) -> list[np.ndarray]:
        values = draw((images, units))
        return [values + 0.5 * draw((images, units)) for _ in range(2)]

    def kinds() -> dict[str, tuple[list[np.ndarray], int]]:
        factor, few = rng.normal(size=(images, 1)), rng.normal(size=(2, images, 512))
        few[1, :, :5] = few[0, :, :5] + 0.75 * few[1, :, :5]
        beside = [
            np.concatenate([of, sparse(rng, images, 32, 3)], 1) for of in noisy(64, rng.standard_normal)
        ]
        return {
            "true": (noisy(64, rng.standard_normal), 64),
            "beside sparse units": (beside, 64),
            "heavy tails": (noisy(64, lambda size: rng.standard_t(3, size)), 64),
            "5 of 512": (list(few), 5),
            "nothing": ([rng.normal(size=(images, 64)) for _ in range(2)], 0),
            "nothing, sparse": ([sparse(rng, images, 128, 3) for _ in range(2)], 0),
            "nothing, heavy tails": ([rng.standard_cauchy((images, 128)) for _ in range(2)], 0),
            "a shared factor": (
                [np.sqrt(0.6) * factor + np.sqrt(0.4) * rng.normal(size=(images, 128)) for _ in range(2)],
                0,
            ),
        }

    drawn = {f"{kind} {draw}": of for draw in range(draws) for kind, of in kinds().items()}
    folder = tmp_path_factory.mktemp("related")
    stores = []
    for at, name in enumerate("ab"):
        layers = {layer: np.float32(of[at][:, :, None, None]) for layer, (of, _) in drawn.items()}
        stores.append(make_store(folder / f"{name}.zarr", layers, partition_size=512, metrics=["mean"]))
    return stores, {layer: units for layer, (_, units) in drawn.items()}


def test_counterparts_are_decided_by_their_own_evidence(related):
    stores, known = related
    found = match(*stores, across=False)
    layers = found["layer"].values
    for layer, units in known.items():
        at = found["counterpart_channel"].values[layers == layer]
        right = int((at[:units] == np.arange(units)).sum())
        assert right >= 0.9 * units, layer
        # 5 % of what is matched, and in a layer without a relation 5 % of its units.
        assert (at >= 0).sum() - right <= 0.05 * (right or len(at)), layer


def test_a_shared_factor_makes_no_counterparts_across_layers(related):
    stores, known = related
    found = match(*stores, across=True)
    layers = found["layer"].values
    for layer, units in known.items():
        there = found["counterpart_layer"].values[layers == layer] == layer
        at = np.where(there, found["counterpart_channel"].values[layers == layer], -1)
        matched = found["counterpart"].values[layers == layer] >= 0
        right = int((at[:units] == np.arange(units)).sum())
        assert right >= 0.9 * units, layer
        assert matched.sum() - right <= 0.05 * (right or len(at)), layer


def test_p_q_and_reciprocity_are_those_of_the_arrays(tmp_path):
    rng = np.random.default_rng(6)
    shared = rng.normal(size=(200, 12))
    x, y = (np.float32(shared + 1.5 * rng.normal(size=shared.shape)) for _ in range(2))
    stores = [stored(tmp_path / "a.zarr", x), stored(tmp_path / "b.zarr", y)]
    found, back = match(*stores), match(*stores[::-1])
    # The halves are those of `match`: a permutation by its seed.
    order = np.random.default_rng(0).permutation(200)
    halves = [np.corrcoef(x[rows].T, y[rows].T)[:12, 12:] for rows in (order[:100], order[100:])]
    chosen = halves[0].argmax(1)
    np.testing.assert_allclose(found["held_out"], halves[1][np.arange(12), chosen], atol=1e-6)
    mutual = [half.argmax(0)[half.argmax(1)] == np.arange(12) for half in halves]
    reciprocal = mutual[0] & mutual[1] & (halves[0].argmax(1) == halves[1].argmax(1))
    assert 0 < reciprocal.sum() < 12
    np.testing.assert_array_equal(found["reciprocal"], reciprocal)
    # Fisher's z of 100 images gives much the same p where the values are normal.
    z = np.arctanh(found["held_out"].values) * np.sqrt(97)
    np.testing.assert_allclose(found["p"], norm.sf(z), atol=0.02)
    np.testing.assert_allclose(found["q"], false_discovery_control(found["p"].values))
    has = (found["held_out"] >= 0.5) & (found["q"] <= 0.05) & found["reciprocal"] & found["stable"]
    np.testing.assert_array_equal(found["counterpart"] >= 0, has)
    np.testing.assert_array_equal(found["counterpart"][has], chosen[has])
    mirrored = [(there, here) for here, there in enumerate(back["counterpart"].values.tolist()) if there >= 0]
    assert set(mirrored) == {
        (here, int(there)) for here, there in enumerate(found["counterpart"].values) if there >= 0
    }


def test_tables_of_matches_from_before_are_read(tmp_path, features):
    a, b = stored(tmp_path / "a.zarr", *features), stored(tmp_path / "b.zarr", *features)
    found = match(a, b)
    table = match_table(found).drop(columns=["p", "q", "reciprocal"]).assign(chance=0.3)
    write_table(table, tmp_path / "before.csv")
    selected = select_matches(read_matches([tmp_path / "before.csv"]), a, b)
    np.testing.assert_array_equal(selected["counterpart"], found["counterpart"])
    assert selected["reciprocal"].values.all()


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
    names = [f"{index:03}.png" for index in range(IMAGES)][::-1]
    turned = stored(tmp_path / "turned.zarr", features[0], paths=names)
    other = make_store(tmp_path / "other.zarr", {"head": maps(features[0])}, partition_size=32)
    for b, text in ((few, "different images"), (turned, "different order"), (other, "no layer in common")):
        with pytest.raises(ActstatsError, match=text):
            match(a, b)
    with pytest.raises(ActstatsError, match="8 images or more"):
        match(few, few)
    with pytest.raises(ActstatsError, match="4 images or more"):
        similarity({"few": few})


def test_images_that_one_store_lacks_are_left_out_and_counted(tmp_path, features):
    a = stored(tmp_path / "a.zarr", *features)
    b = stored(tmp_path / "b.zarr", *features, stop_after=2)
    found = match(a, b)
    assert found.attrs["images_read"] == 64
    assert found.attrs["images_pending"] == IMAGES - 64
    np.testing.assert_array_equal(found["counterpart"], np.arange(3 * UNITS))
    with pytest.raises(
        ActstatsError, match=r"needs 8 images or more .* not 0; 120 have a value that is not fin"
    ):
        match(a, stored(tmp_path / "c.zarr", np.full_like(features[0], np.nan)))


def test_a_sample_whose_ranks_exceed_memory_is_refused(tmp_path, features, monkeypatch):
    monkeypatch.setattr(representations, "_MOST_RANKS", 100_000)
    a = stored(tmp_path / "a.zarr", *features)
    with pytest.raises(ActstatsError, match="take 111 images or fewer"):
        similarity({"a": a})
    assert similarity({"a": a}, sample=111).attrs["sample"] == 111


def test_a_cluster_gives_the_same(tmp_path, features):
    distributed = pytest.importorskip("distributed")
    a, b = (
        stored(tmp_path / "a.zarr", *features),
        stored(tmp_path / "b.zarr", features[0][:, ::-1], features[1]),
    )
    expected = match(a, b), similarity({"a": a, "b": b})
    cluster = distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None, memory_limit=None
    )
    with cluster, distributed.Client(cluster):
        found = match(a, b), similarity({"a": a, "b": b})
    for one, other in zip(expected, found, strict=True):
        xr.testing.assert_identical(one, other)


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
    for command in (f"match {pair} --seed -1", f"similarity {pair} --seed -1"):
        result = CliRunner().invoke(main, shlex.split(f"analyze {command}"))
        assert result.exit_code == 2
        assert "-1 is not in the range x>=0" in result.output
