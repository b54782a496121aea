"""Damage every object of a store in seven ways: what is noticed, what commands answer, and what a repair restores.

    python benchmarks/faults/damage.py > benchmarks/results/damage.json
    python benchmarks/tables.py

A small store of SqueezeNet is swept by the command line, as all commands here, in this process. Each object is
damaged by itself. `actstats info --verify` must name it; six reading commands and functions must refuse the store, or
answer exactly as for the sound one; `actstats repair` must restore the same bytes, except those of `provenance`. Then
single bits are flipped in the metadata. The result is the number of trials and of those that held; failures go to
stderr.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from click.testing import CliRunner
from PIL import Image

import actstats
from actstats.store.sweep import open_sweep
from actstats_cli.main import main

SWEEP = [
    "sweep",
    "--arch",
    "squeezenet1_1",
    "--weights",
    "none",
    "--device",
    "cpu",
    "--workers",
    "0",
    "--layers",
    "features.0,features.3.squeeze",
    "--partition-size",
    "2",
    "--batch-size",
    "2",
    "--top-k",
    "2",
]
IMAGES = 3
Answer = tuple[bool, object]
"""Whether a command or function answered, and what."""


def run(*arguments: str) -> tuple[int, str]:
    """Return the exit status and the output of a command; an exception that is not one line is raised."""
    result = CliRunner().invoke(main, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    if result.exit_code and not result.stderr.startswith("actstats: error: "):
        raise AssertionError(f"{arguments}: {result.stderr}")
    return result.exit_code, result.stdout


def command(*arguments: str) -> Callable[[Path], Answer]:
    """Return a reading command, given its words before and after the store."""

    def read(store: Path) -> Answer:
        status, output = run(*(str(store) if word == "STORE" else word for word in arguments))
        # Below an empty line, `info` prints the sizes of the objects, whatever they are.
        return status == 0, output.partition("\n\n")[0]

    return read


def function(read: Callable[[Path], object]) -> Callable[[Path], Answer]:
    """Return a reading function that may refuse a store, by an error of one line or Zarr's about a checksum."""

    def reading(store: Path) -> Answer:
        try:
            return True, read(store)
        except actstats.ActstatsError as error:
            return False, str(error)
        except ValueError as error:
            if "computed checksum do not match" not in str(error):
                raise
            return False, str(error)

    return reading


def all_values(store: Path) -> dict[str, bytes]:
    """Return the bytes of all variables and coordinates of the complete partitions, except `provenance`."""
    dataset = actstats.open_dataset(store)
    found = dataset.isel(image=dataset["status"].values >= 0, partition=dataset["completed"].values).load()
    arrays = {str(name): v.values for name, v in found.variables.items() if name != "provenance"}
    return {n: repr(a.tolist()).encode() if a.dtype == object else a.tobytes() for n, a in arrays.items()}


READING = {
    "info": command("info", "STORE"),
    "top": command("top", "STORE", "features.0/3"),
    "analyze smoothness": command("analyze", "smoothness", "STORE"),
    "analyze spectrum": command("analyze", "spectrum", "STORE"),
    "open_dataset": function(all_values),
    "top_images": function(lambda store: open_sweep(store).top("features.3.squeeze/1")),
}


def damages(file: Path, other: Path, seed: random.Random) -> Iterator[tuple[str, bytes | None]]:
    """Yield each way to damage a file, and the bytes that it leaves; `other` is the file to swap it with."""
    data = file.read_bytes()
    flipped = bytearray(data)
    flipped[seed.randrange(len(data))] ^= 1 << seed.randrange(8)
    yield "flip", bytes(flipped)
    yield "truncate", data[: len(data) // 2]
    yield "empty", b""
    yield "delete", None
    yield "zeros", bytes(len(data))
    yield "append", data + b"\n"
    yield "swap", other.read_bytes()


def write(file: Path, data: bytes | None) -> None:
    """Write the bytes of a file, or remove it."""
    file.unlink() if data is None else file.write_bytes(data)


def bytes_of(store: Path) -> dict[str, bytes]:
    """Return the bytes of all objects, except those of `provenance`."""
    names = {str(p.relative_to(store)): p for p in sorted(store.rglob("*")) if p.is_file()}
    return {name: p.read_bytes() for name, p in names.items() if not name.startswith("provenance/c")}


def fresh(sound: Path, store: Path) -> None:
    """Make `store` a copy of the sound store."""
    shutil.rmtree(store, ignore_errors=True)
    shutil.copytree(sound, store)


def partner(name: str, names: list[str]) -> str:
    """Return the object to swap with: the next of the same array, or of the same kind."""
    folder, _, rest = name.rpartition("/")
    like = [n for n in names if n.rpartition("/")[0] == folder and n != name and not n.endswith(".json")]
    if rest == "zarr.json" or not like:
        like = [n for n in names if n.rpartition("/")[2] == rest and n != name] or ["zarr.json"]
    return like[0]


def kind_of(name: str, outputs: list[str]) -> str:
    """Return the kind of an object, a row of the table."""
    folder, _, rest = name.rpartition("/")
    if not folder:
        return name
    if rest == "zarr.json":
        return "metadata of an array"
    if folder in outputs:
        return "variable"
    return folder if folder in ("status", "provenance", "completed") else "coordinate"


class Tally:
    """Trials and what held of them, by row and column."""

    def __init__(self) -> None:
        self.tried: Counter[tuple[str, str]] = Counter()
        self.held: Counter[tuple[str, str]] = Counter()

    def count(self, row: str, column: str, trial: Callable[[], bool], what: str) -> None:
        """Count a trial, and print it if it fails."""
        self.tried[row, column] += 1
        try:
            held = trial()
        except Exception as error:  # a traceback, for a user
            held, what = False, f"{what}: {error!r}"
        self.held[row, column] += held
        if not held:
            print(f"{row}, {column}: {what}", file=sys.stderr, flush=True)

    def rows(self) -> list[dict[str, object]]:
        """Return a record for each row and column."""
        return [
            {"object": r, "what": c, "tried": n, "held": self.held[r, c]} for (r, c), n in self.tried.items()
        ]


def same_or_refused(read: Callable[[Path], Answer], store: Path, right: list[object]) -> bool:
    """Whether a reader refuses a store or answers as one of `right`."""
    answered, found = read(store)
    return not answered or found in right


def damage_all(
    sound: Path, store: Path, tally: Tally, seed: random.Random, kinds: set[str], *, one_each: bool
) -> None:
    """Damage every object in every way."""
    outputs = json.loads((sound / "zarr.json").read_text())["attributes"]["outputs"]
    original = bytes_of(sound)
    names = sorted(str(p.relative_to(sound)) for p in sound.rglob("*") if p.is_file())
    fresh(sound, store)
    right = {name: [read(store)[1]] for name, read in READING.items()}
    incomplete = answers_without(sound, store)
    kinds_of = {name: kind_of(name, outputs) for name in names}
    if one_each:
        names = sorted({kind: name for name, kind in kinds_of.items()}.values())
    for name, kind in ((name, kinds_of[name]) for name in names):
        for how, data in damages(sound / name, sound / partner(name, list(kinds_of)), seed):
            if how not in kinds or data == (sound / name).read_bytes():
                continue  # all flags are the same
            what = f"{name} {how}"
            fresh(sound, store)
            write(store / name, data)

            def named(name: str = name) -> bool:
                result = CliRunner().invoke(main, ["info", str(store), "--verify"])
                text = result.output.replace(str(store), "")
                folder, _, rest = name.rpartition("/")
                return result.exit_code == 1 and (name in text if rest.endswith(".json") else folder in text)

            tally.count(kind, "named by verify", named, what)
            for reader, read in READING.items():
                answers = right[reader] + ([incomplete[name][reader]] if name in incomplete else [])
                tally.count(
                    kind,
                    "refused or right",
                    partial(same_or_refused, read, store, answers),
                    f"{what}: {reader}",
                )
            tally.count(
                kind,
                "repaired",
                lambda: run("repair", str(store))[0] == 0 and bytes_of(store) == original,
                what,
            )


def answers_without(sound: Path, store: Path) -> dict[str, dict[str, object]]:
    """Return the answers for a store without the objects of a partition, by the name of its flag."""
    outputs = json.loads((sound / "zarr.json").read_text())["attributes"]["outputs"]
    found = {}
    for flag in sorted((sound / "completed").glob("c.*")):
        fresh(sound, store)
        for name in (*outputs, "status", "provenance", "completed"):
            for file in [store / name / flag.name, *(store / name).glob(f"{flag.name}.*")]:
                file.unlink(missing_ok=True)
        found[f"completed/{flag.name}"] = {name: read(store)[1] for name, read in READING.items()}
    return found


def flip_metadata(sound: Path, store: Path, tally: Tally, seed: random.Random, times: int) -> None:
    """Flip single bits of metadata: half of them in the root, the others in the documents of the arrays."""
    fresh(sound, store)
    right = {name: [read(store)[1]] for name, read in READING.items()}
    documents = [store / "zarr.json", *sorted(store.glob("*/zarr.json"))]
    for number in range(times):
        file = documents[0] if number % 2 else seed.choice(documents[1:])
        data = file.read_bytes()
        flipped = bytearray(data)
        at, bit = seed.randrange(len(data)), seed.randrange(8)
        flipped[at] ^= 1 << bit
        file.write_bytes(flipped)
        what = f"bit {bit} of byte {at} of {file.relative_to(store)}"
        for reader in ("info", "top", "analyze smoothness", "open_dataset"):
            tally.count(
                "flipped bits of metadata",
                "refused or right",
                partial(same_or_refused, READING[reader], store, right[reader]),
                f"{what}: {reader}",
            )
        tally.count(
            "flipped bits of metadata",
            "named by verify",
            lambda: run("info", str(store), "--verify")[0] == 1,
            what,
        )
        file.write_bytes(data)


def measure() -> None:
    """Run all trials, and print them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flips", type=int, default=1000, help="Flipped bits of metadata.")
    parser.add_argument(
        "--kinds", default="flip,truncate,empty,delete,zeros,append,swap", help="Kinds of damage."
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--one-each", action="store_true", help="Damage one object of each kind only.")
    options = parser.parse_args()
    seed, tally = random.Random(options.seed), Tally()
    with tempfile.TemporaryDirectory() as folder:
        images, sound, store = (Path(folder) / name for name in ("images", "sound.zarr", "store.zarr"))
        images.mkdir()
        pixels = np.random.default_rng(options.seed).integers(0, 256, (IMAGES, 96, 96, 3), dtype=np.uint8)
        for number, image in enumerate(pixels):
            Image.fromarray(image).save(images / f"{number}.png")
        run(*SWEEP, "--data", str(images), "--out", str(sound))
        if options.kinds:
            damage_all(sound, store, tally, seed, set(options.kinds.split(",")), one_each=options.one_each)
        flip_metadata(sound, store, tally, seed, options.flips)
    which = "One object of each kind" if options.one_each else "Every object"
    note = f"{which}: {options.kinds.replace(',', ', ')}. Seed {options.seed}."
    print(json.dumps({"note": note, "trials": tally.rows()}, indent=1))


if __name__ == "__main__":
    measure()
