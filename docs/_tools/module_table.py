"""Write the table of modules in docs/architecture.md: each with the first line of its docstring.

python docs/_tools/module_table.py
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
FILE: Final = ROOT / "docs" / "measured" / "modules.md"
PACKAGES: Final = ("actstats", "kernels/actstats_kernels", "cli/actstats_cli")


def table() -> str:
    """Return the page's section: a heading per package, a table of its modules."""
    parts = []
    for package in PACKAGES:
        folder = ROOT / package
        rows = [f"### `{folder.name}`", "", "| module | subject |", "|---|---|"]
        for path in sorted(folder.rglob("*.py"), key=lambda path: (path.parent != folder, path.as_posix())):
            summary = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n\n")[0]
            if path.name != "__init__.py":
                rows.append(f"| `{path.relative_to(folder)}` | {' '.join(summary.split())} |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    FILE.write_text(table())
