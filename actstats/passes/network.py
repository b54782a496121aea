"""Run forward passes, eager or compiled, that pass the maps of each layer to a receiver.

In eager mode, hooks pass on the maps. `Network.compile` exports the network with those hooks, which adds a custom op,
`actstats::tap`, to the graph for each layer. Inductor then compiles the graph for one batch size, with the weights as
constants, so that batch norms are folded into convolutions. Shorter batches are padded, and the padding is removed
before the maps are passed on. Where padding would change the maps of other images, as with statistics of the batch,
shorter batches run eagerly.
"""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr
from typing import Any, Final

import torch
from torch import Tensor, nn

from actstats.errors import ActstatsError, reason_of
from actstats.layers import Layer, watch
from actstats.layers.passes import in_channels_last

_AMP: Final = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}

_ROUNDING: Final = 1e-4
"""Relative difference that the order of a sum may make to the maps of an image in two passes of one graph."""

Receive = Callable[[int, Tensor], None]
"""Takes the index of a layer and its maps [N, C, H, W], which are valid only during the call."""

_current = threading.local()
"""`receive` of this thread's current compiled forward pass, and the `error` that it raised, if any."""


@torch.library.custom_op("actstats::tap", mutates_args=())
def tap(maps: Tensor, layer: int) -> Tensor:
    """Pass the maps [N, C, H, W] of a layer to the receiver of the current pass, and return an empty tensor."""
    if _current.error is None:
        try:
            _current.receive(layer, maps)
        except BaseException as error:  # compiled code does not propagate exceptions unchanged
            _current.error = error
    return maps.new_empty(0)


@tap.register_fake
def _(maps: Tensor, layer: int) -> Tensor:
    return maps.new_empty(0)


class Network:
    """A network in eval mode that passes the maps of some layers to a receiver.

    Attributes:
        compiled: whether the network is compiled.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[Layer],
        device: torch.device,
        amp: str = "off",
        channels_last: bool = True,
    ) -> None:
        self._model, self._layers, self._device = model, layers, device
        self._amp = _AMP[amp]
        self._graph: Callable[[Tensor], object] | None = None
        self._example = torch.empty(0)
        self._channels_last = channels_last
        self._can_be_padded = True

    @property
    def compiled(self) -> bool:
        """Whether `compile` has succeeded."""
        return self._graph is not None

    def compile(self, example: Tensor) -> None:
        """Compile the network for batches of up to N images, as in `example` [N, C, H, W], and run it once.

        Raises:
            ActstatsError: the network cannot be compiled. It can still be run eagerly.
        """
        example = in_channels_last(example) if self._channels_last else example.contiguous()
        try:
            # `export` prints the graph of a network that it cannot export on stderr.
            with _quiet(), redirect_stderr(io.StringIO()), torch.no_grad():
                exported = torch.export.export(_Tapped(self._model, self._layers), (example,), strict=False)
                graph = torch.compile(
                    exported.module(),
                    fullgraph=True,
                    dynamic=False,
                    options={"freezing": self._device.type == "cpu"},
                )
            with _quiet():
                can_be_padded = self._same_when_padded(graph, example)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # raised by Python, export, inductor or the C++ compiler
            raise ActstatsError(f"the network cannot be compiled: {reason_of(error)}") from error
        self._graph, self._example, self._can_be_padded = graph, example, can_be_padded

    def __call__(self, images: Tensor, receive: Receive) -> None:
        """Run the network on `images` [N, C, H, W] and call `receive(index, maps)` for each layer.

        Raises:
            ActstatsError: the network fails on this batch.
        """
        try:
            if self._graph is None or not (self._can_be_padded or len(images) == len(self._example)):
                with watch(self._model, self._layers, receive), torch.no_grad(), self._autocast():
                    self._model(images)
            else:
                count = len(images)
                self._run(self._graph, self._padded(images), lambda layer, maps: receive(layer, maps[:count]))
        except (ActstatsError, MemoryError, torch.OutOfMemoryError):
            raise
        except (Exception, SystemExit) as error:
            if "allocate memory" in str(error) or "not enough memory" in str(error):
                raise
            raise ActstatsError(
                f"the network fails on a batch of {len(images)} images: {reason_of(error)}"
            ) from error

    def _run(self, graph: Callable[[Tensor], object], images: Tensor, receive: Receive) -> None:
        _current.receive, _current.error = receive, None
        try:
            with torch.no_grad(), self._autocast():
                graph(images)
            if _current.error is not None:
                raise _current.error
        finally:
            _current.receive = _current.error = None

    def _same_when_padded(self, graph: Callable[[Tensor], object], example: Tensor) -> bool:
        """Return whether the maps of the first image of `example` stay the same if the other images are blank."""
        whole: dict[int, Tensor] = {}
        same = True

        def compare(layer: int, maps: Tensor) -> None:
            nonlocal same
            before, after = whole[layer], maps[0].float()
            scale = torch.linalg.vector_norm(before)
            same &= not bool(torch.linalg.vector_norm(after - before) > _ROUNDING * scale)

        self._run(graph, example, lambda layer, maps: whole.update({layer: maps[0].float()}))
        padded = torch.zeros_like(example)
        padded[:1] = example[:1]
        self._run(graph, padded, compare)
        return same

    def _padded(self, images: Tensor) -> Tensor:
        """Return `images` with the shape and strides for which the graph was compiled."""
        if images.shape == self._example.shape and images.stride() == self._example.stride():
            return images
        padded = torch.zeros_like(self._example)
        padded[: len(images)] = images
        return padded

    def _autocast(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._amp is None else torch.autocast(self._device.type, dtype=self._amp)


class _Tapped(nn.Module):
    """A network that returns the result of `tap` for each layer, so that taps are not removed as dead code."""

    def __init__(self, model: nn.Module, layers: Sequence[Layer]) -> None:
        super().__init__()
        self.model, self.layers = model, layers
        self.eval()

    def forward(self, images: Tensor) -> list[Tensor]:
        taps: list[Tensor] = []
        with watch(self.model, self.layers, lambda layer, maps: taps.append(tap(maps, layer))):
            self.model(images)
        return taps


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the logs of torch's compilers; errors are still raised."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
