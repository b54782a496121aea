"""Make a store of plausible values without a sweep, as large as for ImageNet's validation set, in minutes.

    python benchmarks/make_store.py big.zarr --images 50000 --arch googlenet
    python benchmarks/make_store.py smoother.zarr --images 50000 --roughness 0.7 --seed 1

It has every variable of a default sweep, the network's real layers, and 1,000 classes in ImageNet's order, sorted.
Units are tuned to classes, roughness changes with depth, spectra follow a power law, and variables are consistent:
maxima are above means, top images are those with the greatest maxima, and histograms count every position.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import actstats
from actstats.metrics import DEFAULT, resolve_metrics
from actstats.store import Schema, Store
from actstats.store import manifest as manifests
from actstats_kernels.bins import (
    BIN_NAN,
    BIN_POSITIVE_UNDERFLOW,
    BIN_ZERO,
    FREQUENCY_BINS,
    HISTOGRAM_BINS,
    histogram_edges,
    radial_bins,
    resolved,
)

Floats = NDArray[np.float32]


class Units:
    """Properties of the units of a made-up network, drawn from a seed: scale, sparsity, roughness, tuning."""

    def __init__(self, schema: Schema, classes: int, roughness: float, seed: int) -> None:
        rng = np.random.default_rng(seed)
        counts = [layer.units for layer in schema.layers]
        self.heights = np.repeat([layer.height for layer in schema.layers], counts)
        self.widths = np.repeat([layer.width for layer in schema.layers], counts)
        self.positions = (self.heights * self.widths).astype(np.float32)
        self.pairs = (2 * self.heights * self.widths - self.heights - self.widths).astype(np.float32)
        units, depth = schema.units, np.repeat(np.linspace(0, 1, len(counts)), counts).astype(np.float32)
        self.scale = rng.lognormal(-0.5, 0.6, units).astype(np.float32)
        self.active = np.clip(rng.normal(0.55 - 0.35 * depth, 0.12), 0.02, 0.98).astype(np.float32)
        self.roughness = np.clip(rng.normal(0.5 + 0.4 * depth, 0.1), 0.1, 1.1).astype(np.float32) * roughness
        self.slope = rng.normal(-2.0 + depth, 0.2) / roughness
        # A few classes excite a unit, more strongly in the later layers.
        self.tuning = rng.gamma(0.3, 1.0, (classes, units)).astype(np.float32) * (0.2 + depth)

    def power(self) -> NDArray[np.float64]:
        """Return each unit's mean power by radial bin, f64 [unit, frequency], NaN where nothing is resolved."""
        centre = np.append(0, (np.arange(1, FREQUENCY_BINS) - 0.5) / 32)
        found = np.full((len(self.scale), FREQUENCY_BINS), np.nan)
        for size in set(zip(self.heights.tolist(), self.widths.tolist(), strict=True)):
            here = (self.heights == size[0]) & (self.widths == size[1])
            count = np.bincount(radial_bins(*size).ravel(), minlength=FREQUENCY_BINS)
            with np.errstate(divide="ignore"):
                density = count * centre ** self.slope[here, None]
            density[:, 0] = 1.0 if size == (1, 1) else density[:, 1:].sum(1)
            found[here] = np.where(resolved(*size), density, np.nan)
        return found / np.nansum(found, 1, keepdims=True) * self.scale[:, None] ** 2


def main() -> None:
    """Make a store and print a line of JSON about it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store", type=Path)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--arch", default="googlenet")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--partition-size", type=int, default=1024)
    parser.add_argument(
        "--roughness", type=float, default=1.0, help="values below 1 make the network smoother"
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    begun = time.perf_counter()
    store = make(
        arguments.store, arguments.arch, arguments.images, arguments.classes, arguments.partition_size,
        arguments.roughness, arguments.seed,
    )  # fmt: skip
    size = sum(path.stat().st_size for path in store.path.rglob("*") if path.is_file())
    found = {"store": str(store.path), "images": store.images, "bytes": size}
    print(json.dumps({**found, "seconds": round(time.perf_counter() - begun, 1)}))


def make(
    path: Path, arch: str, images: int, classes: int, partition_size: int, roughness: float, seed: int
) -> Store:
    """Write the store, partition by partition; an interrupted one is resumed."""
    loaded = actstats.load_model(arch, "none")
    example = torch.zeros(2, *loaded.preprocessing.shape)
    layers = tuple(actstats.select_layers(loaded.model, example, ["conv"]))
    schema = Schema(
        tuple(resolve_metrics(DEFAULT).outputs()), layers, images, min(partition_size, images), 16, {}
    )
    names = ("name", "module", "call", "kind", "units", "height", "width")
    manifest = manifests.build(
        **loaded.identity,
        preprocessing=loaded.preprocessing.to_dict(),
        layers=[{name: getattr(layer, name) for name in names} for layer in layers],
        selectors=["conv"],
        metrics=list(DEFAULT),
        outputs=[output.name for output in schema.outputs],
        top_k=16,
        partition_size=schema.partition_size,
        batch_size=32, device="cpu", amp="off", bitround=None, compression="zstd:1",
        data={
            "spec": "made", "kind": "made", "images": images, "fingerprint": f"made {seed} {roughness}",
            "classes": [f"class {index:04}" for index in range(classes)],
        },
    )  # fmt: skip
    labels = np.sort(np.arange(images) % classes)
    paths = [f"class {label:04}/{index:06}.jpg" for index, label in enumerate(labels.tolist())]
    store = Store.open_or_create(path, manifest, schema, paths, labels)
    units = Units(schema, classes, roughness, seed)
    power = units.power()
    for partition in np.flatnonzero(~store.completed).tolist():
        start, stop = store.bounds(partition)
        rng = np.random.default_rng([seed, partition])
        arrays = _per_image(units, labels[start:stop], rng)
        arrays |= _top(arrays["maximum"], arrays["argmax"], start, 16)
        arrays["histogram"] = _histogram(units, stop - start, rng)
        arrays["power_spectrum"] = power * (stop - start) * rng.gamma(100, 0.01, power.shape)
        store.write(partition, arrays, np.zeros(stop - start, dtype=np.int8))
    return store


def _per_image(units: Units, labels: NDArray[np.int64], rng: np.random.Generator) -> dict[str, Floats]:
    shape = (len(labels), len(units.scale))

    def noise(spread: float) -> Floats:
        return np.exp(spread * rng.standard_normal(shape, dtype=np.float32))

    active = np.clip(units.active * noise(0.2), 0, 1)
    mean = units.scale * active * (0.5 + units.tuning[labels]) * noise(0.3)
    spread = mean * np.sqrt(2 / np.maximum(active, 0.02)) * noise(0.1)
    spread[:, units.positions == 1] = 0
    argmax = (rng.random(shape, dtype=np.float32) * units.positions).astype(np.int32)
    return {
        "mean": mean,
        "variance": spread**2,
        "maximum": mean + spread * np.sqrt(2 * np.log(units.positions)) * noise(0.2),
        "argmax": np.minimum(argmax, units.positions.astype(np.int32) - 1),
        "active_fraction": active,
        "total_variation": units.pairs * spread * units.roughness * noise(0.1),
    }


def _top(maximum: Floats, argmax: NDArray[np.int32], start: int, k: int) -> dict[str, NDArray[np.generic]]:
    rows = np.argsort(-maximum, axis=0, kind="stable")[:k]
    value, position = (np.take_along_axis(array, rows, 0).T for array in (maximum, argmax))
    image = (rows + start).T
    missing = ((0, 0), (0, k - image.shape[1]))
    return {
        "top_value": np.pad(value, missing, constant_values=np.nan),
        "top_image": np.pad(image, missing, constant_values=-1),
        "top_position": np.pad(position, missing, constant_values=-1),
    }


def _histogram(units: Units, images: int, rng: np.random.Generator) -> NDArray[np.uint32]:
    """Return counts [unit, bin]: zeros, and log-normally distributed positive values around the unit's scale."""
    positive = slice(BIN_POSITIVE_UNDERFLOW + 1, BIN_NAN - 2)
    left, right = (edge[positive] for edge in histogram_edges())
    middle = np.log((left + right) / 2, dtype=np.float32)
    weight = np.exp(-0.5 * (middle - np.log(units.scale)[:, None]) ** 2)
    weight *= (units.active / weight.sum(1))[:, None]
    total = (units.positions * images).astype(np.int64)
    counts = np.zeros((len(units.scale), HISTOGRAM_BINS), dtype=np.uint32)
    counts[:, positive] = weight * total[:, None] * rng.random(weight.shape, dtype=np.float32)
    counts[:, BIN_ZERO] = total - counts.sum(1)
    return counts


if __name__ == "__main__":
    main()
