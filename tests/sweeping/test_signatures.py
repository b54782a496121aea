"""The signatures of public functions: what editors complete, `help` shows and a type checker refuses."""

from __future__ import annotations

import inspect
import os
import pkgutil
import re
import subprocess
import sys
import typing
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import torchvision

import actstats
from actstats.data.preprocessing import Preprocessing
from actstats.distort import Chain
from actstats.metrics import Metric
from actstats.passes.images import Progress
from actstats.report.writing import ReportOptions, write_report
from actstats.sweeping import options
from actstats.sweeping.listing import list_layers
from actstats.sweeping.progress import Started

distributed = pytest.importorskip("distributed")
NAMES = {
    **vars(typing),
    "Callable": Callable,
    "Chain": Chain,
    "Client": distributed.Client,
    "Metric": Metric,
    "Path": Path,
    "Preprocessing": Preprocessing,
    "Progress": Progress,
    "Sequence": Sequence,
    "Started": Started,
}


def types(thing: object) -> dict[str, object]:
    return typing.get_type_hints(thing, localns=NAMES)


@pytest.mark.parametrize(
    ("kind", "typed"),
    [(actstats.Settings, options.SettingsOptions), (actstats.Execution, options.ExecutionOptions)],
)
def test_keyword_arguments_have_the_names_and_types_of_the_fields(kind, typed):
    keywords = types(typed)
    of_fields = {field.name: types(kind)[field.name] for field in fields(kind)}
    assert keywords.keys() == of_fields.keys()
    for name, expected in of_fields.items():  # keyword arguments may also take what the dataclass converts
        assert keywords[name] == expected or expected in typing.get_args(keywords[name]), name


def test_sweep_takes_what_plan_and_run_take():
    swept = inspect.signature(actstats.sweep).parameters
    planned = inspect.signature(actstats.plan).parameters
    executed = inspect.signature(actstats.SweepPlan.run).parameters
    assert swept.keys() == {*planned, *executed, "changed"} - {"self"}
    assert swept.keys() == types(options.SweepOptions).keys() | {
        "model",
        "images",
        "store",
        "changed",
        "device",
    }
    assert types(options.PlanOptions).keys() == planned.keys() - {"model", "images", "store", "device"}
    assert {name: swept[name].default for name in ("weights", "batch_size", "workers", "device")} == {
        "weights": "default", "batch_size": 32, "workers": None, "device": "auto"
    }  # fmt: skip
    hints, typed = inspect.unwrap(actstats.plan).__annotations__, options.PlanOptions.__annotations__
    assert all(typed[name].__forward_arg__ == hints[name] for name in hints.keys() & typed.keys())


def test_a_report_in_a_notebook_takes_what_a_report_takes():
    known = inspect.signature(write_report).parameters
    assert types(ReportOptions).keys() == known.keys() - {"stores", "page", "largest_page"}


@pytest.mark.parametrize(
    "function",
    [actstats.sweep, actstats.plan, actstats.SweepPlan.run, actstats.sweep_together, actstats.repair],
)
def test_an_unknown_argument_is_refused_with_the_nearest_name(function):
    near = {"plan": "batchsize"}.get(function.__name__, "worker")
    with pytest.raises(TypeError, match=rf"^{function.__name__}\(\) has no argument '{near}'; did you mean"):
        function(None, None, None, **{near: 3})


def public_functions():
    """The functions, methods and properties of the reference (docs/api.md), by name."""
    reference = Path(__file__).parents[2] / "docs" / "api.md"
    names = re.findall(r"^::: (\S+)$", reference.read_text(), re.MULTILINE)
    assert {f"actstats.{name}" for name in actstats.__all__} <= {*names}
    for name in names:
        thing = pkgutil.resolve_name(name)
        if not inspect.isclass(thing):
            yield name, thing
            continue
        for inner, member in vars(thing).items():
            function = getattr(member, "__func__", getattr(member, "fget", None) or member)
            if inspect.isfunction(function) and (inner == "__init__" or not inner.startswith("_")):
                yield f"{name}.{inner}", function


def test_no_weights_are_random_ones_as_in_torchvision(tmp_path, photographs):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        expected = torchvision.models.squeezenet1_1(weights=None).state_dict()
    state = actstats.load_model("squeezenet1_1", None, seed=5).model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)
    arguments = {"device": "cpu", "layers": "features.0", "metrics": "mean", "limit": 2, "partition_size": 2}
    swept = actstats.sweep("squeezenet1_1", photographs, tmp_path / "x.zarr", weights=None, **arguments)
    assert swept.complete
    assert swept.partitions == 1
    again = actstats.sweep("squeezenet1_1", photographs, tmp_path / "x.zarr", weights="none", **arguments)
    assert again.complete
    assert again.partitions == 0
    plan = actstats.plan("squeezenet1_1", photographs, tmp_path / "x.zarr", weights=None, **arguments)
    assert plan.manifest.weights.source == plan.manifest.request.weights == "none"
    with pytest.raises(actstats.ActstatsError, match="already selects the weights"):
        actstats.load_model("squeezenet1_1", None, robust=True)
    assert [layer.units for layer in list_layers("squeezenet1_1", None, layers=["features.0"]).layers] == [64]


def test_public_signatures_say_what_they_take():
    vague = re.compile(r"Any|.*\[str, Any\].*")
    found = [
        f"{name}: {text}"
        for name, function in public_functions()
        for text in map(str, inspect.unwrap(function).__annotations__.values())
        if vague.fullmatch(text)
    ]
    assert found == []


CALLS = """
import torch
import actstats

def calls(net: torch.nn.Module) -> None:
    actstats.sweep(net, "photographs", "x.zarr", layers="conv", top_k=4, workers=2, weights=None)
    actstats.sweep(net, "photographs", "x.zarr", batchsize=3)  # wrong
    actstats.sweep(net, "photographs", "x.zarr", top_k="4")  # wrong
    plan = actstats.plan("alexnet", "photographs", "x.zarr", amp="off", weights=None)
    actstats.plan("alexnet", "photographs", "x.zarr", workers=2)  # wrong
    plan.run(workers=2, device="cpu")
    plan.run(top_k=4)  # wrong
    actstats.sweep_together([plan], strict="yes")  # wrong
    actstats.repair("x.zarr", part="0/2")  # wrong
"""
CONFIGURATION = """
[mypy]
follow_imports = silent
ignore_missing_imports = True
[mypy-dask.*,distributed.*,matplotlib.*,numba.*,numpy.*,pandas.*,PIL.*,torch.*,xarray.*,zarr.*]
follow_imports = skip
"""


@pytest.mark.once
def test_a_type_checker_finds_wrong_arguments(tmp_path):
    pytest.importorskip("mypy", reason="mypy is not installed (extra `dev`)")
    (tmp_path / "calls.py").write_text(CALLS)
    (tmp_path / "mypy.ini").write_text(CONFIGURATION)
    root = Path(actstats.__file__).parents[1]
    result = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "calls.py"],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": f"{root}:{root / 'kernels'}"},
        capture_output=True,
        text=True,
    )
    refused = [int(line.split(":")[1]) for line in result.stdout.splitlines() if ": error: " in line]
    wrong = [number for number, line in enumerate(CALLS.splitlines(), 1) if line.endswith("# wrong")]
    assert refused == wrong, result.stdout + result.stderr
