"""Change the metadata of a store at random, make every checksum right, and read the store.

    python benchmarks/faults/manifests.py --count 1000 --seed 0

Each changed store is read by commands and functions in this process. Every one must refuse it in one line, or return
the numbers that it returned before the change, in bounded time and memory. What did not is printed, and at the end a
table of the changes that were tried.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.hostile import mutations


def main() -> int:
    """Read changed stores, and print a line of JSON for each fault and a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the table here, as Markdown")
    arguments = parser.parse_args()
    found, slowest, largest = [], 0.0, 0
    with tempfile.TemporaryDirectory() as folder:
        good = mutations.made(Path(folder))
        mutations.limit()
        root = json.loads((good / "zarr.json").read_text())
        chosen = mutations.drawn(root, arguments.count, arguments.seed)
        for each in mutations.outcomes(good, Path(folder), chosen):
            found.append(each)
            slowest, largest = max(slowest, each.seconds), max(largest, each.kilobytes)
            if each.fault:
                said = each.said[-1500:]
                line = {
                    "mutation": str(each.mutation),
                    "reader": each.reader,
                    "fault": each.fault,
                    "said": said,
                }
                print(json.dumps(line), flush=True)
    rows = mutations.table(found)
    lines = [
        "| changed | tried | refused in one line | read with the same numbers | faults |",
        "|---|---|---|---|---|",
        *(f"| {r['part']} | {r['tried']} | {r['refused']} | {r['harmless']} | {r['faults']} |" for r in rows),
        "",
        f"At most {slowest:.1f} s of processor time and {largest / 1e3:.0f} MB for one reader "
        f"(`--seed {arguments.seed}`).",
    ]
    print("\n".join(lines))
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")
    return int(any(row["faults"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
