"""What a change of the images does to maps, by unit and layer, against plain torch and NumPy."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import xarray as xr
from click.testing import CliRunner
from PIL import Image
from torch import nn

import actstats
from actstats import ActstatsError, Preprocessing
from actstats.analysis import map_changes, noise, noise_by_layer
from actstats.distort import parse
from actstats.distort.steps import Place
from actstats.probing.inputs import input_change, input_increase
from actstats_cli.main import main

SIDE, COUNT = 24, 9
PLAIN = Preprocessing(resize=SIDE, crop=SIDE, mean=(0, 0, 0), std=(1, 1, 1))
CLEAN_METRICS = ["mean", "variance", "total_variation"]


class Signs(nn.Module):
    """Whether each pixel is brighter than the mean, as +1 or -1, its average over the map, and a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.grey = nn.Conv2d(3, 2, 1)
        self.sign = nn.Hardtanh()
        self.pool = nn.AdaptiveAvgPool2d(1)
        with torch.no_grad():
            self.grey.weight[0], self.grey.bias[0] = 1000.0, -1500.0
            self.grey.weight[1], self.grey.bias[1] = 0.0, 0.3

    def forward(self, x):
        return self.pool(self.sign(self.grey(x)))


@pytest.fixture(scope="module")
def grey():
    """White noise in grey, u8 [image, H, W]."""
    values = 0.5 + 0.15 * np.random.default_rng(0).normal(size=(COUNT, SIDE, SIDE))
    return (np.clip(values, 0, 1) * 255).round().astype(np.uint8)


@pytest.fixture(scope="module")
def folder(grey, tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for index, image in enumerate(grey):
        Image.fromarray(np.repeat(image[..., None], 3, 2)).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def stores(folder, tmp_path_factory):
    stores = tmp_path_factory.mktemp("stores")
    actstats.sweep(
        actstats.Loaded.of(Signs().eval(), PLAIN), folder, stores / "clean.zarr", layers=["sign", "pool"],
        metrics=CLEAN_METRICS, changed={"noise:0.1": stores / "noisy.zarr"}, batch_size=4, device="cpu",
    )  # fmt: skip
    return stores / "clean.zarr", stores / "noisy.zarr"


@pytest.fixture
def sweeps(stores):
    return tuple(map(actstats.open_dataset, stores))


@pytest.fixture(scope="module")
def images(grey):
    """Clean and noisy images, f32 [image, H, W, 3]."""
    clean = [np.repeat(image[..., None], 3, 2) for image in grey]
    chain = parse("noise:0.1")
    noisy = [chain.image(x, Place(i, f"{i}.png", PLAIN, (SIDE, SIDE))) for i, x in enumerate(clean)]
    return np.stack(clean).astype(np.float32) / 255, np.stack(noisy)


@pytest.fixture(scope="module")
def maps(images):
    """Clean and noisy maps of each layer by plain hooks, f64 [image, unit, position]."""
    network, taken = Signs().eval(), {}
    for name in ("sign", "pool"):
        network.get_submodule(name).register_forward_hook(
            lambda _, __, output, name=name: taken.__setitem__(name, output.double().flatten(2).numpy())
        )
    found = []
    for given in images:
        with torch.no_grad():
            network(torch.from_numpy(given).permute(0, 3, 1, 2))
        found.append(dict(taken))
    return found


def expected(maps, chosen=slice(None)):
    rows = []
    for name in ("sign", "pool"):
        a, b = (of[name][chosen] for of in maps)
        change, variance = np.square(b - a).mean((0, 2)), a.var((0, 2))
        varies = np.ptp(a, axis=(0, 2)) > 0
        rows.append(
            [
                change,
                np.where(varies, variance, 0),
                np.where(varies, change / np.where(varies, variance, 1), np.nan),
            ]
        )
    return np.concatenate(rows, axis=1)


def assert_as_expected(found, wanted):
    for name, values in zip(("map_change", "map_variance", "relative_map_change"), wanted, strict=True):
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-12, err_msg=name)


def test_changes_equal_plain_torch_also_for_maps_of_one_position(sweeps, maps):
    found = map_changes(*sweeps)
    assert found["map_change"].chunks is not None, "not lazy"
    found = found.compute()
    assert_as_expected(found, expected(maps))
    assert found["relative_map_change"].isnull().values.tolist() == [False, True, False, True]
    assert found["map_correlation"].isnull().values.tolist() == [False, True, True, True]
    r = [np.corrcoef(a, b)[0, 1] for a, b in zip(maps[0]["sign"][:, 0], maps[1]["sign"][:, 0], strict=True)]
    assert found["map_correlation"][0].item() == pytest.approx(np.mean(r), rel=1e-5)


def test_changes_of_chosen_and_reordered_images_and_units(sweeps, maps):
    clean, noisy = sweeps
    chosen = [5, 1, 7]
    found = map_changes(clean.isel(image=chosen), noisy.isel(image=chosen, unit=[3, 2, 1, 0])).compute()
    assert_as_expected(found, expected(maps, chosen))


def test_noise_that_replaces_what_was_there_is_not_blocked(sweeps, maps):
    found = noise(*sweeps).compute()
    table = noise_by_layer(found, input_increase=input_increase(*sweeps), input_change=input_change(*sweeps))
    sign = table.set_index("layer").loc["sign"]
    # Random signs with others among them have the same total variation.
    assert abs(sign["relative_increase"]) < 0.2
    assert sign["relative_map_change"] == pytest.approx(expected(maps)[2, 0], rel=1e-5)
    assert sign["relative_map_change"] > 0.3
    assert abs(sign["blocked"]) < 0.1
    assert noise_by_layer(found)["blocked"].tolist()[0] == 0


def test_blocked_is_the_share_of_the_inputs_change_that_does_not_arrive():
    units = {"relative_map_change": [0.4, 0.4, 0.1, 0.3, np.nan, 0, 0.6], "map_correlation": [0.5] * 7}
    others = dict.fromkeys(("clean", "noisy", "change", "outlier"), [1.0] * 7)
    layers = ["first", "first", "half", "half", "half", "silent", "louder"]
    found = xr.Dataset(
        {name: ("unit", values) for name, values in {**units, **others}.items()},
        coords={"layer": ("unit", layers), "channel": ("unit", [0, 1, 0, 1, 2, 0, 0])},
    )
    np.testing.assert_allclose(noise_by_layer(found)["blocked"], [0, 0.5, 1, -0.5])
    np.testing.assert_allclose(noise_by_layer(found, input_change=0.8)["blocked"], [0.5, 0.75, 1, 0.25])


def test_the_change_of_the_input_equals_numpy(sweeps, images):
    clean, noisy = (x.astype(np.float64) for x in images)
    wanted = np.square(noisy - clean).mean() / clean.var((0, 1, 2)).mean()
    assert input_change(*sweeps) == pytest.approx(wanted, rel=1e-6)

    def variation(x):
        return np.abs(np.diff(x, axis=1)).sum() + np.abs(np.diff(x, axis=2)).sum()

    assert input_increase(*sweeps) == pytest.approx(variation(noisy) / variation(clean) - 1, rel=1e-6)


def test_only_maps_compared_with_those_of_the_clean_sweep_are_taken(sweeps, folder, tmp_path):
    clean, noisy = sweeps
    network, given = actstats.Loaded.of(Signs().eval(), PLAIN), {"layers": ["sign", "pool"], "device": "cpu"}
    actstats.sweep(network, folder, tmp_path / "n.zarr", distort="noise:0.1", **given)
    with pytest.raises(ActstatsError, match=r"needs maps that were compared .* with `changed=`"):
        map_changes(clean, actstats.open_dataset(tmp_path / "n.zarr"))
    actstats.sweep(network, folder, tmp_path / "grey.zarr", distort="greyscale", **given)
    for analysis in (map_changes, noise):
        with pytest.raises(ActstatsError, match="compared with those of another clean sweep"):
            analysis(actstats.open_dataset(tmp_path / "grey.zarr"), noisy)
    with pytest.raises(ActstatsError, match=r"needs the variable variance, .* sweep with `metrics=variance"):
        map_changes(clean.drop_vars("variance"), noisy)
    with pytest.raises(ActstatsError, match=r"needs the variable map_change, .* sweep with `changed=`"):
        map_changes(clean, noisy.drop_vars("map_change"))


def test_the_command_prints_what_changes(stores, folder, tmp_path):
    def run(*words):
        ran = CliRunner().invoke(main, ["analyze", "noise", *map(str, words), "--json"])
        assert ran.exit_code == 0, ran.output
        return json.loads(ran.stdout), ran.stderr

    found, stderr = run(*stores, "--of-input")
    assert {"relative_map_change", "map_correlation", "blocked", "relative_increase"} <= {*found["rows"][0]}
    assert "is not measured" not in stderr
    by_unit, _ = run(*stores, "--by", "unit")
    assert "relative_map_change" in by_unit["rows"][0]
