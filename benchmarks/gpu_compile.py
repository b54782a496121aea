"""The stage of `gpu_report.py` that compiles the kernels of all later stages into Triton's cache on disk."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from gpu_bench import CHOICES, KERNEL_CHOICES, Bench, buffers, maps
from gpu_networks import FEWER, Maps, hooked_maps, subjects

CHECKED = [
    (4, 64, 56, 56),
    (4, 64, 112, 112),
    (4, 192, 28, 28),
    (8, 480, 14, 14),
    (8, 832, 7, 7),
    (8, 2, 33, 17),
    (3, 70, 1, 1),
    (9, 64, 1, 197),
    (2, 4, 224, 224),
]
CHECKED_DRY = [(2, 9, 7, 7), (1, 3, 20, 17)]
MOST_SECONDS, MOST_ERRORS = 100, 10

Kernel = tuple[Maps, tuple[str, ...]]


def compiling(b: Bench) -> Iterator[dict[str, Any]]:
    """Compile in several processes, since Triton compiles one kernel at a time in each."""
    begun = time.perf_counter()
    if b.dry:
        some = [*dict.fromkeys(kernels_of_shapes(b))][:2]
        yield {"processes": 0, "kernels": len(some), "seconds": compile_all(some, dry=True)[0]}
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(os.cpu_count(), mp_context=context)
    futures: list[Future[tuple[float, list[str]]]] = []
    seen: set[Kernel] = set()
    # The processes start with the known shapes while the networks are still being loaded.
    for kernels in (kernels_of_shapes(b), kernels_of_networks(b)):
        new = dict.fromkeys(kernel for kernel in kernels if kernel not in seen)
        seen.update(new)
        futures += [pool.submit(compile_all, group) for group in _groups(new)]
    done, late = wait(futures, timeout=MOST_SECONDS)
    pool.shutdown(wait=not late, cancel_futures=True)
    found = [future.result() for future in done]
    row = {"processes": os.cpu_count(), "kernels": len(seen), "seconds": time.perf_counter() - begun}
    yield {**row, "seconds of all processes": sum(seconds for seconds, _ in found), "late": len(late)}
    errors = [error for _, errors in found for error in errors]
    yield from ({"failed": error} for error in errors[:MOST_ERRORS])


def kernels_of_shapes(b: Bench) -> Iterator[Kernel]:
    """Yield what the stages `check` and `kernels` launch, for two images."""
    for _, channels, height, width in CHECKED_DRY if b.dry else CHECKED:
        for dtype in (*b.dtypes.values(), b.torch.float16):
            x = maps(b, (2, channels, height, width), dtype)
            yield Maps.of(x), CHOICES["everything"]
            yield Maps.of(x.contiguous()), CHOICES["everything"]
    for shape in b.shapes:
        for dtype in b.dtypes.values():
            x = Maps.of(maps(b, (2, *shape), dtype))
            yield from ((x, wanted) for wanted in KERNEL_CHOICES.values())


def kernels_of_networks(b: Bench) -> Iterator[Kernel]:
    """Yield what the stages that run networks launch, for two images."""
    for subject in subjects(b):
        choices = ["everything", "moments, histogram", *(["moments"] if subject.name in FEWER else [])]
        for precision in ("bf16", "f32"):
            for x in hooked_maps(b, subject, precision):
                yield from ((x, CHOICES[choice]) for choice in choices)


def _groups(kernels: Iterable[Kernel]) -> list[list[Kernel]]:
    """Return lists of launches whose maps have the same size: most of each list share a kernel.

    Spectra, which take longest to compile, come first.
    """
    groups = defaultdict(list)
    for x, wanted in kernels:
        groups[x.shape[2:], x.stride[1] == 1, x.dtype, wanted].append((x, wanted))
    return sorted(groups.values(), key=lambda group: "power" not in group[0][1])


def compile_all(kernels: list[Kernel], *, dry: bool = False) -> tuple[float, list[str]]:
    """Launch each kernel once; return the seconds, and the errors."""
    begun = time.perf_counter()
    from actstats_kernels import gpu

    b = Bench(dry, 0, Path())
    errors = []
    for x, wanted in kernels:
        try:
            values = b.torch.empty_strided(x.shape, x.stride, dtype=x.dtype, device=b.device).zero_()
            gpu.accumulate(values, *buffers(b, *x.shape[:2], wanted))  # type: ignore[call-arg]
            b.synchronize()
        except Exception as error:
            errors.append(f"{list(x.shape)} {x.dtype} {' '.join(wanted)}: {type(error).__name__}: {error}")
    return time.perf_counter() - begun, errors
