"""`actstats plan`: check a sweep, and write it to a file that `actstats run` computes, here or elsewhere."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from actstats.errors import ActstatsError, NotCachedError
from actstats.support import URL, located, replace_file
from actstats.sweeping.settings import AMP, Settings
from actstats_cli import options
from actstats_cli.printing import duration, message, print_json, say, size, table

if TYPE_CHECKING:
    from actstats.data import Source
    from actstats.sweeping.planning import SweepPlan
    from actstats.sweeping.progress import Estimate

_LONGEST_NAME: Final = 150
"""Longest default name of a store; file systems allow 255 bytes."""
DEMO: Final = "demo"
_COMPILE: Final = {"off": False, "on": True, "auto": "auto"}


def _changed(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> tuple[tuple[str, Path | URL], ...]:
    """Return the distortions and the store of each SPECS=STORE."""
    pairs = []
    for value in values:
        specs, equals, store = (part.strip() for part in value.partition("="))
        if not (specs and equals and store):
            raise click.BadParameter(
                f"{value!r} is not SPECS=STORE, such as noise:0.1=noisy.zarr", ctx, param
            )
        pairs.append((specs, located(store)))
    return tuple(pairs)


planning_options: Final = options.together(
    options.network,
    click.option(
        "--data",
        metavar="IMAGES",
        envvar="ACTSTATS_DATA",
        help="A folder, a .tar or .parquet, a folder of these, 'shard-{000..009}.tar', a URL of one of them (s3://, "
        "gs://, az://, https://, hf://), or demo, the default: crops of photographs that come with scikit-image. The "
        "environment variable ACTSTATS_DATA sets another default.",
    ),
    options.distort,
    click.option(
        "--changed",
        multiple=True,
        callback=_changed,
        metavar="SPECS=STORE",
        help="Sweep the same images, changed by these distortions, to STORE in the same pass, and compare each map "
        "with the clean one, such as --changed noise:0.1=noisy.zarr. Repeatable.",
    ),
    options.layers,
    options.stored,
    options.limit,
    options.sample,
    options.batch_size,
    options.device,
    click.option(
        "--amp",
        type=click.Choice(AMP),
        default=Settings.amp,
        show_default=True,
        help="Run the forward pass under autocast in this dtype.",
    ),
    click.option(
        "--compile",
        type=click.Choice(list(_COMPILE)),
        callback=lambda ctx, param, value: _COMPILE[value],
        is_flag=False,
        flag_value="on",
        default="off",
        show_default=True,
        help="Compile the network together with its statistics, which takes some time at the start and can change "
        "the last bits; auto: compile on a CPU if there are enough images for it to pay off.",
    ),
    options.decode,
    click.option(
        "--bitround",
        type=click.IntRange(1, 23),
        metavar="N",
        help="Keep N mantissa bits of per-image floats, so that they compress better.",
    ),
    click.option(
        "--compression",
        default=Settings.compression,
        show_default=True,
        metavar="CODEC",
        help="zstd:LEVEL (1 to 22), blosc:lz4 (faster, larger), or none.",
    ),
)
"""The options that determine a sweep, apart from its store."""


def store_option(name: str) -> Callable[[options.Decorated], options.Decorated]:
    """Return the option for the store that is written, called `name`."""
    return click.option(
        name,
        "store",
        type=located,
        metavar="PATH",
        help="Store to write: a folder, or a URL such as s3://bucket/x.zarr. Default: a folder named after the "
        "network, its weights, the images, their distortion, the layers and the metrics, such as "
        "googlenet-robust-demo.zarr.",
    )


@click.command(cls=options.Grouped)
@planning_options
@store_option("--store")
@click.option(
    "--out",
    "file",
    type=options.LocalPath(dir_okay=False),
    required=True,
    metavar="FILE",
    help="File to write the plan to, such as plan.json, with the plans of --changed.",
)
@options.as_json
def plan(data: str | None, file: Path, as_json: bool, **planning: Any) -> None:
    """Check a sweep, print what it would compute, and write it to a file for `actstats run`.

    The plan refers to the network by its source and checksum, and to images and store by their paths or URLs, so that
    it runs on any machine that sees the same files. Several plans over the same images run in one pass.

    \b
        actstats plan --arch googlenet --data photographs/ --store s.zarr --out s.json
        actstats plan --arch googlenet --robust --data photographs/ --store r.zarr --out r.json
        actstats run s.json r.json
        actstats plan --arch resnet50 --data photographs/ --changed noise:0.1=noisy.zarr --out both.json
    """
    choose_defaults(planning, data)
    plans = plan_network(open_images(data, planning), planning)
    texts = [each.to_json() for each in plans]
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, (texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]").encode())
    print_plans([(plans, True)], as_json=as_json)
    message(f"to compute it: actstats run {shlex.quote(str(file))}")


def open_images(data: str | None, planning: Mapping[str, Any]) -> Source:
    """Return the images at `data`, by default the demo photographs, as far as they are swept."""
    import actstats

    return actstats.open_source(data or DEMO, limit=planning["limit"], sample=planning["sample"])


def choose_defaults(planning: dict[str, Any], data: str | None, *, download: bool = True) -> None:
    """Name the store and choose the weights of a network, if that is left to the command."""
    planning["store"] = planning["store"] or Path(default_name(data or DEMO, **planning))
    if data is None and _embedded_instead(planning, download=download):
        planning["weights"] = DEMO


def plan_network(source: Source, planning: Mapping[str, Any], device: str | None = None) -> list[SweepPlan]:
    """Return the plans of one network over the images and over those changed, for `device` or the requested one."""
    from actstats.sweeping.sweeps import plan_on

    named = {**planning, "limit": None, "sample": None}
    changed = named.pop("changed")
    clean = plan_on(device or named["device"], named.pop("arch"), source, **named)
    return [clean, *(clean.changed(specs, store) for specs, store in changed)]


def plan_without_download(source: Source, planning: Mapping[str, Any]) -> tuple[list[SweepPlan], bool]:
    """Return the plans of a network, and whether it has its weights.

    Weights that would have to be downloaded are left out: the layers, and thus the size of the store, are the
    architecture's.
    """
    try:
        return plan_network(source, {**planning, "offline": True}), True
    except NotCachedError:
        if planning["offline"]:
            raise
        return plan_network(source, {**planning, "weights": "none", "robust": None}), False


def default_name(
    data: str,
    *,
    arch: str,
    weights: str = "default",
    robust: str | None = None,
    seed: int = 0,
    preprocessing: str | None = None,
    limit: int | None = None,
    sample: str | None = None,
    distort: Sequence[str] = (),
    layers: Sequence[str] = Settings.layers,
    metrics: Sequence[str] = Settings.metrics,
    custom: Sequence[str] = (),
    **others: Any,
) -> str:
    """Return the default name of a sweep's store, which says what was swept: every choice that is not the default.

    `others` are options of how it is computed and stored, which the name leaves out.

    >>> default_name("demo", arch="googlenet", robust="default")
    'googlenet-robust-demo.zarr'
    >>> default_name("/data/val.tar", arch="timm/resnet18.a1_in1k", distort=["scramble:4+noise:0.1"])
    'timm-resnet18.a1_in1k-val-scramble-4-noise-0.1.zarr'
    >>> default_name("val", arch="alexnet", weights="none", seed=3, limit=64, layers=["block", "conv1"])
    'alexnet-random-3-val-64-block-conv1.zarr'
    """
    from actstats.data.opening import stem

    chosen = {"default": "", "none": "random"}.get(weights, re.sub(r"\.\w+(?=$|#)", "", URL(weights).name))
    words = [
        *(arch, chosen, str(seed or "")),
        *([] if robust is None else ["robust"] if robust == "default" else ["robust", robust]),
        URL(preprocessing or "").name.removesuffix(".json"),
        stem(data) or "images",
        str(limit or ""),
        *([] if sample is None else ["sample", sample]),
        *distort,
        *(layers if tuple(layers) != Settings.layers else ()),
        *(metrics if tuple(metrics) != Settings.metrics else ()),
        *(name.rpartition(":")[2] for name in custom),
    ]
    name = "-".join(filter(None, (re.sub(r"[^\w.]+", "-", word).strip("-") for word in words)))
    if len(name) > _LONGEST_NAME:
        name = f"{name[:_LONGEST_NAME]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return f"{name}.zarr"


def _embedded_instead(planning: Mapping[str, Any], *, download: bool) -> bool:
    """Whether to sweep the embedded network because the published weights are not available; reports it on stderr.

    This is done only for the demo photographs, and only if no weights were given. Without `download`, weights that
    would have to be downloaded count as available.
    """
    if (
        planning["arch"] != "googlenet"
        or planning["weights"] != "default"
        or planning["robust"] not in (None, "default")
    ):
        return False
    from actstats.store import Store

    name = "robust googlenet" if planning["robust"] else "googlenet"
    instead = f"sweeping the small {name} that comes with actstats (`weights=demo`)"
    store = Store.find(planning["store"])
    if store is not None and store.manifest.weights.source.startswith("demo:"):
        message(f"{instead}, as before")
        return True
    from actstats.models import load_model

    offline = planning["offline"]
    try:
        load_model("googlenet", robust=planning["robust"], offline=offline or not download)
    except NotCachedError as error:
        if not offline:
            return False
        message(f"{instead}, because the published weights are not on this machine: {error}")
    except ActstatsError as error:
        message(f"{instead}, because the published weights are not available: {error}")
    else:
        return False
    return True


def print_plans(
    planned: Sequence[tuple[list[SweepPlan], bool]], *, measure: bool = False, as_json: bool
) -> None:
    """Print what each plan computes and how large that is; the flags say whether the weights are known."""
    found = [(plan, plan.estimate(measure=measure), known) for plans, known in planned for plan in plans]
    if as_json:
        records = [
            {
                "store": str(plan.store),
                "estimate": dataclasses.asdict(estimate),
                "manifest": plan.manifest.json | ({} if known else {"weights": None, "request": None}),
            }
            for plan, estimate, known in found
        ]
        print_json(records[0] if len(records) == 1 else {"sweeps": records})
        return
    for number, (plan, estimate, known) in enumerate(found):
        if number:
            say()
        for line in table(list(_facts(plan, estimate, known)), "<<"):
            say(line)


def _facts(plan: SweepPlan, estimate: Estimate, weights_known: bool) -> list[tuple[str, str]]:
    from actstats.store import place_of

    manifest, images = plan.manifest, plan.manifest.data
    weights = manifest.weights.source if weights_known else "not downloaded yet"
    exists = place_of(plan.store).exists()
    state = "exists: a sweep would resume or refuse it" if exists else "would be created"
    compiled = ", compiled" if manifest.compile else ""
    facts = [
        ("network", f"{manifest.arch}, weights {weights}"),
        ("input", str(manifest.preprocessing)),
        ("images", f"{images.images:,} of {images.spec} ({images.kind})"),
        ("layers", f"{len(manifest.layers):,} ({', '.join(manifest.selectors)}), {manifest.units:,} units"),
        ("metrics", ", ".join(manifest.metrics)),
        ("partitions", f"{estimate.partitions:,} of up to {manifest.partition_size:,} images"),
        (
            "run",
            f"batch size {manifest.batch_size}, {manifest.device}, amp {manifest.amp}{compiled}",
        ),
        ("store", f"{plan.store} ({state})"),
        ("size", f"{size(estimate.bytes)} before compression"),
        ("memory", f"about {size(estimate.memory)}"),
    ]
    if manifest.distort:
        facts.insert(3, ("distorted", " + ".join(manifest.distort)))
    if manifest.paired_with:
        facts.insert(4, ("compared", "each map with that of the clean image"))
    if estimate.seconds is not None:
        facts.append(("time", f"about {duration(estimate.seconds)}"))
    return facts
