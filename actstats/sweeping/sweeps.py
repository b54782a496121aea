"""`sweep`: plan and run in one call; returns at once if the store is already complete."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from actstats.data import MISSING
from actstats.store import Store
from actstats.store import manifest as manifests
from actstats.support import sha256_of
from actstats.sweeping.options import PlanOptions, SweepOptions, fields_in, request, with_options
from actstats.sweeping.planning import SweepPlan, plan
from actstats.sweeping.settings import Execution, Settings

if TYPE_CHECKING:
    from torch import nn

    from actstats.models import Loaded
    from actstats.sweeping.progress import Summary


@with_options(plan, Execution)
def sweep(
    model: str | nn.Module | Loaded,
    images: object,
    store: str | Path,
    *,
    changed: Mapping[str, str | Path] | None = None,
    device: str = "auto",
    **options: Unpack[SweepOptions],
) -> Summary:
    """Compute statistics of every unit of `model` over `images` in one pass and write them to `store`.

    This is `plan(model, images, store, ...).run(...)`. To resume an interrupted sweep, call it again with the same
    arguments.

    Args:
        model: the name of an architecture, a `Loaded` model, or any module (`preprocessing` is then required for
            images).
        images: a folder, tar files or `"demo"`; a torch `Dataset` or `DataLoader`, a Hugging Face dataset or a
            tensor; or an open source (see `open_source`).
        store: path or URL of the Zarr store, created if missing.
        changed: stores for the same images, changed, by their distortions: `{"noise:0.1": "noisy.zarr"}`. They are
            swept in the same pass, and each map is compared with the clean one (see `SweepPlan.changed`).
        device: "cpu", "cuda", "cuda:1", or "auto" for a GPU if there is one.
        **options: the other arguments of `plan` (weights, robust, seed, offline, preprocessing, limit, sample,
            fingerprint), and the fields of `Settings` (layers, metrics, batch_size, ...) and `Execution` (workers,
            part, strict, overwrite, on_start, on_progress, progress, client, ...).

    Returns:
        A summary of this run, with those of the changed images as `changed`.

    Raises:
        ActstatsError: any error that the user can fix, in one line. Completed partitions are kept.
        KeyboardInterrupt: on Ctrl-C, once the partition being written is complete.
    """
    execution = fields_in(Execution, options)
    planning: dict[str, Any] = {name: value for name, value in options.items() if name not in execution}
    how = Execution(**execution)  # validated before anything is loaded
    asked = device
    device = device_for(how, device)
    if not changed and (finished := _complete_already(model, images, store, asked, how, planning)):
        return finished
    if how.client is None:
        from actstats.passes.device import find_device

        find_device(device)
    clean = plan_on(device, model, images, store, device=asked, **planning)
    if not changed:
        return clean.run(**execution, device=device)
    from actstats.sweeping.together import sweep_together

    plans = [clean.changed(specs, path) for specs, path in changed.items()]
    summaries: list[Summary] = sweep_together([clean, *plans], **execution, device=device)
    return replace(summaries[0], changed=dict(zip(changed, summaries[1:], strict=True)))


def device_for(how: Execution, device: str) -> str:
    """Return the device to plan a sweep for, which on a cluster is that of its workers.

    Raises:
        ActstatsError: as `actstats.sweeping.cluster.device_of`.
    """
    if how.client is None:
        return device
    from actstats.sweeping.cluster import device_of

    return device_of(how, device)


def plan_on(
    target: str,
    model: str | nn.Module | Loaded,
    images: object,
    store: str | Path,
    *,
    device: str,
    **options: Unpack[PlanOptions],
) -> SweepPlan:
    """Return the `plan` for the device `target`, recording that `device` was requested."""
    planned = plan(model, images, store, device=target, **options)
    if planned.manifest.request is not None:
        requested = {**asdict(planned.manifest.request), "device": device}
        planned.manifest = manifests.Manifest.from_json({**planned.manifest.json, "request": requested})
    return planned


def _complete_already(
    model: Any,
    images: Any,
    store: str | Path,
    device: str,
    how: Execution,
    options: Mapping[str, Any],
) -> Summary | None:
    """Return the summary of a complete sweep without loading the network, or None if the network has to be loaded.

    This works for named architectures and weights files only: user code has to be run to tell whether it is the same.
    A repair reads every object first, so it is never complete already.
    """
    if (
        how.repair
        or not isinstance(model, str)
        or ":" in model
        or not isinstance(images, str | Path)
        or (found := Store.find(store)) is None
    ):
        return None
    settings = Settings(**fields_in(Settings, options))
    if settings.custom or options.get("preprocessing") is not None or options.get("fingerprint"):
        return None
    manifest, data = found.manifest, found.manifest.data
    settings = replace(settings, compile=settings.compiles(data.images, manifest.device))
    asked = request(
        model, options.get("weights", "default"), options.get("robust"), options.get("seed", 0), device
    )
    if (
        manifest.format != manifests.FORMAT
        or manifest.paired_with  # settings determine neither the clean sweep nor the contents of a folder of masks
        or manifest.masks
        or (manifest.request and asdict(manifest.request)) != asked
        or manifest.versions != manifests.versions()
        or Settings.from_manifest(manifest) != settings
        or not found.completed.all()
        or found.missing_objects()
        or (found.statuses() == MISSING).any()
    ):
        return None
    if manifest.weights.source.startswith("file:"):
        file = Path(str(options.get("weights")).partition("#")[0]).expanduser()
        if not file.is_file() or sha256_of(file) != manifest.weights.file_sha256:
            return None
    from actstats.data import open_source
    from actstats.passes.images import Progress
    from actstats.sweeping.progress import Summary

    source = open_source(images, limit=options.get("limit"), sample=options.get("sample"))
    if (len(source), source.fingerprint) != (data.images, data.fingerprint):
        return None
    if how.overwrite:
        how.note(f"{found.path} is the store of this very sweep and is kept; remove it to compute it again")
    return Summary(
        store=found.path,
        images=data.images,
        units=manifest.units,
        layers=len(manifest.layers),
        progress=Progress(0, 0, 0, 0.0, 0.0),
        partitions=0,
        complete=True,
        failed=bool((found.statuses() > 0).mean() > how.max_failed),
    )
