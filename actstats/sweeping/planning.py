"""A sweep as an object: `plan` finds out all about it and writes nothing, `SweepPlan.run` does it.

A plan is its manifest and the place of its store. Network and images are references, a source with a checksum
and a spec with a fingerprint, from which another process opens them again: so a plan can be pickled, kept as
JSON and run elsewhere, and `SweepPlan.from_store` is the way back from a store to what was swept.

>>> import actstats
>>> plan = actstats.plan("googlenet", "photographs/", "googlenet.zarr")  # doctest: +SKIP
>>> plan.estimate().bytes  # doctest: +SKIP
>>> plan.run()  # doctest: +SKIP
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from actstats.data import MISSING
from actstats.data.preprocessing import Preprocessing, input_shape
from actstats.data.source import UNNAMED
from actstats.errors import ActstatsError, nearest
from actstats.metrics import Chosen, resolve_metrics
from actstats.store import Schema, Store, parse_compression, place_of
from actstats.store import manifest as manifests
from actstats.store.description import computed_on
from actstats.store.store import missing_error
from actstats.support import html_facts, located, named_object, on_this_machine
from actstats.sweeping.progress import Progress, Started, Summary, bar
from actstats.sweeping.settings import Execution, Settings, names_of, require_known

if TYPE_CHECKING:
    import torch
    from torch import nn

    from actstats.data import Source
    from actstats.data.transform import Transform
    from actstats.distort import Chain
    from actstats.layers import Layer
    from actstats.models import Loaded
    from actstats.sweeping.cluster import Cluster
    from actstats.sweeping.run import Job

_JSON: Final = 1
"""Version of the JSON that a plan is kept as."""
_LAYER: Final = ("name", "module", "call", "kind", "units", "height", "width", "shape", "axes", "prefix")
_REOPENED: Final = ("folder", "tar", "parquet", "demo")
"""Kinds of source that `open_source` opens by their spec."""


@dataclass(frozen=True)
class Estimate:
    """What a sweep will take.

    Attributes:
        images: images of the whole sweep.
        partitions: blocks that are completed one by one.
        bytes: size of the store before compression.
        memory: about the peak of this process's memory, or of the GPU's where it runs on one, in bytes.
        seconds: time of the whole sweep as a few batches suggest; None where none was measured.
    """

    images: int
    partitions: int
    bytes: int
    memory: int
    seconds: float | None = None


@dataclass
class Run:
    """One run of a sweep: its open store, the partitions that it has to compute, and how far it got."""

    store: Store
    schema: Schema
    todo: list[int]
    max_failed: float
    retried: list[int] = field(default_factory=list)
    """Of these the partitions that are complete, but had missing images."""
    progress: Progress = field(default_factory=lambda: Progress(0, 0, 0, 0.0, 0.0))
    failures: dict[str, str] = field(default_factory=dict)
    aside: dict[int, str] = field(default_factory=dict)

    def summary(self) -> Summary:
        """Return what was done."""
        return Summary(
            store=self.store.path,
            images=self.schema.images,
            units=self.schema.units,
            layers=len(self.schema.layers),
            progress=self.progress,
            partitions=len(self.todo) - len(self.aside),
            complete=bool(self.store.completed.all()),
            failures=self.failures,
            aside=self.aside,
            computed_on=computed_on(self.store.provenance()) if self.todo else {},
            failed=bool((self.store.statuses() > 0).mean() > self.max_failed),
        )


class SweepPlan:
    """A sweep that has not been run, or that is in a store: layers, settings, references to network and images.

    Attributes:
        manifest: everything that is recorded, fit for JSON; see `docs/store.md`.
        store: path or URL of the Zarr store.
    """

    def __init__(
        self,
        manifest: Mapping[str, Any],
        store: str | Path,
        *,
        loaded: Loaded | None = None,
        source: Source | None = None,
        chosen: Chosen | None = None,
        trust: bool = False,
    ) -> None:
        self.manifest = dict(manifest)
        self.store = located(store)
        self._trust = trust
        self._loaded, self._source, self._chosen = loaded, source, chosen

    @classmethod
    def from_store(cls, store: str | Path, *, trust: bool = False) -> Self:
        """Return the plan of the sweep whose store lies at `store`. Nothing that the store names is imported.

        With `trust`, the network's factory and the custom metrics that it names may be, and the weights file or
        address that it names is opened: only for stores of your own.

        Raises:
            ActstatsError: there is no store, or a damaged one.
        """
        return cls(Store.open(store).manifest, store, trust=trust)

    @classmethod
    def from_json(cls, text: str, *, trust: bool = True) -> Self:
        """Return the plan that `to_json` wrote; `trust` is that of `from_store`.

        Raises:
            ActstatsError: the text is not a plan.
        """
        try:
            found = json.loads(text)
            version, manifest, store = found["actstats_plan"], found["manifest"], found["store"]
        except (ValueError, TypeError, KeyError) as error:
            raise ActstatsError(f"this is not the JSON of a plan: {error}") from None
        if version != _JSON:
            raise ActstatsError(f"the plan has version {version}, this version of actstats reads {_JSON}")
        return cls(manifest, store, trust=trust)

    def to_json(self) -> str:
        """Return the plan as JSON, with references in place of the network and the images.

        Raises:
            ActstatsError: a network, source or metric of the caller's own that another process cannot find by name.
        """
        self._refuse_unreferable()
        record = {"actstats_plan": _JSON, "store": str(self.store), "manifest": self.manifest}
        return json.dumps(record, indent=1, ensure_ascii=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self).from_json, trust=self._trust), (self.to_json(),)

    def __repr__(self) -> str:
        m = self.manifest
        return (
            f"<SweepPlan: {m['arch']} over {self.images_count:,} images of {m['data']['spec']}, "
            f"{len(m['layers'])} layers, {self.units:,} units, to {self.store}>"
        )

    def _repr_html_(self) -> str:
        m = self.manifest
        facts = [
            ("network", f"{m['arch']}, weights {m['weights']['source']}"),
            ("layers", f"{len(m['layers'])}, {self.units:,} units"),
            ("images", f"{self.images_count:,} of {m['data']['spec']}"),
            ("partitions", -(-self.images_count // m["partition_size"])),
            ("metrics", ", ".join(m["metrics"])),
            ("device", m["device"]),
            ("store", self.store),
        ]
        return html_facts("Plan of a sweep", facts)

    # What the manifest says.

    @cached_property
    def settings(self) -> Settings:
        """What decides the numbers."""
        return Settings.from_manifest(self.manifest)

    @property
    def images_count(self) -> int:
        """Number of images."""
        return int(self.manifest["data"]["images"])

    @property
    def units(self) -> int:
        """Number of units: the channels of all layers."""
        return sum(int(layer["units"]) for layer in self.manifest["layers"])

    @property
    def places(self) -> dict[str, slice]:
        """Where the units of each layer are on the unit axis, by the layer's name."""
        places, stop = {}, 0
        for layer in self.manifest["layers"]:
            start, stop = stop, stop + layer["units"]
            places[layer["name"]] = slice(start, stop)
        return places

    @cached_property
    def preprocessing(self) -> Preprocessing | Transform:
        """What is done to an image before the network sees it."""
        record = self.manifest["preprocessing"]
        if "function" not in record:
            return Preprocessing.from_dict(record)
        from actstats.data.transform import Transform  # needs torch, which reading a store does not

        return Transform.from_dict(record)

    @cached_property
    def chain(self) -> Chain:
        """What the cropped images are distorted by; empty (and false) for clean ones."""
        from actstats.distort import parse

        return parse(self.manifest.get("distort", ()))

    @cached_property
    def schema(self) -> Schema:
        """Variables and dimensions of the store.

        Raises:
            ActstatsError: custom metrics of an untrusted store, which this would import.
        """
        settings = self.settings
        return Schema.of(
            self._metrics(),
            [_layer_from(record) for record in self.manifest["layers"]],
            self.images_count,
            partition_size=settings.partition_size,
            top_k=settings.top_k,
            per_image=settings.per_image,
        )

    # What the references lead to.

    def network(
        self, *, arch: str | None = None, weights: str | Path | None = None, offline: bool = False
    ) -> Loaded:
        """Return the network that is or was swept.

        Args:
            arch: `package.module:factory`, to call the factory that made the network. It must be the one that
                was swept.
            weights: where its weights file lies; needed for an untrusted store, unless they are published ones.
            offline: never touch the network.

        Raises:
            ActstatsError: the weights are no longer available, or others, or the network is a module of the
                caller's own.
        """
        if self._loaded is None:
            from actstats.models import Loaded, load_from_manifest

            model, preprocessing = load_from_manifest(
                self.manifest, weights=weights, offline=offline, arch=arch, trust=self._trust
            )
            kept: dict[str, Any] = {n: self.manifest[n] for n in _IDENTITY if n in self.manifest}
            self._loaded = Loaded(model, preprocessing, kept)
        return self._loaded

    def images(self, data: Any = None) -> Source:
        """Return the images that are or were swept; `data` says where they are now, or is them (see `open_source`).

        Raises:
            ActstatsError: they are not there, or are others.
        """
        if self._source is not None and data is None:
            return self._source
        from actstats.data import open_source

        record = self.manifest["data"]
        if data is not None:
            source = open_source(data, limit=record["images"])
            if source.fingerprint.startswith(UNNAMED):  # which the caller hands over as those that were swept
                source = open_source(data, limit=record["images"], fingerprint=record["fingerprint"])
        elif record["kind"] not in _REOPENED:
            raise ActstatsError(
                f"the images are those of a {record['spec']} of the caller's own; hand it over as `data=`"
            )
        else:
            # By the words of the command first, then where that was: this process may be in another folder.
            resolved = record.get("resolved", record["spec"])
            spec = (
                resolved if Path(resolved).exists() and not Path(record["spec"]).exists() else record["spec"]
            )
            if not self._trust:
                on_this_machine(spec)
            try:
                source = open_source(spec, limit=record["images"])
            except ActstatsError as error:
                raise ActstatsError(
                    f"{error}; if the images were moved, say where they are with `data=`"
                ) from None
        if source.fingerprint != record["fingerprint"]:
            raise ActstatsError(
                f"the images of {source.spec} are not those that were swept: other names or sizes; "
                "say where those are with `data=`"
            )
        self._source = source
        return source

    def layers(self, selectors: Sequence[str] = ()) -> tuple[list[Layer], list[slice]]:
        """Return the swept layers that `selectors` name, or all, in the network, and where the units of each are.

        Raises:
            ActstatsError: a selector names a layer that was not swept, or the network is not what the manifest says.
        """
        from actstats.layers import select_layers

        loaded, places = self.network(), self.places
        example = loaded.preprocessing.example(2, _device_of(loaded.model))
        layers = select_layers(loaded.model, example, list(selectors or places))
        for layer in layers:
            if layer.name not in places:
                raise ActstatsError(
                    f"layer {layer.name} was not swept into this store{nearest(layer.name, places)}"
                )
            place = places[layer.name]
            if place.stop - place.start != layer.units:
                raise ActstatsError(
                    f"layer {layer.name} has {layer.units} units, but {place.stop - place.start} were swept"
                )
        return layers, [places[layer.name] for layer in layers]

    # What can be done with it.

    def estimate(self, *, measure: bool = False) -> Estimate:
        """Return what the sweep will take; with `measure`, run a few batches to time it.

        Raises:
            ActstatsError: as `run`.
        """
        source = self.images()
        schema = self.schema
        coordinates = schema.coordinates(source.paths, source.labels).values()
        names = sum(len(str(v)) + 4 for _, values in coordinates if values.dtype.kind == "O" for v in values)
        numbers = sum(values.nbytes for _, values in coordinates if values.dtype.kind != "O")
        partition = schema.bytes(images=schema.partition_size)
        shape = input_shape(self.manifest["preprocessing"])
        # Two sets of buffers and one being written; batches ahead; maps of the network, which frees most as it goes.
        maps = self.settings.batch_size * sum(
            layer.units * layer.height * layer.width for layer in schema.layers
        )
        weights = sum(tensor.nbytes for tensor in self.network().model.state_dict().values())
        memory = (
            3 * partition + 2 * weights + 4 * 3 * self.settings.batch_size * shape[0] * shape[1] * shape[2]
        )
        return Estimate(
            images=schema.images,
            partitions=schema.partitions,
            bytes=schema.bytes() + names + numbers + schema.images,
            memory=memory + maps + _MEMORY_OF_TORCH,
            seconds=self._measured_seconds() if measure else None,
        )

    def run(self, **execution: Any) -> Summary:
        """Compute what is not complete yet.

        Args:
            **execution: fields of `Execution`: device, workers, part, strict, overwrite, client, on_start,
                on_progress, ...

        Returns:
            A summary of this run.

        Raises:
            ActstatsError: anything that the user can mend, in one line. Completed partitions are kept.
            KeyboardInterrupt: on Ctrl-C, after the partition that is being written is complete.
        """
        require_known(execution, "run", *names_of(Execution))
        how = Execution(**execution)
        from actstats.sweeping.run import run_partitions

        # Before the store is made: is there what computes it?
        cluster = None if how.client is None else self._cluster(how)
        target = self._target(how.device) if cluster is None else None
        with self.opened(how) as run:
            if run.todo:
                total = sum(stop - start for start, stop in map(run.schema.bounds, run.todo))
                with bar(total, how.progress, how.on_progress) as on_progress:
                    shown = replace(how, on_progress=on_progress)
                    if cluster is None:
                        found = run_partitions(self.job(target), run.store, run.todo, shown)
                        run.progress, run.failures = found
                    else:
                        run.progress, run.failures, run.aside = cluster.run_partitions(
                            run.store, run.todo, run.retried, on_progress
                        )
            return run.summary()

    @contextmanager
    def opened(self, how: Execution) -> Iterator[Run]:
        """Create or open the store, find out what is to be computed, and call `how.on_start`; in the end, close it.

        Raises:
            ActstatsError: the store holds another sweep, or is damaged, or cannot be written.
        """
        source, schema = self.images(), self.schema
        if not how.overwrite:
            self._refuse_unnamed()
        store = Store.open_or_create(
            self.store, self.manifest, schema, source.paths, source.labels, overwrite=how.overwrite
        )
        try:
            notes = manifests.changes(store.manifest, self.manifest)
            if how.repair:
                notes += _discard_damaged(store)
            elif missing := store.missing_objects():
                raise missing_error(store.path, missing)
            index, parts = how.part
            complete = store.completed
            # What was missing may have come back; what could not be decoded is as it was.
            retried = {int(i) // store.partition_size for i in np.flatnonzero(store.statuses() == MISSING)}
            if retried:
                notes.append(f"{_count(len(retried), 'partition')} had missing images, which are tried again")
            todo = [p for p in range(index, schema.partitions, parts) if not complete[p] or p in retried]
            if (mark := self.manifest["data"]["fingerprint"]).startswith(UNNAMED):
                how.note(f"the images have no fingerprint of their own; to resume, pass fingerprint={mark!r}")
            started = Started(
                store=store.path,
                arch=self.manifest["arch"],
                layers=len(schema.layers),
                units=schema.units,
                images=schema.images,
                partitions=schema.partitions,
                complete=int(complete.sum()),
                todo=sum(stop - start for start, stop in map(schema.bounds, todo)),
                notes=tuple(notes),
            )
            if how.on_start is not None:
                how.on_start(started)
            yield Run(store, schema, todo, how.max_failed, sorted(retried))
        finally:
            store.close()

    def job(self, device: str | torch.device | None = None) -> Job:
        """Return what this process needs to compute partitions, the network moved to `device`.

        Raises:
            ActstatsError: the network or the images cannot be had, or the device is of another kind than planned.
        """
        from actstats.sweeping.buffers import PartitionLayout
        from actstats.sweeping.device import out_of_memory_explained, to_device
        from actstats.sweeping.run import Job

        target = self._target(device)
        loaded = self.network()
        with out_of_memory_explained(self.settings.batch_size):
            to_device(loaded.model, target)
        layout = PartitionLayout(
            self.schema, self._metrics(), target, self.settings.bitround, self.images().labels
        )
        return Job(loaded, self.images(), layout, self.settings, self.chain)

    def _target(self, device: str | torch.device | None) -> torch.device:
        from actstats.sweeping.device import find_device

        target = find_device(str(device or self.manifest["device"]))
        if target.type != self.manifest["device"]:
            raise ActstatsError(
                f"the plan is for {self.manifest['device']}, the device is {target}; make a plan for that one"
            )
        return target

    def _cluster(self, how: Execution) -> Cluster:
        from actstats.sweeping.cluster import Cluster

        cluster = Cluster(self, how)
        cluster.prepare()
        return cluster

    def _metrics(self) -> Chosen:
        if self._chosen is None:
            custom = self.settings.custom
            if custom and not self._trust:
                raise ActstatsError(
                    f"{self.store} names the metric {custom[0]}, which is code of its maker's; "
                    "trust the store to import it"
                )
            self._chosen = resolve_metrics(self.settings.metrics, custom)
        return self._chosen

    def _measured_seconds(self) -> float:
        """Return the time of the whole sweep, from a few batches after a first one that compiles."""
        from actstats.sweeping.run import measured_seconds

        return measured_seconds(self.job(), self.images_count)

    def _refuse_unnamed(self) -> None:
        """Raise `ActstatsError` where a store is there, and nothing tells whether it holds the same images."""
        data = self.manifest["data"]
        if data["fingerprint"].startswith(UNNAMED) and place_of(self.store).exists():
            there = Store.open(self.store).manifest["data"]["fingerprint"]
            if there != data["fingerprint"]:
                raise ActstatsError(
                    f"{self.store} is there already, and a {data['spec']} has no fingerprint that tells whether its "
                    f"images are the same; if they are, resume with `fingerprint={there!r}`"
                )

    def _refuse_unreferable(self) -> None:
        data, weights = self.manifest["data"], self.manifest["weights"]
        if weights["source"] == "module":
            raise ActstatsError(
                f"a {self.manifest['arch']} of the caller's own cannot be found by another process; "
                "plan with a name such as package.module:factory"
            )
        if data["kind"] not in _REOPENED:
            raise ActstatsError(
                f"images of kind {data['kind']!r} cannot be opened by another process; "
                "plan with a folder or tar files"
            )
        for name, metric in (self._chosen.custom if self._chosen else {}).items():
            if ":" in name and (
                "<locals>" in name or named_object(name, "metric", "Class") is not type(metric)
            ):
                raise ActstatsError(
                    f"metric {name} cannot be found by another process; put its class into a module"
                )


def _resolved(source: Source) -> str:
    """Return the absolute path of images that lie on this machine, and what was asked for of others."""
    place = located(source.spec)
    if source.kind == "demo" or source.kind not in _REOPENED or not isinstance(place, Path):
        return source.spec
    return str(place.expanduser().absolute())


_IDENTITY: Final = ("arch", "num_classes", "weights", "classes")
_MEMORY_OF_TORCH: Final = 450 << 20


def plan(
    model: str | nn.Module | Loaded,
    images: Any,
    store: str | Path,
    *,
    weights: str = "default",
    robust: str | bool | None = None,
    seed: int = 0,
    offline: bool = False,
    preprocessing: Preprocessing | Callable[[Any], Any] | None = None,
    limit: int | None = None,
    fingerprint: str | None = None,
    device: str = "auto",
    **settings: Any,
) -> SweepPlan:
    """Plan a sweep of `model` over `images` into the store at `store`: find its layers, check everything,
    write nothing.

    Args:
        model: an architecture's name (`load_model`), a `Loaded` model, or a module of your own (for
            which images need `preprocessing`).
        images: a folder, tar files or `"demo"`; a torch `Dataset` or `DataLoader`, a Hugging Face dataset, a
            tensor; or an open source (see `open_source`).
        store: path or URL of the Zarr store, created by `run` if missing.
        weights: as for `load_model`, where `model` is a name.
        robust: adversarially trained weights, as for `load_model`.
        seed: seed of random weights.
        offline: never touch the network.
        preprocessing: from an image to the network's input: a `Preprocessing`, or any function, such as a
            torchvision `Compose`, the `transforms()` of weights, timm's, or a Hugging Face processor. None: what
            belongs to the weights; tensors that are no images of bytes are the input as they are.
        limit: use only the first `limit` images.
        fingerprint: names the images of a dataset that has no fingerprint of its own, so that a sweep can resume.
        device: "cpu", "cuda", "cuda:1", or "auto": a GPU if there is one. A plan for "cuda" can be made on a machine
            without a GPU, and run on another.
        **settings: fields of `Settings`: layers, metrics, custom, distort, top_k, per_image, batch_size,
            partition_size, amp, compile, decode, bitround, compression.

    Returns:
        The plan. The network is in eval mode and on `device`.

    Raises:
        ActstatsError: anything that the user can mend, in one line.
    """
    require_known(settings, "plan", *names_of(Settings))
    decided = Settings(**settings)
    parse_compression(decided.compression)
    chosen = resolve_metrics(decided.metrics, decided.custom)

    from actstats.data import open_source
    from actstats.data.dataset import first_readable
    from actstats.data.preprocessing import of_images
    from actstats.distort import parse
    from actstats.layers import select_layers
    from actstats.models import load_model
    from actstats.sweeping.batches import Feed
    from actstats.sweeping.device import in_eval_mode, out_of_memory_explained, planned_device, to_device

    kind, target = planned_device(device)
    chain = parse(decided.distort)
    source = open_source(images, limit=limit, fingerprint=fingerprint)
    if "batch_size" not in settings:
        decided = replace(decided, batch_size=getattr(source, "batch_size", None) or decided.batch_size)
    asked = request(model, weights, robust, seed, device)
    if isinstance(model, str):
        model = load_model(model, weights, robust=robust, seed=seed, offline=offline)
    loaded = _with_preprocessing(model, preprocessing, first_readable(source))
    if chain:
        chain.check(of_images(loaded.preprocessing, "distorting images"))
    with in_eval_mode(loaded.model), out_of_memory_explained(decided.batch_size):
        network = to_device(loaded.model, target)
        # Made for its checks alone: of the decoder, and of what does not go together.
        Feed(loaded, source, target, (), chain=chain, decode=decided.decode, workers=0)
        layers = select_layers(network, loaded.preprocessing.example(2, target), decided.layers)
    schema = Schema.of(
        chosen,
        layers,
        len(source),
        partition_size=decided.partition_size,
        top_k=decided.top_k,
        per_image=decided.per_image,
    )
    manifest = manifests.build(
        **loaded.identity,
        preprocessing=loaded.preprocessing.to_dict(),
        **chain.record(),
        layers=[_layer_record(layer) for layer in layers],
        selectors=list(decided.layers),
        metrics=[*chosen.builtin, *chosen.custom],
        outputs=[output.name for output in schema.outputs],
        per_image=decided.per_image,
        top_k=decided.top_k,
        batch_size=decided.batch_size,
        partition_size=decided.partition_size,
        data={
            "spec": source.spec,
            "resolved": _resolved(source),
            "kind": source.kind,
            "images": len(source),
            "fingerprint": source.fingerprint,
            "classes": list(source.classes),
        },
        device=kind,
        amp=decided.amp,
        **({"compile": True} if decided.compiles(len(source), kind) else {}),
        decode=decided.decode,
        bitround=decided.bitround,
        compression=decided.compression,
        request=asked,
    )
    made = SweepPlan(manifest, store, loaded=loaded, source=source, chosen=chosen, trust=True)
    made.__dict__["schema"] = schema  # known already, so the cached property need not compute it
    return made


def request(
    model: Any, weights: str, robust: str | bool | None, seed: int, device: str
) -> dict[str, Any] | None:
    """Return by which words a network was asked for; None for one that was handed over."""
    if not isinstance(model, str):
        return None
    training = "default" if robust is True else robust or None
    return {"arch": model, "weights": str(weights), "robust": training, "seed": seed, "device": device}


def _with_preprocessing(model: nn.Module | Loaded, given: object, item: object) -> Loaded:
    """Return the network with what makes its input of an `item` of the source."""
    from actstats.data.transform import choose_preprocessing
    from actstats.models import Loaded
    from actstats.sweeping.device import refuse_meta

    refuse_meta(model.model if isinstance(model, Loaded) else model)
    own = model.preprocessing if isinstance(model, Loaded) else None
    found = choose_preprocessing(given, own, item)
    return replace(model, preprocessing=found) if isinstance(model, Loaded) else Loaded.of(model, found)


def _discard_damaged(store: Store) -> list[str]:
    """Forget the partitions with a damaged object, and say which, a line each.

    Raises:
        ActstatsError: a coordinate is damaged, which belongs to all partitions.
    """
    found: dict[int, list[str]] = {}
    for name, partition, reason in store.damage():
        if partition is None:
            raise ActstatsError(
                f"{store.path}: the coordinate {name} is damaged ({reason}) and cannot be computed again; "
                "remove the store and sweep again"
            )
        found.setdefault(partition, []).append(name)
    store.discard(sorted(found))
    return [
        f"partition {p} is damaged ({', '.join(names)}) and computed again"
        for p, names in sorted(found.items())
    ]


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _layer_record(layer: Layer) -> dict[str, Any]:
    record = {name: getattr(layer, name) for name in _LAYER}
    return {**record, "shape": list(layer.shape)}


def _layer_from(record: Mapping[str, Any]) -> Layer:
    from actstats.layers import Layer

    fields: dict[str, Any] = {name: record[name] for name in _LAYER}
    return Layer(**{**fields, "shape": tuple(record["shape"])})


def _device_of(model: nn.Module) -> torch.device:
    import torch

    return next((p.device for p in model.parameters()), torch.device("cpu"))
