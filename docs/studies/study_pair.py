"""Measure the embedded pair by everything that actstats offers, and write the tables and figures of `pair.md`.

    python docs/studies/study_pair.py --data tiny-imagenet-11.tar --stimuli cue-conflict-sample.tar \
        --decisions cue-conflict-decisions.tar.gz --work pair

The photographs are the validation split of `--data`, which neither network was trained on. They are written to
`--work`, with the masks computed from them and the sweeps. Sweeps that are already there are resumed, or reused.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pair_layers
import pair_probes
from pair_photographs import lay_out

from actstats import load_model
from actstats.demo.pair import sweep_pair

HERE = Path(__file__).parent
NOISE = 0.1


def main() -> None:
    """Lay out the photographs, sweep, analyse, probe, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", required=True, help="tar of the photographs, by split and category")
    parser.add_argument("--split", default="val", help="use only images in a folder of this name")
    parser.add_argument("--stimuli", required=True, help="cue-conflict stimuli")
    parser.add_argument(
        "--decisions", type=Path, help="recorded decisions on them, to compare with the pair's"
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for photographs, masks and stores")
    parser.add_argument("--into", type=Path, default=HERE, help="folder for tables and figures")
    given = parser.parse_args()
    photographs = given.work / "photographs"
    lay_out(given.data, given.split, photographs)
    pair = {name: load_model("googlenet", "demo", robust=name == "R") for name in "SR"}
    stores, _ = sweep_pair(*pair.values(), photographs, given.work, noise=NOISE)
    pair_layers.write(stores, pair, given.into)
    pair_probes.write(stores, pair, photographs, given.stimuli, given.decisions, given.into)


if __name__ == "__main__":
    main()
