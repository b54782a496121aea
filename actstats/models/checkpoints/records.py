"""The records that a pickle is read into: names, placeholders, and tensors whose values are still in the file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch

_STORAGES: Final = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}
"""The dtype that each of PyTorch's storage classes stands for."""
_DTYPES: Final = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
_HOMES: Final = frozenset({"torch", "torch.cuda", "torch.storage"})
_LARGEST: Final = 1 << 62


class Refused(Exception):  # noqa: N818 - an answer, not an error of ours
    """Reason for which a file is not read any further; its text follows "the file is refused: "."""


class Archive(Protocol):
    """The bytes of storages, by their keys."""

    def data(self, key: str, size: int) -> bytearray:
        """Return the first `size` bytes of the storage named `key`; raise `Refused` if it has fewer."""
        ...


@dataclass(frozen=True, eq=False)
class Name:
    """A function or class that a pickle names. It is never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False, repr=False)
class Foreign:
    """Placeholder for the result of a foreign function: its name, the arguments, and the state set afterwards."""

    name: str
    arguments: tuple[Any, ...] = ()
    state: Any = None


@dataclass(frozen=True, eq=False, repr=False)
class Storage:
    """A run of `numel` values of one dtype in an archive, from value `start` of the storage named `key`."""

    archive: Archive
    key: str
    dtype: torch.dtype
    numel: int
    start: int = 0

    def values(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the values read as `dtype`, one axis."""
        first, size = (number * self.dtype.itemsize for number in (self.start, self.numel))
        data = memoryview(self.archive.data(self.key, first + size))[first : first + size]
        if size < dtype.itemsize:
            return torch.empty(0, dtype=dtype)
        return torch.frombuffer(data, dtype=dtype, count=size // dtype.itemsize)


@dataclass(frozen=True, eq=False, repr=False)
class TensorRecord:
    """A tensor that has not been read yet: its place and layout in a storage."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def read(self) -> torch.Tensor:
        """Return the tensor, a view of its storage.

        Raises `Refused` if it extends beyond the storage, or is larger because it repeats values.
        """
        numbers = (self.offset, *self.size, *self.stride)
        if not all(type(number) is int and 0 <= number < _LARGEST for number in numbers):
            raise Refused("it has a tensor of an impossible shape")
        values = self.storage.values(self.dtype)
        count = math.prod(self.size)
        last = self.offset + sum((n - 1) * step for n, step in zip(self.size, self.stride, strict=True))
        if count and (last >= len(values) or count > len(values)):
            raise Refused(f"it has a tensor of shape {list(self.size)} in a storage of {len(values)} values")
        return (
            values.as_strided(self.size, self.stride, self.offset) if count else values.new_empty(self.size)
        )


def dtype_named(name: Any) -> torch.dtype | None:
    """Return the dtype that a name in PyTorch stands for, that of a storage or of a dtype; None for other names."""
    if not isinstance(name, Name) or name.module not in _HOMES:
        return None
    return _STORAGES.get(name.name) or (_DTYPES.get(name.name) if name.module == "torch" else None)
