"""Layers: imports run downwards only, between packages and within them, and no two modules need each other."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "actstats_kernels": ROOT / "kernels" / "actstats_kernels",
    "actstats": ROOT / "actstats",
    "actstats_cli": ROOT / "cli" / "actstats_cli",
}
"""From the lowest up: a package may import itself and those before it."""
ALLOWED_IN_KERNELS = {"torch", "triton", "numba", "llvmlite", "numpy"}
"""What the lowest package may import beside the standard library and itself."""
LAYERS = (
    "version", "text", "errors", "records", "identity", "attributes", "support", "remote", "layers", "metrics",
    "data", "distort", "models", "passes", "store", "sweeping", "analysis", "probing", "report", "demo",
)  # fmt: skip
"""The layers of `actstats`, from the lowest up: each may import itself and those before it."""
FILES = {
    ".".join([package, *path.relative_to(folder).with_suffix("").parts]).removesuffix(".__init__"): path
    for package, folder in PACKAGES.items()
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
def test_a_module_imports_no_higher_package_and_has_one_subject(name):
    tree, package = TREES[name], name.partition(".")[0]
    needed = {module.partition(".")[0] for module in imported(tree)}
    packages = list(PACKAGES)
    assert not needed & set(packages[packages.index(package) + 1 :]), "imports from a package above"
    if package == "actstats_kernels":
        assert needed <= ALLOWED_IN_KERNELS | {package} | sys.stdlib_module_names
    assert not tree.body or ast.get_docstring(tree), "no docstring says what the module is for"
    assert len(FILES[name].read_text().splitlines()) <= MOST_LINES, "too long for one subject"


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("actstats.")])
def test_a_layer_imports_from_those_below_it(name):
    layer = name.split(".")[1]
    for other in IMPORTS[name]:
        if other.startswith("actstats."):
            lower = other.split(".")[1]
            assert LAYERS.index(lower) <= LAYERS.index(layer), f"{name} imports {other}, of a layer above"


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


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("test_*.py")), ids=lambda path: path.stem)
def test_a_test_module_imports_from_no_other(path):
    # One that is skipped or fails to import would take the other with it.
    names = re.findall(r"^\s*(?:from|import) .*\btest_\w+", path.read_text(), re.M)
    assert not names
