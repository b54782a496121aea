"""The house: imports run downwards only, and each module is small and says what it is for."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {
    "actstats_kernels": ROOT / "kernels" / "actstats_kernels",
    "actstats": ROOT / "actstats",
    "actstats_cli": ROOT / "cli" / "actstats_cli",
}
"""From the ground up: a floor may import itself and those before it."""
GROUND = {"torch", "triton", "numba", "llvmlite", "numpy"}
"""What the ground floor may import beside Python's own library and itself."""
MODULES = [(floor, path) for floor, folder in FLOORS.items() for path in sorted(folder.rglob("*.py"))]
MOST_LINES = 800


def imported(tree: ast.Module) -> Iterator[str]:
    """The package of every import of a module, also inside functions and for type checking."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            yield (node.module or "").split(".")[0]


@pytest.mark.parametrize(("floor", "path"), MODULES, ids=[str(path.relative_to(ROOT)) for _, path in MODULES])
def test_a_module_keeps_the_rules_of_the_house(floor, path):
    text = path.read_text()
    tree = ast.parse(text)
    packages = set(imported(tree))
    floors = list(FLOORS)
    assert not packages & set(floors[floors.index(floor) + 1 :]), "imports from a floor above"
    if floor == "actstats_kernels":
        assert packages <= GROUND | {floor} | sys.stdlib_module_names
    assert not tree.body or ast.get_docstring(tree), "no docstring says what the module is for"
    assert len(text.splitlines()) <= MOST_LINES, "too long for one purpose"
