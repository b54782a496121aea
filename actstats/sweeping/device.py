"""Where a network runs, in which mode, and what is said when memory does not suffice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from actstats.errors import ActstatsError


def find_device(name: str) -> torch.device:
    """Return the device of that name, "auto" being a GPU if there is one.

    Raises:
        ActstatsError: no such device, or one that the kernels do not run on.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ActstatsError(f"no device is named {name!r}; give auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise ActstatsError(f"device {name!r} has no kernels; give auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ActstatsError(
            f"device {name!r} is not there: torch sees {torch.cuda.device_count()} CUDA devices; use `device=cpu`"
        )
    return device


def planned_device(name: str) -> tuple[str, torch.device]:
    """Return the kind of the device that a sweep is planned for, and the device on which its layers are found.

    They differ where a plan for "cuda" is made on a machine without a GPU.

    Raises:
        ActstatsError: as `find_device`, but for a missing GPU.
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
    """Return the network, moved to `device`, its weights of 2-D convolutions in channels_last memory format.

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
    """Return how a batch gets to `device`.

    To a GPU it goes on a stream of its own: the copy of one batch, from pinned memory, overlaps the computing of the
    batch before, which the host does not wait for.
    """
    if device.type != "cuda":
        return lambda pixels: pixels.to(device)
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def upload(pixels: Tensor) -> Tensor:
        if pixels.device.type == device.type:  # It was decoded there.
            return pixels
        with torch.cuda.stream(stream):
            moved = pixels.to(device, non_blocking=True)
        computing = torch.cuda.current_stream(device)
        computing.wait_stream(stream)
        # The memory was taken on one stream and is read on the other: it is free only when both are done.
        moved.record_stream(computing)
        return moved

    return upload


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Run with dropout off and normalisation fixed, and leave each module's mode as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def out_of_memory_explained(batch_size: int, also: str = "; completed partitions are kept") -> Iterator[None]:
    """Say in one line that memory ran out, and what to change."""
    advice = f"out of memory with `batch_size={batch_size}`{also}: try a smaller one"
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ActstatsError(advice) from error
    except RuntimeError as error:
        if "allocate memory" not in str(error) and "not enough memory" not in str(error):
            raise
        raise ActstatsError(advice) from error
