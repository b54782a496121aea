"""Devices: find one, move a network and batches to it, and prepare for forward passes."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from actstats.errors import ActstatsError


def find_device(name: str) -> torch.device:
    """Return the device called `name`; "auto" is a GPU if there is one.

    Raises:
        ActstatsError: there is no such device, or the kernels do not support it.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ActstatsError(f"unknown device {name!r}; choose auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise ActstatsError(f"device {name!r} is not supported; choose auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ActstatsError(
            f"device {name!r} not found: torch sees {torch.cuda.device_count()} CUDA devices; use `device=cpu`"
        )
    return device


def planned_device(name: str) -> tuple[str, torch.device]:
    """Return the type of device that a sweep is planned for, and the device used to find its layers.

    They differ if a plan for "cuda" is made on a machine without a GPU.

    Raises:
        ActstatsError: as in `find_device`, except that "cuda" does not require a GPU.
    """
    if name == "cuda" and not torch.cuda.is_available():
        return "cuda", torch.device("cpu")
    found = find_device(name)
    return found.type, found


def refuse_meta(model: nn.Module) -> None:
    """Raise `ActstatsError` for a network on the meta device, which holds no weights."""
    if isinstance(model, nn.Module) and any(
        tensor.is_meta for tensor in (*model.parameters(), *model.buffers())
    ):
        raise ActstatsError("the network is on the meta device, so it has no weights; load them first")


@cache
def missing_for_compiling() -> str | None:
    """Return what compiling for the CPU lacks on this machine and how to install it, in one line, or None.

    It needs the C++ compiler that torch looks for, `CXX` or else g++ (clang++ on macOS), and the headers of Python.
    """
    mac = sys.platform == "darwin"
    name = os.environ.get("CXX", "clang++" if mac else "g++")
    compiler = shutil.which(name)
    if compiler is None:
        install = "xcode-select --install" if mac else "apt install g++"
        return f"compiling needs a C++ compiler, and {name or 'CXX'} is not found; install g++ (`{install}`)"
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    framework = Path(sysconfig.get_path("stdlib")).parents[1] / "Headers"  # of Python on macOS
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "header.cpp")
        source.write_text("#include <Python.h>\n")
        include = (f"-I{sysconfig.get_path('include')}", f"-I{framework}")
        tried = subprocess.run([compiler, *include, "-fsyntax-only", str(source)], capture_output=True)
    if tried.returncode == 0:
        return None
    return f"compiling needs the headers of Python {python}; install them (`apt install python{python}-dev`)"


def refuse_uncompilable(device: str) -> None:
    """Raise `ActstatsError` if this machine lacks what compiling for a device of this type needs."""
    if device == "cpu" and (lacking := missing_for_compiling()):
        raise ActstatsError(f"{lacking}, or omit `compile=`")


def to_device(model: nn.Module, device: torch.device) -> nn.Module:
    """Move the network to `device`, and return it.

    Raises:
        ActstatsError: the network is on the meta device, which holds no weights.
    """
    refuse_meta(model)
    return model.to(device)


def uploader(device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return a function that copies a batch to `device`.

    Copies from pinned memory to a GPU use a separate stream, so they overlap with the computation of the previous
    batch, and the host does not wait.
    """
    if device.type != "cuda":
        return lambda pixels: pixels.to(device)
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def upload(pixels: Tensor) -> Tensor:
        if pixels.device.type == device.type:  # decoded on the device
            return pixels
        with torch.cuda.stream(stream):
            moved = pixels.to(device, non_blocking=True)
        computing = torch.cuda.current_stream(device)
        computing.wait_stream(stream)
        # Allocated on one stream and read on the other, so it must not be reused before both are done.
        moved.record_stream(computing)
        return moved

    return upload


@contextmanager
def memory_for(batch_size: int, also: str = "; completed partitions are kept") -> Iterator[None]:
    """Reuse memory in forward passes, and explain out-of-memory errors."""
    with out_of_memory_explained(batch_size, also), memory_reused():
        yield


@contextmanager
def out_of_memory_explained(batch_size: int, also: str = "; completed partitions are kept") -> Iterator[None]:
    """Turn out-of-memory errors into a one-line `ActstatsError` that suggests a smaller batch size."""
    advice = f"out of memory with `batch_size={batch_size}`{also}; try a smaller batch size"
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ActstatsError(advice) from error
    except RuntimeError as error:
        if "allocate memory" not in str(error) and "not enough memory" not in str(error):
            raise
        raise ActstatsError(advice) from error


# Options of glibc's `mallopt`, from its malloc.h.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_MMAP_MAX: Final = -4

_reusing = 0
"""How many contexts of `memory_reused` are open in this process."""
_REUSING: Final = threading.Lock()


@contextmanager
def memory_reused() -> Iterator[None]:
    """Let malloc keep the memory that is freed on Linux, and return it to the system on exit.

    By default, glibc returns the memory of each large activation, and the system clears all its pages again for the
    next one, which takes a quarter of the time of an eager forward pass on a CPU. Contexts may be nested or open in
    several threads; the last one to end returns the memory. Without glibc, nothing happens.
    """
    global _reusing
    libc = _glibc()
    if libc is None:
        yield
        return
    with _REUSING:
        _reusing += 1
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        with _REUSING:
            _reusing -= 1
            if not _reusing:
                # The number of mappings is glibc's default, and the thresholds are the greatest that it adapts to.
                libc.mallopt(_M_MMAP_MAX, 65_536)
                libc.mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)
                libc.mallopt(_M_TRIM_THRESHOLD, 64 * 2**20)
                libc.malloc_trim(0)


@cache
def _glibc() -> Any:
    """Return the C library of this process if it is glibc, or None."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "mallopt") else None
