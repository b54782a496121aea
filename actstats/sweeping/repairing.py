"""`repair`: restore what is damaged in a store, without the arguments of its sweep."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from actstats.errors import ActstatsError
from actstats.store import manifest as manifests
from actstats.store.repair import recovered_manifest
from actstats.sweeping.planning import SweepPlan
from actstats.sweeping.settings import Execution, names_of, require_known

if TYPE_CHECKING:
    from actstats.models import Loaded
    from actstats.sweeping.progress import Summary


def repair(
    store: str | Path,
    *,
    data: Any = None,
    weights: str | Path | None = None,
    arch: str | None = None,
    offline: bool = False,
    trust: bool = False,
    **execution: Any,
) -> Summary:
    """Restore every damaged object of a store, and compute its partitions that are not complete.

    Metadata and coordinates are restored from the store's manifest, of which it has two copies, and the names of the
    images. Partitions with a damaged object are computed again, for which the network is needed. On a machine of the
    same kind, and if all images are read as before, all objects end with their original bytes, except `provenance`,
    which records when and where a partition was computed.

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
    require_known(execution, "repair", *names_of(Execution))
    plan = _RepairPlan(recovered_manifest(store), store, trust=trust)
    plan.options = {"weights": weights, "arch": arch, "offline": offline}
    plan.images(data)
    with plan.opened(Execution(**{**execution, "repair": True})) as run:
        if not run.todo:
            return run.summary()
    return plan.run(**{**execution, "on_start": None})


class _RepairPlan(SweepPlan):
    """The plan of a store, whose network is needed only if a partition is damaged."""

    options: dict[str, Any]

    def network(self, **options: Any) -> Loaded:
        """Return the network of the sweep, if this machine computes the same numbers with it."""
        if "paired_with" in self.manifest:
            raise ActstatsError(
                f"{self.store} has damaged partitions, which are computed together with those of the clean images; "
                "sweep both again with `repair=True`"
            )
        here = {**self.manifest, "versions": manifests.versions()}
        if differences := manifests.differences(self.manifest, here):
            raise ActstatsError(
                f"{self.store} has damaged partitions, which this installation would not compute as before: "
                f"{differences[0].replace('in this sweep', 'here')}; install that version, and repair again"
            )
        return super().network(**{**self.options, **options})
