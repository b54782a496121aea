"""Noise: paired changes, the outlier rule and the increase by layer, on maps whose total variation is known."""

from __future__ import annotations

import numpy as np
import pytest

from actstats.analysis import noise, noise_by_layer, notes
from actstats.errors import ActstatsError
from tests.analysis.made import make_store

STEPS = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
"""Of six images: the height of the one step in each map."""


def steps(*factors: float, noise: float = 0.0) -> np.ndarray:
    """Maps of one row, [images, units, 1, 2]: a unit's total variation is its factor times the image's step."""
    maps = np.zeros((6, len(factors), 1, 2), dtype=np.float32)
    maps[..., 0, 1] = STEPS[:, None] * np.array(factors) * (1 + noise)
    return maps


@pytest.fixture
def clean(tmp_path):
    return make_store(tmp_path / "clean.zarr", {"first": steps(1, 3), "second": steps(2, 2, 0)})


def test_change_error_and_outliers_are_as_defined(tmp_path, clean):
    noisy = {"first": steps(1.5, 3.1), "second": steps(2.2, 2.5, 0)}
    found = noise(clean, make_store(tmp_path / "noisy.zarr", noisy))
    assert found["change"].chunks is not None, "not lazy"
    found = found.compute()
    change = np.array([0.5, 0.1, 0.2, 0.5, 0.0])
    np.testing.assert_allclose(found["clean"], 3.5 * np.array([1, 3, 2, 2, 0]), rtol=1e-6)
    np.testing.assert_allclose(found["change"], 3.5 * change, rtol=1e-5)
    np.testing.assert_allclose(found["change_error"], STEPS.std(ddof=1) * change / np.sqrt(6), rtol=1e-5)
    np.testing.assert_allclose(found["relative_change"], [0.5, 0.1 / 3, 0.1, 0.25, np.nan], rtol=1e-5)
    # 0.2 times the layers' means, 3.5 x 2 and 3.5 x 4/3: changes of 0.4 and 0.267 a step reach them.
    assert found["outlier"].values.tolist() == [True, False, False, True, False]
    assert noise(clean, clean)["outlier"].values.sum() == 0


def test_the_scale_of_the_rule_can_be_the_standard_networks(tmp_path, clean):
    noisy = make_store(tmp_path / "noisy.zarr", {"first": steps(1.5, 3.1), "second": steps(2.2, 2.5, 0)})
    standard = make_store(
        tmp_path / "s.zarr", {"first": steps(4, 4), "second": steps(0.9, 0.9, 0.9)}, arch="s"
    )
    outlier = noise(clean, noisy, reference=standard)["outlier"]
    assert outlier.values.tolist() == [False, False, True, True, False]
    # The share of a layer's mean that a change has to reach.
    assert noise(clean, noisy, share=0.01)["outlier"].values.tolist() == [True, True, True, True, False]


def test_the_increase_of_a_layer_is_relative_to_that_of_the_input(tmp_path):
    names = {"first": 0.4, "half": 0.2, "silent": 0.0, "louder": 0.6}
    clean = make_store(tmp_path / "clean.zarr", {name: steps(1, 2) for name in names})
    noisy = make_store(tmp_path / "noisy.zarr", {name: steps(1, 2, noise=n) for name, n in names.items()})
    found = noise(clean, noisy)
    table = noise_by_layer(found)
    assert table["layer"].tolist() == list(names)
    np.testing.assert_allclose(table["increase"], list(names.values()), atol=1e-6)
    np.testing.assert_allclose(table["relative_increase"], [1, 0.5, 0, 1.5], atol=1e-5)
    # Total variation does not say whether noise passes.
    assert not {"blocked", "relative_map_change"} & {*table}
    assert table["outliers"].tolist() == [2, 1, 0, 2]
    assert table["outlier_share"].tolist() == [1, 0.5, 0, 1]
    table = noise_by_layer(found, input_increase=0.8)
    np.testing.assert_allclose(table["relative_increase"], [0.5, 0.25, 0, 0.75], atol=1e-5)


def test_only_images_that_both_sweeps_have_are_paired(tmp_path, clean):
    maps = {"first": steps(1, 3), "second": steps(2, 2, 0)}
    torn = make_store(tmp_path / "torn.zarr", maps, unreadable=[1], partition_size=3, stop_after=1)
    for pair in ((clean, torn), (torn, clean)):
        found = noise(*pair).compute()
        np.testing.assert_array_equal(found["change"], 0)
        np.testing.assert_allclose(found["clean"][0], (1 + 3) / 2)
        assert notes(found) == [
            "3 of 6 images have not been swept yet and are excluded",
            "1 of 6 images could not be read and is excluded",
        ]


@pytest.mark.parametrize(
    ("maps", "manifest", "message"),
    [
        (
            {"first": steps(1, 3), "other": steps(2, 2, 0)},
            {},
            "only the first has second, only the second has other",
        ),
        (
            {"first": steps(1, 3), "second": steps(2, 2)},
            {},
            "layer second has 3 units in the first store and 2 in",
        ),
        ({"first": steps(1, 3)[:5], "second": steps(2, 2, 0)[:5]}, {}, "6 in the first and 5 in the second"),
        (
            {},
            {"paths": [f"{i}.png" for i in range(6)]},
            "number 0 is 000.png in the first and 0.png in the second",
        ),
        ({}, {"arch": "other"}, "different networks: arch is made in the first and other in the second"),
        (
            {},
            {"weights": {"source": "module", "sha256": "1"}},
            r"weights\.sha256 is 0 in the first and 1 in the second",
        ),
    ],
)
def test_sweeps_that_are_no_pair_are_refused_by_name(tmp_path, clean, maps, manifest, message):
    maps = maps or {"first": steps(1, 3), "second": steps(2, 2, 0)}
    other = make_store(tmp_path / "other.zarr", maps, **manifest)
    with pytest.raises(ActstatsError, match=message) as caught:
        noise(clean, other)
    assert "\n" not in str(caught.value)


def test_sweeps_in_the_wrong_order_are_refused(tmp_path):
    maps = {"first": steps(1, 3)}
    made = {
        name: make_store(tmp_path / f"{name}.zarr", maps, **({"distort": specs} if specs else {}))
        for name, specs in {"plain": [], "grey": ["greyscale"], "noisy": ["greyscale", "noise:0.1"]}.items()
    }
    with pytest.raises(
        ActstatsError, match=r"^noise: the first sweep is distorted by noise:0\.1 and the second"
    ):
        noise(made["noisy"], made["grey"])
    with pytest.raises(
        ActstatsError, match=r"by greyscale \+ noise:0\.1 .* not: give the clean sweep first$"
    ):
        noise(made["noisy"], made["plain"])
    for pair in (("grey", "noisy"), ("plain", "noisy"), ("noisy", "noisy")):
        noise(*(made[name] for name in pair))


def test_a_share_that_is_not_above_0_is_refused(tmp_path, clean):
    for share in (0, float("nan")):
        with pytest.raises(ActstatsError, match="`share=` must be above 0"):
            noise(clean, clean, share=share)
