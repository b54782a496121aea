"""Record a forward pass: every operation, every value it produces, and which module returned which value.

A value is the content of a tensor at one point in time: an in-place operation creates a new value in the same memory.
The graph therefore distinguishes what a forward hook sees (the value when the module returns) from what is in that
memory later.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from actstats.layers.coordinates import (
    Coordinates,
    Geometry,
    Operand,
    follow,
    of_images,
    overwritten,
    tensors,
    understood,
)
from actstats.layers.layer import ROOT, returned_tensor


@dataclass
class Value:
    """The content of a tensor at one time.

    `computed` is True if the value depends on the example. `content` is the index of the value that this one merely
    rearranges, or its own index. `geometry` is its place in memory: offset, shape and strides. `consumers` are the
    indices of the operations that read it.
    """

    shape: tuple[int, ...]
    content: int
    computed: bool
    coordinates: Coordinates
    geometry: Geometry
    consumers: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Operation:
    """One ATen operation, named without the overload and the trailing `_` of in-place operations.

    `moves` is True if it changes no elements: it only rearranges, copies or selects from its inputs.
    """

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    moves: bool


@dataclass
class Call:
    """One call of a module. Operations `first` to `end` (exclusive) ran inside it."""

    module: str
    number: int
    kind: str
    first: int
    end: int = -1
    output: int | None = None
    problem: str = ""
    """Reason why the output cannot be hooked; empty if it can."""


IMAGE_VALUE: Final = 0
"""Index of the value that is the example itself."""

_MOVES: Final = frozenset(
    {"clone", "contiguous", "to", "_to_copy", "type_as", "reshape", "flatten", "permute"}
)
"""Operations that change no elements, except for views, which are recognised by their memory."""


class Graph(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Record the operations and module calls of the forward passes that run in this context."""

    def __init__(self, example: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.values: list[Value] = []
        self.operations: list[Operation] = []
        self.calls: list[Call] = []
        """All calls that have returned, in the order in which they returned."""
        self._batch = example.shape[0]
        self._storages = 0
        self._memory: dict[int, tuple[int, int]] = {}
        self._known: dict[tuple[tuple[int, int], Geometry], int] = {}
        self._latest: dict[tuple[int, Geometry], int] = {}
        self._writer: dict[tuple[int, int], int] = {}
        self._open: list[Call] = []
        self._counts: dict[str, int] = {}
        index = self._value(example)
        self.values[index].computed = True
        self.values[index].coordinates = of_images(tuple(example.shape))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation and record it."""
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__.rstrip("_")
        if not understood(name, func):
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        given = list(tensors((args, kwargs)))
        inputs = tuple(self._value(t) for t in given)
        held = {_address(t) for t in given}
        out = func(*args, **kwargs)
        drops_nothing = "dropout" in name and not any(a is True for a in args)
        written = [] if drops_nothing else list(_written(func, args, kwargs))
        for tensor in written:
            storage, version = self._memory[_address(tensor)]
            self._memory[_address(tensor)] = (storage, version + 1)
            self._writer[storage, version + 1] = len(self.operations)
        results = list(tensors(out))
        for tensor in results:
            if (address := _address(tensor)) not in held:
                self._memory[address] = self._new_storage()
        computed = any(self.values[i].computed for i in inputs) and not _reads_no_elements(name)
        moves = name in _MOVES or (not written and any(_address(t) in held for t in results))
        operands = [
            Operand(self.values[i].shape, self.values[i].coordinates, self.values[i].computed) for i in inputs
        ]
        made_now = [*results, *written]
        coordinates = (
            follow(name, func, args, kwargs, operands, made_now)
            if computed
            else [Coordinates()] * len(made_now)
        )
        outputs = []
        for at, tensor in enumerate(made_now):
            made = len(self.values)
            index = self._value(tensor)
            if index in inputs or index in outputs:
                continue
            if index == made:
                value = self.values[index]
                value.computed = computed
                if moves and math.prod(value.shape) == math.prod(operands[0].shape):
                    value.content = self.values[inputs[0]].content
                value.coordinates = coordinates[at]
            outputs.append(index)
        if outputs:
            for index in set(inputs):
                self.values[index].consumers.append(len(self.operations))
            self.operations.append(Operation(name, inputs, tuple(outputs), moves))
        return out

    def enter(self, module: str, kind: str) -> None:
        """Record that a module is called."""
        self._open.append(Call(module, -1, kind, len(self.operations)))

    def leave(self, output: object) -> None:
        """Record that the innermost call that is still open returns `output`."""
        call = self._open.pop()
        # Calls are numbered as they return, as hooks count them: a module that calls itself returns last.
        call.number = self._counts.get(call.module, 0)
        self._counts[call.module] = call.number + 1
        call.end = len(self.operations)
        self.calls.append(call)
        tensor = returned_tensor(output)
        if tensor is None or tensor.layout is not torch.strided:
            call.problem = f"it returns a {type(output).__name__}, not a dense tensor"
            return
        call.output = self._value(tensor)
        value = self.values[call.output]
        call.problem = self._problem(tensor, value)

    def _problem(self, tensor: Tensor, value: Value) -> str:
        if not tensor.is_floating_point():
            return f"it returns {tensor.dtype}, not floating-point values"
        if tensor.ndim == 0 or tensor.numel() == 0:
            return f"it returns a tensor of shape {list(tensor.shape)}"
        if not value.computed:
            return "its output does not depend on the image"
        return ""

    def _new_storage(self) -> tuple[int, int]:
        self._storages += 1
        return self._storages, 0

    def _value(self, tensor: Tensor) -> int:
        """Return the index of the tensor's current value, which is recorded if it is new."""
        address = _address(tensor)
        if address not in self._memory:
            self._memory[address] = self._new_storage()
        memory = self._memory[address]
        shape = tuple(tensor.shape)
        geometry = (int(tensor.storage_offset()), shape, tuple(tensor.stride()))
        known = self._known.get((memory, geometry))
        if known is not None:
            return known
        index = len(self.values)
        value = Value(shape, index, False, Coordinates(), geometry)
        self.values.append(value)
        self._known[memory, geometry] = index
        older = self._latest.get((memory[0], geometry))
        self._latest[memory[0], geometry] = index
        if older is not None:
            value.computed, value.coordinates = self.values[older].computed, self.values[older].coordinates
        writer = self._writer.get(memory)
        if writer is not None and writer < len(self.operations):
            # The memory was written to through another view.
            outputs = [self.values[i] for i in self.operations[writer].outputs]
            value.computed |= any(output.computed for output in outputs)
            if value.computed and len(outputs) == 1:
                value.coordinates = overwritten(
                    value.coordinates,
                    geometry,
                    outputs[0].coordinates,
                    outputs[0].geometry,
                    tensor.untyped_storage().nbytes() // tensor.element_size(),
                )
        return index


def trace(model: nn.Module, example: Tensor) -> Graph:
    """Run `model` once on `example` [n, ...] in eval mode and return the graph; the model is left unchanged.

    Exceptions raised by the model propagate.
    """
    graph = Graph(example)
    training = [module for module in model.modules() if getattr(module, "training", False)]
    handles = []
    try:
        for module in training:
            module.training = False
        for name, module in model.named_modules():
            label, kind = name or ROOT, type(module).__name__

            def enter(_module: nn.Module, _args: Any, label: str = label, kind: str = kind) -> None:
                graph.enter(label, kind)

            def leave(_module: nn.Module, _args: Any, output: Any) -> None:
                graph.leave(output)

            # Of `Module`: a ScriptModule refuses its own, although it calls these hooks.
            handles.append(nn.Module.register_forward_pre_hook(module, enter))
            handles.append(nn.Module.register_forward_hook(module, leave))
        with torch.inference_mode(), graph:
            model(example)
    finally:
        for handle in handles:
            handle.remove()
        for module in training:
            module.training = True
    return graph


def _reads_no_elements(name: str) -> bool:
    return name.startswith("new_") or name.endswith("_like")


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """Yield the tensors among the arguments that the operation writes to."""
    schema = func._schema
    if not schema.is_mutable:
        return
    for at, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from tensors(args[at] if at < len(args) else kwargs.get(argument.name))


def _address(tensor: Tensor) -> int:
    # Memory that is freed and reused always reappears as the output of an operation, which renews its entry.
    return tensor.untyped_storage().data_ptr()
