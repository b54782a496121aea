"""The house: imports run downwards only, between floors and between rooms, and no two modules need each other."""

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
ROOMS = (
    "version", "errors", "support", "remote", "layers", "metrics", "data", "distort", "models", "store", "sweeping",
    "analysis", "probing", "report", "demo",
)  # fmt: skip
"""The rooms of `actstats`, from the bottom up: a room may import itself and those before it."""
FILES = {
    ".".join([floor, *path.relative_to(folder).with_suffix("").parts]).removesuffix(".__init__"): path
    for floor, folder in FLOORS.items()
    for path in sorted(folder.rglob("*.py"))
}
"""Every module by name."""
TREES = {name: ast.parse(path.read_text()) for name, path in FILES.items()}
MOST_LINES = 800


def imported(tree: ast.Module) -> Iterator[str]:
    """The modules that a module imports, also inside functions and for type checking."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            module = node.module or ""
            for name in node.names:
                inner = f"{module}.{name.name}"
                yield inner if inner in FILES else module


IMPORTS = {name: {other for other in imported(tree) if other in FILES} for name, tree in TREES.items()}
"""Of our own modules, those that each imports."""


@pytest.mark.parametrize("name", FILES)
def test_a_module_keeps_the_rules_of_the_house(name):
    tree, floor = TREES[name], name.partition(".")[0]
    packages = {module.partition(".")[0] for module in imported(tree)}
    floors = list(FLOORS)
    assert not packages & set(floors[floors.index(floor) + 1 :]), "imports from a floor above"
    if floor == "actstats_kernels":
        assert packages <= GROUND | {floor} | sys.stdlib_module_names
    assert not tree.body or ast.get_docstring(tree), "no docstring says what the module is for"
    assert len(FILES[name].read_text().splitlines()) <= MOST_LINES, "too long for one subject"


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("actstats.")])
def test_a_room_imports_from_those_below_it(name):
    room = name.split(".")[1]
    for other in IMPORTS[name]:
        if other.startswith("actstats."):
            there = other.split(".")[1]
            assert ROOMS.index(there) <= ROOMS.index(room), f"{name} imports {other}, of a room above"


def test_no_two_modules_need_each_other():
    def reachable(name: str, seen: set[str]) -> set[str]:
        for other in IMPORTS[name] - seen:
            # What a package offers comes from its modules, which it may import, and they not it.
            seen.add(other)
            reachable(other, seen)
        return seen

    circles = {name for name in FILES if name in reachable(name, set())}
    assert not circles


def test_no_two_classes_have_one_name():
    places: dict[str, list[str]] = {}
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(name)
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_no_function_hides_a_module_of_its_name():
    hidden = []
    for name in FILES:
        if FILES[name].name != "__init__.py":
            continue
        names = {
            alias.asname or alias.name
            for n in TREES[name].body
            if isinstance(n, ast.ImportFrom) and n.module != name
            for alias in n.names
        }
        hidden += [f"{name}.{inner}" for inner in names if f"{name}.{inner}" in FILES]
    assert hidden == []
