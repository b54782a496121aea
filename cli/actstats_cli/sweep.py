"""`actstats sweep`: write the statistics of every unit to a store, in one pass over the images."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from click.core import ParameterSource

from actstats.errors import ActstatsError, NotCachedError
from actstats.support import URL, located
from actstats.sweeping.settings import AMP, Execution, Settings
from actstats_cli import options
from actstats_cli.printing import count, duration, message, note, print_json, say, size, table
from actstats_cli.progress import Reporter

if TYPE_CHECKING:
    from actstats.sweeping.planning import SweepPlan
    from actstats.sweeping.progress import Estimate, Summary

SHOWN: Final = 5
"""Number of unreadable images that the summary lists."""
_LONGEST_NAME: Final = 150
"""Longest default name of a store; file systems allow 255 bytes."""
DEMO: Final = "demo"
GROUPS: Final = {
    "Network": ("--arch", "--weights", "--robust", "--seed", "--preprocessing", "--offline", "--also"),
    "Images": ("--data", "--limit", "--sample", "--distort", "--changed"),
    "What is computed": (
        "--layers",
        "--metrics",
        "--metric",
        "--top-k",
        "--amp",
        "--compile",
        "--batch-size",
    ),
    "Store": (
        "--out",
        "--partition-size",
        "--per-image",
        "--bitround",
        "--compression",
        "--overwrite",
        "--repair",
    ),
    "Running": ("--device", "--workers", "--decode", "--part", "--strict", "--max-failed"),
    "On a cluster": ("--scheduler", "--tls-ca", "--tls-cert", "--tls-key"),
    "Before running": ("--dry-run", "--measure"),
}
"""The options in `--help`, by heading."""
COMPILE: Final = {"off": False, "on": True, "auto": "auto"}
_OF_AN_ARCH: Final = ("weights", "robust", "preprocessing")
"""Options that --also does not take from the first network if it gives another --arch."""
_OF_A_NETWORK: Final = frozenset(
    {
        *("arch", "seed", "out", "changed", *_OF_AN_ARCH),
        *("distort", "layers", "metrics", "custom", "per_image", "top_k"),
        *("amp", "compile", "decode", "bitround", "compression"),
    }
)
"""Options that --also takes."""


def _part(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, int]:
    """Return (I, N) for I/N."""
    first, slash, second = value.partition("/")
    if not (slash and first.isdecimal() and second.isdecimal() and int(first) < int(second)):
        raise click.BadParameter(f"{value!r} is not I/N with 0 <= I < N, such as 0/8", ctx, param)
    return int(first), int(second)


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


@click.command(cls=options.Grouped, groups=GROUPS)
@options.network
@click.option(
    "--also",
    multiple=True,
    metavar="OPTIONS",
    help="Sweep another network in the same pass, so that images are decoded once: in quotes, its --out and the "
    "options in which it differs from the first. Another --arch has weights and preprocessing of its own; --weights "
    "replaces --robust, and --robust replaces --weights other than demo. Repeatable.",
)
@click.option(
    "--data",
    metavar="IMAGES",
    envvar="ACTSTATS_DATA",
    help="A folder, a .tar or .parquet, a folder of these, 'shard-{000..009}.tar', a URL of one of them (s3://, "
    "gs://, az://, https://, hf://), or demo, the default: crops of photographs that come with scikit-image. The "
    "environment variable ACTSTATS_DATA sets another default.",
)
@click.option(
    "--out",
    type=located,
    metavar="PATH",
    help="Store to write: a folder, or a URL such as s3://bucket/x.zarr. Default: a folder named after the network, "
    "its weights, the images, their distortion, the layers and the metrics, such as googlenet-robust-demo.zarr.",
)
@options.distort
@click.option(
    "--changed",
    multiple=True,
    callback=_changed,
    metavar="SPECS=STORE",
    help="Sweep the same images, changed by these distortions, to STORE in the same pass, and compare each map with "
    "the clean one, such as --changed noise:0.1=noisy.zarr. Repeatable.",
)
@options.layers
@options.stored
@options.limit
@options.sample
@options.batch_size
@options.device
@click.option(
    "--amp",
    type=click.Choice(AMP),
    default=Settings.amp,
    show_default=True,
    help="Run the forward pass under autocast in this dtype.",
)
@click.option(
    "--compile",
    type=click.Choice(list(COMPILE)),
    is_flag=False,
    flag_value="on",
    default="off",
    show_default=True,
    help="Compile the network together with its statistics, which takes some time at the start and can change the "
    "last bits; auto: compile on a CPU if there are enough images for it to pay off.",
)
@options.workers
@options.decode
@click.option(
    "--bitround",
    type=click.IntRange(1, 23),
    metavar="N",
    help="Keep N mantissa bits of per-image floats, so that they compress better.",
)
@click.option(
    "--compression",
    default=Settings.compression,
    show_default=True,
    metavar="CODEC",
    help="zstd:LEVEL (1 to 22), blosc:lz4 (faster, larger), or none.",
)
@click.option(
    "--part",
    metavar="I/N",
    callback=_part,
    default="0/1",
    show_default=True,
    help="Compute every N-th partition, starting with the I-th, so that N processes can fill one store.",
)
@options.scheduler
@click.option("--strict", is_flag=True, help="Stop at the first image that cannot be read.")
@click.option("--overwrite", is_flag=True, help="Replace a store of another sweep at the same path.")
@click.option(
    "--repair",
    is_flag=True,
    help="Check the store first, and recompute partitions with a damaged object.",
)
@click.option(
    "--max-failed",
    type=click.FloatRange(0, 1),
    default=Execution.max_failed,
    show_default=True,
    metavar="SHARE",
    help="Exit with status 1 if a larger share of the images could not be read.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print what would be computed and how large it is; download no weights and create nothing.",
)
@click.option("--measure", is_flag=True, help="With --dry-run: run a few batches to estimate the time.")
@options.as_json
def sweep(
    also: tuple[str, ...],
    data: str | None,
    metrics: tuple[str, ...],
    scheduler: str | None,
    part: tuple[int, int],
    workers: int | None,
    strict: bool,
    overwrite: bool,
    repair: bool,
    max_failed: float,
    dry_run: bool,
    measure: bool,
    as_json: bool,
    **planning: Any,
) -> None:
    """Compute statistics of every unit over all images, and write them to a store.

    An interrupted sweep resumes where it stopped: rerun the same command. Images that cannot be read are
    recorded and skipped. Without --data, it sweeps the demo photographs, with a GoogLeNet that comes with
    actstats if the network's own weights are not available.

    \b
        actstats sweep --arch googlenet --robust
        actstats sweep --arch googlenet --data photographs/ --out googlenet.zarr
        actstats sweep --arch resnet50 --robust l2:3 --data photographs/ --dry-run
        actstats sweep --arch resnet50 --weights resnet50.pth --data val.tar --out val.zarr \\
            --layers block,conv1 --metrics mean,total_variation --sample 5000
        actstats sweep --arch alexnet --data photographs/ --metric my_metrics:Kurtosis
        actstats sweep --arch alexnet --data photographs/ --distort scramble:4+noise:0.1
        actstats sweep --arch resnet50 --data photographs/ --out s.zarr --also "--robust --out r.zarr"
        actstats sweep --arch resnet50 --data photographs/ --out clean.zarr --changed noise:0.1=noisy.zarr
        actstats sweep --arch resnet50 --data /shared/val.tar --out /shared/val.zarr --scheduler tcp://host:8786
    """
    if metrics:
        planning["metrics"] = metrics
    planning["compile"] = COMPILE[planning["compile"]]
    if measure and not dry_run:
        raise click.UsageError("--measure requires --dry-run")
    sweeps = [planning, *(_another(words, planning) for words in also)]
    joint = bool(also) or any(options_of["changed"] for options_of in sweeps)
    if scheduler and dry_run:
        raise click.UsageError("--dry-run cannot be combined with --scheduler")
    for options_of in sweeps:
        options_of["out"] = options_of["out"] or Path(default_name(data or DEMO, **options_of))
        if data is None and _embedded_instead(options_of, download=not dry_run):
            options_of["weights"] = DEMO
    if dry_run:
        _print_plans(data or DEMO, sweeps, measure=measure, as_json=as_json)
        return
    import actstats

    with options.client_of(scheduler, planning["device"]) as client, Reporter() as reporter:
        execution: dict[str, Any] = {
            "part": part,
            "workers": workers,
            "strict": strict,
            "overwrite": overwrite,
            "repair": repair,
            "max_failed": max_failed,
            "client": client,
            "on_progress": reporter.advance,
            "on_start": reporter.started,
            "on_note": reporter.note,
        }
        results: Sequence[Summary | ActstatsError]
        try:
            if joint:
                plans = _plans(data or DEMO, sweeps, Execution(**execution))
                results = actstats.sweep_together(plans, return_errors=True, **execution)
            else:
                model, store = planning.pop("arch"), planning.pop("out")
                del planning["changed"]
                results = [actstats.sweep(model, data or DEMO, store, **planning, **execution)]
        except KeyboardInterrupt:
            raise KeyboardInterrupt(*_how_to_resume(reporter)) from None
    summaries = [result for result in results if not isinstance(result, ActstatsError)]
    if as_json:
        found = [_as_dict(summary) for summary in summaries]
        print_json({"sweeps": found} if joint else found[0])
    else:
        for line in (line for summary in summaries for line in _lines(summary)):
            say(line)
    for summary in summaries:
        if summary.attack is not None:
            note(f"the attack {summary.attack}")
        if len(summary.computed_on) > 1:
            where = "; ".join(f"{count(n, 'partition')} on {kind}" for kind, n in summary.computed_on.items())
            note(f"partitions were computed on machines that may differ in the last bits: {where}")
    raise_what_failed(results, max_failed)


def _another(words: str, first: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of another network: those in `words`, and otherwise those of the first.

    The store is never that of the first, nor are weights of another architecture, or weights together with --robust.

    Raises:
        click.UsageError: an option does not exist, or applies to the whole pass.
    """
    outer = click.get_current_context()
    try:
        same = {"arch": first["arch"]}
        inner = sweep.make_context(str(outer.info_name), shlex.split(words), default_map=same)
    except ValueError as error:
        raise click.UsageError(f"--also {words!r}: {error}") from None
    except click.UsageError as error:
        raise click.UsageError(f"--also {words!r}: {error.format_message()}", outer) from None
    given = {}
    for option in sweep.params:
        if (name := option.name) and inner.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            if name not in _OF_A_NETWORK:
                raise click.UsageError(f"--also {words!r}: {option.opts[0]} applies to all networks", outer)
            given[name] = inner.params[name]
    if "compile" in given:
        given["compile"] = COMPILE[given["compile"]]
    fresh = {"out", "changed"}
    if "arch" in given:
        fresh |= {*_OF_AN_ARCH}
    if "weights" in given:
        fresh |= {"robust"}
    if "robust" in given and first["weights"] != DEMO:
        fresh |= {"weights"}
    return {**first, **{name: inner.params[name] for name in fresh}, **given}


def _plans(data: str, sweeps: Sequence[Mapping[str, Any]], how: Execution) -> list[SweepPlan]:
    """Return the plans of all networks over the images, which are listed once, and over the changed images."""
    import actstats
    from actstats.sweeping.sweeps import device_for

    source = actstats.open_source(data, limit=sweeps[0]["limit"], sample=sweeps[0]["sample"])
    device = device_for(how, sweeps[0]["device"])
    return [plan for options_of in sweeps for plan in _plan(source, options_of, device)]


def _plan(source: Any, options_of: Mapping[str, Any], device: str | None = None) -> list[SweepPlan]:
    """Return the plans of one network over the images and over those changed, for `device` or the requested one."""
    from actstats.sweeping.sweeps import plan_on

    named = {**options_of, "limit": None, "sample": None}
    changed = named.pop("changed")
    clean = plan_on(device or named["device"], named.pop("arch"), source, named.pop("out"), **named)
    return [clean, *(clean.changed(specs, store) for specs, store in changed)]


def raise_what_failed(results: Sequence[Summary | ActstatsError], max_failed: float) -> None:
    """Raise the first error of a sweep; print the others as notes."""
    errors = [result for result in results if isinstance(result, ActstatsError)]
    errors += [
        ActstatsError(_set_aside(result))
        for result in results
        if not isinstance(result, ActstatsError) and result.aside
    ]
    errors += [
        ActstatsError(_unavailable(result))
        for result in results
        if not isinstance(result, ActstatsError) and result.progress.unavailable
    ]
    errors += [
        ActstatsError(
            f"more than {max_failed:.0%} of the images could not be read (`max_failed={max_failed:g}`); "
            f"see them with: actstats info {result.store}"
        )
        for result in results
        if not isinstance(result, ActstatsError) and result.failed
    ]
    for error in errors[1:]:
        note(str(error))
    if errors:
        raise errors[0]


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
    metrics: Sequence[str] = (),
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
        *metrics,
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
    store = Store.find(planning["out"])
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


def _plan_without_download(source: Any, options_of: Mapping[str, Any]) -> tuple[list[SweepPlan], bool]:
    """Return the plans of a network, and whether it has its weights.

    Weights that would have to be downloaded are left out: the layers, and thus the size of the store, are the
    architecture's.
    """
    try:
        return _plan(source, {**options_of, "offline": True}), True
    except NotCachedError:
        if options_of["offline"]:
            raise
        return _plan(source, {**options_of, "weights": "none", "robust": None}), False


def _print_plans(data: str, sweeps: Sequence[dict[str, Any]], *, measure: bool, as_json: bool) -> None:
    import actstats

    source = actstats.open_source(data, limit=sweeps[0]["limit"], sample=sweeps[0]["sample"])
    planned = [_plan_without_download(source, options_of) for options_of in sweeps]
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


def _set_aside(summary: Summary) -> str:
    named = [f"{index} ({error})" for index, error in list(summary.aside.items())[:SHOWN]]
    more = f" and {len(summary.aside) - SHOWN} more" if len(summary.aside) > SHOWN else ""
    return (
        f"{count(len(summary.aside), 'partition')} failed repeatedly: {', '.join(named)}{more}; "
        "rerun the same command to try again"
    )


def _unavailable(summary: Summary) -> str:
    number = summary.progress.unavailable
    named = "an image" if number == 1 else f"{number:,} images"
    return (
        f"the machine failed to read {named}, recorded as missing in {summary.store}; "
        "rerun the same command to try again"
    )


def _how_to_resume(reporter: Reporter) -> list[str]:
    if not reporter.stores:
        return ["nothing was computed yet"]
    from actstats.store import Store

    done = [(store, Store.open(store).completed) for store in reporter.stores]
    told = [
        f"{int(flags.sum())} of {count(len(flags), 'partition')} complete in {store}" for store, flags in done
    ]
    return [*told[:-1], f"{told[-1]}; rerun the same command to resume"]


def _lines(summary: Summary) -> list[str]:
    """Return the summary as lines of text."""
    lines = [
        f"{summary.store}: {count(summary.images, 'image')}, {count(summary.units, 'unit')} "
        f"of {count(summary.layers, 'layer')}"
    ]
    done = summary.progress
    if done.total:
        lines.append(
            f"{count(done.done, 'image')} in {duration(done.seconds)}: {done.rate:.1f} images/s, "
            f"{done.waiting_share:.0%} of the time waiting for images"
        )
    elif summary.complete:
        lines.append("already complete, nothing to do")
    if not summary.complete and not summary.aside:
        lines.append("not all partitions are complete: the other parts (--part) have to compute the rest")
    return lines + failure_lines(summary)


def failure_lines(summary: Summary) -> list[str]:
    """Return the images that could not be read as lines of text."""
    failures = summary.failures
    if not failures:
        return []
    are = "is" if len(failures) == 1 else "are"
    lines = [f"{count(len(failures), 'image')} could not be read and {are} excluded:"]
    lines += [f"  {path}: {reason}" for path, reason in list(failures.items())[:SHOWN]]
    if len(failures) > SHOWN:
        lines.append(f"  and {len(failures) - SHOWN:,} more: actstats info {summary.store}")
    return lines


def _as_dict(summary: Summary) -> dict[str, Any]:
    done = summary.progress
    return {
        "store": str(summary.store),
        "images": summary.images,
        "layers": summary.layers,
        "units": summary.units,
        "complete": summary.complete,
        "run": {
            "images": done.done,
            "partitions": summary.partitions,
            "seconds": done.seconds,
            "images_per_second": done.rate,
            "waiting_share": done.waiting_share,
            "workers": dict(done.workers),
            "unavailable": done.unavailable,
        },
        "failures": summary.failures,
        "aside": summary.aside,
        "computed_on": summary.computed_on,
        "attack": None if summary.attack is None else dataclasses.asdict(summary.attack),
    }
