"""The keyword arguments of `plan`, `run` and `sweep` as types, which editors complete and type checkers check."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ParamSpec, TypedDict, TypeVar

from actstats.errors import nearest

if TYPE_CHECKING:
    from pathlib import Path

    from distributed import Client

    from actstats.data.preprocessing import Preprocessing
    from actstats.distort import Chain
    from actstats.metrics import Metric
    from actstats.passes.images import Progress
    from actstats.sweeping.progress import Started
    from actstats.sweeping.settings import Execution, Settings

P = ParamSpec("P")
R = TypeVar("R")


class StoredOptions(TypedDict, total=False):
    """The fields of `Settings`, besides `layers`, that determine the size of a store, as keyword arguments."""

    metrics: Sequence[str]
    custom: Sequence[str | Metric | type[Metric]] | Metric | type[Metric]
    top_k: int
    per_image: bool
    partition_size: int


class SettingsOptions(StoredOptions, total=False):
    """The fields of `Settings` as keyword arguments."""

    layers: Sequence[str]
    distort: Sequence[str] | Chain
    batch_size: int
    amp: str
    compile: bool | str
    decode: str
    bitround: int | None
    compression: str


class PlanOptions(SettingsOptions, total=False):
    """The keyword arguments of `plan`, apart from `device`."""

    weights: str | Path | None
    robust: str | bool | None
    seed: int
    offline: bool
    preprocessing: Preprocessing | Callable[[Any], Any] | str | None
    limit: int | None
    sample: int | str | None
    fingerprint: str | None


class RunningOptions(TypedDict, total=False):
    """The fields of `Execution` as keyword arguments, apart from `device`."""

    workers: int | None
    part: tuple[int, int]
    strict: bool
    overwrite: bool
    repair: bool
    max_failed: float
    client: Client | None
    on_start: Callable[[Started], None] | None
    on_progress: Callable[[Progress], None] | None
    progress: bool | None
    on_note: Callable[[str], None] | None


class ExecutionOptions(RunningOptions, total=False):
    """The fields of `Execution` as keyword arguments."""

    device: str | None


class SweepOptions(PlanOptions, RunningOptions, total=False):
    """The keyword arguments of `sweep`, apart from `changed` and `device`."""


def with_options(*origins: Callable[..., object]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator for a function whose `**options` are arguments of `origins`, functions or dataclasses.

    The signature that `help` and notebooks show has each of them with its default. An unknown one is a `TypeError`
    that suggests the nearest name.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        own = inspect.signature(function)
        named = {name: each for name, each in own.parameters.items() if each.kind is not each.VAR_KEYWORD}
        for origin in origins:
            for name, parameter in inspect.signature(origin).parameters.items():
                if parameter.default is not parameter.empty:
                    named.setdefault(name, parameter.replace(kind=parameter.KEYWORD_ONLY))

        @functools.wraps(function)
        def checked(*args: P.args, **options: P.kwargs) -> R:
            for name in options:
                if name not in named:
                    raise TypeError(f"{function.__name__}() has no argument {name!r}{nearest(name, named)}")
            return function(*args, **options)

        vars(checked)["__signature__"] = own.replace(parameters=list(named.values()))
        return checked

    return decorate


def fields_in(kind: type[Settings] | type[Execution], options: Mapping[str, object]) -> dict[str, Any]:
    """Return those `options` that are fields of `kind`."""
    return {field.name: options[field.name] for field in fields(kind) if field.name in options}


def request(
    model: object, weights: str | Path | None, robust: str | bool | None, seed: int, device: str
) -> dict[str, Any] | None:
    """Return the arguments by which a network was requested, or None if it was passed as an object."""
    if not isinstance(model, str):
        return None
    training = "default" if robust is True else robust or None
    chosen = "none" if weights is None else str(weights)
    return {"arch": model, "weights": chosen, "robust": training, "seed": seed, "device": device}
