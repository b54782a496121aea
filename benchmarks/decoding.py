"""Time decoding and preprocessing of JPEGs on one thread: with Pillow alone, and as a sweep does it.

    python benchmarks/decoding.py FOLDER_OR_TAR --limit 2000 --json benchmarks/results/decoding.json
    python benchmarks/tables.py

First, the pixels of all images are compared. Then rounds over some of them alternate between the methods. Figures are
CPU times, which depend little on other load on the machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from peers import keep, machine
from PIL import Image

from actstats.data import ImageError, open_source
from actstats.data.image import decode
from actstats.data.jpeg import decode_array
from actstats.data.preprocessing import INTERPOLATIONS, Preprocessing
from actstats.data.source import EncodedSource

WAYS: dict[str, Callable[[Preprocessing, bytes], Any]] = {
    "Pillow": lambda how, data: by_pillow(how, decode(data)),
    "decoded by Pillow": lambda how, data: how.pixels(decode(data)),
    "as a sweep does": lambda how, data: how.pixels(decode_array(data)),
}


def by_pillow(how: Preprocessing, image: Image.Image) -> Any:
    """Return the resized and cropped image by Pillow alone."""
    size = how.resized(image.size)
    if size != image.size:
        image = image.resize(size, INTERPOLATIONS[how.interpolation])
    left, top = how.corner(size)
    return np.asarray(image.crop((left, top, left + how.crop, top + how.crop)))


def main() -> None:
    """Compare and measure; print the results or save them as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images")
    parser.add_argument("--limit", type=int, help="compare the pixels of the first LIMIT images")
    parser.add_argument("--timed", type=int, default=60, help="images per round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, help="file for the results, replaced if it exists")
    given = parser.parse_args()
    source = open_source(given.images, limit=given.limit)
    assert isinstance(source, EncodedSource)
    sizes = {"64": Preprocessing(64, 64), "224": Preprocessing.imagenet()}
    compared, differing, quick = 0, 0, 0
    kept: list[bytes] = []
    for index in range(len(source)):
        try:
            data = source.read(index)
            image = decode(data)
        except ImageError:
            continue
        quick += isinstance(decode_array(data), np.ndarray)
        compared += 1
        differing += any(
            bool((how.pixels(decode_array(data)) != by_pillow(how, image)).any()) for how in sizes.values()
        )
        if len(kept) < given.timed:
            kept.append(data)
    results: dict[str, Any] = {
        "images": compared,
        "by_simplejpeg": quick,
        "differing": differing,
        "timed": len(kept),
        "rounds": given.rounds,
        **machine(),
        "sizes": {},
    }
    for size, how in sizes.items():
        times: dict[str, list[float]] = {name: [] for name in WAYS}
        for _ in range(given.rounds):
            for name, way in WAYS.items():
                begun = time.process_time()
                for data in kept:
                    way(how, data)
                times[name].append((time.process_time() - begun) / len(kept))
        results["sizes"][size] = {
            name: {
                "milliseconds": 1e3 * min(found),
                "ratio": statistics.median(np.divide(found, times["Pillow"])),
                "lowest": float(np.divide(found, times["Pillow"]).min()),
                "highest": float(np.divide(found, times["Pillow"]).max()),
            }
            for name, found in times.items()
        }
    print(json.dumps(results, indent=1))
    keep(results, given.json)


if __name__ == "__main__":
    main()
