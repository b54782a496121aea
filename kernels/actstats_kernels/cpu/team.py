"""Run compiled code on torch's own threads.

A second pool would compete with torch's, whose idle threads spin for a while on the cores that ours need. The work is
therefore passed to torch's own OpenMP team, through the entry point that compilers call. If torch has no such team,
plain threads are used.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch


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
