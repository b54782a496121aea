"""Runs compiled code on the threads that torch computes with.

A second pool would fight with torch's: its idle threads spin for a while, on the cores where ours should
run. So the work goes to torch's own OpenMP team, by the entry point that compilers call. Where torch has no such team,
plain threads do it.
"""

from __future__ import annotations

import ctypes
import glob
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
    if not sys.platform.startswith("linux") or not torch.backends.openmp.is_available():
        return None
    home = Path(torch.__file__).parent
    bundled = [*glob.glob(f"{home}/lib/lib*omp*.so*"), *glob.glob(f"{home.parent}/torch.libs/lib*omp*.so*")]
    for name in [*bundled, "libgomp.so.1", "libiomp5.so", "libomp.so"]:
        try:
            # RTLD_NOLOAD: only what is loaded already is torch's.
            library = ctypes.CDLL(name, mode=ctypes.DEFAULT_MODE | 0x4)
            parallel = library.GOMP_parallel
        except (OSError, AttributeError):
            continue
        parallel.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        parallel.restype = None
        return parallel  # type: ignore[no-any-return]
    return None


def run(worker: int, data: int, threads: int) -> None:
    """Call the C function `void worker(void *data)` on so many threads at once and wait for all."""
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
