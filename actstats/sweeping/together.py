"""Sweep several networks over the same images in one pass, decoding each image once.

Networks with the same preprocessing also share the pixels. They run one after the other on each batch. Each writes
its own store, byte for byte the same as in a separate sweep. If one fails, the others continue.

A sweep of changed images (`SweepPlan.changed`) runs after that of the clean ones, with the same network, and compares
its maps with the clean ones.

On a cluster, a task computes one partition of all sweeps whose stores lack it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Final, Literal, Unpack, overload

from actstats.errors import ActstatsError
from actstats.support import URL
from actstats.sweeping.cluster import cluster_of
from actstats.sweeping.options import ExecutionOptions, with_options
from actstats.sweeping.planning import SweepPlan
from actstats.sweeping.progress import Run, Summary, bar
from actstats.sweeping.run import JointSweep, run_together, unpaired_error
from actstats.sweeping.settings import Execution
from actstats.sweeping.tasks import in_order

_SHARED: Final = ("batch_size", "partition_size")


@overload
def sweep_together(
    plans: Sequence[SweepPlan], *, return_errors: Literal[False] = ..., **execution: Unpack[ExecutionOptions]
) -> list[Summary]: ...


@overload
def sweep_together(
    plans: Sequence[SweepPlan], *, return_errors: Literal[True], **execution: Unpack[ExecutionOptions]
) -> list[Summary | ActstatsError]: ...


@with_options(Execution)
def sweep_together(
    plans: Sequence[SweepPlan], *, return_errors: bool = False, **execution: Unpack[ExecutionOptions]
) -> Sequence[Summary | ActstatsError]:
    """Run several plans over the same images in one pass, decoding each image once.

    The plans may differ in network, input size, distortions and statistics. Each writes its own store and can be
    resumed, as with `SweepPlan.run`.

    Args:
        plans: the plans; they must have the same images, `batch_size` and `partition_size`.
        return_errors: whether to return errors in place of the summaries of failed sweeps, instead of raising the
            first one at the end.
        **execution: fields of `Execution`, shared by all plans. `on_start` is called once per plan, `on_progress`
            once per batch, or on a cluster once per partition.

    Returns:
        One summary of this run per plan.

    Raises:
        ActstatsError: the plans cannot be combined, or one failed; the others are finished first.
        KeyboardInterrupt: on Ctrl-C, once the partitions being written are complete; on a cluster at once, and
            workers may complete the partitions that they are computing.
    """
    how = Execution(**execution)
    _require_shared(plans)
    clean = _clean_of(plans)
    cluster = cluster_of(plans, clean, how)
    results: dict[int, Summary | ActstatsError] = {}
    with ExitStack() as stack:
        runs: dict[int, Run] = {}
        for number, plan in enumerate(plans):
            try:
                runs[number] = stack.enter_context(plan.opened(how))
            except ActstatsError as error:
                results[number] = error
        members: dict[int, Run] = {}
        jobs: dict[int, JointSweep] = {}
        # The clean images of changed ones are needed even if their own store is complete.
        needed = {clean[number] for number, run in runs.items() if run.todo}
        for number in in_order(clean):
            paired = clean[number]
            if number not in runs or not (runs[number].todo or number in needed):
                continue
            run = runs[number]
            try:
                if paired is not None and paired not in members:
                    raise unpaired_error(run.store.path)
                if cluster is None:
                    beside = None if paired is None else jobs[paired].job
                    job = plans[number].job(how.device, beside=beside)
                    jobs[number] = JointSweep(job, run.store, run.todo, paired)
                members[number] = run
            except ActstatsError as error:
                results[number] = error
        if members:
            todo = sorted(set().union(*(run.todo for run in members.values())))
            bounds = next(iter(members.values())).store.bounds
            total = sum(stop - start for start, stop in map(bounds, todo))
            with bar(total, how.progress, how.on_progress) as on_progress:
                if cluster is None:
                    progress, outcomes = run_together(jobs, replace(how, on_progress=on_progress))
                else:
                    progress, outcomes = cluster.run_partitions(members, on_progress)
            for number, outcome in outcomes.items():
                runs[number].progress, runs[number].outcome = progress, outcome
                if outcome.error is not None:
                    results[number] = outcome.error
        results |= {number: run.summary() for number, run in runs.items() if number not in results}
    found = [results[number] for number in range(len(plans))]
    if not return_errors:
        for result in found:
            if isinstance(result, ActstatsError):
                raise result
    return found


def _clean_of(plans: Sequence[SweepPlan]) -> list[int | None]:
    """Return for each plan of changed images the number of the plan of the clean ones, and None for the others.

    Raises:
        ActstatsError: the plan of the clean images is missing.
    """
    numbers = {plan.manifest.identity: number for number, plan in enumerate(plans)}
    clean = []
    for plan in plans:
        paired = plan.manifest.paired_with
        if paired is not None and paired not in numbers:
            raise ActstatsError(
                f"{plan.store} is compared with a sweep of the clean images; pass the plan of that sweep too"
            )
        clean.append(None if paired is None else numbers[paired])
    return clean


def _require_shared(plans: Sequence[SweepPlan]) -> None:
    if not plans:
        raise ActstatsError("there is no plan to run; give at least one")
    first, *others = plans
    for plan in others:
        for name in _SHARED:
            values = [getattr(p.settings, name) for p in (first, plan)]
            if values[0] != values[1]:
                raise ActstatsError(
                    f"sweeps in one pass need the same `{name}=`, got {values[0]} and {values[1]}"
                )
        if plan.images().fingerprint != first.images().fingerprint:
            raise ActstatsError("sweeps in one pass need the same images")
    stores = [
        plan.store.rstrip("/") if isinstance(plan.store, URL) else plan.store.resolve() for plan in plans
    ]
    for plan, store in zip(plans, stores, strict=True):
        if stores.count(store) > 1:
            raise ActstatsError(f"two sweeps in one pass have the same store {plan.store}; give each its own")
