"""Compare CKA and RSA of two stores, as computed by actstats and by thingsvision from the same features.

    pip install thingsvision  # in a separate environment, since it installs TensorFlow
    python benchmarks/check_similarity.py s.zarr r.zarr --images 500

Prints a line of JSON for each pair of a few layers, with the measures by both and the greatest difference at the end.
thingsvision holds kernels [image, image] in memory, so the number of images is limited.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
from thingsvision.core.cka.cka_numpy import CKANumPy
from thingsvision.core.rsa.helpers import compute_rdm, correlate_rdms

import actstats
from actstats.analysis import similarity


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stores", nargs=2)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--layers", type=int, default=4, help="number of layers, spread over the depth")
    arguments = parser.parse_args()
    # May be less than a partition, since the analyses accept any selection of a store's images.
    stores = {
        name: actstats.open_dataset(name).isel(image=slice(arguments.images)) for name in arguments.stores
    }
    first = stores[arguments.stores[0]]
    names = list(dict.fromkeys(first["layer"].values.tolist()))
    chosen = [names[at] for at in np.linspace(0, len(names) - 1, arguments.layers).astype(int)]
    stores = {name: store.isel(unit=np.isin(store["layer"].values, chosen)) for name, store in stores.items()}
    ours = similarity(stores, sample=arguments.images)
    features = [
        store["mean"]
        .isel(unit=store["layer"].values == layer)
        .transpose("image", "unit")
        .values.astype(np.float64)
        for store in stores.values()
        for layer in chosen
    ]
    worst = 0.0
    for i in range(len(features)):
        for j in range(i, len(features)):
            theirs = {
                name: float(CKANumPy(m=len(features[i]), kernel="linear", unbiased=unbiased).compare(
                    features[i].copy(), features[j].copy()
                ))
                for name, unbiased in (("cka", False), ("cka_unbiased", True))
            }  # fmt: skip
            rdms = [compute_rdm(features[at], method="correlation") for at in (i, j)]
            theirs["rsa"] = float(correlate_rdms(*rdms, correlation="spearman"))
            mine = {name: float(ours[name][i, j]) for name in theirs}
            worst = max(worst, *(abs(mine[name] - value) for name, value in theirs.items()))
            print(json.dumps({"row": i, "column": j, "actstats": mine, "thingsvision": theirs}), flush=True)
    print(json.dumps({"images": arguments.images, "greatest_difference": worst}))


if __name__ == "__main__":
    main()
