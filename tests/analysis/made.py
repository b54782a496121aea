"""Stores of known maps: what a sweep would have written of them, by the definitions, through the real store."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
import xarray as xr

from actstats.layers import Layer
from actstats.metrics import DEFAULT, resolve_metrics
from actstats.store import Schema, Store, open_dataset
from actstats.store import manifest as manifests
from actstats_kernels import reference
from actstats_kernels.bins import resolved

PREPROCESSING: Final = {
    "resize": 8, "crop": 8, "interpolation": "bilinear", "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25],
}  # fmt: skip


def make_store(
    path: Path,
    maps: Mapping[str, np.ndarray],
    labels: Sequence[int] | None = None,
    *,
    partition_size: int = 4,
    unreadable: Sequence[int] = (),
    stop_after: int | None = None,
    top_k: int = 3,
    metrics: Sequence[str] = DEFAULT,
    paths: Sequence[str] | None = None,
    **manifest: object,
) -> xr.Dataset:
    """Write a store of each layer's maps [N, C, H, W] and open it; partitions from `stop_after` on are incomplete."""
    images = len(next(iter(maps.values())))
    partition_size = min(partition_size, images)
    layers = tuple(
        Layer(name, name, 0, "Conv2d", *found.shape[1:], shape=found.shape[1:], axes="nchw")
        for name, found in maps.items()
    )
    schema = Schema(tuple(resolve_metrics(metrics).outputs()), layers, images, partition_size, top_k, {})
    labels = np.full(images, -1) if labels is None else np.asarray(labels)
    described = [
        {
            "name": x.name,
            "module": x.module,
            "call": 0,
            "units": x.units,
            "height": x.height,
            "width": x.width,
        }
        for x in layers
    ]
    classes = [f"class{label}" for label in range(labels.max() + 1)]
    names = list(paths or _paths(images))
    fingerprint = hashlib.sha256("\n".join(names).encode()).hexdigest()
    data = {"spec": "made", "kind": "made", "images": images, "fingerprint": fingerprint, "classes": classes}
    record = {
        "arch": "made", "selectors": ["all"], "weights": {"source": "module", "sha256": "0"}, "layers": described,
        "partition_size": partition_size, "data": data,
        "outputs": [output.name for output in schema.outputs], "metrics": list(metrics), "top_k": top_k,
        "preprocessing": PREPROCESSING, "batch_size": 4, "device": "cpu", "amp": "off", "bitround": None,
        "compression": "zstd:1",
    }  # fmt: skip
    store = Store.open_or_create(
        path, manifests.build(**record | manifest), schema, names, labels.astype(np.int64)
    )
    for partition in range(schema.partitions)[:stop_after]:
        start, stop = store.bounds(partition)
        status = np.array([2 * (index in unreadable) for index in range(start, stop)], dtype=np.int8)
        parts = [_arrays(found[start:stop], status == 0, start, top_k, metrics) for found in maps.values()]
        whole = {
            output.name: np.concatenate([part[output.name] for part in parts], axis=int(output.per_image))
            for output in schema.outputs
        }
        store.write(partition, whole, status)
    return open_dataset(path)


def _paths(images: int) -> list[str]:
    return [f"{index:03}.png" for index in range(images)]


def _arrays(
    maps: np.ndarray, readable: np.ndarray, start: int, top_k: int, metrics: Sequence[str]
) -> dict[str, np.ndarray]:
    if list(metrics) == ["mean"]:  # the other statistics take long
        return {"mean": np.where(readable[:, None], maps.mean((2, 3), dtype=np.float64), np.nan)}
    rows = np.flatnonzero(readable)
    found = {
        name: values.numpy() for name, values in reference.statistics(torch.from_numpy(maps[rows])).items()
    }
    value, row, position = reference.top_k(
        torch.from_numpy(found["maximum"]), torch.from_numpy(found["argmax"]), top_k
    )
    for name in (*reference.MOMENTS, "argmax"):
        whole = np.full((len(maps), maps.shape[1]), -1 if name == "argmax" else np.nan)
        whole[rows] = found[name]
        found[name] = whole
    found["power_spectrum"][:, ~resolved(*maps.shape[2:])] = np.nan
    image = np.where(row.numpy() < 0, -1, np.append(rows, -1)[row.numpy()] + start)
    return {**found, "top_value": value.numpy(), "top_image": image, "top_position": position.numpy()}


def grating(size: int, cycles: int, *, axis: int = 0, phase: float = 0.0) -> np.ndarray:
    """A sine grating f32 [size, size] of so many cycles a map along one axis."""
    wave = np.sin(2 * np.pi * cycles * np.arange(size) / size + phase)
    return np.broadcast_to(wave[:, None] if axis == 0 else wave, (size, size)).astype(np.float32)
