"""Freed memory is kept during forward passes, and returned afterwards."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from actstats.passes import device

pytestmark = pytest.mark.glibc  # the only one with mallopt

COUNT = """
import resource
import torch
from actstats.passes.device import memory_reused

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(64 * 2**20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

faults()
print(faults())
with memory_reused():
    faults()
    with memory_reused():
        pass
    print(faults())
    kept = resident()
print(kept - resident())
print(faults())
"""


def test_pages_are_cleared_once_in_the_context_and_returned_after_it():
    done = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True)
    before, inside, returned, after = map(int, done.stdout.split())
    assert before > 200  # ten times 64 MiB, in huge pages of 2 MiB or in small ones
    assert inside < before / 10
    assert returned > 60 * 2**20
    assert after > 10 * inside


def test_the_last_of_several_threads_returns_the_memory(monkeypatch):
    called: list[object] = []

    class Libc:
        def mallopt(self, option, value):
            called.append((option, value))

        def malloc_trim(self, pad):
            called.append("trim")

    monkeypatch.setattr(device, "_glibc", Libc)
    inside, leave = threading.Event(), threading.Event()

    def hold():
        with device.memory_reused():
            inside.set()
            leave.wait()

    other = threading.Thread(target=hold, daemon=True)
    with device.memory_reused():
        other.start()
        inside.wait()
    assert "trim" not in called
    leave.set()
    other.join()
    assert called.count("trim") == 1


def test_an_error_inside_ends_the_reuse():
    with pytest.raises(ZeroDivisionError), device.memory_reused():
        raise ZeroDivisionError
    assert device._reusing == 0
