"""The engine: one streaming pass over the images, every unit's statistics into one store.

images -> loader threads -> batch -> normalise on the device -> forward pass
          (distort)                  (attack)                     | hooks, one for each layer
                store <- writer thread <- partition's buffers <- fused kernel
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from actstats.data import Batch, ImageError, Source, batches, open_source
from actstats.data.loader import split
from actstats.data.on_device import DeviceDecoder
from actstats.data.preprocessing import Preprocessing
from actstats.distort import Chain, Distorter, parse
from actstats.errors import ActstatsError
from actstats.layers import Layer, select_layers, watch
from actstats.metrics import DEFAULT, Metric, choose
from actstats.models import Loaded, load_model
from actstats.store import Schema, Store, parse_compression
from actstats.store import manifest as manifests
from actstats.support import one_or_more
from actstats.sweeping.buffers import Buffers, Partition, Plan, schema_of
from actstats.sweeping.device import find_device, in_eval_mode, out_of_memory_explained, uploader
from actstats.sweeping.progress import Progress, Summary
from actstats.sweeping.writer import Writer

AMP = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}
DECODERS = ("pillow", "device")


def sweep(
    model: str | nn.Module | Loaded,
    images: str | Path | Source,
    store: str | Path,
    *,
    weights: str = "default",
    robust: str | bool | None = None,
    seed: int = 0,
    offline: bool = False,
    preprocessing: Preprocessing | None = None,
    distort: str | Sequence[str] | Chain = (),
    layers: str | Sequence[str] = ("conv",),
    metrics: str | Sequence[str] = DEFAULT,
    custom: str | Metric | type[Metric] | Sequence[str | Metric | type[Metric]] = (),
    top_k: int = 16,
    per_image: bool = True,
    batch_size: int = 32,
    partition_size: int = 1024,
    limit: int | None = None,
    part: tuple[int, int] = (0, 1),
    device: str = "auto",
    amp: str = "off",
    workers: int | None = None,
    decode: str = "pillow",
    bitround: int | None = None,
    compression: str = "zstd:1",
    strict: bool = False,
    overwrite: bool = False,
    progress: Callable[[Progress], None] | None = None,
    started: Callable[[Store, Schema, int], None] | None = None,
) -> Summary:
    """Compute statistics of every unit of `model` over `images`, in one pass, into the store at `store`.

    A sweep that was stopped, however, goes on where it was: call it again with the same arguments.

    Args:
        model: an architecture's name (`load_model`), a `Loaded` model, or a module of your own (then give
            `preprocessing`). It is put on `device`, in eval mode and channels_last memory format.
        images: a folder, tar files or `"demo"` (`open_source` has them all), or an open source.
        store: where the Zarr store is or shall be.
        weights: as for `load_model`, where `model` is a name.
        robust: likewise, adversarially trained weights.
        seed: of random weights.
        offline: never touch the network.
        preprocessing: from image to input; None: what belongs to the weights.
        distort: what is done to each cropped image, as `["scramble:4", "noise:0.1"]` (`actstats.distort`).
        layers: presets (`conv`, `block`, `all`, `paper`), module names and globs (`select_layers`).
        metrics: names of built-in and installed metrics.
        custom: metrics of your own: objects, classes, or `"package.module:Class"`.
        top_k: images kept for each unit.
        per_image: whether to store the variables of dimension `image`; without, only what is summed by partition.
        batch_size: images a forward pass; part of the manifest, as it can change the last bits of an activation.
        partition_size: images a partition, the block that is completed and stored as a whole.
        limit: only the first so many images.
        part: (i, n): this process does every n-th partition, beginning with the i-th; n processes share a store.
        device: "cpu", "cuda", "cuda:1", or "auto": a GPU if there is one.
        amp: "bf16" or "fp16" to run the forward pass under autocast, or "off".
        workers: threads that decode images; None: one for each core but at most 8, 0: none.
        decode: "device" to decode, resize and crop JPEGs on `device`, by nvJPEG on a GPU; the pixels differ a little
            from those of "pillow", which the weights' authors used.
        bitround: mantissa bits (1 to 23) kept of per-image floats, so that they compress better.
        compression: "zstd:LEVEL" or "none".
        strict: stop at the first unreadable image instead of recording it.
        overwrite: remove a store of another sweep that is in the way.
        progress: called after each batch.
        started: called once, when the store is open, with it, its schema and the images this run has to do.

    Returns:
        A summary of this run.

    Raises:
        ActstatsError: anything that the user can mend, in one line. Completed partitions are kept.
        KeyboardInterrupt: on Ctrl-C, after the partition that is being written is complete.
    """
    _check_settings(batch_size, partition_size, top_k, part, amp, decode, bitround, workers)
    parse_compression(compression)
    target = find_device(device)
    chosen = choose(metrics, custom)
    chain = distort if isinstance(distort, Chain) else parse(distort)
    source = open_source(images, limit=limit) if isinstance(images, str | Path) else images
    if isinstance(model, str):
        model = load_model(model, weights, robust=robust, seed=seed, offline=offline)
    loaded = _with_preprocessing(model, preprocessing)
    chain.check(loaded.preprocessing)
    if chain and decode == "device":
        raise ActstatsError("images are distorted on the CPU: leave --decode device away, or --distort")
    _refuse_unreadable(source)
    decoder = DeviceDecoder(source, loaded.preprocessing, target) if decode == "device" else None
    with in_eval_mode(loaded.model), out_of_memory_explained(batch_size):
        network = loaded.model.to(target).to(memory_format=torch.channels_last)
        example = torch.zeros(2, *loaded.preprocessing.shape, device=target)
        hooked = select_layers(network, example, layers)
        schema = schema_of(chosen, hooked, len(source), partition_size, top_k, per_image)
        manifest = manifests.build(
            **loaded.identity,
            preprocessing=loaded.preprocessing.to_dict(),
            **chain.record(),
            layers=[_describe(layer) for layer in hooked],
            selectors=one_or_more(layers),
            metrics=[*chosen.builtin, *chosen.custom],
            outputs=[output.name for output in schema.outputs],
            top_k=top_k,
            batch_size=batch_size,
            partition_size=partition_size,
            data={
                "spec": source.spec,
                "kind": source.kind,
                "images": len(source),
                "fingerprint": source.fingerprint,
                "classes": list(source.classes),
            },
            device=target.type,
            amp=amp,
            decode=decode,
            bitround=bitround,
            compression=compression,
        )
        opened = Store.open_or_create(
            store, manifest, schema, source.paths, source.labels, compression=compression, overwrite=overwrite
        )
        todo = [p for p in range(schema.partitions) if p % part[1] == part[0] and not opened.completed[p]]
        total = sum(stop - start for start, stop in map(opened.bounds, todo))
        if started is not None:
            started(opened, schema, total)
        distorter = Distorter(chain, source.paths, network, loaded.preprocessing) if chain else None
        plan = Plan(schema, chosen, target, bitround)
        run = _Run(loaded, source, opened, plan, hooked, distorter, decoder, total)
        run.over(todo, batch_size, workers, AMP[amp], strict, progress)
    return Summary(
        store=opened.path,
        images=len(source),
        units=schema.units,
        layers=len(hooked),
        progress=run.progress,
        partitions=len(todo),
        complete=bool(opened.completed.all()),
        failures=run.failures,
    )


class _Run:
    """The loop over batches, with what it counts."""

    def __init__(
        self,
        loaded: Loaded,
        source: Source,
        store: Store,
        plan: Plan,
        layers: Sequence[Layer],
        distorter: Distorter | None,
        decoder: DeviceDecoder | None,
        total: int,
    ) -> None:
        self.loaded, self.source, self.store, self.plan, self.layers = loaded, source, store, plan, layers
        self.distorter, self.decoder = distorter, decoder
        self.failures: dict[str, str] = {}
        self.progress = Progress(0, total, 0, 0.0, 0.0)

    def over(
        self,
        todo: Sequence[int],
        batch_size: int,
        workers: int | None,
        amp: torch.dtype | None,
        strict: bool,
        report: Callable[[Progress], None] | None,
    ) -> None:
        device, model = self.plan.device, self.loaded.model
        ranges = [r for p in todo for r in split(*self.store.bounds(p), batch_size)]
        distorter, pin = self.distorter, device.type == "cuda"
        distort = distorter.image if distorter is not None else None
        loader = batches(
            self.source,
            self.loaded.preprocessing,
            ranges,
            workers=workers,
            pin=pin,
            distort=distort,
            decoder=self.decoder,
        )
        autocast: AbstractContextManager[Any] = (
            torch.autocast(device.type, dtype=amp) if amp is not None else nullcontext()
        )
        upload = uploader(device)
        # One set is filled while the writer has the other; it gives that back before the one after next begins.
        buffers = [Buffers(self.plan) for _ in todo[:2]]
        partition: Partition | None = None

        def update(layer: int, maps: Tensor) -> None:
            assert partition is not None
            if not attacking:
                partition.update(layer, maps)

        begun, waited, attacking = time.perf_counter(), 0.0, False
        with Writer(self.store) as writer, closing(loader), watch(model, self.layers, update):
            for batch, seconds in _timed(loader):
                waited += seconds
                if partition is None:
                    index = batch.start // self.store.partition_size
                    buffers.reverse()
                    partition = Partition(self.plan, buffers[0], index, *self.store.bounds(index))
                self._note_failures(batch, strict)
                partition.status[batch.start - partition.start : batch.stop - partition.start] = batch.status
                readable = batch.position + batch.start
                if len(readable):
                    partition.begin_batch(readable)
                    pixels = upload(batch.pixels)
                    if distorter is not None:
                        attacking = True
                        pixels = distorter.batch(pixels, readable.tolist())
                        attacking = False
                    with torch.inference_mode(), autocast:
                        model(self.loaded.preprocessing.normalize(pixels))
                if batch.stop == partition.stop:
                    writer.put(partition.finish())
                    partition = None
                writer.check()
                self.progress = Progress(
                    done=self.progress.done + batch.stop - batch.start,
                    total=self.progress.total,
                    failed=len(self.failures),
                    seconds=time.perf_counter() - begun,
                    waiting=waited,
                )
                if report is not None:
                    report(self.progress)

    def _note_failures(self, batch: Batch, strict: bool) -> None:
        for index, message in batch.messages.items():
            path = self.source.paths[index]
            if strict:
                raise ActstatsError(f"{path}: {message} (without --strict the sweep records it and goes on)")
            self.failures[path] = message


def _check_settings(
    batch_size: int,
    partition_size: int,
    top_k: int,
    part: tuple[int, int],
    amp: str,
    decode: str,
    bitround: int | None,
    workers: int | None,
) -> None:
    for name, value in (("batch_size", batch_size), ("partition_size", partition_size), ("top_k", top_k)):
        if value < 1:
            raise ActstatsError(f"{name} is {value}; it must be at least 1")
    if workers is not None and workers < 0:
        raise ActstatsError(f"workers is {workers}; it must be at least 0")
    if not 0 <= part[0] < part[1]:
        raise ActstatsError(f"part is {part[0]}/{part[1]}; it must be I/N with 0 <= I < N")
    if amp not in AMP:
        raise ActstatsError(f"amp is {amp!r}; give {', '.join(AMP)}")
    if decode not in DECODERS:
        raise ActstatsError(f"decode is {decode!r}; give {', '.join(DECODERS)}")
    if bitround is not None and not 1 <= bitround <= 23:
        raise ActstatsError(f"bitround is {bitround}; a float32 keeps 1 to 23 mantissa bits")


def _with_preprocessing(model: nn.Module | Loaded, preprocessing: Preprocessing | None) -> Loaded:
    if isinstance(model, nn.Module):
        if preprocessing is None:
            raise ActstatsError("a module of your own needs preprocessing=actstats.Preprocessing(...)")
        return Loaded.of(model, preprocessing)
    if preprocessing is None:
        return model
    return Loaded(model.model, preprocessing, model.identity)


def _refuse_unreadable(source: Source) -> None:
    """Find one image that can be read, before anything is made."""
    first: ImageError | None = None
    for index in range(len(source)):
        try:
            source.image(index)
        except ImageError as error:
            first = first or error
        else:
            return
    raise ActstatsError(
        f"none of the {len(source)} images of {source.spec} can be read; {source.paths[0]}: {first}"
    )


def _describe(layer: Layer) -> dict[str, Any]:
    names = ("name", "module", "call", "kind", "units", "height", "width")
    return {name: getattr(layer, name) for name in names}


def _timed(loader: Iterator[Batch]) -> Iterator[tuple[Batch, float]]:
    """Yield each batch with the seconds that it was waited for."""
    while True:
        asked = time.perf_counter()
        batch = next(loader, None)
        if batch is None:
            return
        yield batch, time.perf_counter() - asked
