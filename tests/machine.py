"""What a machine may lack for some tests, found out by trying: the only reasons to skip one.

The marker of a need skips a test where the machine does not meet it; `need` does so inside a test, a fixture or a
module. With `--strict-skips`, which `.ci/run` sets, a test that is skipped for any other reason fails.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest

CHROMIUM: Final = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


def _gpu() -> str | None:
    import torch

    return None if torch.cuda.is_available() else "torch sees no CUDA device"


def _large_gpu() -> str | None:
    import torch

    free = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else 0
    return None if free > 40e9 else f"needs 40 GB of a GPU's memory, {free / 1e9:.0f} are free"


def _gpu_decoder() -> str | None:
    import torch
    from PIL import Image

    jpeg = io.BytesIO()
    Image.new("RGB", (16, 16)).save(jpeg, "JPEG")
    try:
        from torchcodec.decoders import decode_jpeg

        decode_jpeg([torch.frombuffer(bytearray(jpeg.getvalue()), dtype=torch.uint8)], device="cuda")
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        return f"torchcodec decodes no JPEGs on a GPU: {str(error).partition(chr(10))[0]}"
    return None


def _compiler() -> str | None:
    """What torch's compiler needs on a CPU: a C++ compiler, and the headers of Python."""
    name = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    compiler = shutil.which(name)
    if compiler is None:
        return f"no C++ compiler (CXX, or {name})"
    include = sysconfig.get_paths()["include"]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "one.cpp")
        source.write_text("#include <Python.h>\n#include <vector>\nstd::vector<int> one;\n")
        command = [compiler, f"-I{include}", "-fsyntax-only", str(source)]
        compiled = subprocess.run(command, capture_output=True)
    return None if compiled.returncode == 0 else f"{compiler} finds no Python.h in {include}"


def _browser() -> str | None:
    return None if CHROMIUM else "no Chromium"


def _linux() -> str | None:
    return None if sys.platform == "linux" else f"needs Linux, this is {sys.platform}"


def _glibc() -> str | None:
    known = "CS_GNU_LIBC_VERSION" in getattr(os, "confstr_names", {}) and os.confstr("CS_GNU_LIBC_VERSION")
    return None if known else "the C library is not glibc"


def _any_file_name() -> str | None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            Path(folder, os.fsdecode(b"caf\xe9")).touch()
        except OSError:
            return "the file system takes names in UTF-8 only"
    return None


NEEDS: Final[dict[str, Callable[[], str | None]]] = {
    "gpu": cache(_gpu),
    "large_gpu": cache(_large_gpu),
    "gpu_decoder": cache(_gpu_decoder),
    "compiler": cache(_compiler),
    "browser": cache(_browser),
    "linux": cache(_linux),
    "glibc": cache(_glibc),
    "any_file_name": cache(_any_file_name),
}
"""For each need the reason why this machine does not meet it, or None where it does."""


def need(name: str) -> None:
    """Skip the test, or the module that is being imported, where the machine does not meet a need."""
    reason = NEEDS[name]()
    if reason is not None:
        pytest.skip(reason, allow_module_level=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--strict-skips", action="store_true", help="fail what is skipped, but for the machine")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker("browser")
            item.add_marker("once")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for name in NEEDS:
        if item.get_closest_marker(name):
            need(name)


def _refuse(report: Any, config: pytest.Config) -> Any:
    """Turn a report of a skip that no need explains into one of a failure."""
    if not config.getoption("--strict-skips") or not report.skipped or hasattr(report, "wasxfail"):
        return report
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason = reason.removeprefix("Skipped: ")
    if reason not in {probe() for probe in NEEDS.values()}:
        report.outcome = "failed"
        report.longrepr = f"skipped, which no lack of this machine explains: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    return _refuse((yield), item.config)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    return _refuse((yield), collector.config)
