"""The engine from images to the store, against activations that plain hooks capture."""

from __future__ import annotations

import math
import shutil
import threading

import numpy as np
import pytest
import torch
import xarray as xr
from PIL import Image
from torch import nn

import actstats
from actstats.data.preprocessing import Preprocessing
from actstats.errors import ActstatsError, ManifestMismatchError
from actstats.metrics.examples import Kurtosis, UnitCovariance
from actstats_kernels import bins, reference
from tests.conftest import SmallNet, files_of, photograph

SMALL = Preprocessing.imagenet(size=32, resize=36)
VARIABLES = {
    "mean": (("image", "unit"), "f4"),
    "variance": (("image", "unit"), "f4"),
    "maximum": (("image", "unit"), "f4"),
    "argmax": (("image", "unit"), "i4"),
    "active_fraction": (("image", "unit"), "f4"),
    "total_variation": (("image", "unit"), "f4"),
    "power_spectrum": (("partition", "unit", "frequency"), "f8"),
    "histogram": (("partition", "unit", "bin"), "u4"),
    "top_value": (("partition", "unit", "rank"), "f4"),
    "top_image": (("partition", "unit", "rank"), "i8"),
    "top_position": (("partition", "unit", "rank"), "i4"),
}
COORDINATES = {
    "image": ("image",),
    "partition": ("partition",),
    "path": ("image",),
    "label": ("image",),
    "status": ("image",),
    "layer": ("unit",),
    "channel": ("unit",),
    "height": ("unit",),
    "width": ("unit",),
    "frequency": ("frequency",),
    "bin_left": ("bin",),
    "bin_right": ("bin",),
    "completed": ("partition",),
    "provenance": ("partition",),
}


def sweep_small(images, store, **options):
    arguments = {"batch_size": 4, "partition_size": 6, "top_k": 3, "workers": 2, "device": "cpu", **options}
    return actstats.sweep(SmallNet(), images, store, preprocessing=SMALL, **arguments)


def captured(model: nn.Module, modules: list[str], pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """What plain hooks on `modules` see in one forward pass, by name."""
    seen: dict[str, torch.Tensor] = {}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda _m, _i, out, name=name: seen.update({name: out.clone()})
        )
        for name in modules
    ]
    with torch.inference_mode():
        model(pixels.contiguous(memory_format=torch.channels_last))
    for handle in handles:
        handle.remove()
    return seen


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Greatest difference over the unit's scale: the greatest expected value of the same unit."""
    scale = np.abs(expected).max(axis=0, keepdims=True)
    return float((np.abs(found - expected) / np.where(scale > 0, scale, 1)).max())


def assert_equals_reference(dataset: xr.Dataset, merged: xr.Dataset, layer: str, maps: torch.Tensor) -> None:
    """One layer's variables against the float64 definitions; `maps` are of all images, in order."""
    units = dataset["layer"].values == layer
    assert units.sum() == maps.shape[1]
    expected = {name: values.numpy() for name, values in reference.statistics(maps).items()}
    assert (dataset["height"].values[units] == maps.shape[2]).all()
    assert (dataset["width"].values[units] == maps.shape[3]).all()
    for name in reference.MOMENTS:
        assert relative_error(dataset[name].values[:, units], expected[name]) <= 1e-5, (layer, name)
    np.testing.assert_array_equal(dataset["argmax"].values[:, units], expected["argmax"])
    np.testing.assert_array_equal(merged["histogram"].values[units], expected["histogram"])
    power = merged["power_spectrum"].values[units]
    resolved = bins.resolved(*maps.shape[2:])
    assert np.isnan(power[:, ~resolved]).all()
    # A bin that holds 1e-9 of a unit's power is known to 1e-5 of the power, not of itself.
    total = expected["power_spectrum"].sum(1, keepdims=True)
    np.testing.assert_array_less(
        np.abs(power - expected["power_spectrum"])[:, resolved],
        1e-5 * np.broadcast_to(total + 1e-30, power.shape)[:, resolved],
    )
    np.testing.assert_allclose(np.nansum(power, 1), maps.double().square().mean((-2, -1)).sum(0), rtol=1e-4)
    k = dataset.sizes["rank"]
    top = reference.top_k(
        torch.from_numpy(expected["maximum"]).float(), torch.from_numpy(expected["argmax"]), k
    )
    for name, values in zip(("top_value", "top_image", "top_position"), top, strict=True):
        np.testing.assert_array_equal(merged[name].values[units], values.numpy())


def test_the_dataset_is_exactly_the_schema_and_lazy(photographs, tmp_path):
    summary = sweep_small(photographs, tmp_path / "s.zarr")
    dataset = xr.open_zarr(tmp_path / "s.zarr")
    assert {name: (v.dims, v.dtype.str[1:]) for name, v in dataset.data_vars.items()} == VARIABLES
    assert {name: c.dims for name, c in dataset.coords.items()} == COORDINATES
    assert dict(dataset.sizes) == {
        "image": 14, "unit": 16, "partition": 3, "frequency": 18, "bin": 520, "rank": 3,
    }  # fmt: skip
    assert all(variable.chunks is not None for variable in dataset.data_vars.values())
    assert dataset["completed"].values.all()
    assert dataset["status"].values.tolist() == [0] * 14
    assert dataset["path"].values[:2].tolist() == ["cat/00.png", "cat/02.png"]
    assert dataset["label"].values.tolist() == [0] * 7 + [1] * 7
    assert dataset["layer"].values.tolist() == ["first"] * 5 + ["second"] * 11
    assert dataset["channel"].values.tolist() == [*range(5), *range(11)]
    assert dataset.attrs["data"]["images"] == 14
    assert summary.complete
    assert (summary.images, summary.units, summary.layers, summary.partitions) == (14, 16, 2, 3)
    assert summary.progress.done == summary.progress.total == 14


def test_every_variable_equals_the_definitions(photographs, tmp_path):
    sweep_small(photographs, tmp_path / "s.zarr", layers=["all"])
    dataset = xr.open_zarr(tmp_path / "s.zarr")
    source = actstats.open_source(photographs)
    pixels = torch.stack([SMALL(source.image(i)) for i in range(len(source))])
    merged = actstats.merge(dataset).load()
    layers = list(dict.fromkeys(dataset["layer"].values.tolist()))
    assert "classifier" in layers
    # The batches of the sweep: never across partitions.
    groups = [pixels[i] for i in (slice(0, 4), slice(4, 6), slice(6, 10), slice(10, 12), slice(12, 14))]
    parts = [captured(SmallNet().eval(), layers, group) for group in groups]
    for layer in layers:
        maps = torch.cat([part[layer] for part in parts])
        assert_equals_reference(dataset, merged, layer, maps if maps.ndim == 4 else maps[..., None, None])


@pytest.mark.parametrize("arch", ["googlenet", "resnet50", "alexnet", "vit_b_16", "convnext_tiny"])
def test_networks_of_torchvision_equal_the_definitions(arch, photographs, tmp_path):
    loaded = actstats.load_model(arch, "none")
    summary = actstats.sweep(
        loaded, photographs, tmp_path / "s.zarr", limit=4, batch_size=4, top_k=2, device="cpu", workers=1
    )
    dataset = xr.open_zarr(tmp_path / "s.zarr").load()
    if arch == "googlenet":
        assert (summary.layers, summary.units) == (57, 7280)
    source = actstats.open_source(photographs, limit=4)
    pixels = torch.stack([loaded.preprocessing(source.image(i)) for i in range(4)])
    described = {layer["name"]: layer for layer in dataset.attrs["layers"]}
    called_once = [name for name in described if ":" not in name]
    some = called_once[:: math.ceil(len(called_once) / 7)]
    seen = captured(loaded.model, some, pixels)
    for name in some:
        maps = seen[name]
        if maps.ndim == 3:  # tokens: the class token, then the grid
            maps = maps[:, 1:].transpose(1, 2).unflatten(2, (14, 14))
        elif maps.shape[1] != described[name]["units"]:  # channels last by shape, not by stride
            maps = maps.movedim(-1, 1)
        assert_equals_reference(dataset, actstats.merge(dataset), name, maps)


def test_images_that_cannot_be_read_are_recorded_and_count_for_nothing(photographs, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(photographs, folder)
    whole = (folder / "cat" / "04.png").read_bytes()
    (folder / "cat" / "04.png").write_bytes(whole[: len(whole) // 2])
    (folder / "dog" / "13.png").write_bytes(b"no image")
    summary = sweep_small(folder, tmp_path / "s.zarr")
    assert set(summary.failures) == {"cat/04.png", "dog/13.png"}
    dataset = xr.open_zarr(tmp_path / "s.zarr")
    broken = [list(dataset["path"].values).index(name) for name in ("cat/04.png", "dog/13.png")]
    assert (np.flatnonzero(dataset["status"].values) == broken).all()
    for name in reference.MOMENTS:
        assert (np.flatnonzero(dataset[name].isnull().all("unit").values) == broken).all()
        assert dataset[name].isnull().sum() == 2 * 16
    assert (dataset["argmax"].values[broken] == -1).all()
    positions = (dataset["height"] * dataset["width"]).values
    np.testing.assert_array_equal(actstats.merge(dataset)["histogram"].sum("bin"), 12 * positions)
    top = actstats.merge(dataset)["top_image"].values
    assert not np.isin(top, broken).any()
    expected = dataset["maximum"].argmax("image", skipna=True).values
    np.testing.assert_array_equal(top[:, 0], expected)


def test_a_whole_batch_or_partition_of_broken_images_does_no_harm(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(8):
        path = folder / f"{index}.png"
        if index < 6:
            path.write_bytes(b"")
        else:
            photograph(index).save(path)
    sweep_small(folder, tmp_path / "s.zarr", partition_size=4, batch_size=2)
    dataset = xr.open_zarr(tmp_path / "s.zarr")
    assert dataset["status"].values.tolist() == [2] * 6 + [0] * 2
    assert (dataset["top_image"].values[0] == -1).all()
    assert (dataset["top_image"].values[1, :, 2] == -1).all()
    assert np.isnan(dataset["top_value"].values[0]).all()


def test_strict_stops_at_the_first_unreadable_image_and_keeps_what_was_complete(photographs, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(photographs, folder)
    (folder / "dog" / "13.png").write_bytes(b"no image")
    with pytest.raises(ActstatsError, match=r"dog/13\.png"):
        sweep_small(folder, tmp_path / "s.zarr", strict=True)
    assert xr.open_zarr(tmp_path / "s.zarr")["completed"].values.tolist() == [True, True, False]


def test_no_readable_image_is_an_error_before_anything_is_made(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"nothing")
    with pytest.raises(ActstatsError, match=r"none of the 1 images .* can be read"):
        sweep_small(folder, tmp_path / "s.zarr")
    assert not (tmp_path / "s.zarr").exists()


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("batches_done", [0, 1, 2, 3, 4])
def test_a_stopped_sweep_goes_on_and_equals_one_that_was_not(batches_done, photographs, tmp_path):
    sweep_small(photographs, tmp_path / "whole.zarr")

    def stop(progress, seen=[]):  # noqa: B006
        seen.append(progress)
        if len(seen) > batches_done:
            raise StoppedError

    before = set(threading.enumerate())
    with pytest.raises(StoppedError):
        sweep_small(photographs, tmp_path / "stopped.zarr", on_progress=stop)
    summary = sweep_small(photographs, tmp_path / "stopped.zarr")
    assert summary.progress.total < 14 or batches_done < 1 or summary.partitions == 3
    assert files_of(tmp_path / "stopped.zarr") == files_of(tmp_path / "whole.zarr")
    assert [t.name for t in threading.enumerate() if "actstats" in t.name and t not in before] == []


def test_a_complete_store_has_nothing_to_do(photographs, tmp_path):
    sweep_small(photographs, tmp_path / "s.zarr")
    before = files_of(tmp_path / "s.zarr")
    summary = sweep_small(photographs, tmp_path / "s.zarr")
    assert (summary.partitions, summary.progress.total, summary.complete) == (0, 0, True)
    assert files_of(tmp_path / "s.zarr") == before


def test_several_processes_share_a_store_by_parts(photographs, tmp_path):
    sweep_small(photographs, tmp_path / "whole.zarr")
    first = sweep_small(photographs, tmp_path / "shared.zarr", part=(1, 2))
    assert not first.complete
    assert first.partitions == 1
    second = sweep_small(photographs, tmp_path / "shared.zarr", part=(0, 2))
    assert second.complete
    assert files_of(tmp_path / "shared.zarr") == files_of(tmp_path / "whole.zarr")


def test_the_partition_size_changes_no_number(photographs, tmp_path):
    sweep_small(photographs, tmp_path / "a.zarr", partition_size=4)
    sweep_small(photographs, tmp_path / "b.zarr", partition_size=8)
    a, b = (actstats.merge(xr.open_zarr(tmp_path / name)).load() for name in ("a.zarr", "b.zarr"))
    for name in a.data_vars:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-12 if name == "power_spectrum" else 0)


def test_another_sweep_on_the_same_store_is_refused_with_the_difference(photographs, tmp_path):
    sweep_small(photographs, tmp_path / "s.zarr")
    with pytest.raises(ManifestMismatchError, match="batch_size is 4 in the store and 2 in this sweep"):
        sweep_small(photographs, tmp_path / "s.zarr", batch_size=2)
    with pytest.raises(ManifestMismatchError, match=r"data\.images is 14 in the store and 5 in this sweep"):
        sweep_small(photographs, tmp_path / "s.zarr", limit=5)
    sweep_small(photographs, tmp_path / "s.zarr", batch_size=2, overwrite=True)
    assert xr.open_zarr(tmp_path / "s.zarr").attrs["batch_size"] == 2


def test_what_is_no_store_is_neither_used_nor_removed(photographs, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(ActstatsError, match="not a store of actstats"):
            sweep_small(photographs, precious, overwrite=overwrite)
    assert (precious / "thesis.txt").read_text() == "years of work"


def test_a_place_that_cannot_be_written_is_named(photographs, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ActstatsError, match=r"cannot write .*file/s\.zarr"):
        sweep_small(photographs, tmp_path / "file" / "s.zarr")


def test_only_what_is_asked_for_is_stored(photographs, tmp_path):
    sweep_small(photographs, tmp_path / "a.zarr", metrics=["total_variation", "histogram"])
    assert set(xr.open_zarr(tmp_path / "a.zarr").data_vars) == {"total_variation", "histogram"}
    sweep_small(photographs, tmp_path / "b.zarr", per_image=False)
    data_vars = xr.open_zarr(tmp_path / "b.zarr").data_vars
    assert set(data_vars) == {name for name, (dims, _) in VARIABLES.items() if dims[0] == "partition"}


def test_bitround_keeps_values_to_the_bits_that_were_asked_for(photographs, tmp_path):
    sweep_small(photographs, tmp_path / "exact.zarr")
    sweep_small(photographs, tmp_path / "rounded.zarr", bitround=7)
    exact, rounded = (xr.open_zarr(tmp_path / name) for name in ("exact.zarr", "rounded.zarr"))
    for name in reference.MOMENTS:
        np.testing.assert_allclose(rounded[name], exact[name], rtol=2.0**-8)
        assert (rounded[name].values.view(np.uint32) & 0xFFFF == 0).all()
    np.testing.assert_array_equal(rounded["top_value"], exact["top_value"])


def test_metrics_of_examples_equal_a_direct_computation(photographs, tmp_path):
    sweep_small(photographs, tmp_path / "s.zarr", metrics=["mean", "kurtosis"], custom=[UnitCovariance])
    dataset = xr.open_zarr(tmp_path / "s.zarr")
    source = actstats.open_source(photographs)
    pixels = torch.stack([SMALL(source.image(i)) for i in range(14)])
    seen = captured(SmallNet().eval(), ["second"], pixels)["second"].double().numpy()
    units = dataset["layer"].values == "second"
    centred = seen - seen.mean((2, 3), keepdims=True)
    with np.errstate(invalid="ignore"):
        kurtosis = (centred**4).mean((2, 3)) / (centred**2).mean((2, 3)) ** 2 - 3
    np.testing.assert_allclose(dataset["kurtosis"].values[:, units], kurtosis, rtol=1e-4)
    merged = actstats.merge(dataset).isel(unit=units)
    n = merged["covariance_count"].values[:, None]
    total = merged["covariance_sum"].values
    covariance = merged["covariance_product"].values[:, :11] / n - np.outer(total, total) / n**2
    expected = np.cov(seen.swapaxes(0, 1).reshape(11, -1), bias=True)
    np.testing.assert_allclose(covariance, expected, atol=1e-6 * expected.max())
    assert Kurtosis.outputs[0].name in dataset


class Misshapen(actstats.Metric):
    outputs = (actstats.Output("misshapen"),)

    def update(self, activation, state):
        return {"misshapen": activation}


def test_a_metric_that_returns_the_wrong_shape_is_named(photographs, tmp_path):
    with pytest.raises(ActstatsError, match=r"Misshapen returned 'misshapen' of shape .* for layer first;"):
        sweep_small(photographs, tmp_path / "s.zarr", custom=[Misshapen])


class Spoiling(nn.Module):
    """Passes its input on, with NaN and infinities put into channel 1 of bright images' maps."""

    def forward(self, x):
        x = x.clone()
        bright = x.mean((1, 2, 3)) > 0
        x[bright, 1, 0, 0] = torch.nan
        x[bright, 1, 0, 1] = torch.inf
        return x


def test_non_finite_activations_stay_in_their_own_unit(photographs, tmp_path):
    network = nn.Sequential(nn.Identity(), Spoiling())
    actstats.sweep(
        network, photographs, tmp_path / "s.zarr", preprocessing=SMALL, layers=["1"],
        batch_size=4, partition_size=6, top_k=14, device="cpu",
    )  # fmt: skip
    dataset = xr.open_zarr(tmp_path / "s.zarr")
    spoiled = dataset["mean"].isnull().values
    assert 0 < spoiled[:, 1].sum() < 14
    assert not spoiled[:, [0, 2]].any()
    merged = actstats.merge(dataset)
    counts = merged["histogram"].values
    assert counts[:, bins.BIN_NAN].tolist() == [0, spoiled[:, 1].sum(), 0]
    assert counts[:, bins.BIN_POSITIVE_INFINITY].tolist() == [0, spoiled[:, 1].sum(), 0]
    ranked = merged["top_image"].values[1]
    assert set(ranked[ranked >= 0]) == set(np.flatnonzero(~spoiled[:, 1]))
    assert np.isfinite(merged["power_spectrum"].values).all(1).tolist() == [True] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"top_k": 0}, "top_k is 0"),
        ({"part": (2, 2)}, "part is 2/2"),
        ({"device": "abacus"}, "unknown device 'abacus'"),
        ({"device": "meta"}, "device 'meta' is not supported"),
        ({"amp": "int8"}, "amp is 'int8'"),
        ({"bitround": 24}, "bitround is 24"),
        ({"compression": "zip"}, "unknown compression 'zip'"),
        ({"layers": ["frist"]}, "frist"),
        ({"limit": 0}, "limit"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_before_anything_is_made(
    options, message, photographs, tmp_path
):
    with pytest.raises(ActstatsError, match=message) as caught:
        sweep_small(photographs, tmp_path / "s.zarr", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "s.zarr").exists()


def test_the_model_is_left_as_it_was(photographs, tmp_path):
    model = SmallNet().train()
    model.second.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    actstats.sweep(model, photographs, tmp_path / "s.zarr", preprocessing=SMALL, device="cpu", limit=3)
    assert model.training
    assert model.first[1].training
    assert not model.second[1].training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(not module._forward_hooks for module in model.modules())


def test_load_from_manifest_rebuilds_what_was_swept(photographs, tmp_path):
    actstats.sweep(
        "squeezenet1_1", photographs, tmp_path / "s.zarr", weights="none", seed=3, limit=2, layers=["all"]
    )
    dataset = xr.open_zarr(tmp_path / "s.zarr")
    model, preprocessing = actstats.load_from_manifest(dataset.attrs)
    with Image.open(photographs / dataset["path"].values[1]) as image:
        pixels = preprocessing(image)
    assert pixels.shape == (3, 224, 224)
    assert pixels.dtype == torch.float32
    layer = dataset["layer"].values[-1]
    seen = captured(model, [layer], pixels[None])[layer]
    np.testing.assert_allclose(
        dataset["mean"].values[1][dataset["layer"].values == layer],
        seen.flatten(2).mean(2)[0],
        rtol=1e-4,
        atol=1e-6,
    )


def test_one_name_by_itself_is_taken_for_a_list_of_one(photographs, tmp_path):
    one = {"layers": "first", "metrics": "mean", "distort": "greyscale"}
    one["custom"] = "actstats.metrics.examples:Kurtosis"
    for name, settings in (("one", one), ("list", {key: [value] for key, value in one.items()})):
        sweep_small(photographs, tmp_path / f"{name}.zarr", **settings)
    assert files_of(tmp_path / "one.zarr") == files_of(tmp_path / "list.zarr")
    assert set(xr.open_zarr(tmp_path / "one.zarr")["layer"].values) == {"first"}
