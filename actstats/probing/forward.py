"""A network over a source of images, batch by batch: the loop that everything here shares, around `Feed`."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actstats.data import Batch, Source
from actstats.data.loader import split
from actstats.data.source import Subset
from actstats.distort import Chain
from actstats.errors import ActstatsError
from actstats.layers.passes import ready, runs_in_channels_last
from actstats.models import Loaded
from actstats.passes.device import find_device, memory_for, to_device
from actstats.passes.images import Feed, OnProgress, Pipeline


@dataclass(frozen=True)
class Passes:
    """How images pass through a network.

    Attributes:
        batch_size: images per forward pass.
        device: "cpu", "cuda", "cuda:1", or "auto": a GPU if there is one.
        workers: threads that decode images; None: one per core, at most 8.
        decode: "pillow", or "device" to decode on the network's device, as `Settings.decode`.
        on_progress: called after each batch.
    """

    batch_size: int = 32
    device: str = "auto"
    workers: int | None = None
    decode: str = "pillow"
    on_progress: OnProgress | None = None


def halves(source: Source) -> tuple[Subset, Subset]:
    """Return every other image of each class of a source, and the rest."""
    ordered = np.argsort(source.labels, kind="stable")
    return tuple(Subset(source, np.sort(ordered[start::2]).tolist()) for start in (0, 1))  # type: ignore[return-value]


def prepared(loaded: Loaded, device: str) -> torch.device:
    """Put the network on the device of that name, and return the device."""
    target = find_device(device)
    to_device(loaded.model, target)
    return target


@contextmanager
def running(loaded: Loaded, batch_size: int, also: str = "") -> Iterator[None]:
    """Have the network ready for images, and run forward passes; see `ready_for_images` and `one_pass`."""
    with one_pass(batch_size, also), ready_for_images(loaded):
        yield


@contextmanager
def one_pass(batch_size: int, also: str = "") -> Iterator[None]:
    """Have torch without gradients, reuse memory, and explain a lack of it.

    `also` names, after the batch size, what else could be smaller.

    Raises:
        ActstatsError: a batch size below 1, or memory that does not suffice.
    """
    if batch_size < 1:
        raise ActstatsError(f"the batch size is {batch_size}; it must be at least 1")
    with memory_for(batch_size, also), torch.no_grad():
        yield


def ready_for_images(loaded: Loaded) -> AbstractContextManager[None]:
    """Have the network in eval mode, in the memory format in which it can run, and leave it as it was."""
    device = next((p.device for p in loaded.model.parameters()), torch.device("cpu"))
    example = loaded.preprocessing.example(2, device)
    return ready(loaded.model, channels_last=runs_in_channels_last(loaded.model, example))


def inputs(
    loaded: Loaded,
    source: Source,
    device: torch.device,
    passes: Passes,
    chain: Chain | None = None,
) -> Generator[tuple[Batch, Tensor], None, None]:
    """Yield each batch with a readable image, and the network's input for it, f32 [n, 3, H, W] on `device`.

    Run it inside `running`, and close it. `chain` distorts each cropped image (`actstats.distort`).

    Raises:
        ActstatsError: no image, or none that can be read.
    """
    total, read = len(source), 0
    feed = Feed(
        [Pipeline(loaded, device, chain, passes.decode)],
        source,
        split(0, total, passes.batch_size),
        workers=passes.workers,
        on_progress=passes.on_progress,
    )
    with closing(iter(feed)) as batches:
        for _, batch, images in batches:
            read += len(batch.position)
            if images is not None:
                yield batch, images
    if not total:
        raise ActstatsError(f"no image of {source.spec} is left to show to the network")
    if not read:
        path, reason = next(iter(feed.failures[0].items()))
        raise ActstatsError(f"none of the {total} images of {source.spec} can be read; {path}: {reason}")


def logits(
    loaded: Loaded,
    source: Source,
    device: torch.device,
    passes: Passes,
    chain: Chain | None = None,
) -> tuple[NDArray[np.int64], Tensor]:
    """Return which images could be read, i64 [n], and the network's outputs for them, f32 [n, outputs] on the CPU."""
    rows, found = [], []
    batches = inputs(loaded, source, device, passes, chain)
    with running(loaded, passes.batch_size), closing(batches):
        for batch, images in batches:
            rows.append(batch.position + batch.start)
            found.append(loaded.model(images).float().cpu())
    return np.concatenate(rows), torch.cat(found)
