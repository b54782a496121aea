"""Changes to the metadata of a store, drawn from a seed, with every checksum made right, and what readers do.

A reader refuses a changed store in one line, or returns what it returned before the change. A traceback, other
numbers, or more memory or time than `LIMITS` are faults.
"""

from __future__ import annotations

import copy
import json
import random
import resource
import shutil
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from click.testing import CliRunner

import actstats
from actstats.analysis import selectivity, smoothness
from actstats.errors import ActstatsError
from actstats.store.digests import as_json, digest, manifest_in, sealed
from actstats.store.sweep import open_sweep
from actstats_cli.main import main
from tests.hostile.reading import _forget_peak, _status

LIMITS: Final = (20.0, 500_000)
"""Seconds of processor time, and kB of memory beyond that of the process, that one reader may take."""
UNIT: Final = "features.0/3"
SWEEP: Final = (
    "sweep --arch squeezenet1_1 --weights none --device cpu --layers features.0,features.3.squeeze "
    "--partition-size 4 --batch-size 4 --top-k 3 --workers 0"
)
DEEP: Final = "nested deeply"
DEPTH: Final = 100_000

Json = Any
Path_ = tuple[str | int, ...]


@dataclass(frozen=True)
class Mutation:
    """A change of the JSON in `zarr.json`.

    Attributes:
        part: what was changed: `manifest`, `arrays` or `root`.
        kind: how; one of `KINDS`.
        path: where, as keys and indices.
        value: the new value; None for some kinds.
    """

    part: str
    kind: str
    path: Path_
    value: Json = None

    def __str__(self) -> str:
        value = "" if self.value is None else f" {ascii(self.value)[:60]}"
        return f"{self.kind}: {'.'.join(map(str, self.path))}{value}"


ANYTHING: Final[tuple[Json, ...]] = (
    None, True, False, 0, 1, -1, 2, 7, 0.5, -0.0, 2**31 - 1, 2**31, 2**32 + 1, 2**63 - 1, 2**63, -(2**63), 10**40,
    1e308, float("nan"), float("inf"), "", "x", "$(id)", "../../etc/passwd", "os:system", "\x1b[31mred", "two\nlines",
    "\0", "\ud800", "\udcff", "nan", "0", "1e9", "a" * 5000, [], [None], [[]], ["x"], [1, 2, 3], {}, {"x": 1},
    {"": None},
)  # fmt: skip
"""Values of every type, of which some are out of bounds everywhere."""
BOUNDS: Final[tuple[Json, ...]] = (
    -1, 0, 1, 2, 3, 5, 13, 2**16, 10**6, 10**8, 2**31 - 1, 2**31, 2**40, 2**63, 10**30,
)  # fmt: skip
"""Numbers that a count or a size might be."""


def nodes(value: Json, path: Path_ = ()) -> Iterator[Path_]:
    """Yield the path of every value within `value`."""
    entries: Iterable[tuple[str | int, Json]] = ()
    if isinstance(value, dict):
        entries = value.items()
    elif isinstance(value, list):
        entries = enumerate(value)
    for key, item in entries:
        yield (*path, key)
        yield from nodes(item, (*path, key))


def at(value: Json, path: Path_) -> Json:
    """Return the value at a path."""
    for key in path:
        value = value[key]
    return value


def part_of(path: Path_) -> str:
    """Return which part of `zarr.json` a path lies in."""
    return {"attributes": "manifest", "consolidated_metadata": "arrays"}.get(str(path[0]), "root")


KINDS: Final = (
    "removed", "another value", "another number", "another entry", "unknown entry", "renamed", "list changed", "deep",
)  # fmt: skip


def drawn(root: Json, count: int, seed: int) -> Iterator[Mutation]:
    """Yield `count` mutations, drawn from a seed: of each kind, and half of them in the manifest."""
    chosen = random.Random(seed)
    by_part: dict[str, list[Path_]] = {"manifest": [], "arrays": [], "root": []}
    for path in nodes(root):
        if path[:2] != ("attributes", "checksum"):
            by_part[part_of(path)].append(path)
    parts = ["manifest"] * 10 + ["arrays"] * 9 + ["root"]
    number = 0
    while number < count:
        kind = KINDS[number % len(KINDS)]
        path = chosen.choice(by_part[chosen.choice(parts)])
        mutation = _mutation(root, kind, path, chosen, by_part)
        if mutation is not None:
            number += 1
            yield mutation


def _mutation(
    root: Json, kind: str, path: Path_, chosen: random.Random, by_part: Mapping[str, list[Path_]]
) -> Mutation | None:
    old, part = at(root, path), part_of(path)
    value: Json = None
    if kind == "another value":
        value = chosen.choice(ANYTHING)
    elif kind == "another number":
        if isinstance(old, bool) or not isinstance(old, int | float):
            return None
        value = chosen.choice([*BOUNDS, old + 1, old - 1, old * 2, -old, float(old), str(old)])
    elif kind == "another entry":
        value = at(root, chosen.choice(by_part[part]))
    elif kind == "list changed":
        if not isinstance(old, list) or not old:
            return None
        value = chosen.choice(
            [
                old[:-1],
                [*old, old[-1]],
                old[::-1],
                old[1:],
                [*old, None],
                old * 1000,
                chosen.sample(old, len(old)),
            ]
        )
    elif kind == "unknown entry":
        if not isinstance(old, dict):
            return None
        path, value = (*path, chosen.choice(["x", "", "_FillValue", "scale_factor", "\x1b[2J", "filters"])), 1
    elif kind == "renamed" and not isinstance(path[-1], str):
        return None
    unchanged = kind not in ("removed", "renamed", "deep", "unknown entry") and (
        json.dumps(value, sort_keys=True) == json.dumps(old, sort_keys=True)
    )
    return None if unchanged else Mutation(part, kind, path, value)


def mutated(root: Json, mutation: Mutation) -> Json:
    """Return a changed `zarr.json`."""
    root = copy.deepcopy(root)
    *parents, last = mutation.path
    parent = at(root, tuple(parents))
    if mutation.kind == "removed":
        del parent[last]
    elif mutation.kind == "renamed":
        parent[f"{last}s"] = parent.pop(last)
    else:
        parent[last] = DEEP if mutation.kind == "deep" else copy.deepcopy(mutation.value)
    return root


def write(store: Path, root: Json, *, digests: bool = True) -> None:
    """Write a changed `zarr.json`, and all that follows from it, as an attacker would.

    These are the metadata of each array in its own file, the second copy of the manifest, and the checksums, with
    `digests` also those of the objects in the store.
    """
    with suppress(KeyError, TypeError, AttributeError):
        for name, metadata in root["consolidated_metadata"]["metadata"].items():
            if (store / name / "zarr.json").is_file():
                (store / name / "zarr.json").write_bytes(as_json(metadata))
    with suppress(KeyError, TypeError, AttributeError, ValueError, OSError):
        known = root["attributes"]["digests"]
        files = {key: (store / key).read_bytes() for key in known if key != "zarr.json"}
        fresh = {key: digest(key, data) for key, data in files.items()} if digests else None
        root = sealed(root, fresh)
        (store / "manifest.json").write_bytes(as_json(manifest_in(root)))
    text = as_json(root).decode().replace(f'"{DEEP}"', "[" * DEPTH + "]" * DEPTH)
    (store / "zarr.json").write_text(text)


def _command(*words: str) -> Callable[[Path], str]:
    def run(store: Path) -> str:
        result = CliRunner().invoke(main, [word.format(store=store, folder=store.parent) for word in words])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        if result.exit_code:
            assert "Traceback" not in result.stderr, result.stderr
            lines = [line for line in result.stderr.splitlines() if line]
            error = next((line for line in lines if line.startswith("actstats: error: ")), None)
            if error is None or any(line.startswith(" ") for line in lines):
                # `info --verify` lists damage on stdout
                assert words[-1] == "--verify", result.stderr
                assert "damaged" in result.stdout, result.stdout
            raise ActstatsError(error or "damaged")
        return result.stdout

    return run


def _values(store: Path) -> dict[str, Any]:
    dataset = actstats.open_dataset(store).load()
    return {str(name): (v.dims, v.dtype.str, v.values.tobytes()) for name, v in dataset.variables.items()} | {
        str(name): v.values.tolist() for name, v in dataset.variables.items() if v.dtype.kind in "OU"
    }


READERS: Final[Mapping[str, tuple[Callable[[Path], Any], bool]]] = {
    "info": (_command("info", "{store}"), False),
    "info --json": (_command("info", "{store}", "--json"), False),
    "info --verify": (_command("info", "{store}", "--verify"), False),
    "top": (lambda store: open_sweep(store).top(UNIT), True),
    "analyze smoothness": (lambda s: _table(smoothness(actstats.open_dataset(s)).compute()), True),
    "analyze selectivity": (lambda s: _table(selectivity(actstats.open_dataset(s)).compute()), True),
    "analyze": (_command("analyze", "smoothness", "{store}"), True),
    "open_dataset": (_values, True),
    "report": (_command("compare", "{store}", "--report", "{folder}/page.html"), False),
}
"""What reads a store, and whether it returns numbers only, which must stay equal."""


def _table(dataset: Any) -> dict[str, Any]:
    return {str(name): np.asarray(v.values, dtype=object).tolist() for name, v in dataset.variables.items()}


@dataclass(frozen=True)
class Outcome:
    """What a reader made of a changed store: `refused`, `same`, or the name of a fault with its description."""

    mutation: Mutation
    reader: str
    result: str
    said: str
    seconds: float
    kilobytes: int

    @property
    def fault(self) -> str:
        """What is wrong, or an empty text."""
        if self.result not in ("refused", "same"):
            return self.result
        if "\n" in self.said or len(self.said) > 2000:
            return "not one line"
        if self.seconds > LIMITS[0]:
            return "time"
        return "memory" if self.kilobytes > LIMITS[1] else ""


def outcome(mutation: Mutation, reader: str, store: Path, expected: Mapping[str, Any]) -> Outcome:
    """Return what one reader makes of a changed store."""
    read, numbers = READERS[reader]
    _forget_peak()
    before, begun = _status("VmRSS"), time.process_time()
    said = ""
    signal.setitimer(signal.ITIMER_VIRTUAL, LIMITS[0])
    try:
        found = read(store)
        same = not numbers or repr(found) == repr(expected[reader])
        result = "same" if same else "other numbers"
    except ActstatsError as error:
        result, said = "refused", str(error)
    except TimeoutError:
        result = "time"
    except MemoryError:
        result = "memory"
    except BaseException:
        result, said = "traceback", traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    return Outcome(mutation, reader, result, said, time.process_time() - begun, _status("VmHWM") - before)


def outcomes(
    good: Path, folder: Path, mutations: Iterable[Mutation], readers: Iterable[str] = tuple(READERS)
) -> Iterator[Outcome]:
    """Apply each mutation to a copy of the store `good` in `folder`, and read it."""
    readers = list(readers)
    store = folder / "s.zarr"
    shutil.copytree(good, store)
    root = json.loads((good / "zarr.json").read_text())
    expected = {reader: READERS[reader][0](store) for reader in readers}
    documents = {file: file.read_bytes() for file in [*store.rglob("zarr.json"), store / "manifest.json"]}
    for mutation in mutations:
        write(store, mutated(root, mutation), digests=mutation.path[:2] != ("attributes", "digests"))
        for reader in readers:
            yield outcome(mutation, reader, store, expected)
        for file, content in documents.items():
            file.write_bytes(content)


def limit(kilobytes: int = 4_000_000) -> None:
    """Limit the addresses of this process, so that what asks for gigabytes fails, and stop what takes minutes."""
    if _status("VmSize"):
        most = (_status("VmSize") + kilobytes) * 1000
        resource.setrlimit(resource.RLIMIT_AS, (most, most))

    def stop(_signal: int, _frame: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGVTALRM, stop)


def made(folder: Path, images: int = 12) -> Path:
    """Return a small store that the command sweeps in `folder`."""
    from tests.conftest import photograph

    (folder / "images").mkdir(parents=True)
    for index in range(images):
        (folder / "images" / "ab"[index % 2]).mkdir(exist_ok=True)
        photograph(index).save(folder / "images" / "ab"[index % 2] / f"{index}.png")
    words = [*SWEEP.split(), "--data", str(folder / "images"), "--out", str(folder / "good.zarr")]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    return folder / "good.zarr"


def table(found: Iterable[Outcome]) -> list[dict[str, Any]]:
    """Return the counts of mutations, by part and kind: how many were tried, refused, harmless and faulty."""
    by_mutation: dict[int, tuple[Mutation, set[str]]] = {}
    for each in found:
        by_mutation.setdefault(id(each.mutation), (each.mutation, set()))[1].add(each.fault or each.result)
    counts: dict[str, Counter[str]] = {}
    for mutation, results in by_mutation.values():
        faults = results - {"refused", "same"}
        result = "faults" if faults else "refused" if "same" not in results else "harmless"
        counts.setdefault(mutation.part, Counter())[result] += 1
    return [
        {
            "part": part,
            "tried": sum(c.values()),
            **{name: c[name] for name in ("refused", "harmless", "faults")},
        }
        for part, c in counts.items()
    ]
