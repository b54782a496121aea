"""Measure how compiling and reduced precision change each statistic, relative to the eager float32 network.

    python benchmarks/precision.py --json benchmarks/results/precision.json
    python benchmarks/tables.py

Sweeps one network over the same images in several ways. The difference of a unit is the root mean square over images
(or frequencies) of the difference, relative to that of the values themselves. For positions, counts and top images,
it is the share that differs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from peers import keep, machine

import actstats

WAYS: dict[str, dict[str, Any]] = {
    "compiled": {"compile": True},
    "bf16": {"amp": "bf16"},
    "fp16": {"amp": "fp16"},
}
VALUES = ("mean", "variance", "maximum", "active_fraction", "total_variation", "power_spectrum")


def differences(eager: xr.Dataset, other: xr.Dataset) -> dict[str, np.ndarray]:
    """Return the difference of each unit, f64 [unit], by statistic."""
    found = {}
    for name in VALUES:
        a, b = (data[name].astype(float) for data in (eager, other))
        dims = [dim for dim in a.dims if dim != "unit"]
        size = np.sqrt((a**2).mean(dims))
        found[name] = (np.sqrt(((a - b) ** 2).mean(dims)) / size.where(size > 0)).values
    moved = (eager["argmax"] != other["argmax"]) & (eager["maximum"] > 0)
    found["argmax"] = moved.mean("image").values
    a, b = (data["histogram"].astype(float).sum("partition") for data in (eager, other))
    found["histogram"] = (abs(a - b).sum("bin") / 2 / a.sum("bin")).values
    a, b = (data["top_image"].values for data in (eager, other))
    same = (a[..., :, None] == b[..., None, :]).any(-1)
    found["top_image"] = 1 - same.mean(-1).mean(0)
    return found


def main() -> None:
    """Sweep and compare; print the results or save them as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", default="googlenet")
    parser.add_argument("--weights", default="demo")
    parser.add_argument("--data", default="demo")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=["compiled", "bf16"])
    parser.add_argument("--json", type=Path, help="file for the results; it is replaced")
    given = parser.parse_args()
    results: dict[str, Any] = {
        "arch": given.arch,
        "weights": given.weights,
        "images": given.images,
        **machine(),
        "ways": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        common = {"weights": given.weights, "limit": given.images, "top_k": 8}
        stores = {"eager": Path(folder, "eager.zarr")}
        actstats.sweep(given.arch, given.data, stores["eager"], **common)
        eager = actstats.open_dataset(stores["eager"]).load()
        layers = eager["layer"].values
        for way in given.ways:
            path = Path(folder, f"{way}.zarr")
            actstats.sweep(given.arch, given.data, path, strict=True, on_note=print, **common, **WAYS[way])
            found = differences(eager, actstats.open_dataset(path).load())
            results["ways"][way] = {
                name: {
                    "median": float(np.nanmedian(values)),
                    "99 %": float(np.nanquantile(values, 0.99)),
                    "greatest": float(np.nanmax(values)),
                    "layers": {
                        str(layer): float(np.nanmedian(values[layers == layer]))
                        for layer in dict.fromkeys(layers)
                        if not np.isnan(values[layers == layer]).all()
                    },
                }
                for name, values in found.items()
            }
    print(json.dumps(results, indent=1))
    keep(results, given.json)


if __name__ == "__main__":
    main()
