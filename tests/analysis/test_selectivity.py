"""Selectivity, on units that answer to chosen classes."""

from __future__ import annotations

import numpy as np
import pytest

from actstats.analysis import class_means, notes, selectivity, unit_table, variety
from actstats.errors import ActstatsError
from tests.analysis.made import make_store

LABELS = np.array([0, 1, 2, 3] * 4)


def constant(values: np.ndarray) -> np.ndarray:
    """Maps [images, units, 2, 2] that hold `values` [images, units] everywhere."""
    return np.broadcast_to(
        np.asarray(values, dtype=np.float32)[..., None, None], (*values.shape, 2, 2)
    ).copy()


@pytest.fixture
def values() -> np.ndarray:
    found = np.zeros((16, 5))
    found[:, 0] = LABELS == 2  # one class only
    found[:, 1] = 1 + np.arange(16) / 100  # all alike, the last images most
    found[:, 2] = np.array([3, 1, 1, 1])[LABELS]  # one class thrice as much
    found[:, 3] = np.where(LABELS == 1, 1, -1)  # negative means
    return found  # and unit 4 is dead


def test_a_unit_that_fires_for_one_class_has_selectivity_one_and_entropy_zero(tmp_path, values):
    found = selectivity(make_store(tmp_path / "s.zarr", {"layer": constant(values)}, LABELS, top_k=4))
    assert found["selectivity"].chunks is not None, "not lazy"
    assert found["top_entropy"].chunks is not None, "not lazy"
    found = found.compute()
    np.testing.assert_allclose(found["selectivity"][[0, 2]], [1, 0.5], rtol=1e-6)
    assert found["selectivity"][1] < 0.02
    assert np.isnan(found["selectivity"][3:]).all(), "an index of activations that are not negative"
    assert found["preferred_class"].values[:4].tolist() == [2, 3, 0, 1]
    assert found["top_entropy"].values[:3].tolist() == [0, 2, 0], (
        "one class of four images, four classes, one class"
    )
    assert found["top_classes"].values[:3].tolist() == [1, 4, 1]
    # The last two are never above 0; the fifth is 0 throughout.
    assert found["top_images"].values.tolist()[:3] == [4] * 3
    assert found["top_images"].values[4] == 0
    assert unit_table(found)["preferred_class"].dtype == np.int64


@pytest.mark.parametrize("order", ["mixed", "sorted"])
def test_class_means_are_those_of_numpy_whatever_the_order_of_images(tmp_path, order):
    rng = np.random.default_rng(0)
    labels = rng.integers(-1, 6, 40)
    labels[labels == 4] = 3  # a class that does not occur
    if order == "sorted":
        labels.sort()
    values = rng.gamma(1, size=(40, 7))
    dataset = make_store(tmp_path / "s.zarr", {"layer": constant(values)}, labels, unreadable=[3, 17])
    means = class_means(dataset).transpose("label", "unit").compute()
    assert means["label"].values.tolist() == [0, 1, 2, 3, 5]
    read = ~np.isin(np.arange(40), [3, 17])
    expected = np.stack([values[(labels == label) & read].mean(0) for label in (0, 1, 2, 3, 5)])
    np.testing.assert_allclose(means, expected, rtol=1e-5)
    found = selectivity(dataset).compute()
    greatest = expected.max(0)
    others = (expected.sum(0) - greatest) / 4
    np.testing.assert_allclose(found["selectivity"], (greatest - others) / (greatest + others), rtol=1e-5)
    assert notes(found) == ["2 of 40 images could not be read and are excluded"]
    # The maxima of constant maps are their means.
    np.testing.assert_allclose(class_means(dataset, "maximum"), means.transpose("label", "unit"), rtol=1e-6)


def test_entropy_is_that_of_the_classes_among_the_labelled_top_images(tmp_path):
    labels = np.array([0, 0, 0, 1, 1, 2, -1, -1])
    values = np.stack([np.arange(8, 0, -1), np.arange(8, 0, -1) * 0.5], 1)
    values[:6, 1] = np.nan  # not finite: two images without a label are left
    found = selectivity(
        make_store(tmp_path / "s.zarr", {"layer": constant(values)}, labels, top_k=7)
    ).compute()
    shares = np.array([3, 2, 1]) / 6
    np.testing.assert_allclose(found["top_entropy"][0], -(shares * np.log2(shares)).sum())
    assert found["top_classes"].values[0] == 3
    assert found["top_images"].values.tolist() == [7, 2]
    assert np.isnan(found["top_entropy"][1])
    assert np.isnan(found["top_classes"][1])
    assert found["preferred_class"].values[1] == -1


def test_variety_counts_images_and_classes_over_a_layer(tmp_path):
    same = np.zeros((16, 3))
    same[[2, 6]] = [[2], [1]]  # the same two images of one class for every unit
    different = np.zeros((16, 2))
    different[[0, 1], 0] = [2, 1]
    different[[2, 3], 1] = [2, 1]
    maps = {"same": constant(same), "different": constant(different)}
    table = variety(make_store(tmp_path / "s.zarr", maps, LABELS, top_k=2))
    assert table["layer"].tolist() == ["same", "different"]
    assert table["units"].tolist() == [3, 2]
    assert table["top_places"].tolist() == [6, 4]
    assert table["distinct_images"].tolist() == [2, 4]
    assert table["distinct_classes"].tolist() == [1, 4]


@pytest.mark.parametrize(
    ("labels", "message"),
    [(None, "no image that was read has a label"), ([5] * 16, "images of at least two classes")],
)
def test_images_without_classes_are_refused(tmp_path, values, labels, message):
    with pytest.raises(ActstatsError, match=message):
        selectivity(make_store(tmp_path / "s.zarr", {"layer": constant(values)}, labels))


def test_top_images_that_do_not_activate_a_unit_have_no_class(tmp_path):
    values = np.zeros((len(LABELS), 4), dtype=np.float32)
    values[:, 1] = 0.25  # a constant that is not 0
    values[:3, 2] = [1, 3, 2]  # active in three images of the four that are ranked
    values[:, 3] = np.arange(len(LABELS)) + 1
    dataset = make_store(tmp_path / "s.zarr", {"layer": constant(values)}, LABELS, top_k=4)
    found = selectivity(dataset).compute()
    assert found["top_images"].values.tolist() == [0, 0, 3, 4]
    assert np.isnan(found["top_classes"].values[:2]).all()
    assert np.isnan(found["top_entropy"].values[:2]).all()
    assert found["top_classes"].values[2] == len(set(LABELS[:3]))
    assert found["top_classes"].values[3] == len(set(LABELS[-4:]))
    places = variety(dataset).set_index("layer")["top_places"]
    assert places["layer"] == 0 + 4 + 3 + 4
