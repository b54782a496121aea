"""Check a whole sweep, every variable of every unit, against the float64 reference, on photographs of your own.

    python benchmarks/check_sweep.py --data photographs/ --limit 64 googlenet resnet50 alexnet vit_b_16 convnext_tiny

The activations for the reference are captured by plain forward hooks, independent of actstats, in separate forward
passes. Weights are torchvision's random ones unless `--weights` is given. A line for each network reports the
greatest relative error of each variable: for moments, relative to the unit's greatest value; for a ring of the
spectrum, relative to its whole power. The script fails unless counts, positions and ranks are equal.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor, nn

import actstats
from actstats_kernels import reference

AT_ONCE = 8
"""Number of layers whose activations are in memory at once."""
TOLERANCE = 1e-5


def main() -> None:
    """Check each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("arch", nargs="+", help="names that load_model takes")
    parser.add_argument("--data", required=True, help="what open_source takes")
    parser.add_argument("--limit", type=int, default=64)
    parser.add_argument("--weights", default="none")
    parser.add_argument("--batch-size", type=int, default=32)
    given = parser.parse_args()
    for arch in given.arch:
        begun = time.perf_counter()
        loaded = actstats.load_model(arch, given.weights)
        images = actstats.open_source(given.data, limit=given.limit)
        with tempfile.TemporaryDirectory() as folder:
            store = Path(folder) / "checked.zarr"
            actstats.sweep(loaded, images, store, batch_size=given.batch_size, device="cpu")
            dataset = xr.open_zarr(store).load()
        layers = dataset.attrs["layers"]
        inputs = torch.stack([loaded.preprocessing(images.image(index)) for index in range(len(images))])
        worst: dict[str, float] = {}
        for record, maps in captured(loaded.model, layers, inputs.split(given.batch_size)):
            for name, error in errors(dataset, record["name"], as_maps(maps, record)).items():
                worst[name] = max(worst.get(name, 0.0), error)
        units, seconds = dataset.sizes["unit"], time.perf_counter() - begun
        print(f"{arch}: {len(images)} images, {len(layers)} layers, {units:,} units, {seconds:.0f} s")
        print("   ", ", ".join(f"{name} {error:.1e}" for name, error in worst.items()), flush=True)
        assert max(worst.values()) <= TOLERANCE, f"{arch} differs from the reference by more than {TOLERANCE}"


def captured(
    model: nn.Module, layers: Sequence[Mapping[str, Any]], batches: Sequence[Tensor]
) -> Iterator[tuple[Mapping[str, Any], Tensor]]:
    """Yield the record of each layer and the output of its module for all images, a few layers at a time."""
    for first in range(0, len(layers), AT_ONCE):
        part = layers[first : first + AT_ONCE]
        seen: dict[str, list[Tensor]] = {record["module"]: [] for record in part}

        def keep(name: str, seen: dict[str, list[Tensor]] = seen) -> Any:
            return lambda _module, _inputs, output: seen[name].append(output.clone())

        hooks = [model.get_submodule(name).register_forward_hook(keep(name)) for name in seen]
        with torch.inference_mode():
            for batch in batches:
                model(batch.contiguous(memory_format=torch.channels_last))
        for hook in hooks:
            hook.remove()
        calls = {name: len(outputs) // len(batches) for name, outputs in seen.items()}
        for record in part:
            outputs, every = seen[record["module"]], calls[record["module"]]
            yield record, torch.cat(outputs[record["call"] :: every])


def as_maps(output: Tensor, record: Mapping[str, Any]) -> Tensor:
    """Return a layer's output as maps [N, units, height, width], with tokens arranged in their grid."""
    units, size = record["units"], (record["height"], record["width"])
    if output.ndim == 2:
        return output[..., None, None]
    if output.ndim == 3:
        return output[:, output.shape[1] - size[0] * size[1] :].transpose(1, 2).unflatten(2, size)
    return output if output.shape[1] == units and output.shape[2:] == size else output.movedim(-1, 1)


def errors(dataset: xr.Dataset, layer: str, maps: Tensor) -> dict[str, float]:
    """Return the greatest relative error of each float variable of a layer; fail if an integer differs."""
    units = dataset["layer"].values == layer
    assert units.sum() == maps.shape[1], layer
    expected = {name: values.numpy() for name, values in reference.statistics(maps).items()}
    merged = actstats.merge(dataset.isel(unit=np.flatnonzero(units)))
    found = {}
    for name in reference.MOMENTS:
        largest = np.abs(expected[name]).max(axis=0, keepdims=True)
        found[name] = _relative(merged[name].values - expected[name], largest)
    np.testing.assert_array_equal(merged["argmax"].values, expected["argmax"], layer)
    np.testing.assert_array_equal(merged["histogram"].values, expected["histogram"], layer)
    power, wanted = merged["power_spectrum"].values, expected["power_spectrum"]
    resolved = ~np.isnan(power).all(0)
    assert not wanted[:, ~resolved].any(), layer
    whole = wanted.sum(1, keepdims=True)
    found["power_spectrum"] = _relative(power[:, resolved] - wanted[:, resolved], whole)
    mean_square = maps.double().square().mean((-2, -1)).sum(0).numpy()
    found["Parseval"] = _relative(np.nansum(power, 1) - mean_square, mean_square)
    maxima = torch.from_numpy(expected["maximum"]).float(), torch.from_numpy(expected["argmax"])
    top = reference.top_k(*maxima, dataset.sizes["rank"])
    for name, values in zip(("top_value", "top_image", "top_position"), top, strict=True):
        np.testing.assert_array_equal(merged[name].values, values.numpy(), layer)
    return found


def _relative(difference: NDArray[Any], scale: NDArray[Any]) -> float:
    return float((np.abs(difference) / np.where(scale > 0, scale, 1)).max())


if __name__ == "__main__":
    main()
