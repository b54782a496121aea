"""Measure time and peak memory of `analyze match` and `analyze similarity` on stores of two sizes.

    python benchmarks/counterparts.py --work /tmp/stores --images 5000 50000

Makes two stores with as many units and layers as GoogLeNet's convolutions, and only the variable `mean`: S is drawn
at random around classes, and R has S's units in another order, half of them with noise and the others replaced. Then
it runs the real commands, each in its own process, and prints a line of JSON for each: seconds from start to exit,
seconds of processor time, and the peak resident set size reported by the kernel. `--workers 2` runs them on a dask
cluster of two processes with one thread each instead, and also prints the peaks of these processes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from memory import measure, measure_on_cluster
from peers import machine

import actstats
from actstats.metrics import resolve_metrics
from actstats.store import Schema, Store
from actstats.store import manifest as manifests

PARTITION = 1024
COMMANDS = {
    "match": ["analyze", "match"],
    "match, all layers": ["analyze", "match", "--across"],
    "similarity": ["analyze", "similarity"],
}


def main() -> None:
    """Make the stores, measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for the stores, kept")
    parser.add_argument("--images", type=int, nargs="+", default=[5000, 50_000])
    parser.add_argument("--only", nargs="*", help="names of commands as printed")
    parser.add_argument("--workers", type=int, default=0, help="processes of a dask cluster; 0: no cluster")
    arguments = parser.parse_args()
    for images in arguments.images:
        stores = make(arguments.work / str(images), images)
        for name, command in COMMANDS.items():
            if arguments.only and name not in arguments.only:
                continue
            whole = ["actstats", *command, *map(str, stores), "--json"]
            if arguments.workers:
                seconds, peak, workers = measure_on_cluster(whole, arguments.workers)
                found: dict[str, object] = {"workers_peak_mib": [round(each / 2**20) for each in workers]}
            else:
                seconds, peak, processor = measure(whole)
                found = {"cpu_seconds": round(processor)}
            found |= {"seconds": round(seconds, 1), "peak_mib": round(peak / 2**20)}
            what = {"analysis": name, "images": images, "workers": arguments.workers}
            print(json.dumps({**what, **found, **machine()}), flush=True)


def make(folder: Path, images: int) -> list[Path]:
    """Make the two stores, unless they exist."""
    loaded = actstats.load_model("googlenet", "none")
    layers = tuple(
        actstats.select_layers(loaded.model, torch.zeros(2, *loaded.preprocessing.shape), ["conv"])
    )
    outputs = tuple(resolve_metrics(["mean"]).outputs())
    names = ("name", "module", "call", "kind", "units", "height", "width")
    rng = np.random.default_rng(0)
    labels = np.sort(np.arange(images) % 1000)
    paths = [f"class {label:04}/{index:06}.jpg" for index, label in enumerate(labels.tolist())]
    units = sum(layer.units for layer in layers)
    tuning = rng.gamma(0.3, 1.0, (1000, units)).astype(np.float32)
    order = np.concatenate([rng.permutation(layer.units) + start for layer, start in zip(
        layers, np.cumsum([0, *(layer.units for layer in layers)]), strict=False)])  # fmt: skip
    kept = rng.random(units) < 0.5
    stores = []
    for at, name in enumerate("sr"):
        schema = Schema(outputs, layers, images, PARTITION, 1, {})
        manifest = manifests.build(
            **{**loaded.identity, "weights": {"source": "module", "sha256": name * 64}},
            preprocessing=loaded.preprocessing.to_dict(),
            layers=[{key: getattr(layer, key) for key in names} for layer in layers],
            selectors=["conv"], metrics=["mean"], outputs=[output.name for output in outputs], top_k=1,
            partition_size=PARTITION, batch_size=32, device="cpu", amp="off", bitround=None, compression="zstd:1",
            data={
                "spec": "made", "kind": "made", "images": images, "fingerprint": "made",
                "classes": [f"class {index:04}" for index in range(1000)],
            },
        )  # fmt: skip
        store = Store.open_or_create(folder / f"{name}.zarr", manifest, schema, paths, labels)
        for partition in np.flatnonzero(~store.completed).tolist():
            start, stop = store.bounds(partition)
            draw = np.random.default_rng([0, partition])
            values = tuning[labels[start:stop]] * draw.random((stop - start, units), dtype=np.float32)
            if at:
                noise = draw.random((stop - start, units), dtype=np.float32)
                values = np.where(kept, values + 0.3 * noise, noise)[:, order]
            store.write(partition, {"mean": values}, np.zeros(stop - start, dtype=np.int8))
        stores.append(store.path)
    return stores


if __name__ == "__main__":
    main()
