"""Choosing metrics: names, entry points, classes, and what is refused."""

from __future__ import annotations

import pytest

from actstats.errors import ActstatsError
from actstats.metrics import BUILTINS, Metric, Output, resolve_metrics


class Energy(Metric):
    outputs = (Output("energy", ("image", "unit"), units="activation^2"),)

    def update(self, activation, state):
        return {"energy": activation.square().sum((-2, -1))}


class Clash(Energy):
    outputs = (Output("mean"),)


class NeedsArguments(Energy):
    def __init__(self, scale):
        self.scale = scale


class Silent(Metric):
    pass


def test_built_ins_come_in_their_own_order_and_bring_their_variables():
    chosen = resolve_metrics(["histogram", "maximum"])
    assert chosen.builtin == ("maximum", "histogram")
    assert [output.name for output in chosen.outputs()] == ["maximum", "argmax", "histogram"]


def test_an_installed_entry_point_is_chosen_by_its_name():
    chosen = resolve_metrics(["mean", "kurtosis"])
    assert [output.name for output in chosen.outputs()] == ["mean", "kurtosis"]


@pytest.mark.parametrize("item", [Energy, Energy(), f"{__name__}:Energy"])
def test_a_class_an_object_and_a_reference_are_the_same_metric(item):
    chosen = resolve_metrics(["mean"], [item])
    assert list(chosen.custom) == [f"{__name__}:Energy"]
    assert chosen.outputs()[-1].name == "energy"


@pytest.mark.parametrize(
    ("names", "custom", "message"),
    [
        (["maxmum"], [], "no metric is named 'maxmum'; did you mean maximum"),
        ([], [], "no metrics were selected"),
        ([], ["nowhere"], "not of the form package.module:Class"),
        ([], ["nowhere_at_all:Thing"], "cannot import nowhere_at_all"),
        ([], [f"{__name__}:Missing"], "has no attribute 'Missing'"),
        ([], ["json:JSONDecoder"], "not a class derived from actstats.Metric"),
        ([], [Clash], "has an output 'mean', which is already taken"),
        ([], [NeedsArguments], "cannot be created without arguments"),
        ([], [Silent], "declares no outputs"),
    ],
)
def test_what_cannot_be_chosen_is_refused_by_name(names, custom, message):
    with pytest.raises(ActstatsError, match=message) as caught:
        resolve_metrics(names, custom)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "two words"}, "must be a Python identifier"),
        ({"name": "x", "dims": ("unit",)}, "must begin with"),
        ({"name": "x", "dims": ("partition", "unit"), "merge": "mean"}, "choose sum, min or max"),
        ({"name": "x", "dtype": "U4"}, "must be numeric"),
    ],
)
def test_an_output_that_cannot_be_stored_is_refused(arguments, message):
    with pytest.raises(ActstatsError, match=message):
        Output(**arguments)


def test_every_built_in_variable_has_a_unit_and_a_description():
    for builtin in BUILTINS.values():
        for output in builtin.outputs:
            assert output.units
            assert output.description
