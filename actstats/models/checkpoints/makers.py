"""The few functions that pickles of PyTorch call, each done here by its name on plain data."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import torch

from actstats.models.checkpoints.records import Foreign, Name, Refused, Storage, TensorRecord, dtype_named

if TYPE_CHECKING:
    from actstats.models.checkpoints.pickles import Machine

_SCALARS: Final = (str, bytes, int, float, complex, type(None), Name, Foreign, Storage, TensorRecord)
_LONGEST_KEY: Final = 32


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
    """Return keys and values that follow each other."""
    return zip(items[::2], items[1::2], strict=True)


def key(value: Any) -> Any:
    """Return `value` if it can be a key at once; hashing tuples in tuples could take forever."""
    if isinstance(value, _SCALARS):
        return value
    if (
        isinstance(value, tuple)
        and len(value) <= _LONGEST_KEY
        and all(isinstance(x, _SCALARS) for x in value)
    ):
        return value
    return Foreign("a key that is no plain value")


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
    if len(size) != len(stride):
        raise Refused("it has a tensor of an impossible shape")
    return TensorRecord(storage, offset, size, stride, dtype or storage.dtype)


def _first(machine: Machine, value: Any = None, *_: Any) -> Any:
    return value


def _of_type(machine: Machine, maker: Any, cls: Any, arguments: Any, state: Any = None, *_: Any) -> Any:
    return make(machine, maker, arguments)


def _ordered(machine: Machine, entries: Iterable[Any] = (), *_: Any) -> OrderedDict[Any, Any]:
    found: OrderedDict[Any, Any] = OrderedDict()
    fill(found, ((name, value) for name, value in entries))
    return found


def _counted(machine: Machine, *_: Any) -> dict[Any, Any]:
    return {}


def _set(machine: Machine, items: Sequence[Any] = ()) -> set[Any]:
    return set(map(key, items))


def _size(machine: Machine, numbers: Iterable[Any] = ()) -> tuple[Any, ...]:
    return tuple(numbers)


def _bytes(machine: Machine, text: str = "", encoding: str = "latin1", *_: Any) -> bytes:
    # How protocol 2 writes bytes; any other codec would be looked up by name.
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
