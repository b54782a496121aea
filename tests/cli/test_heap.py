"""Threads share one heap once they are told to, where the C library is glibc."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

COUNT = """
import ctypes, os, threading
from actstats_cli.heap import share_heap
if {shared}:
    share_heap()
together = threading.Barrier(4)
def work():
    kept = [bytearray(1000) for _ in range(1000)]
    together.wait()
    del kept
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
libc = ctypes.CDLL(None)
libc.fdopen.restype = ctypes.c_void_p
libc.malloc_info(0, ctypes.c_void_p(libc.fdopen(1, b"w")))
libc.fflush(None)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_info"), reason="the C library is not glibc")
def test_threads_share_one_heap():
    heaps = {}
    for shared in (False, True):
        ran = subprocess.run(
            [sys.executable, "-c", COUNT.format(shared=shared)], capture_output=True, text=True, check=True
        )
        heaps[shared] = ran.stdout.count("<heap ")
    assert heaps[True] == 1 < heaps[False]


def test_another_c_library_is_left_alone(monkeypatch):
    from actstats_cli import heap

    monkeypatch.setattr(heap.ctypes, "CDLL", lambda _: object())
    heap.share_heap()
