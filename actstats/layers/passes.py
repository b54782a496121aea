"""Prepare a network for forward passes and leave it as it was; check that its layers repeat and keep images in order.

`ready` is the context of every forward pass: eval mode, the device, and weights in the memory format in which the
network can run. `unsteady_calls` runs a network several times to find the calls whose maps cannot belong to images.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from actstats.layers.layer import ROOT, returned_tensor

_CONTAINERS: Final = (dict, OrderedDict, defaultdict, list, set, deque)
_ROUNDING: Final = 1e-3
"""Relative difference that the order of a sum may make to a layer, as on a GPU or in another row of a batch."""

_in_channels_last: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


@contextmanager
def left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Restore the network on exit, also after an error: modes, attributes, tensors, their values, strides and device.

    What a network caches in a forward pass is dropped, because it may fit only the images of that pass. Parameters
    keep their own memory. Their values are kept separately only where a module overrides `train()`, which may merge
    weights; those of buffers always are.
    """
    modules = list(model.modules())
    # A frozen script has no mode.
    modes = [getattr(module, "training", None) for module in modules]
    attributes = [(module, type(module), dict(module.__dict__)) for module in modules]
    contents = [
        (value, value.copy())
        for _, _, saved in attributes
        for value in saved.values()
        if type(value) in _CONTAINERS
    ]
    overriding = [m for m in modules if any(modes) and getattr(type(m), "train", None) is not nn.Module.train]
    merged = {id(p) for module in overriding for p in module.parameters()}
    tensors = []
    for tensor in _held(attributes):
        kept = not isinstance(tensor, nn.Parameter) or id(tensor) in merged
        # Tensors made in inference mode could not take the place of others.
        with torch.inference_mode(False):
            tensors.append((tensor, tensor.data, tensor.data.clone() if kept else None, tensor.requires_grad))
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            if mode is not None and module.training != mode:
                module.train(mode)
        for module, kind, saved in attributes:
            # A lazy module becomes another class once its sizes are known, and stays so.
            if type(module) is kind:
                module.__dict__.clear()
                module.__dict__.update(saved)
        for container, before in contents:
            if not _same(container, before):
                container.clear()
                (container.extend if isinstance(container, list | deque) else container.update)(before)
        with torch.inference_mode(False):
            for tensor, data, values, needs_grad in tensors:
                tensor.data = data
                if values is not None:
                    tensor.data.copy_(values)
                if tensor.requires_grad != needs_grad:
                    tensor.requires_grad_(needs_grad)


def _same(container: Any, before: Any) -> bool:
    """Return whether two containers hold the same objects under the same keys."""
    if isinstance(container, dict):
        container, before = (
            [part for pair in container.items() for part in pair],
            [part for pair in before.items() for part in pair],
        )
    return len(container) == len(before) and all(a is b for a, b in zip(container, before, strict=True))


def _held(attributes: list[tuple[nn.Module, type, dict[str, Any]]]) -> Iterator[Tensor]:
    """Yield each tensor that the modules hold, and the gradients of their parameters, once."""
    seen: set[int] = set()
    for _, kind, saved in attributes:
        groups = [saved.get(name) for name in ("_parameters", "_buffers")]
        own = [value for group in groups if isinstance(group, dict) for value in group.values()]
        own += [value for value in saved.values() if isinstance(value, Tensor)]
        own += [value.grad for value in own if isinstance(value, nn.Parameter) and value.grad is not None]
        for value in own:
            plain = type(value) in (Tensor, nn.Parameter, nn.Buffer) and value.layout is torch.strided
            if plain and not value.is_inference() and id(value) not in seen and not issubclass(kind, _LAZY):
                seen.add(id(value))
                yield value


_LAZY: Final = nn.modules.lazy.LazyModuleMixin


@contextmanager
def ready(
    model: nn.Module, device: torch.device | None = None, *, channels_last: bool = True
) -> Iterator[None]:
    """Have the network in eval mode on `device` (None: where it is), and leave it as it was.

    With `channels_last`, its 4-D weights are in channels_last memory format, which is faster for convolutions.
    Without it they keep their strides and images are made contiguous, for code that calls `view` after a convolution.
    """
    with left_as_it_was(model):
        if any(getattr(module, "training", False) for module in model.modules()):
            with suppress(NotImplementedError):  # The mode of an exported program is fixed.
                model.eval()
        if device is not None:
            with torch.inference_mode(False):
                model.to(device)
        if channels_last:
            to_channels_last(model)
            yield
            return
        handle = nn.Module.register_forward_pre_hook(model, lambda _, images: tuple(map(_contiguous, images)))
        try:
            yield
        finally:
            handle.remove()


def to_channels_last(model: nn.Module) -> None:
    """Put the 4-D weights of a network into channels_last memory format."""
    # Not `model.to(memory_format=...)`, which fails on the 5-D weights of a Conv3d.
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.ndim == 4:
            with torch.inference_mode(tensor.is_inference()):
                tensor.data = tensor.data.to(memory_format=torch.channels_last)


def runs_in_channels_last(model: nn.Module, images: Tensor) -> bool:
    """Return whether the network can run on `images` [N, ...] in channels_last memory format.

    Raises:
        Exception: whatever the network raises if it cannot run on contiguous images either.
    """
    known = _in_channels_last.get(model)
    if known is None:
        try:
            with ready(model), torch.no_grad():
                model(in_channels_last(images))
            known = True
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception:
            with ready(model, channels_last=False), torch.no_grad():
                model(images)
            known = False
        _in_channels_last[model] = known
    return known


def in_channels_last(images: Tensor) -> Tensor:
    """Return images in channels_last memory format if they have four axes."""
    return images.contiguous(memory_format=torch.channels_last) if images.ndim == 4 else images.contiguous()


def _contiguous(value: Any) -> Any:
    return value.contiguous() if isinstance(value, Tensor) else value


Key = tuple[str, int]
"""A call of a module: the module's name, and the number of its calls that have returned before."""


def unsteady_calls(model: nn.Module, images: Tensor) -> dict[Key, str]:
    """Return the calls whose maps cannot belong to the images, in the order in which they return, and the reason.

    The network runs twice on the first two of three different `images`: a call that differs depends on random numbers
    or on earlier passes. Then it runs on the other two: if the maps of the second image do not move to the first row
    but others match, the images are in another order inside. A network may use statistics of the batch.

    The network must be ready.
    """
    with torch.no_grad():
        before = _random_state(images.device)
        once, again = _measures(model, images[:2]), _measures(model, images[:2])
        drawn = not torch.equal(before, _random_state(images.device))
        differing = {key: _RANDOM for key in once | again if _differs(once.get(key), again.get(key), drawn)}
        if differing:
            return differing
        moved = _measures(model, images[1:])
    return {key: _REORDERED for key in once if _reordered(once[key], moved.get(key))}


_RANDOM: Final = (
    "it differs between two passes over the same images, because the network draws random numbers in eval mode or "
    "keeps values from one pass to the next"
)
_REORDERED: Final = "the network changes the order of the images before it"


def _measures(model: nn.Module, images: Tensor) -> dict[Key, Tensor]:
    """Return two numbers for each image, f32 [N, 2], of each floating-point tensor that a module returns.

    They are the norm, and a weighted sum that changes with the order of values. An output whose first axis is not
    that of the images counts as one image.
    """
    found: dict[Key, Tensor] = {}
    calls: dict[str, int] = {}
    weights = torch.empty(0)

    def hook_for(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            nonlocal weights
            number = calls.get(name, 0)
            calls[name] = number + 1
            tensor = returned_tensor(output)
            if tensor is None or tensor.layout is not torch.strided or not tensor.is_floating_point():
                return
            if not tensor.numel():
                return
            rows = len(images) if tensor.ndim and tensor.shape[0] == len(images) else 1
            values = tensor.reshape(rows, -1).float()
            if values.shape[1] > len(weights):
                weights = torch.arange(values.shape[1], device=values.device).float().cos_()
            sums = values @ weights[: values.shape[1]].to(values.device)
            found[name, number] = torch.stack([torch.linalg.vector_norm(values, dim=1), sums], 1)

        return hook

    # Of `Module`: a ScriptModule refuses its own, although it calls these hooks.
    handles = [
        nn.Module.register_forward_hook(module, hook_for(name or ROOT))
        for name, module in model.named_modules()
    ]
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _random_state(device: torch.device) -> Tensor:
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.empty(0, dtype=torch.uint8)
    return torch.cat([torch.get_rng_state(), cuda])


def _differs(once: Tensor | None, again: Tensor | None, drawn: bool) -> bool:
    if once is None or again is None or once.shape != again.shape:
        return True
    # Without random numbers, only rounding may differ, such as that of atomic additions.
    return not torch.equal(once.nan_to_num(), again.nan_to_num()) and (drawn or not _alike(once, again))


def _alike(a: Tensor, b: Tensor) -> bool:
    scale = torch.maximum(a[..., 0], b[..., 0]).nan_to_num().max()
    return bool(((a - b).abs() <= _ROUNDING * scale).logical_or(a.isfinite().logical_not()).all())


def _reordered(before: Tensor, after: Tensor | None) -> bool:
    """Return whether row 1 of `before` is in another row than 0 of `after`, or another row is there."""
    if after is None or len(before) != 2 or len(after) != 2 or _alike(before[1], after[0]):
        return False
    return any(_alike(before[i], after[j]) for i, j in ((0, 0), (0, 1), (1, 1)))
