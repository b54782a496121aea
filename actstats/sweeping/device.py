"""Devices: find one, move a network and batches to it, set eval mode, and explain out-of-memory errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from actstats.errors import ActstatsError


def find_device(name: str) -> torch.device:
    """Return the device called `name`; "auto" is a GPU if there is one.

    Raises:
        ActstatsError: there is no such device, or the kernels do not support it.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ActstatsError(f"unknown device {name!r}; choose auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise ActstatsError(f"device {name!r} is not supported; choose auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ActstatsError(
            f"device {name!r} not found: torch sees {torch.cuda.device_count()} CUDA devices; use `device=cpu`"
        )
    return device


def planned_device(name: str) -> tuple[str, torch.device]:
    """Return the type of device that a sweep is planned for, and the device used to find its layers.

    They differ if a plan for "cuda" is made on a machine without a GPU.

    Raises:
        ActstatsError: as in `find_device`, except that "cuda" does not require a GPU.
    """
    if name == "cuda" and not torch.cuda.is_available():
        return "cuda", torch.device("cpu")
    found = find_device(name)
    return found.type, found


def refuse_meta(model: nn.Module) -> None:
    """Raise `ActstatsError` for a network on the meta device, which holds no weights."""
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        raise ActstatsError("the network is on the meta device, so it has no weights; load them first")


def to_device(model: nn.Module, device: torch.device) -> nn.Module:
    """Move the network to `device`, with 4-D weights in channels_last memory format, and return it.

    Raises:
        ActstatsError: the network is on the meta device, which holds no weights.
    """
    refuse_meta(model)
    model = model.to(device)
    # Not `model.to(memory_format=...)`, which fails on the 5-D weights of a Conv3d.
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.to(memory_format=torch.channels_last)
    return model


def uploader(device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return a function that copies a batch to `device`.

    Copies from pinned memory to a GPU use a separate stream, so they overlap with the computation of the previous
    batch, and the host does not wait.
    """
    if device.type != "cuda":
        return lambda pixels: pixels.to(device)
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def upload(pixels: Tensor) -> Tensor:
        if pixels.device.type == device.type:  # decoded on the device
            return pixels
        with torch.cuda.stream(stream):
            moved = pixels.to(device, non_blocking=True)
        computing = torch.cuda.current_stream(device)
        computing.wait_stream(stream)
        # Allocated on one stream and read on the other, so it must not be reused before both are done.
        moved.record_stream(computing)
        return moved

    return upload


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Put the model into eval mode, and restore the mode of each module on exit."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def out_of_memory_explained(batch_size: int, also: str = "; completed partitions are kept") -> Iterator[None]:
    """Turn out-of-memory errors into a one-line `ActstatsError` that suggests a smaller batch size."""
    advice = f"out of memory with `batch_size={batch_size}`{also}; try a smaller batch size"
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ActstatsError(advice) from error
    except RuntimeError as error:
        if "allocate memory" not in str(error) and "not enough memory" not in str(error):
            raise
        raise ActstatsError(advice) from error
