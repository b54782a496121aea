"""Run compiled code on torch's own threads.

A second pool would compete with torch's, whose idle threads spin for a while on the cores that ours need. The work is
therefore passed to torch's own OpenMP team, through the entry point that compilers call. If torch has no such team,
plain threads are used.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actstats_kernels.cpu.simd import LINE


@lru_cache(maxsize=1)
def _openmp() -> Callable[..., Any] | None:
    """Return `GOMP_parallel(function, data, threads, flags)` of the OpenMP library that torch has loaded, if any."""
    if not sys.platform.startswith("linux"):
        return None
    home = Path(torch.__file__).parent
    bundled = [
        str(library)
        for folder in (home / "lib", home.parent / "torch.libs")
        for library in sorted(folder.glob("lib*omp*.so*"))
    ]
    for name in [*bundled, "libgomp.so.1", "libiomp5.so", "libomp.so"]:
        try:
            # Only use a library that torch has already loaded; RTLD_NOLOAD loads none.
            parallel = ctypes.CDLL(name, mode=ctypes.DEFAULT_MODE | os.RTLD_NOLOAD).GOMP_parallel
        except (OSError, AttributeError):
            continue
        parallel.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        parallel.restype = None
        return parallel
    return None


def run(worker: int, data: int, threads: int) -> None:
    """Call the C function `void worker(void *data)` on `threads` threads at once and wait for all of them."""
    parallel = _openmp()
    if threads == 1:
        _function(worker)(data)
    elif parallel is not None:
        parallel(worker, data, threads, 0)
    else:
        others = [threading.Thread(target=_function(worker), args=(data,)) for _ in range(threads - 1)]
        for thread in others:
            thread.start()
        _function(worker)(data)
        for thread in others:
            thread.join()


def _function(worker: int) -> Callable[[int], None]:
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(worker)


def compiled(make: Callable[[int], Any], *modules: str) -> Any:
    """Return `make(digest)`, a worker compiled from these modules of this folder, from numba's cache if it is there.

    numba caches compiled code by the variables that a function closes over. With the digest of the modules' sources
    among them, a change in any module is detected.
    """
    sources = (Path(__file__).with_name(f"{name}.py") for name in modules)
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).digest()
    with _alone(digest.hex()[:14]):
        return make(int.from_bytes(digest[:7], "big"))


@contextmanager
def _alone(name: str) -> Iterator[None]:
    """Admit one process of this user at a time: the first one compiles, the others find its code in the cache."""
    path = Path(tempfile.gettempdir(), f"actstats-{os.getuid()}-{name}.lock")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError:  # then each process compiles for itself
        yield
        return
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class Scratch(threading.local):
    """Scratch memory for the threads started by one calling thread. It grows as needed and is kept."""

    def __init__(self) -> None:
        self._bytes = np.zeros(0, dtype=np.uint8)

    def address(self, size: int) -> int:
        """Return the address of `size` bytes, aligned to a vector."""
        if self._bytes.nbytes < size + LINE:
            self._bytes = np.zeros(size + LINE, dtype=np.uint8)
        return -(-self._bytes.ctypes.data // LINE) * LINE


scratch = Scratch()
