r"""Read a pickle as plain data: tensors are recorded, and everything else that it names becomes an inert placeholder.

Python's own unpickler imports what a pickle names, and calls it. This one has no way to do either: it handles
numbers, texts, bytes, lists, tuples, sets and dicts, does by name the few functions that PyTorch rebuilds tensors
with, and puts a `Foreign` in the place of everything else. `pickletools` splits the bytes into opcodes;
its readers run nothing.

>>> import io, pickle
>>> Machine(NO_TENSORS).read(io.BytesIO(pickle.dumps({"lr": [0.1, 3]})))
{'lr': [0.1, 3]}
>>> machine = Machine(NO_TENSORS)
>>> machine.read(io.BytesIO(b"cos\nsystem\n(S'touch here'\ntR.")).arguments, machine.foreign
(('touch here',), {'os.system'})
"""

from __future__ import annotations

import pickletools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

import torch

from actstats.models.checkpoints.records import (
    Archive,
    Foreign,
    Name,
    Refused,
    Storage,
    TensorRecord,
    dtype_named,
)

MOST_BYTES: Final = 256 << 20
"""Bytes of pickle, tensors apart, beyond which a file is refused; an optimiser's state takes a few million."""
MOST_OPCODES: Final = 2_000_000
"""Opcodes beyond which a file is refused: some seconds of reading. A large optimiser's state takes 200,000."""
_LONGEST_NAME: Final = 1000
"""Characters of the name of a function, class or storage."""
_MOST_AXES: Final = 64
_LATEST: Final = 5

_CONSTANTS: Final[dict[str, Callable[[Any], Any]]] = {
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    "EMPTY_LIST": lambda _: [],
    "EMPTY_TUPLE": lambda _: (),
    "EMPTY_DICT": lambda _: {},
    "EMPTY_SET": lambda _: set(),
    "BYTEARRAY8": bytes,
    **dict.fromkeys(("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"), lambda number: number),
    **dict.fromkeys(("FLOAT", "BINFLOAT"), lambda number: number),
    **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING"), lambda text: text),
    **dict.fromkeys(("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), lambda text: text),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"), lambda data: data),
}
_SINCE_MARK: Final = frozenset(
    {"LIST", "TUPLE", "DICT", "FROZENSET", "APPENDS", "SETITEMS", "ADDITEMS", "INST", "OBJ", "POP_MARK"}
)


class Readable(Protocol):
    """A file as `pickletools` reads it."""

    def read(self, size: int = -1, /) -> bytes:
        """Return up to `size` bytes."""
        ...

    def readline(self) -> bytes:
        """Return the bytes to the end of the line."""
        ...


class _NoTensors:
    def data(self, key: str, size: int) -> bytearray:
        """Raise `Refused`."""
        raise Refused("it refers to tensors that it does not hold")


NO_TENSORS: Final = _NoTensors()
"""The archive of a bare pickle, which has no storages."""


class Budget:
    """Limits on reading one file, however its pickles are nested.

    `opcodes` bounds the work. `copies` bounds the memory: the bytes that calls within a pickle may copy, three times
    the file's `size` and a mebibyte. Files of training programs are copied at most twice: text encoded as bytes, and
    a nested file.
    """

    def __init__(self, size: int) -> None:
        self.opcodes = MOST_OPCODES
        self.copies = 3 * size + (1 << 20)

    def step(self, count: int = 1) -> None:
        """Count opcodes; raise `Refused` if there are more than `MOST_OPCODES`."""
        self.opcodes -= count
        if self.opcodes < 0:
            raise Refused(f"its pickle has more than {MOST_OPCODES:,} opcodes")

    def copy(self, size: int) -> None:
        """Count a copy of `size` bytes; raise `Refused` if the pickle copies more than it may."""
        self.copies -= size
        if self.copies < 0:
            raise Refused("its pickle copies its own content over and over")


class Machine:
    """Reads pickles that belong together, within one budget.

    `foreign` collects the names that tensors do not need, `storages` the storages by key. `find` returns what a
    persistent id stands for, and `unpack` the content of a PyTorch file within the pickle.
    """

    def __init__(
        self,
        archive: Archive,
        find: Callable[[Any], Any] | None = None,
        unpack: Callable[[bytes, Machine], Any] | None = None,
        *,
        budget: Budget | None = None,
    ) -> None:
        self.archive = archive
        self.foreign: set[str] = set()
        self.storages: dict[str, Storage] = {}
        self.budget = budget or Budget(0)
        self._find = find or self._storage
        self._unpack = unpack

    def read(self, file: Readable) -> Any:
        """Return the content of the pickle that begins at the file's position, which moves to the end of the pickle.

        Raises `Refused`; and ValueError, IndexError, KeyError, TypeError or the like if it is damaged.
        """
        stack: list[Any] = []
        frames: list[list[Any]] = []
        memo: dict[int, Any] = {}
        opcodes: Iterator[Any] = pickletools.genops(file)  # type: ignore[arg-type]
        for opcode, argument, _ in opcodes:
            self.budget.step()
            name = opcode.name
            if name in _CONSTANTS:
                stack.append(_CONSTANTS[name](argument))
            elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
                memo[argument] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET", "GET"):
                stack.append(memo[argument])
            elif name == "MEMOIZE":
                memo[len(memo)] = stack[-1]
            elif name == "MARK":
                frames.append(stack)
                stack = []
            elif name in _SINCE_MARK or (name == "POP" and not stack):
                items, stack = stack, frames.pop()
                self._gather(name, argument, items, stack)
            elif name == "STOP":
                return stack.pop()
            elif name not in ("PROTO", "FRAME"):
                self._step(name, argument, stack)
            elif name == "PROTO" and argument > _LATEST:
                raise Refused(f"its pickle has protocol {argument}, which is not known")
        raise ValueError("the pickle has no end")

    def nested(self, data: Any) -> Any:
        """Return what a file of PyTorch's within the pickle holds."""
        if self._unpack is None or not isinstance(data, bytes):
            raise Refused("it nests files in files")
        self.budget.step(100)
        self.budget.copy(len(data))
        return self._unpack(data, self)

    def _gather(self, name: str, argument: Any, items: list[Any], stack: list[Any]) -> None:
        """Do an opcode that takes all since the last mark."""
        match name:
            case "LIST":
                stack.append(items)
            case "TUPLE":
                stack.append(tuple(items))
            case "DICT":
                stack.append(fill({}, pairs(items)))
            case "FROZENSET":
                stack.append(frozenset(map(key, items)))
            case "APPENDS" | "ADDITEMS":
                extend(stack[-1], items)
            case "SETITEMS":
                fill(stack[-1], pairs(items))
            case "INST":
                stack.append(make(self, self._named(*argument.split(" ", 1)), tuple(items)))
            case "OBJ":
                stack.append(make(self, items[0], tuple(items[1:])))

    def _step(self, name: str, argument: Any, stack: list[Any]) -> None:
        """Do one of the other opcodes."""
        match name:
            case "APPEND":
                item = stack.pop()
                extend(stack[-1], [item])
            case "SETITEM":
                value, entry = stack.pop(), stack.pop()
                fill(stack[-1], [(entry, value)])
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                first = len(stack) - int(name[-1])
                if first < 0:
                    raise IndexError("the stack is empty")
                stack[first:] = [tuple(stack[first:])]
            case "POP":
                stack.pop()
            case "DUP":
                stack.append(stack[-1])
            case "GLOBAL":
                stack.append(self._named(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                stack.append(self._named(module, attribute))
            case "REDUCE" | "NEWOBJ":
                arguments, maker = stack.pop(), stack.pop()
                stack.append(make(self, maker, arguments))
            case "NEWOBJ_EX":
                keywords, arguments, maker = stack.pop(), stack.pop(), stack.pop()
                stack.append(Foreign(named(maker), (arguments, keywords)))
            case "BUILD":
                state = stack.pop()
                set_state(stack[-1], state)
            case "PERSID":
                stack.append(self._find(argument))
            case "BINPERSID":
                stack.append(self._find(stack.pop()))
            case _:  # EXT1 to EXT4 stand for what a program registered with copyreg; buffers lie outside the pickle.
                raise Refused(f"its pickle has the opcode {name}, which no weights need")

    def _named(self, module: Any, name: Any) -> Name:
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError("a name that is no text")
        if len(module) + len(name) > _LONGEST_NAME:
            raise Refused(f"it names something in more than {_LONGEST_NAME:,} characters")
        found = Name(module, name)
        if not is_known(found):
            self.foreign.add(str(found))
        return found

    def _storage(self, identifier: Any) -> Any:
        if not isinstance(identifier, tuple) or len(identifier) < 2:
            raise Refused("it refers to objects outside of it")
        if identifier[0] == "module":  # a class, followed by its source code
            return identifier[1]
        kind, cls, name, _, numel, *view = identifier
        dtype = dtype_named(cls)
        if kind != "storage" or dtype is None or type(numel) is not int or numel < 0:
            raise Refused(f"it has a storage of an unknown kind, {named(cls)}")
        text = storage_key(name)
        whole = self.storages.setdefault(text, Storage(self.archive, text, dtype, numel))
        if view and view[0] is not None:
            _, start, length = view[0]
            return Storage(self.archive, whole.key, dtype, int(length), int(start))
        return whole


# The few functions that pickles of PyTorch call, each done here by its name on plain data.

_SCALARS: Final = (str, bytes, int, float, type(None), Name, Foreign, Storage, TensorRecord)
_LARGEST_KEY: Final = 1 << 53


def make(machine: Machine, maker: Any, arguments: Any) -> Any:
    """Return what a call of `maker` would give if it is one of the few known; a placeholder for any other."""
    if not isinstance(arguments, tuple):
        raise TypeError("arguments that are no tuple")
    known = _KNOWN.get(str(maker)) if isinstance(maker, Name) else None
    return known(machine, *arguments) if known else Foreign(named(maker), arguments)


def named(maker: Any) -> str:
    """Return the name that a placeholder for something made by `maker` gets."""
    return str(maker) if isinstance(maker, Name) else getattr(maker, "name", type(maker).__name__)


def is_known(name: Name) -> bool:
    """Return whether PyTorch's own files need that name."""
    # Old files note beside each tensor that it was, say, a torch.FloatTensor.
    tensor = name.module in ("torch", "torch.cuda") and name.name.endswith("Tensor")
    return tensor or str(name) in _KNOWN or dtype_named(name) is not None


def pairs(items: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """Return pairs of keys and values from a flat list."""
    return zip(items[::2], items[1::2], strict=True)


def key(value: Any) -> Any:
    """Return `value` if it is a string or another scalar, otherwise a placeholder.

    Tuples in tuples could take forever to hash. Tuples, complex and huge numbers can be made to collide, and a dict
    of colliding keys takes time that grows with their square; texts cannot, since Python salts their hashes.
    """
    if isinstance(value, _SCALARS) and not (isinstance(value, int) and abs(value) > _LARGEST_KEY):
        return value
    return Foreign("a key that is no plain value")


def storage_key(value: Any) -> str:
    """Return the key of a storage as text; raise `Refused` unless it is a short text or a number."""
    if not isinstance(value, str | int) or (isinstance(value, str) and len(value) > _LONGEST_NAME):
        raise Refused("it has a storage whose key is neither a short text nor a number")
    return str(value)


def fill(target: Any, entries: Iterable[tuple[Any, Any]]) -> Any:
    """Set the entries of a dict, and return it; a placeholder drops them."""
    if isinstance(target, dict):
        for name, value in entries:
            target[key(name)] = value
    elif not isinstance(target, Foreign):
        raise TypeError("entries of something that is no dict")
    return target


def extend(target: Any, items: Sequence[Any]) -> None:
    """Add items to a list or a set; a placeholder drops them."""
    if isinstance(target, list):
        target.extend(items)
    elif isinstance(target, set):
        target.update(map(key, items))
    elif not isinstance(target, Foreign):
        raise TypeError("items of something that is no list")


def set_state(target: Any, state: Any) -> None:
    """Keep the state of a placeholder, and the versions of modules that PyTorch notes beside a state dict."""
    if isinstance(target, Foreign):
        target.state = state
    elif isinstance(target, OrderedDict) and isinstance(state, Mapping):
        layout = state.get("_metadata")
        vars(target)["_metadata"] = layout if isinstance(layout, Mapping) else {}


def _tensor(machine: Machine, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> TensorRecord:
    return _record(storage, offset, size, stride, None)


def _tensor_of_dtype(
    machine: Machine,
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    grad: Any,
    hooks: Any,
    dtype: Any,
    *_: Any,
) -> TensorRecord:
    return _record(storage, offset, size, stride, dtype_named(dtype))


def _record(storage: Any, offset: Any, size: Any, stride: Any, dtype: torch.dtype | None) -> TensorRecord:
    if not isinstance(storage, Storage) or not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise Refused("it has a tensor without a storage or a shape")
    if len(size) != len(stride) or len(size) > _MOST_AXES:
        raise Refused("it has a tensor of an impossible shape")
    return TensorRecord(storage, offset, size, stride, dtype or storage.dtype)


def _first(machine: Machine, value: Any = None, *_: Any) -> Any:
    return value


def _of_type(machine: Machine, maker: Any, cls: Any, arguments: Any, state: Any = None, *_: Any) -> Any:
    return make(machine, maker, arguments)


def _ordered(machine: Machine, entries: Iterable[Any] = (), *_: Any) -> OrderedDict[Any, Any]:
    _pay(machine, entries)
    found: OrderedDict[Any, Any] = OrderedDict()
    fill(found, ((name, value) for name, value in entries))
    return found


def _counted(machine: Machine, *_: Any) -> dict[Any, Any]:
    return {}


def _set(machine: Machine, items: Sequence[Any] = ()) -> set[Any]:
    _pay(machine, items)
    return set(map(key, items))


def _pay(machine: Machine, items: Any) -> None:
    """Count a copy of a container that may have been copied before."""
    machine.budget.copy(64 * len(items))


def _size(machine: Machine, numbers: Iterable[Any] = ()) -> tuple[Any, ...]:
    _pay(machine, numbers)
    return tuple(numbers)


def _bytes(machine: Machine, text: str = "", encoding: str = "latin1", *_: Any) -> bytes:
    # How protocol 2 writes bytes; any other codec would be looked up by name.
    machine.budget.copy(len(text))
    return text.encode("latin1") if encoding in ("latin1", "latin-1") else b""


def _nested(machine: Machine, data: Any) -> Any:
    return machine.nested(data)


_KNOWN: Final[dict[str, Callable[..., Any]]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._tensor._rebuild_from_type_v2": _of_type,
    "torch.nn.parameter.Parameter": _first,
    "torch.storage._load_from_bytes": _nested,
    "torch.storage.TypedStorage": _first,
    "torch.Size": _size,
    "torch.device": _first,
    "torch.Tensor": _first,
    "torch.serialization._get_layout": _first,
    "collections.OrderedDict": _ordered,
    "collections.defaultdict": _counted,
    "builtins.set": _set,
    "builtins.frozenset": _set,
    "__builtin__.set": _set,
    "_codecs.encode": _bytes,
}
