"""Measure the embedded pair and further training runs of it, and write the figures, tables and plots of `pair.md`.

    python docs/studies/study_pair.py --data tiny-imagenet-11.tar --stimuli cue-conflict-sample.tar \
        --decisions cue-conflict-decisions.tar.gz --seeds seed1 seed2 --work pair

The photographs are the validation split of `--data`, which no network was trained on. They are written to `--work`,
with the masks computed from them, the sweeps, and what was measured of each network: all that is already there is
resumed, or reused, so that a network that is added later costs no more than its own measurements. `--seeds` are
folders that `train_pair.py --seed N --out FOLDER` wrote; either network of a folder may be missing.

Everything that the page shows is in `pair.json`; `pair_tables.py` writes tables and plots from it alone.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pair_layers
import pair_probes
import pair_tables
from pair_networks import Kept, Run, find_runs, rounded, split
from pair_photographs import lay_out

from actstats import open_source
from actstats.demo.pair import kernel_sheet

HERE = Path(__file__).parent


def main() -> None:
    """Lay out the photographs, sweep, analyse, probe, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", required=True, help="tar of the photographs, by split and category")
    parser.add_argument("--split", default="val", help="use only images in a folder of this name")
    parser.add_argument("--stimuli", required=True, help="cue-conflict stimuli")
    parser.add_argument(
        "--decisions", type=Path, help="recorded decisions on them, to compare with the networks'"
    )
    parser.add_argument(
        "--seeds", type=Path, nargs="*", default=[], metavar="FOLDER", help="further training runs"
    )
    parser.add_argument("--random", type=int, default=39, help="random sets for each ablated one")
    parser.add_argument("--work", type=Path, required=True, help="folder for photographs, masks and stores")
    parser.add_argument("--into", type=Path, default=HERE, help="folder for figures, tables and plots")
    given = parser.parse_args()
    photographs = given.work / "photographs"
    lay_out(given.data, given.split, photographs)
    runs = find_runs(given.seeds)
    images = open_source(photographs)
    kept = Kept(given.work, images.fingerprint)
    pair_layers.sweep_all(runs, photographs, given.work)
    figures = {
        "images": len(images),
        "random": given.random,
        **pair_layers.measure(runs, given.work),
        **pair_probes.measure(
            runs, given.work, photographs, open_source(given.stimuli), given.decisions, given.random, kept
        ),
        "networks": [_described(run, given.data, given.split, kept) for run in runs],
    }
    given.into.mkdir(parents=True, exist_ok=True)
    (given.into / "pair.json").write_text(json.dumps(rounded(figures), indent=1) + "\n")
    pair_tables.write(given.into)
    pair = (kind[0].load().model for kind in split(runs))
    kernel_sheet(*pair).save(given.into / "pair-kernels.png")


def _described(run: Run, data: str, of_split: str, kept: Kept) -> dict[str, object]:
    """Return what identifies a network, and its accuracy on clean and attacked photographs."""
    from evaluate_pair import accuracies
    from train_pair import read_images

    radii = (0.0, 1.0, 2.0)
    shares = kept(run, "accuracy", lambda: accuracies(run.load(), read_images(data, of_split), radii))
    return {"name": run.name, "kind": run.kind, "seed": run.seed, "sha256": run.sha256, "accuracy": shares}


if __name__ == "__main__":
    main()
