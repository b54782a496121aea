"""Sweep several networks over the same images in one pass, decoding each image once.

Networks with the same preprocessing also share the pixels. They run one after the other on each batch. Each writes
its own store, byte for byte the same as in a separate sweep. If one fails, the others continue.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from typing import Any, Final, Literal, overload

from actstats.data.loader import split
from actstats.errors import ActstatsError
from actstats.support import URL
from actstats.sweeping.batches import JointFeed, Wanted
from actstats.sweeping.device import memory_reused, out_of_memory_explained
from actstats.sweeping.planning import Run, SweepPlan
from actstats.sweeping.progress import Summary
from actstats.sweeping.run import Filling, Job, Writer
from actstats.sweeping.settings import Execution, names_of, require_known

_SHARED: Final = ("batch_size", "partition_size")


@overload
def sweep_together(
    plans: Sequence[SweepPlan], *, return_errors: Literal[False] = ..., **execution: Any
) -> list[Summary]: ...


@overload
def sweep_together(
    plans: Sequence[SweepPlan], *, return_errors: Literal[True], **execution: Any
) -> list[Summary | ActstatsError]: ...


def sweep_together(
    plans: Sequence[SweepPlan], *, return_errors: bool = False, **execution: Any
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
    require_known(execution, "sweep_together", *names_of(Execution))
    how = Execution(**execution)
    if how.client is not None:
        raise ActstatsError("a cluster computes one sweep at a time; run each plan by itself with `client=`")
    _require_shared(plans)
    results: dict[int, Summary | ActstatsError] = {}
    with ExitStack() as stack:
        runs: dict[int, Run] = {}
        for number, plan in enumerate(plans):
            try:
                runs[number] = stack.enter_context(plan.opened(how))
            except ActstatsError as error:
                results[number] = error
        going = {number: run for number, run in runs.items() if run.todo}
        if going:
            results |= _run(plans, going, how)
        results |= {number: run.summary() for number, run in runs.items() if number not in results}
    found = [results[number] for number in range(len(plans))]
    if not return_errors:
        for result in found:
            if isinstance(result, ActstatsError):
                raise result
    return found


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


def _run(
    plans: Sequence[SweepPlan], runs: dict[int, Run], how: Execution
) -> dict[int, Summary | ActstatsError]:
    """Compute the open partitions of all runs, update the runs, and return the errors of failed ones by number."""
    errors: dict[int, Summary | ActstatsError] = {}
    with ExitStack() as stack:
        stack.enter_context(memory_reused())
        jobs: dict[int, Job] = {}
        writers: dict[int, Writer] = {}
        fillings: dict[int, Filling] = {}
        for number, run in runs.items():
            try:
                with out_of_memory_explained(plans[number].settings.batch_size):
                    job = jobs[number] = plans[number].job(how.device)
                    stack.enter_context(job.ready())
                    job.compile(how)
                    writer = writers[number] = stack.enter_context(Writer(run.store))
                    fillings[number] = Filling(job, writer, run.todo)
            except ActstatsError as error:
                errors[number] = error
        numbers = list(fillings)
        if not numbers:
            return errors
        todo = sorted(set().union(*(runs[number].todo for number in numbers)))
        bounds = runs[numbers[0]].schema.bounds
        size = plans[numbers[0]].settings.batch_size
        feed = JointFeed(
            [
                Wanted(job.loaded, job.layout.device, job.chain, job.settings.decode)
                for job in (jobs[number] for number in numbers)
            ],
            jobs[numbers[0]].source,
            [r for index in todo for r in split(*bounds(index), size)],
            workers=how.workers,
            strict=how.strict,
            on_progress=how.on_progress,
        )
        with closing(iter(feed)) as batches:
            for place, batch, images in batches:
                number = numbers[place]
                if number in errors:
                    continue
                try:
                    with out_of_memory_explained(size):
                        fillings[number].take(batch, images)
                except ActstatsError as error:
                    errors[number] = error
                    if all(n in errors for n in numbers):
                        break
        for place, number in enumerate(numbers):
            try:
                writers[number].wait()
            except ActstatsError as error:
                errors.setdefault(number, error)
            runs[number].progress, runs[number].failures = feed.progress, feed.failures[place]
    return errors
