"""The distribution's name: no extra and no page installs the other project that PyPI calls actstats."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import actstats
from actstats.errors import ActstatsError
from actstats.support import install, needs

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NAME = canonicalize_name(PROJECT["name"])
OTHER = re.compile(r"\bactstats\[|\bpip3? (?:install|download)\b[^`\n]*?[ '\"]actstats(?![-\w./])")
"""A command or requirement that would install the package of another project."""


def requirements(extra: str) -> set[str]:
    """The names of all packages that an extra requires, also through extras of our own."""
    names: set[str] = set()
    for text in PROJECT["optional-dependencies"][extra]:
        requirement = Requirement(text)
        names.add(canonicalize_name(requirement.name))
        if canonicalize_name(requirement.name) == NAME:
            for inner in requirement.extras:
                names |= requirements(inner)
    return names


@pytest.mark.parametrize("extra", PROJECT["optional-dependencies"])
def test_an_extra_requires_no_other_actstats(extra):
    assert {name for name in requirements(extra) if "actstats" in name} <= {NAME}


def test_the_base_and_the_lock_require_no_actstats():
    base = {Requirement(text).name for text in PROJECT["dependencies"]}
    locked = {re.split(r"[=; ]", line)[0] for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert not [name for name in base | locked if "actstats" in name]


def test_extras_are_listed_on_the_page():
    page = (ROOT / "docs" / "installation.md").read_text()
    table = page.partition("| extra | for |")[2].partition("\n\n")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert set(re.findall(r"`(\w+)`", " ".join(cells))) == set(PROJECT["optional-dependencies"])


def public_files() -> list[Path]:
    """Every file that the repository shows: not environments, caches, builds, or what tests and the demo write."""
    folders = ("actstats", "kernels", "cli", "tests", "benchmarks", "docs", ".ci", ".github", ".devcontainer")
    inside = [
        path for folder in folders for path in (ROOT / folder).rglob("*") if "__pycache__" not in path.parts
    ]
    return [path for path in [*ROOT.glob("*"), *inside] if path.is_file()]


@pytest.mark.parametrize(
    ("text", "installs"),
    [
        ("pip install 'actstats[demo]'", True),
        ("pip install -U actstats", True),
        ("pip install numpy actstats==0.1", True),
        ("image with actstats[distributed]", True),
        ("pip install 'actstats-vision[demo]'", False),
        ("pip install -e . # installs actstats/__init__.py", False),
    ],
)
def test_the_other_project_is_recognised(text, installs):
    assert bool(OTHER.search(text)) == installs


def test_no_file_tells_users_to_install_the_other_project():
    lines = []
    for path in public_files():
        if path == Path(__file__):
            continue
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        text = re.sub(r"(pip3? install)\s*\\?\n\s*", r"\1 ", text)  # a command that is wrapped
        lines += [f"{path.relative_to(ROOT)}: {found[0]}" for found in OTHER.finditer(text)]
    assert lines == []


def test_a_missing_package_is_named_as_pip_knows_it():
    message = r"^contour needs scikit-image; pip install scikit-image$"
    with pytest.raises(ActstatsError, match=message), needs("skimage", "contour"):
        raise ModuleNotFoundError("No module named 'skimage'", name="skimage")
    assert install(["flox", "scipy"]) == "pip install flox scipy"
    with pytest.raises(ImportError), needs("skimage", "contour"):  # a fault inside a package is not hidden
        raise ModuleNotFoundError("No module named 'other'", name="other")


def test_the_version_does_not_come_from_installed_metadata():
    from click.testing import CliRunner

    from actstats_cli.main import main

    assert (
        CliRunner().invoke(main, ["--version"], prog_name="actstats").stdout
        == f"actstats {actstats.__version__}\n"
    )
    lookups = re.compile(r"""(?:version|metadata|distribution|requires)\(['"]actstats|package_name=""")
    sources = [path for path in public_files() if path.suffix == ".py" and path != Path(__file__)]
    assert [path for path in sources if lookups.search(path.read_text())] == []
