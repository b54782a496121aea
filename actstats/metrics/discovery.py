"""Resolve metrics given as names of built-ins or entry points, as `package.module:Class`, or as objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points

from actstats.errors import ActstatsError, nearest
from actstats.metrics.builtin import BUILTINS, DEFAULT, PAIRS
from actstats.metrics.protocol import Metric, Output
from actstats.support import named_object, one_or_more

ENTRY_POINTS = "actstats.metrics"


@dataclass(frozen=True)
class Chosen:
    """The metrics of one sweep: names of built-in metrics, and custom metrics by name.

    If `paired`, the maps are also compared with those of a clean sweep (`PAIRS`).
    """

    builtin: tuple[str, ...]
    custom: dict[str, Metric]
    paired: bool = False

    def outputs(self, *, wide_counts: bool = False) -> list[Output]:
        """Return every variable that the sweep writes, built-ins first, with uint64 counts if `wide_counts`."""
        found = [o for name in self.builtin for o in BUILTINS[name].outputs_for(wide_counts=wide_counts)]
        found += PAIRS.values() if self.paired else ()
        return found + [output for metric in self.custom.values() for output in metric.outputs]


def resolve_metrics(
    names: str | Sequence[str] = DEFAULT,
    custom: str | Metric | type[Metric] | Sequence[str | Metric | type[Metric]] = (),
) -> Chosen:
    """Return the metrics that a sweep computes.

    Args:
        names: names of built-in metrics (`BUILTINS`) and of installed entry points in the group `actstats.metrics`.
        custom: further metrics: `"package.module:Class"`, a `Metric` object, or its class.

    Raises:
        ActstatsError: a name is unknown, a module cannot be imported, a class is not a metric, or two outputs have
            the same name.
    """
    installed = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    found: dict[str, Metric] = {}
    names = one_or_more(names)
    for name in names:
        if name in BUILTINS:
            continue
        if name not in installed:
            known = [*BUILTINS, *installed]
            offer = nearest(name, known) or f"; available: {', '.join(known)}"
            raise ActstatsError(
                f"no metric is named {name!r}{offer} (for a class of your own, use `custom=package.module:Class`)"
            )
        found[name] = _instantiate(installed[name].value)
    for item in custom if isinstance(custom, Sequence) and not isinstance(custom, str) else [custom]:
        metric = _instantiate(item)
        kind = type(metric)
        found[item if isinstance(item, str) else f"{kind.__module__}:{kind.__qualname__}"] = metric
    chosen = Chosen(tuple(name for name in BUILTINS if name in names), found)
    if not chosen.outputs():
        raise ActstatsError("no metrics were selected")
    _refuse_clashes(chosen)
    return chosen


def _refuse_clashes(chosen: Chosen) -> None:
    reserved = {"path", "label", "status", "layer", "channel", "height", "width", "frequency"}
    reserved |= {
        "bin_left",
        "bin_right",
        "completed",
        "provenance",
        "image",
        "unit",
        "partition",
        "bin",
        "rank",
    }
    reserved |= {*PAIRS}
    reserved |= {output.name for builtin in BUILTINS.values() for output in builtin.outputs}
    for name, metric in chosen.custom.items():
        for output in metric.outputs:
            if output.name in reserved:
                raise ActstatsError(
                    f"metric {name} has an output {output.name!r}, which is already taken; rename it"
                )
            if output.merge == "rank":
                raise ActstatsError(
                    f"metric {name}: output {output.name!r} cannot be merged by rank; use sum, min or max"
                )
            reserved.add(output.name)


def _instantiate(item: str | Metric | type[Metric]) -> Metric:
    if isinstance(item, Metric):
        metric = item
    else:
        found = named_object(item, "metric", "Class") if isinstance(item, str) else item
        if not (isinstance(found, type) and issubclass(found, Metric)):
            raise ActstatsError(f"{item} is not a class derived from actstats.Metric")
        try:
            metric = found()
        except Exception as error:
            raise ActstatsError(f"metric {item} cannot be created without arguments: {error}") from error
    if not metric.outputs:
        raise ActstatsError(f"metric {item} declares no outputs; set `outputs` to a list of actstats.Output")
    return metric
