"""Sweep several networks over the same images in one pass, decoding each image once.

Networks with the same preprocessing also share the pixels. They run one after the other on each batch. Each writes
its own store, byte for byte the same as in a separate sweep. If one fails, the others continue.

A sweep of changed images (`SweepPlan.changed`) runs after that of the clean ones, with the same network, and compares
its maps with the clean ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Final, Literal, Unpack, overload

from actstats.errors import ActstatsError
from actstats.support import URL
from actstats.sweeping.options import ExecutionOptions, with_options
from actstats.sweeping.planning import Run, SweepPlan
from actstats.sweeping.progress import Summary, bar
from actstats.sweeping.run import JointSweep, run_together, unpaired_error
from actstats.sweeping.settings import Execution

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
            once per batch.

    Returns:
        One summary of this run per plan.

    Raises:
        ActstatsError: the plans cannot be combined, or one failed; the others are finished first.
        KeyboardInterrupt: on Ctrl-C, once the partitions being written are complete.
    """
    how = Execution(**execution)
    if how.client is not None:
        raise ActstatsError(
            "a cluster computes one sweep at a time: run each plan by itself with `client=`, and changed images that "
            "are compared with clean ones without it"
        )
    _require_shared(plans)
    clean = _clean_of(plans)
    results: dict[int, Summary | ActstatsError] = {}
    with ExitStack() as stack:
        runs: dict[int, Run] = {}
        for number, plan in enumerate(plans):
            try:
                runs[number] = stack.enter_context(plan.opened(how))
            except ActstatsError as error:
                results[number] = error
        members: dict[int, JointSweep] = {}
        # Clean images come before changed ones, and are needed for them even if their own store is complete.
        needed = {clean[number] for number, run in runs.items() if run.todo}
        for number in sorted(runs, key=lambda number: (clean[number], number != clean[number])):
            run, paired = runs[number], clean[number] if clean[number] != number else None
            if not run.todo and number not in needed:
                continue
            try:
                if paired is not None and paired not in members:
                    raise unpaired_error(run.store.path)
                beside = None if paired is None else members[paired].job
                job = plans[number].job(how.device, beside=beside)
                members[number] = JointSweep(job, run.store, run.todo, paired)
            except ActstatsError as error:
                results[number] = error
        if members:
            todo = sorted(set().union(*(member.indices for member in members.values())))
            bounds = next(iter(members.values())).store.bounds
            total = sum(stop - start for start, stop in map(bounds, todo))
            with bar(total, how.progress, how.on_progress) as on_progress:
                progress, outcomes = run_together(members, replace(how, on_progress=on_progress))
            for number, outcome in outcomes.items():
                runs[number].progress, runs[number].failures = progress, outcome.failures
                if outcome.error is not None:
                    results[number] = outcome.error
        results |= {number: run.summary() for number, run in runs.items() if number not in results}
    found = [results[number] for number in range(len(plans))]
    if not return_errors:
        for result in found:
            if isinstance(result, ActstatsError):
                raise result
    return found


def _clean_of(plans: Sequence[SweepPlan]) -> list[int]:
    """Return for each plan the number of the plan of its clean images, which is its own if it is not paired.

    Raises:
        ActstatsError: the plan of the clean images is missing.
    """
    numbers = {plan.manifest.identity: number for number, plan in enumerate(plans)}
    clean = []
    for number, plan in enumerate(plans):
        paired = plan.manifest.paired_with
        if paired is not None and paired not in numbers:
            raise ActstatsError(
                f"{plan.store} is compared with a sweep of the clean images; pass the plan of that sweep too"
            )
        clean.append(number if paired is None else numbers[paired])
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
