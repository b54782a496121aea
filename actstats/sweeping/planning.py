"""Plan a sweep: `plan` checks everything and writes nothing, `SweepPlan.run` computes it.

A plan consists of a manifest and the path of a store. It refers to the network by source and checksum, and to the
images by spec and fingerprint. Other processes can open both again, so a plan can be pickled, saved as JSON and run
elsewhere. `SweepPlan.from_store` returns the plan that resumes an existing store.

>>> import actstats
>>> plan = actstats.plan("googlenet", "photographs/", "googlenet.zarr")  # doctest: +SKIP
>>> plan.estimate().bytes  # doctest: +SKIP
>>> plan.run()  # doctest: +SKIP
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, Unpack

import numpy as np

from actstats.data import MISSING
from actstats.data.opening import REOPENED, open_source
from actstats.data.preprocessing import Preprocessing
from actstats.data.source import UNNAMED
from actstats.errors import ActstatsError
from actstats.metrics import Chosen, resolve_metrics
from actstats.records import InvalidError, load, parse, shortened
from actstats.store import Schema, Store, compressors, place_of
from actstats.store import manifest as manifests
from actstats.store.sweep import Recorded
from actstats.support import URL, html_facts, located, named_object, one_or_more
from actstats.sweeping.options import ExecutionOptions, SettingsOptions, fields_in, request, with_options
from actstats.sweeping.progress import Estimate, Run, Started, Summary, bar
from actstats.sweeping.settings import Execution, Settings
from actstats.text import printable

if TYPE_CHECKING:
    import torch
    from torch import nn

    from actstats.data import Source
    from actstats.distort import Chain
    from actstats.layers import Layer
    from actstats.models import Loaded
    from actstats.sweeping.run import Job

_JSON: Final = 1
"""Version of the JSON format of a plan."""
_LAYER: Final = ("name", "module", "call", "kind", "units", "height", "width", "shape", "axes", "prefix")


class SweepPlan(Recorded):
    """A planned sweep: its layers and settings, and references to its network and images.

    Attributes:
        manifest: the record of the sweep; see `docs/store.md`.
        store: path or URL of the Zarr store.
        notes: what to know about the selected layers, one line each, which `run` reports; not part of the manifest.
    """

    def __init__(
        self,
        manifest: Mapping[str, object],
        store: str | Path,
        *,
        loaded: Loaded | None = None,
        source: Source | None = None,
        chosen: Chosen | None = None,
        trust: bool = False,
    ) -> None:
        entries = load(json.dumps(manifest))  # as a store would return them, such as a URL as text
        super().__init__(manifests.Manifest.from_json(entries), trust=trust)
        self.store = located(store)
        self._loaded, self._source, self._chosen = loaded, source, chosen
        self.notes: list[str] = []

    @classmethod
    def from_store(cls, store: str | Path, *, trust: bool = False) -> Self:
        """Return the plan with which the sweep in `store` is resumed; `open_sweep` reads what is there.

        With `trust`, what the store names is used, as in `open_sweep`, and custom metrics are imported.

        Raises:
            ActstatsError: the store does not exist or is damaged.
        """
        return cls(Store.open(store).manifest.json, store, trust=trust)

    @classmethod
    def from_json(cls, text: str, *, trust: bool = False) -> Self:
        """Return the plan in `text`, as written by `to_json`, by default without importing code that it names.

        With `trust`, factories, metrics, files and URLs that it names are used, as in `open_sweep`: for plans of your
        own.

        Raises:
            ActstatsError: the text is not a valid plan, or it names a URL and is not trusted.
        """
        plans = cls.all_from_json(text, trust=trust)
        if len(plans) != 1:
            raise ActstatsError(f"not a valid plan in JSON: it is a list of {len(plans)} plans")
        return plans[0]

    @classmethod
    def all_from_json(cls, text: bytes | str, *, trust: bool = False) -> list[Self]:
        """Return the plans in `text`, which is one plan, as for `from_json`, or a list of them.

        Raises:
            ActstatsError: as `from_json`.
        """
        plans = []
        try:
            found = load(text)
            for entries in found if isinstance(found, list) and found else [found]:
                if isinstance(entries, dict) and (version := entries.get("actstats_plan", _JSON)) != _JSON:
                    raise InvalidError(
                        f"format {shortened(version)}, but this version of actstats reads {_JSON}"
                    )
                record = parse(manifests.PlanRecord, entries)
                for place in (record.store, record.manifest.data.spec):
                    if isinstance(located(place), URL) and not trust:
                        raise ActstatsError(
                            f"the plan names {place}, which is not opened without permission; for a plan of your "
                            "own, pass `trust=True`"
                        )
                plans.append(cls(entries["manifest"], record.store, trust=trust))
        except (ValueError, InvalidError) as error:
            raise ActstatsError(f"not a valid plan in JSON: {error}") from None
        return plans

    def to_json(self) -> str:
        """Return the plan as JSON, with references to the network and the images.

        Raises:
            ActstatsError: a network, source or metric is an object that another process cannot find by name.
        """
        manifest, store = self._portable()
        return json.dumps({"actstats_plan": _JSON, "store": store, "manifest": manifest}, indent=1)

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), trust=self._trust), self._portable()

    def _portable(self) -> tuple[dict[str, Any], str]:
        """Return the manifest and the store, for a process that may have another working directory."""
        self._refuse_unreferable()
        return self.manifest.json, str(self.store.absolute() if isinstance(self.store, Path) else self.store)

    def __repr__(self) -> str:
        m = self.manifest
        return printable(
            f"<SweepPlan: {m.arch} over {m.data.images:,} images of {m.data.spec}, "
            f"{len(m.layers)} layers, {m.units:,} units, to {self.store}>"
        )

    def _repr_html_(self) -> str:
        m = self.manifest
        facts = [
            ("network", f"{m.arch}, weights {m.weights.source}"),
            ("layers", f"{len(m.layers)}, {m.units:,} units"),
            ("images", f"{m.data.images:,} of {m.data.spec}"),
            ("partitions", m.partitions),
            ("metrics", ", ".join(m.metrics)),
            ("device", m.device),
            ("store", self.store),
        ]
        return html_facts("Plan of a sweep", facts)

    # Contents of the manifest.

    @cached_property
    def settings(self) -> Settings:
        """The options that affect the results."""
        return Settings.from_manifest(self.manifest)

    @cached_property
    def schema(self) -> Schema:
        """Variables and dimensions of the store.

        Raises:
            ActstatsError: the store has custom metrics, but is not trusted to import them, or they compute other
                variables than planned.
        """
        schema = self._schema(self._metrics())
        if different := {output.name for output in schema.outputs} ^ {*self.manifest.outputs}:
            raise ActstatsError(
                f"the metrics of the sweep to {self.store} compute other variables than planned: {min(different)}; "
                "plan it again"
            )
        return schema

    def _schema(self, chosen: Chosen) -> Schema:
        settings = self.settings
        return Schema.of(
            chosen,
            [_layer_from(record) for record in self.manifest.layers],
            self.manifest.data.images,
            partition_size=settings.partition_size,
            top_k=settings.top_k,
            per_image=settings.per_image,
        )

    def network(
        self, *, arch: str | None = None, weights: str | Path | None = None, offline: bool = False
    ) -> Loaded:
        """Return the network of the sweep, as `Recorded.network` does, if this process computes as planned.

        Raises:
            ActstatsError: as `Recorded.network`; other versions are installed; or a function prepares the images, and
                the plan is not trusted to import it.
        """
        if self._loaded is None:
            if difference := manifests.other_version(self.manifest.versions):
                name, here, planned = difference
                raise ActstatsError(
                    f"this machine has {name} {here}, but the sweep to {self.store} was planned with {planned}; "
                    "install the same version, or plan it again"
                )
            function = self.preprocessing
            if not isinstance(function, Preprocessing) and function.reference and not self._trust:
                raise ActstatsError(
                    f"the images are prepared by {function.reference}, which is not called without permission; for "
                    "a store of your own, pass `trust=True`"
                )
        return super().network(arch=arch, weights=weights, offline=offline)

    # Estimating and running.

    def changed(self, distort: str | Sequence[str] | Chain, store: str | Path) -> Self:
        """Plan a sweep of the same images, changed by `distort`, whose maps are compared with those of this one.

        `sweep_together([clean, changed])` runs both in one pass. `store` has the variables of a separate sweep, and
        also `map_change` and `map_correlation`, f32 [image, unit]. If this sweep has distortions, they come first.

        Raises:
            ActstatsError: there is no distortion, it does not apply to these images, or this sweep has no per-image
                variables.
        """
        from actstats.data.preprocessing import of_images
        from actstats.distort import Chain, parse

        before = self.manifest.distort
        chain = parse([*before, *one_or_more(distort.specs if isinstance(distort, Chain) else distort)])
        if len(chain.steps) == len(before):
            raise ActstatsError(
                f"the images for {store} are not changed; name a distortion, such as noise:0.1"
            )
        if self.manifest.paired_with:
            raise ActstatsError(f"{self.store} is itself of changed images; pair {store} with the clean ones")
        if not self.settings.per_image:
            raise ActstatsError(f"the maps for {store} are compared image by image; use `per_image=True`")
        if self.settings.decode == "device":
            raise ActstatsError("distortions run on the CPU; use `decode=pillow`, or omit the distortions")
        chain.check(of_images(self.preprocessing, "distorting images"))
        chosen = replace(self._metrics(), paired=True)
        manifest = {
            **self.manifest.json,
            **chain.record(),
            "paired_with": self.manifest.identity,
            "outputs": [output.name for output in self._schema(chosen).outputs],
        }
        return type(self)(
            manifest, store, loaded=self.network(), source=self.images(), chosen=chosen, trust=self._trust
        )

    def estimate(self, *, measure: bool = False) -> Estimate:
        """Estimate disk space, memory and, with `measure`, the duration by timing a few batches.

        Raises:
            ActstatsError: see `run`.
        """
        source = self.images()
        schema = self.schema
        coordinates = schema.coordinates(source.paths, source.labels).values()
        names = sum(len(str(v)) + 4 for _, values in coordinates if values.dtype.kind == "O" for v in values)
        numbers = sum(values.nbytes for _, values in coordinates if values.dtype.kind != "O")
        partition = schema.bytes(images=schema.partition_size)
        shape = self.manifest.preprocessing.shape
        # Two sets of buffers and one being written; decoded batches; activations, most of them freed early.
        maps = self.settings.batch_size * sum(
            layer.units * layer.height * layer.width for layer in schema.layers
        )
        weights = sum(tensor.nbytes for tensor in self.network().model.state_dict().values())
        memory = (
            3 * partition + 2 * weights + 4 * 3 * self.settings.batch_size * shape[0] * shape[1] * shape[2]
        )
        if self.manifest.paired_with:
            memory += maps * (4 if self.settings.amp == "off" else 2)  # the clean maps
        seconds = None
        if measure:
            from actstats.sweeping.run import measured_seconds

            seconds = measured_seconds(self.job(), self.manifest.data.images)
        return Estimate(
            images=schema.images,
            partitions=schema.partitions,
            bytes=schema.bytes() + names + numbers + schema.images,
            memory=memory + maps + _MEMORY_OF_TORCH,
            seconds=seconds,
        )

    @with_options(Execution)
    def run(self, **execution: Unpack[ExecutionOptions]) -> Summary:
        """Compute the partitions that are not complete yet.

        Args:
            **execution: fields of `Execution`: device, workers, part, strict, overwrite, client, on_start,
                on_progress, ...

        Returns:
            A summary of this run.

        Raises:
            ActstatsError: any error that the user can fix, in one line. Completed partitions are kept.
            KeyboardInterrupt: on Ctrl-C, once the partition being written is complete.
        """
        how = Execution(**execution)
        if self.manifest.paired_with:
            raise ActstatsError(
                f"{self.store} is compared with a sweep of the clean images, so both run together: "
                "sweep_together([clean, changed])"
            )
        from actstats.sweeping.cluster import cluster_of
        from actstats.sweeping.run import run_partitions

        # Check for the cluster or device before the store is created.
        cluster = cluster_of([self], [None], how)
        target = self._target(how.device) if cluster is None else None
        with self.opened(how) as run:
            if run.todo:
                total = sum(stop - start for start, stop in map(run.schema.bounds, run.todo))
                with bar(total, how.progress, how.on_progress) as on_progress:
                    shown = replace(how, on_progress=on_progress)
                    if cluster is None:
                        found = run_partitions(self.job(target), run.store, run.todo, shown)
                        run.progress, run.outcome.failures = found
                    else:
                        run.progress, outcomes = cluster.run_partitions({0: run}, on_progress)
                        run.outcome = outcomes[0]
            if run.outcome.error is not None:
                raise run.outcome.error
            return run.summary()

    @contextmanager
    def opened(self, how: Execution) -> Iterator[Run]:
        """Create or open the store, determine what to compute, and call `how.on_start`; close the store on exit.

        Raises:
            ActstatsError: the store holds another sweep, is damaged, or cannot be written.
        """
        source, schema = self.images(), self.schema
        if self.settings.compile and how.client is None:
            from actstats.passes.device import refuse_uncompilable

            refuse_uncompilable(self.manifest.device)
        if not (how.overwrite or how.repair):
            self._refuse_unnamed()
        if how.client is None and (how.overwrite or not place_of(self.store).exists()):
            # Raise errors before a store is created or replaced; on a cluster, its workers have done the same.
            self.job(how.device)
        store = Store.open_or_create(
            self.store,
            self.manifest.json,
            schema,
            source.paths,
            source.labels,
            overwrite=how.overwrite,
            repair=how.repair,
        )
        try:
            notes = manifests.changes(store.manifest.json, self.manifest.json)
            if how.repair:
                notes += [f"{key} is damaged; restored it" for key in store.restored]
                notes += self._discard_damaged(store)
            else:
                store.require_objects()
            index, parts = how.part
            complete = store.completed
            # Missing images may be available again; images that could not be decoded are not retried.
            retried = {int(i) // store.partition_size for i in np.flatnonzero(store.statuses() == MISSING)}
            if retried:
                several = f"{len(retried):,} partition{'s' * (len(retried) > 1)}"
                notes.append(f"{several} had missing images; trying them again")
            todo = [p for p in range(index, schema.partitions, parts) if not complete[p] or p in retried]
            for note in self.notes:
                how.note(note)
            if (mark := self.manifest.data.fingerprint).startswith(UNNAMED):
                how.note(f"the images have no fingerprint of their own; to resume, pass fingerprint={mark!r}")
            for line in getattr(self._source, "notes", ()):
                how.note(line)
            started = Started(
                store=store.path,
                arch=self.manifest.arch,
                layers=len(schema.layers),
                units=schema.units,
                images=schema.images,
                partitions=schema.partitions,
                complete=int(complete.sum()),
                todo=sum(stop - start for start, stop in map(schema.bounds, todo)),
                input=str(self.manifest.preprocessing),
                notes=tuple(notes),
            )
            if how.on_start is not None:
                how.on_start(started)
            yield Run(store, schema, todo, how.max_failed, sorted(retried))
        finally:
            store.close()

    def job(
        self,
        device: str | torch.device | None = None,
        *,
        beside: Job | None = None,
        source: Source | None = None,
    ) -> Job:
        """Return what this process needs to compute partitions on `device`.

        With `beside`, the job of the clean images, changed images run through the same network, compiled or not. With
        `source`, the images are those, which another plan has opened.

        Raises:
            ActstatsError: the network or the images are unavailable, or the plan is for another type of device.
        """
        from actstats.passes.device import refuse_meta
        from actstats.passes.network import Network
        from actstats.sweeping.buffers import PartitionLayout
        from actstats.sweeping.run import Job

        target = self._target(device)
        self._source = self._source if source is None else source
        self._loaded = self._loaded if beside is None else beside.loaded
        loaded = self.network()
        refuse_meta(loaded.model)
        layout = PartitionLayout(
            self.schema, self._metrics(), target, self.settings.bitround, self.images().labels
        )
        channels_last = self.manifest.memory_format is None
        network = Network(loaded.model, self.schema.layers, target, self.settings.amp, channels_last)
        made = Job(loaded, self.images(), layout, self.settings, network, self.chain, channels_last)
        if beside is None:
            return made
        return replace(made, network=beside.network, turn=beside.turn)

    def _target(self, device: str | torch.device | None) -> torch.device:
        from actstats.passes.device import find_device

        target = find_device(str(device or self.manifest.device))
        if target.type != self.manifest.device:
            raise ActstatsError(
                f"the plan is for {self.manifest.device}, but the device is {target}; make a plan for it instead"
            )
        return target

    def _metrics(self) -> Chosen:
        if self._chosen is None:
            custom = self.settings.custom
            if custom and not self._trust:
                raise ActstatsError(
                    f"{self.store} uses the custom metric {custom[0]}; to import its code, pass `trust=True`"
                )
            resolved = resolve_metrics(self.settings.metrics, custom)
            self._chosen = replace(resolved, paired=self.manifest.paired_with is not None)
        return self._chosen

    def _discard_damaged(self, store: Store) -> list[str]:
        """Discard the partitions with a damaged object, and return a line about each.

        Raises:
            ActstatsError: they cannot be computed again, or an object that all partitions share is damaged.
        """
        damaged: dict[int, list[str]] = {}
        for name, partition, reason in store.damage():
            if partition is None:
                raise ActstatsError(
                    f"{store.path} cannot be repaired: {name}: {reason}; remove it and sweep again"
                )
            damaged.setdefault(partition, []).append(name)
        if damaged:
            self.network()  # raises an error before anything is discarded that could not be computed again
        store.discard(sorted(damaged))
        return [
            f"partition {p} is damaged ({', '.join(names)}); computing it again"
            for p, names in damaged.items()
        ]

    def _refuse_unnamed(self) -> None:
        """Raise `ActstatsError` if a store exists and its images cannot be compared to those of the plan."""
        data = self.manifest.data
        if data.fingerprint.startswith(UNNAMED) and (store := Store.find(self.store)):
            there = store.manifest.data.fingerprint
            if there != data.fingerprint:
                raise ActstatsError(
                    f"{self.store} already exists, and a {data.spec} has no fingerprint to tell whether its "
                    f"images are the same; if they are, resume with `fingerprint={there!r}`"
                )

    def _refuse_unreferable(self) -> None:
        if self.manifest.weights.source == "module":
            raise ActstatsError(
                f"another process cannot create the network from a {self.manifest.arch} object; "
                "pass a name such as package.module:factory instead"
            )
        if self.manifest.data.kind not in REOPENED:
            raise ActstatsError(
                f"another process cannot open images of kind {self.manifest.data.kind!r}; "
                "pass a folder or tar files instead"
            )
        function = self.preprocessing
        if not isinstance(function, Preprocessing) and function.reference is None:
            raise ActstatsError(
                f"another process cannot import the preprocessing {function.description[:80]}; give it as "
                "`preprocessing='package.module:object'`"
            )
        for name, metric in (self._chosen.custom if self._chosen else {}).items():
            if ":" in name and (
                "<locals>" in name or named_object(name, "metric", "Class") is not type(metric)
            ):
                raise ActstatsError(
                    f"another process cannot import the metric {name}; define its class in a module"
                )


def _resolved(source: Source) -> str:
    """Return the absolute path of images on this machine, or the spec of other images."""
    place = located(source.spec)
    if source.kind == "demo" or source.kind not in REOPENED or not isinstance(place, Path):
        return source.spec
    return str(place.expanduser().absolute())


_MEMORY_OF_TORCH: Final = 450 << 20


@with_options(Settings)
def plan(
    model: str | nn.Module | Loaded,
    images: object,
    store: str | Path,
    *,
    weights: str | Path | None = "default",
    robust: str | bool | None = None,
    seed: int = 0,
    offline: bool = False,
    preprocessing: Preprocessing | Callable[[Any], Any] | str | None = None,
    limit: int | None = None,
    sample: int | str | None = None,
    fingerprint: str | None = None,
    device: str = "auto",
    **settings: Unpack[SettingsOptions],
) -> SweepPlan:
    """Plan a sweep of `model` over `images` into `store`: find the layers and check everything, but write nothing.

    Args:
        model: the name of an architecture (see `load_model`), a `Loaded` model, or any module (`preprocessing` is
            then required for images).
        images: a folder, tar files or `"demo"`; a torch `Dataset` or `DataLoader`, a Hugging Face dataset or a
            tensor; or an open source (see `open_source`).
        store: path or URL of the Zarr store, created by `run` if missing.
        weights: the weights, as in `load_model`, if `model` is a name.
        robust: adversarially trained weights, as in `load_model`.
        seed: seed for random weights.
        offline: whether to forbid internet access.
        preprocessing: function from an image to the network's input: a `Preprocessing`, or any callable, such as a
            torchvision `Compose`, the `transforms()` of weights, a timm transform or a Hugging Face processor; or
            text, such as "resize=36 crop=32 mean=0.5 std=0.25" or "package.module:object" (see
            `actstats.data.transform.parse_preprocessing`). By default the preprocessing of the weights; tensors other
            than uint8 images are used as they are.
        limit: use only the first `limit` images, which may all be of one class.
        sample: use only this many images, drawn at random with a share for each class; `"N:SEED"` sets the seed.
        fingerprint: identifies the images of a dataset that has no fingerprint, so that the sweep can be resumed.
        device: "cpu", "cuda", "cuda:1", or "auto" for a GPU if there is one. A plan for "cuda" can be made on a
            machine without a GPU and run on another.
        **settings: fields of `Settings`: layers, metrics, custom, distort, top_k, per_image, batch_size,
            partition_size, amp, compile, decode, bitround, compression.

    Returns:
        The plan. The network is left as it was.

    Raises:
        ActstatsError: any error that the user can fix, in one line.
    """
    decided = Settings(**fields_in(Settings, settings))
    compressors(decided.compression)
    chosen = resolve_metrics(decided.metrics, decided.custom)

    from actstats.data.dataset import first_inputs, first_readable
    from actstats.data.preprocessing import of_images
    from actstats.distort import parse
    from actstats.layers import notes_on, probe, select
    from actstats.layers.passes import left_as_it_was
    from actstats.models import load_model
    from actstats.passes.device import out_of_memory_explained, planned_device, to_device
    from actstats.passes.images import Pipeline

    kind, target = planned_device(device)
    chain = parse(decided.distort)
    source = open_source(images, limit=limit, sample=sample, fingerprint=fingerprint)
    if "batch_size" not in settings:
        decided = replace(decided, batch_size=getattr(source, "batch_size", None) or decided.batch_size)
    asked = request(model, weights, robust, seed, device)
    if isinstance(model, str):
        model = load_model(model, weights, robust=robust, seed=seed, offline=offline)
    loaded = _with_preprocessing(model, preprocessing, first_readable(source))
    if chain:
        chain.check(of_images(loaded.preprocessing, "distorting images"))
    with left_as_it_was(loaded.model), out_of_memory_explained(decided.batch_size):
        network = to_device(loaded.model, target)
        Pipeline(loaded, target, chain, decided.decode).view(source)  # raises if they do not go together
        try:
            probed = probe(network, loaded.preprocessing.example(2, target))
        except ActstatsError:  # a network may only know values that images have, such as entries of a table
            probed = probe(network, first_inputs(source, loaded.preprocessing, target))
        layers = select(probed, decided.layers)
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
            **({"sample": drawn} if (drawn := getattr(source, "sample", None)) else {}),
        },
        device=kind,
        amp=decided.amp,
        **({"compile": True} if decided.compiles(len(source), kind) else {}),
        **({} if probed.channels_last else {"memory_format": "contiguous"}),
        decode=decided.decode,
        bitround=decided.bitround,
        compression=decided.compression,
        request=asked,
    )
    made = SweepPlan(manifest, store, loaded=loaded, source=source, chosen=chosen, trust=True)
    made.notes = notes_on(probed, decided.layers, layers)
    made.__dict__["schema"] = schema  # fill the cached property
    if lacking := decided.why_eager(len(source), kind):
        made.notes.append(f"running the network eagerly: {lacking}")
    return made


def _with_preprocessing(model: nn.Module | Loaded, given: object, item: object) -> Loaded:
    """Return the network with the preprocessing for images such as `item`."""
    from actstats.data.transform import choose_preprocessing
    from actstats.models import Loaded
    from actstats.passes.device import refuse_meta

    refuse_meta(model.model if isinstance(model, Loaded) else model)
    loaded = model if isinstance(model, Loaded) else Loaded.of(model)
    found = choose_preprocessing(given, loaded.own_preprocessing, item)
    return replace(loaded, own_preprocessing=found)


def _layer_record(layer: Layer) -> dict[str, Any]:
    record = {name: getattr(layer, name) for name in _LAYER}
    repeated = {"calls": layer.calls} if layer.calls > 1 else {}
    return {**record, "shape": list(layer.shape), **repeated}


def _layer_from(record: manifests.LayerRecord) -> Layer:
    from actstats.layers import Layer

    return Layer(**asdict(record))
