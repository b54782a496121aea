"""`repair`: restore what is damaged in a store, without the arguments of its sweep."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from actstats.errors import ActstatsError
from actstats.store import manifest as manifests
from actstats.store.repair import recovered_manifest
from actstats.sweeping.options import ExecutionOptions, with_options
from actstats.sweeping.planning import SweepPlan
from actstats.sweeping.progress import Run, bar
from actstats.sweeping.settings import Execution
from actstats_kernels.bins import PAIRED

if TYPE_CHECKING:
    from actstats.models import Loaded
    from actstats.sweeping.progress import Summary


@with_options(Execution)
def repair(
    store: str | Path,
    *,
    data: object = None,
    weights: str | Path | None = None,
    arch: str | None = None,
    offline: bool = False,
    trust: bool = False,
    **execution: Unpack[ExecutionOptions],
) -> Summary:
    """Restore every damaged object of a store, and compute its partitions that are not complete.

    Metadata and coordinates are restored from the store's manifest, of which it has two copies, and the names of the
    images. Partitions with a damaged object are computed again, for which the network is needed; those of changed
    images (`sweep(changed=...)`) together with the clean ones, of which nothing is stored. On a machine of the same
    kind, and if all images are read as before, all objects end with their original bytes, except `provenance`, which
    records when and where a partition was computed.

    Args:
        store: path or URL of the store.
        data: location of the images, if they were moved, or the images.
        weights: path of the weights file; required without `trust`, unless the weights are published or random.
        arch: `package.module:factory`, the factory that created the network.
        offline: whether to forbid internet access.
        trust: whether to import the factory and metrics, and to open the weights file or address, that the store
            names. Only for stores of your own.
        **execution: fields of `Execution`: workers, device, client, on_start, on_progress, ...

    Returns:
        A summary of this run; its `partitions` are those that were computed.

    Raises:
        ActstatsError: the images or the network are not available, or not those of the sweep, or both copies of the
            manifest are damaged.
    """
    plan = _RepairPlan(recovered_manifest(store), store, trust=trust)
    plan.options = {"weights": weights, "arch": arch, "offline": offline}
    plan.images(data)
    repairing: ExecutionOptions = {**execution, "repair": True}
    how = Execution(**repairing)
    with plan.opened(how) as run:
        if run.todo and plan.manifest.paired_with:
            plan.run_beside_clean(run, how)
        if not run.todo or plan.manifest.paired_with:
            return run.summary()
    again: ExecutionOptions = {**execution, "on_start": None}
    return plan.run(**again)


class _RepairPlan(SweepPlan):
    """The plan of a store, whose network is needed only if a partition is damaged."""

    options: dict[str, Any]

    def __reduce__(self) -> tuple[Any, ...]:
        return *super().__reduce__(), {"options": self.options}

    def network(self, **options: Any) -> Loaded:
        """Return the network of the sweep, if this machine computes the same numbers with it."""
        if self.manifest.paired_with:
            _of_clean_images(self.manifest)  # raises an error before anything is discarded
        here = {**self.manifest.json, "versions": manifests.versions()}
        if differences := manifests.differences(self.manifest.json, here):
            raise ActstatsError(
                f"{self.store} has damaged partitions, which this installation would not compute as before: "
                f"{differences[0].replace('in this sweep', 'here')}; install that version, and repair again"
            )
        return super().network(**{**self.options, **options})

    def run_beside_clean(self, run: Run, how: Execution) -> None:
        """Compute the partitions of changed images together with the clean ones, whose numbers are not stored.

        Raises:
            ActstatsError: any error that the user can fix, in one line. Completed partitions are kept.
        """
        from actstats.sweeping.cluster import cluster_of
        from actstats.sweeping.run import JointSweep, run_together

        plan = _RepairPlan(
            _of_clean_images(self.manifest),
            self.store,
            loaded=self.network(),
            source=self.images(),
            trust=self._trust,
        )
        plan.options = self.options
        cluster = cluster_of([plan, self], [None, 0], how)
        total = sum(stop - start for start, stop in map(run.schema.bounds, run.todo))
        with bar(total, how.progress, how.on_progress) as on_progress:
            if cluster is None:
                beside = plan.job(how.device)
                members = {
                    0: JointSweep(beside, run.store, []),
                    1: JointSweep(self.job(how.device, beside=beside), run.store, run.todo, 0),
                }
                run.progress, outcomes = run_together(members, replace(how, on_progress=on_progress))
            else:
                nothing = replace(run, todo=[], retried=[])
                run.progress, outcomes = cluster.run_partitions({0: nothing, 1: run}, on_progress)
        run.outcome = outcomes[1]
        for outcome in outcomes.values():
            if outcome.error is not None:
                raise outcome.error


def _of_clean_images(changed: manifests.Manifest) -> dict[str, Any]:
    """Return the manifest of the sweep of clean images that a sweep of changed ones was compared with.

    Their distortions are the first of those of the changed images, perhaps none; the digest says how many.
    """
    specs = list(changed.distort)
    outputs = [name for name in changed.outputs if name not in PAIRED]
    beside = ("distort", "masks", "paired_with")
    kept = {name: value for name, value in changed.json.items() if name not in beside}
    for number in range(len(specs)):
        before = {"distort": specs[:number], "masks": changed.masks} if number else {}
        clean = {**kept, "outputs": outputs, **{name: value for name, value in before.items() if value}}
        if manifests.identity(clean) == changed.paired_with:
            return clean
    raise ActstatsError(
        "the sweep of the clean images is not known; sweep both again in one pass, with `repair=True`"
    )
