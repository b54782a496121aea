"""A fuzzer of weights files: whole ones of every format, changed at random, read in a process with limits.

    python -m tests.hostile.fuzz_weights 10000 --seed 1

makes and reads so many files and prints the greatest time and memory that one took. Files that the reader neither
takes nor refuses in one line are kept in the folder `found`, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import io
import json
import pickle
import pickletools
import random
import struct
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from tests.hostile.reading import network, read_apart
from tests.models.checkpoints.crafted import tar_of, zip_of
from tests.models.layouts import attacked

BLOCK = 1000
"""Files that are made and read at once."""
NUMBERS = (0, 1, -1, 255, 1 << 15, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 62), (1 << 63) - 1)
OPCODES = [opcode.code.encode("latin1") for opcode in pickletools.opcodes]


def seeds() -> dict[str, bytes]:
    """Whole files: every format, and the usual layouts."""
    torch.manual_seed(0)
    net = network()
    state = net.state_dict()
    optimiser = torch.optim.Adam(net.parameters())
    net(torch.zeros(2, 3, 3, 3)).sum().backward()
    optimiser.step()
    training = {
        "epoch": 3,
        "state_dict": {f"module.{k}": v for k, v in state.items()},
        "optimizer": optimiser.state_dict(),
    }
    preprocessing = {
        "resize": 32,
        "crop": 32,
        "interpolation": "bilinear",
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
    }
    notes = {
        "preprocessing": json.dumps(preprocessing),
        "num_classes": "5",
        "classes": '["a", "b", "c", "d", "e"]',
    }
    return {
        "zip": saved(state),
        "zip of training": saved(training),
        "zip of an attacker": saved({"model": attacked(state)}),
        "zip of a module": saved(nn.Sequential(net)),
        "stream": saved(state, legacy=True),
        "stream of training": saved(training, legacy=True),
        "pickle": pickled(state),
        "safetensors": save({k: v.contiguous() for k, v in state.items()}, notes),
    }


def saved(content: Any, *, legacy: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def pickled(state: dict[str, Tensor]) -> bytes:
    with warnings.catch_warnings(action="ignore"):
        return pickle.dumps(dict(state), protocol=2)


def mutants(seed: int) -> Iterator[bytes]:
    """Files without end, the same for the same seed."""
    chance = random.Random(seed)
    whole = list(seeds().values())
    while True:
        data = chance.choice(whole)
        for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
            data = mutate(data, chance)
        yield data


def mutate(data: bytes, chance: random.Random) -> bytes:
    """Change a file: often within its container, which stays whole, so that the change is read."""
    if chance.random() < 0.7:
        change = in_header if data[8:9] == b"{" else in_zip if data[:2] == b"PK" else in_pickle
        with suppress(Exception):  # what a change before has left is no such container
            return change(data, chance)
    return chance.choice(RAW)(data, chance)


def in_zip(data: bytes, chance: random.Random) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    names = sorted(members)
    name = chance.choice([n for n in names if n.endswith("data.pkl")] * 3 + names)
    change = (
        chance.choice((in_pickle, in_pickle, in_pickle, *RAW))
        if name.endswith(".pkl")
        else chance.choice(RAW)
    )
    members[name] = change(members[name], chance)
    if chance.random() < 0.05:
        return tar_of(members)
    return zip_of(members, chance.choice([zipfile.ZIP_STORED] * 19 + [zipfile.ZIP_DEFLATED]))


def in_header(data: bytes, chance: random.Random) -> bytes:
    """Change a value of the JSON that a safetensors file begins with, and the length of that to match."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    place, entry = header, chance.choice(list(header) or [""])
    while isinstance(place.get(entry), dict) and place[entry]:
        place, entry = place[entry], chance.choice(list(place[entry]))
    values = [
        *NUMBERS,
        10**30,
        -1.5,
        "",
        "x" * 5000,
        "1e999",
        "[" * 5000,
        None,
        [],
        {},
        [1 << 40] * 3,
        [-1],
        "NaN",
    ]
    place[entry] = chance.choice(values)
    if entry in ("preprocessing", "num_classes", "classes"):
        place[entry] = (
            json.dumps(
                {
                    "resize": 32,
                    "crop": chance.choice(NUMBERS),
                    "interpolation": "bilinear",
                    "mean": [chance.choice(NUMBERS)] * 3,
                    "std": [0.5] * 3,
                }
            )
            if chance.random() < 0.5
            else json.dumps(chance.choice(values[:8]))
        )
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def in_pickle(data: bytes, chance: random.Random) -> bytes:
    """Move, repeat, drop or put in opcodes, at their bounds."""
    places = [0]
    with suppress(Exception):  # the opcodes before the one that a change has broken
        places.extend(place for _, _, place in pickletools.genops(data) if place)
    first, second = sorted((chance.choice(places), chance.choice(places)))
    piece = data[first:second][:400]
    match chance.randrange(5):
        case 0:
            return data[:first] + piece * chance.choice((2, 3, 10, 1000)) + data[second:]
        case 1:
            return data[:first] + data[second:]
        case 2:
            return data[:second] + piece + data[second:]
        case 3:
            argument = struct.pack("<q", chance.choice(NUMBERS))[: chance.choice((0, 1, 2, 4, 8))]
            return data[:first] + chance.choice(OPCODES) + argument + data[first:]
        case _:
            return data[:first] + (chance.choice(OPCODES) * chance.choice((1, 2, 50, 5000))) + data[first:]


def _flipped(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 2, 16))):
        if changed:
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _cut(data: bytes, chance: random.Random) -> bytes:
    first, second = sorted(chance.randrange(len(data) + 1) for _ in range(2))
    return data[:first] + data[second:] if chance.random() < 0.5 else data[:first]


def _repeated(data: bytes, chance: random.Random) -> bytes:
    first, second = sorted(chance.randrange(len(data) + 1) for _ in range(2))
    return data[:second] + data[first:second] * chance.choice((1, 2, 20)) + data[second:]


def _numbered(data: bytes, chance: random.Random) -> bytes:
    number = struct.pack("<q", chance.choice(NUMBERS))[: chance.choice((1, 2, 4, 8))]
    place = chance.randrange(len(data) + 1)
    return data[:place] + number + data[place + len(number) :]


RAW: tuple[Callable[[bytes, random.Random], bytes], ...] = (_flipped, _cut, _repeated, _numbered)


def fuzz(count: int, seed: int, folder: Path) -> Iterator[dict[str, Any]]:
    """Make so many files in `folder`, and yield what came of each, as `reading.read_all`; faults stay there."""
    files = mutants(seed)
    for start in range(0, count, BLOCK):
        paths = []
        for number in range(start, min(start + BLOCK, count)):
            data = next(files)[: 4 << 20]
            ending = "safetensors" if data[8:9] == b"{" else "pt"
            paths.append(folder / f"{seed}-{number}.{ending}")
            paths[-1].write_bytes(data)
        for path, found in zip(paths, read_apart(paths), strict=True):
            if "fault" not in found and "\n" not in found["said"]:
                path.unlink()
            yield found


def summary(found: list[dict[str, Any]]) -> str:
    slowest, largest = (max(found, key=lambda each: each[what]) for what in ("seconds", "megabytes"))
    taken = sum(not each["said"] for each in found)
    return (
        f"{len(found):,} files, {taken:,} of them read and the rest refused; at most {slowest['seconds']:.2f} s of "
        f"processor time and {largest['megabytes']:.0f} MB"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    asked = parser.parse_args()
    print(f"seed {asked.seed}")
    folder = Path("found").resolve()
    folder.mkdir(exist_ok=True)
    found, faults = [], []
    for each in fuzz(asked.count, asked.seed, folder):
        found.append(each)
        if "fault" in each or "\n" in each["said"]:
            faults.append(each)
            print(each["file"], each.get("fault", each["said"]))
        if len(found) % 1000 == 0:
            print(summary(found), flush=True)
    print(summary(found))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
