"""Small helpers used throughout the package: argument parsing, optional dependencies, files, imports by name."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from actstats.errors import ActstatsError

if TYPE_CHECKING:
    from torch import Tensor


def lazy_exports(
    package: str, exported: Sequence[str], modules: Mapping[str, str]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` of a package whose names are imported when they are first used.

    Args:
        package: name of the package.
        exported: its `__all__`.
        modules: the names that each module of the package defines, separated by spaces.
    """
    homes = {name: module for module, names in modules.items() for name in names.split()}

    def get(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{homes[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: sorted(exported)


class URL(str):
    """A remote location, such as `s3://bucket/x.zarr`."""

    __slots__ = ()

    @property
    def name(self) -> str:
        """The last part of the path.

        >>> URL("s3://bucket/x.zarr/").name
        'x.zarr'
        """
        return self.rstrip("/").rpartition("/")[2]


def located(place: str | Path) -> Path | URL:
    """Return a `URL` if `place` contains `://`, else a `Path`.

    >>> located("s3://bucket/x.zarr"), located("x.zarr").name
    ('s3://bucket/x.zarr', 'x.zarr')
    """
    return URL(place) if isinstance(place, str) and "://" in place else Path(place)


def on_this_machine(spec: str) -> str:
    """Return `spec`, the location of images from a store; raise `ActstatsError` if it is a URL.

    URLs in a store are not trusted, so opening one requires the user's consent.
    """
    if isinstance(located(spec), URL):
        raise ActstatsError(
            f"the images are at {spec}, but URLs in a store are not opened by default; pass `data={spec}`"
        )
    return spec


def one_or_more(given: str | Iterable[str]) -> list[str]:
    """Return a list of names, given a single name or several.

    >>> one_or_more("conv"), one_or_more(("conv", "block"))
    (['conv'], ['conv', 'block'])
    """
    return [given] if isinstance(given, str) else list(given)


def exact(value: float) -> str:
    """Return the shortest decimal that reads back as `value`, without a `+`, which joins distortions.

    >>> exact(0.1), exact(8.0), exact(1e6), exact(8 / 255), exact(1e23)
    ('0.1', '8', '1000000', '0.03137254901960784', '1e23')
    """
    return repr(float(value)).removesuffix(".0").replace("e+", "e")


@contextmanager
def needs(package: str, what: str) -> Iterator[None]:
    """Turn the `ImportError` for a missing `package` into a line that says how to install it.

    Raises:
        ActstatsError: `package` is not installed; the message names it.
    """
    try:
        yield
    except ImportError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        raise ActstatsError(f"{what} needs {installable(package)}; {install([package])}") from None


def installable(module: str) -> str:
    """Return the name by which pip installs a module.

    >>> installable("skimage"), installable("scipy")
    ('scikit-image', 'scipy')
    """
    return _DISTRIBUTIONS.get(module, module)


def install(modules: Iterable[str]) -> str:
    """Return the command that installs the packages of some modules.

    It names the packages themselves, not an extra of actstats: on PyPI `actstats` is another project.

    >>> install(["flox", "skimage"])
    'pip install flox scikit-image'
    """
    return " ".join(["pip install", *map(installable, modules)])


_DISTRIBUTIONS: Final = {"skimage": "scikit-image", "google_crc32c": "google-crc32c"}
"""Modules that pip installs by another name."""


def require_package(module: str, purpose: str) -> Any:
    """Import and return an optional module; see `needs` for errors."""
    with needs(module.partition(".")[0], purpose):
        return import_module(module)


def named_object(reference: str, role: str, form: str) -> object:
    """Import and return the object `package.module:name`, also from modules in the working directory.

    >>> named_object("math:tau", "metric", "Class") > 6
    True

    Raises `ActstatsError` if there is no such object, with a message about a `role` of this `form`.
    """
    module_name, _, attribute = reference.partition(":")
    if not module_name or not attribute:
        raise ActstatsError(f"{role} {reference!r} is not of the form package.module:{form}")
    if (here := str(Path.cwd())) not in sys.path:
        # Unlike `python -m`, a console script does not add the working directory.
        sys.path.append(here)
    try:
        found: object = import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, ValueError) as error:
        raise ActstatsError(f"{role} {reference!r}: cannot import {module_name}: {error}") from error
    except AttributeError as error:
        raise ActstatsError(f"{role} {reference!r}: {error}") from error
    return found


def cache_folder() -> Path:
    """Return the folder for downloads and other cached files: `ACTSTATS_CACHE`, or the user's cache folder."""
    chosen = os.environ.get("ACTSTATS_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "actstats"


def replace_file(path: Path, content: bytes) -> None:
    """Write a file atomically, by renaming a temporary file beside it."""
    beside = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    try:
        beside.write_bytes(content)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def keep_cached(file: Path, content: bytes) -> None:
    """Write a file to the cache; ignore errors, as the cache is optional."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, content)
    except OSError:
        return


def sha256_of(file: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def html_facts(title: str, facts: Iterable[tuple[str, object]]) -> str:
    """Return an HTML heading and table of names and values for `_repr_html_`, with all text escaped.

    >>> html_facts("a < b", [("images", 3)])
    '<b>a &lt; b</b><table><tr><th style="text-align:left">images</th><td style="text-align:left">3</td></tr></table>'
    """
    left = ' style="text-align:left"'
    rows = (
        f"<tr><th{left}>{escape(name)}</th><td{left}>{escape(str(value))}</td></tr>" for name, value in facts
    )
    return f"<b>{escape(title)}</b><table>{''.join(rows)}</table>"


def random_images(images: int, shape: Sequence[int]) -> Tensor:
    """Return seeded random images with values in [0, 1], f32 [N, *shape], that differ in brightness and contrast.

    The first three have increasing brightness in the order 0, 2, 1.

    >>> random_images(2, (3, 8, 8)).shape
    torch.Size([2, 3, 8, 8])
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(images, *shape, generator=generator)
    if len(shape) == 3:  # shapes and edges, as photographs have
        coarse = torch.rand(images, shape[0], 4, 4, generator=generator)
        noise = (2 * torch.nn.functional.interpolate(coarse, tuple(shape[1:]), mode="bilinear") + noise) / 3
    turn = torch.arange(images).reshape(-1, *[1] * len(shape)) % 3
    level, contrast = torch.tensor([0.3, 0.7, 0.5])[turn], torch.tensor([0.6, 0.4, 0.8])[turn]
    return (level + contrast * (noise - 0.5)).clamp(0, 1)
