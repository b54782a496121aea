"""`actstats info`: what is in a store."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import click

from actstats.errors import ActstatsError
from actstats.support import located
from actstats_cli import options
from actstats_cli.printing import count, print_json, say, size, table

if TYPE_CHECKING:
    from actstats.identity import WeightsRecord
    from actstats.store.description import Description, Variable

SHOWN: Final = 10
"""Number of unreadable images that are listed."""


@click.command()
@click.argument("store", type=located)
@click.option(
    "--verify",
    is_flag=True,
    help="Read every object and compare its checksum; exit status 1 if any is damaged.",
)
@options.as_json
def info(store: str, verify: bool, as_json: bool) -> None:
    """Describe a store: what was swept, its progress, its size, and images that could not be read.

    --json prints the whole manifest and all images that could not be read.

    \b
        actstats info googlenet.zarr
        actstats info googlenet.zarr --verify
        actstats info googlenet.zarr --json | jq .manifest.weights
    """
    from actstats.store.description import describe

    if verify:
        _verify(store, as_json)
        return
    description = describe(store)
    if as_json:
        found = {**dataclasses.asdict(description), "manifest": description.manifest.json}
        derived = {"complete": description.complete, "outdated": description.outdated}
        print_json({**found, "path": str(description.path), **derived})
    else:
        for line in _lines(description):
            say(line)


def _verify(path: str, as_json: bool) -> None:
    from actstats.store import Store

    store = Store.open(path)
    found = [
        {"variable": name, "partition": partition, "reason": reason}
        for name, partition, reason in store.damage()
    ]
    done = int(store.completed.sum())
    older = [] if found else store.without_digests()
    if as_json:
        print_json({"path": str(path), "partitions": done, "damage": found, "without_digests": older})
    else:
        for entry in found:
            where = "" if entry["partition"] is None else f" of partition {entry['partition']}"
            say(f"{path}: {entry['variable']}{where} is damaged: {entry['reason']}")
        if not found:
            say(f"{path}: all objects of {count(done, 'complete partition')} are intact")
        if older:
            say(
                f"{path}: {count(len(older), 'partition')} of an earlier version without digests: swapped objects "
                "would not be noticed"
            )
    if found:
        raise ActstatsError(
            f"{path}: {count(len(found), 'object')} damaged; run `actstats repair {path}`, or sweep again with "
            "`repair=True`"
        )


def _lines(description: Description) -> Iterator[str]:
    yield from table(list(_facts(description)), "<<")
    yield ""
    yield from table(list(_sizes(description)), "<<<>>")
    if failures := description.failures:
        yield ""
        yield f"{count(len(failures), 'image')} could not be read:"
        yield from (f"  {path}: {reason}" for path, reason in list(failures.items())[:SHOWN])
        if len(failures) > SHOWN:
            yield f"  and {len(failures) - SHOWN:,} more: --json lists all"


def _facts(description: Description) -> Iterator[tuple[str, str]]:
    from actstats.store.manifest import outdated_note

    manifest = description.manifest
    data = manifest.data
    done = sum(description.completed)
    yield "store", str(description.path)
    yield "network", f"{manifest.arch}, weights {_weights(manifest.weights)}"
    distorted = f", distorted: {' + '.join(manifest.distort)}" if manifest.distort else ""
    distorted += ", maps compared with the clean ones" if manifest.paired_with else ""
    yield "input", f"{manifest.preprocessing}{distorted}"
    yield "images", f"{data.images:,} of {data.spec} ({data.kind}): {_statuses(description)}"
    yield (
        "layers",
        f"{len(manifest.layers):,} ({', '.join(manifest.selectors)}), {manifest.units:,} units",
    )
    yield "metrics", ", ".join(manifest.metrics)
    state = "complete" if description.complete else "not complete: rerun the same sweep to resume"
    yield (
        "partitions",
        f"{done} of {len(description.completed)} of {manifest.partition_size:,} images, {state}",
    )
    decoded = ", JPEGs decoded by the device" if manifest.decode == "device" else ""
    if len(description.computed_on) > 1:
        yield "mixed", "; ".join(f"{n} partitions on {where}" for where, n in description.computed_on.items())
    if description.attack is not None:
        yield "attack", str(description.attack)
    compiled = ", compiled" if manifest.compile else ""
    yield (
        "run",
        f"batch size {manifest.batch_size}, {manifest.device}, amp {manifest.amp}{compiled}{decoded}",
    )
    yield "made", f"{manifest.created}, actstats {manifest.versions.get('actstats', '?')}"
    if description.outdated:
        yield "note", outdated_note(description.outdated)


def _weights(weights: WeightsRecord) -> str:
    seed = f" (random, seed {weights.seed})" if weights.source == "none" else ""
    return f"{weights.source}{seed}, sha256 {weights.sha256[:12]}"


def _statuses(description: Description) -> str:
    return ", ".join(f"{number:,} {name}" for name, number in description.statuses.items())


def _sizes(description: Description) -> Iterator[tuple[str, ...]]:
    yield "variable", "dimensions", "dtype", "size", "stored"
    for variable in description.variables:
        yield _row(variable.name, ", ".join(variable.dims), variable.dtype, [variable])
    yield _row("coordinates", "", "", description.coordinates)
    yield _row("all", "", "", [*description.variables, *description.coordinates])


def _row(name: str, dims: str, dtype: str, variables: list[Variable]) -> tuple[str, ...]:
    return name, dims, dtype, size(sum(v.nbytes for v in variables)), size(sum(v.stored for v in variables))
