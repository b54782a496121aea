"""Write the table of measures in docs/analysis.md, from their records.

python docs/_tools/measure_table.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from actstats.analysis.measures import KERNELS, MEASURES

FILE: Final = Path(__file__).parents[2] / "docs" / "measured" / "measures.md"


def table() -> str:
    """Return the table: a row for each measure."""
    rows = [
        "| analysis | measure | variable | unit | invariant to scale | decides |",
        "|---|---|---|---|---|---|",
    ]
    for measure in (*MEASURES, *KERNELS):
        # Kernels with a claim are compared where they are invariant, if only in the layer that reads the image.
        decides = measure.claim if measure.invariant or measure.analysis == "kernels" else ""
        invariant = "yes" if measure.invariant else "in the first layer" if decides else "no"
        cells = [measure.analysis, measure.name, f"`{measure.key}`", measure.unit, invariant, decides]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    FILE.write_text(table())
