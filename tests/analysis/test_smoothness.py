"""Smoothness of maps and kernels, against maps whose values are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from actstats.analysis import by_layer, kernel_smoothness, notes, smoothness, unit_table
from actstats.errors import ActstatsError
from tests.analysis.made import make_store


@pytest.fixture
def maps() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    wide = rng.normal(size=(10, 4, 12, 9)).astype(np.float32)
    wide[:, 1] = np.arange(9)  # a ramp: 1 for each horizontal pair, nothing for a vertical one
    wide[:, 2] = 3.0  # constant
    return {"wide": wide, "narrow": rng.normal(size=(10, 2, 1, 1)).astype(np.float32)}


def test_total_variation_step_and_roughness_are_as_defined(tmp_path, maps):
    found = smoothness(make_store(tmp_path / "s.zarr", maps))
    assert found["roughness"].chunks is not None, "not lazy"
    found = found.compute()
    x = maps["wide"].astype(np.float64)
    total = np.abs(np.diff(x, axis=2)).sum((2, 3)) + np.abs(np.diff(x, axis=3)).sum((2, 3))
    pairs = 12 * 8 + 11 * 9
    np.testing.assert_allclose(found["total_variation"][:4], total.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found["step"][:4], total.mean(0) / pairs, rtol=1e-6)
    assert found["step"].values[1] == pytest.approx(96 / pairs)
    kept = [0, 1, 3]
    expected = (total / pairs)[:, kept] / x.std((2, 3))[:, kept]
    np.testing.assert_allclose(found["roughness"][kept], expected.mean(0), rtol=1e-6)
    assert np.isnan(found["roughness"][2]), "a constant map has no scale"
    # A map of one position has a total variation, 0, and no neighbours.
    np.testing.assert_array_equal(found["total_variation"][4:], 0)
    assert found["step"][4:].isnull().all()
    assert found["roughness"][4:].isnull().all()


def test_unreadable_images_and_incomplete_partitions_are_left_out_and_named(tmp_path, maps):
    dataset = make_store(tmp_path / "s.zarr", maps, unreadable=[1], stop_after=2)
    found = smoothness(dataset).compute()
    few = {name: values[[0, 2, 3, 4, 5, 6, 7]] for name, values in maps.items()}
    expected = smoothness(make_store(tmp_path / "few.zarr", few)).compute()
    for name in found:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6)
    assert notes(found) == [
        "2 of 10 images have not been swept yet and are excluded",
        "1 of 10 images could not be read and is excluded",
    ]
    assert notes(expected) == []


def test_a_store_without_the_variable_or_a_complete_partition_is_refused(tmp_path, maps):
    dataset = make_store(tmp_path / "s.zarr", maps, metrics=["mean"])
    with pytest.raises(
        ActstatsError,
        match=r"needs the variable total_variation, .* `metrics=total_variation,\.\.\.` and `per_image=True`",
    ):
        smoothness(dataset)
    with pytest.raises(ActstatsError, match="needs a complete partition"):
        smoothness(make_store(tmp_path / "none.zarr", maps, stop_after=0))


def test_layers_are_in_their_order_with_means_over_their_units(tmp_path, maps):
    found = smoothness(make_store(tmp_path / "s.zarr", maps)).compute()
    table = by_layer(found)
    assert table["layer"].tolist() == ["wide", "narrow"]
    assert table["units"].tolist() == [4, 2]
    assert table["step"][0] == pytest.approx(float(found["step"][:4].mean()))
    assert table["step_median"][0] == pytest.approx(float(found["step"][:4].median()))
    assert table["step_p90"][0] == pytest.approx(float(found["step"][:4].quantile(0.9)))
    assert np.isnan(table["step"][1])
    units = unit_table(found)
    assert units["channel"].tolist() == [0, 1, 2, 3, 0, 1]
    assert list(units) == ["layer", "channel", "total_variation", "step", "roughness"]


def test_kernels_are_maps_of_a_filter():
    network = nn.Sequential(nn.Conv2d(2, 3, (3, 5)), nn.ReLU(), nn.Conv2d(3, 2, 1))
    weights = torch.zeros(3, 2, 3, 5)
    weights[0, 0, 1, 2] = 1.0  # a point: four neighbours
    weights[1] = torch.arange(5.0)  # ramps of two kernels: 4 steps in each of 3 rows
    network[0].weight.data = weights
    found = kernel_smoothness(network)
    pairs = 2 * (3 * 4 + 5 * 2)
    assert found["layer"].values.tolist() == ["0"] * 3 + ["2"] * 2
    np.testing.assert_array_equal(found["total_variation"], [4, 24, 0, 0, 0])
    np.testing.assert_allclose(found["step"], [4 / pairs, 24 / pairs, 0, np.nan, np.nan])
    np.testing.assert_allclose(found["roughness"][1], 24 / pairs / np.sqrt(2))
    assert np.isnan(found["roughness"][2])
    # Free of scale, and an extra channel that reads the same changes nothing.
    network[0].weight.data = 7 * weights.repeat(1, 2, 1, 1)
    np.testing.assert_allclose(kernel_smoothness(network)["roughness"], found["roughness"])


def test_kernels_are_measured_in_weights_and_maps_in_activations(tmp_path, maps):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kernels = kernel_smoothness(nn.Conv2d(3, 4, 3))
    of_maps = smoothness(make_store(tmp_path / "s.zarr", maps))
    for found, unit in ((kernels, "weight"), (of_maps, "activation")):
        assert {name: found[name].attrs["units"] for name in ("total_variation", "step", "roughness")} == {
            "total_variation": unit, "step": unit, "roughness": "1",
        }  # fmt: skip


def test_a_network_without_convolutions_has_no_kernels():
    with pytest.raises(ActstatsError, match=r"Linear has no torch\.nn\.Conv2d"):
        kernel_smoothness(nn.Linear(2, 2))
