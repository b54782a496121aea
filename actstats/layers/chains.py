"""Find the module call that returns the activated output of each convolution in a forward pass.

The output of a convolution is followed through the normalisation and activation that it alone feeds: to `relu` in
`conv -> norm -> relu`, to `norm` if a residual is added before the activation, and no further than the convolution
itself if several operations read its output or it is concatenated. Normalisations and activations written in plain
arithmetic (`x * torch.sigmoid(x)`) are followed too.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator
from typing import Final

from actstats.layers.coordinates import ACTIVATIONS, ARITHMETIC, convolves
from actstats.layers.graph import Call, Graph, Operation

_NORMS: Final = ("batch_norm", "group_norm", "layer_norm", "instance_norm", "rms_norm")
_SHIFTS: Final = frozenset({"add", "sub", "subtract"})
_REDUCTIONS: Final = frozenset({"mean", "var", "var_mean", "std", "std_mean", "sum"})
_PADS: Final = frozenset({"pad", "constant_pad_nd", "reflection_pad2d", "replication_pad2d"})


def is_convolution(graph: Graph, operation: Operation) -> bool:
    """Return whether an operation is a convolution whose input depends on the image."""
    return convolves(operation.name) and graph.values[operation.inputs[0]].computed


def convolution_calls(graph: Graph) -> list[Call]:
    """Return one call for each convolution whose output, plain or normalised and activated, a module returns.

    If several modules return the same value, the call is that of the convolution's own block: the outermost module
    that takes the convolution's input and contains no other convolution. Without such a block it is that of the
    innermost module.
    """
    returned = _returned(graph)
    chosen = []
    for index, operation in enumerate(graph.operations):
        if is_convolution(graph, operation):
            end = _end(graph, operation.outputs[0], returned.keys())
            if end is not None:
                chosen.append(_block(graph, index, returned[end]))
    return chosen


def functional_activations(graph: Graph) -> dict[int, str]:
    """Return the values of convolutions that a function activates, and the name of that function.

    They are the outputs of `convolution_calls` whose chain goes on to an activation that no module returns, such as
    `F.relu`.
    """
    returned = _returned(graph)
    made = {value: operation for operation in graph.operations for value in operation.outputs}
    found: dict[int, str] = {}
    for operation in graph.operations:
        if is_convolution(graph, operation):
            end = _end(graph, operation.outputs[0], returned.keys())
            activated = (value for value, _, active in _chain(graph, operation.outputs[0]) if active)
            first = next(activated, None)
            if end is not None and first is not None and first not in returned:
                name = made[first].name
                found[end] = name if name in ACTIVATIONS else "arithmetic"
    return found


def _returned(graph: Graph) -> dict[int, list[Call]]:
    """Return the calls that return each value, for those that can be hooked."""
    returned: dict[int, list[Call]] = {}
    for call in graph.calls:
        if call.output is not None and not call.problem:
            returned.setdefault(call.output, []).append(call)
    return returned


def _end(graph: Graph, start: int, returned: Container[int]) -> int | None:
    """Return the last value of the chain from `start` that is in `returned`, or None."""
    found, steps_found = None, -1
    for value, steps, activated in _chain(graph, start):
        if value in returned:
            if steps > steps_found:
                found, steps_found = value, steps
            if activated:
                break
    return found


def _chain(graph: Graph, start: int) -> Iterator[tuple[int, int, bool]]:
    """Yield the values that follow from a convolution: index, number of steps that changed it, whether activated.

    Operations are followed in order as long as they read nothing else that depends on the image. A value is yielded
    whenever it is the only one that later operations still read.
    """
    yield start, 0, False
    unread = {start: len(graph.values[start].consumers)}
    pending = set(graph.values[start].consumers)
    steps, activated, reduced = 0, False, False
    while pending:
        index = min(pending)
        pending.remove(index)
        operation = graph.operations[index]
        inner = [i for i in set(operation.inputs) if i in unread]
        if any(graph.values[i].computed and i not in unread for i in operation.inputs):
            return
        normalises = any(norm in operation.name for norm in _NORMS) or operation.name in _REDUCTIONS
        activates = operation.name in ACTIVATIONS
        if not (
            operation.moves or activates or operation.name in ARITHMETIC or (normalises and not activated)
        ):
            return
        if not reduced and _scales_alone(graph, operation):
            return
        steps += not operation.moves
        activated |= activates
        reduced |= operation.name in _REDUCTIONS
        for i in inner:
            unread[i] -= 1
        for i in operation.outputs:
            if i not in unread:  # a view may lead back to an earlier value
                unread[i] = len(graph.values[i].consumers)
                pending.update(graph.values[i].consumers)
        result = operation.outputs[0]
        left = [i for i, readers in unread.items() if readers and i != result]
        whole = sorted(graph.values[result].shape) == sorted(graph.values[start].shape)
        if whole and not left:
            yield result, steps, activated


def _scales_alone(graph: Graph, operation: Operation) -> bool:
    """Return whether the operation is a learnt scale (layer scale), neither an activation nor a normalisation.

    That is a product with weights that is not followed by a shift by weights. A product followed by one is the affine
    part of a normalisation with constant statistics.
    """
    if operation.name not in ("mul", "multiply") or not _reads_weights(graph, operation):
        return False
    readers = [graph.operations[index] for index in set(graph.values[operation.outputs[0]].consumers)]
    return not (len(readers) == 1 and readers[0].name in _SHIFTS and _reads_weights(graph, readers[0]))


def _reads_weights(graph: Graph, operation: Operation) -> bool:
    """Return whether an input is a tensor of several elements that does not depend on the image."""
    values = (graph.values[index] for index in operation.inputs)
    return any(not value.computed and math.prod(value.shape) > 1 for value in values)


def _block(graph: Graph, convolution: int, calls: list[Call]) -> Call:
    """Return the outermost call that is the convolution's own block, or else the first call (the innermost)."""
    for call in reversed(calls):
        inside = [
            (index, operation)
            for index, operation in enumerate(graph.operations[call.first : call.end], call.first)
            if any(graph.values[i].computed for i in operation.inputs)
        ]
        convolutions = [index for index, operation in inside if is_convolution(graph, operation)]
        before = [operation for index, operation in inside if index < convolution]
        if convolutions == [convolution] and all(o.moves or o.name in _PADS for o in before):
            return call
    return calls[0]
