"""A plan: made in one process and run in another, shown without a trace, and found again in a store."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import actstats
from actstats.data.preprocessing import Preprocessing
from actstats.errors import ActstatsError, ManifestMismatchError
from actstats.metrics import Metric, Output
from actstats.sweeping.planning import SweepPlan
from tests.conftest import SmallNet, files_of, reseal

FACTORY = f"{__name__}:small_net"
SMALL = Preprocessing.imagenet(size=32, resize=36)
SETTINGS = {"batch_size": 4, "partition_size": 6, "top_k": 3, "device": "cpu"}


def small_net() -> tuple[torch.nn.Module, Preprocessing]:
    return SmallNet(), SMALL


class Range(Metric):
    outputs = (Output("range"),)

    def update(self, activation, state):
        return {"range": activation.amax((-2, -1)) - activation.amin((-2, -1))}


def plan_of(photographs: Path, store: Path, **more) -> SweepPlan:
    return actstats.plan(FACTORY, photographs, store, **{**SETTINGS, **more})


def test_a_plan_run_in_another_process_gives_the_bytes_of_a_direct_sweep(photographs, tmp_path):
    custom = f"{__name__}:Range"
    plan = plan_of(photographs, tmp_path / "planned.zarr", custom=custom, distort="noise:0.1")
    (tmp_path / "plan.json").write_text(plan.to_json())
    program = (
        "import sys, pathlib; from actstats.sweeping.planning import SweepPlan;"
        "SweepPlan.from_json(pathlib.Path(sys.argv[1]).read_text(), trust=True).run(workers=1)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "plan.json")], check=True)
    actstats.sweep(
        FACTORY, photographs, tmp_path / "direct.zarr", custom=custom, distort="noise:0.1", **SETTINGS
    )
    assert files_of(tmp_path / "planned.zarr") == files_of(tmp_path / "direct.zarr")
    assert "range" in xr.open_zarr(tmp_path / "planned.zarr")


@pytest.mark.parametrize("entry", ["metrics", "arch"])
def test_code_that_a_plan_in_json_names_is_imported_only_on_trust(entry, photographs, tmp_path, monkeypatch):
    (tmp_path / "foreign.py").write_text("raise ImportError('the code of the plan runs')\n")
    monkeypatch.syspath_prepend(tmp_path)
    record = json.loads(plan_of(photographs, tmp_path / "s.zarr").to_json())
    record["manifest"][entry] = {"metrics": ["mean", "foreign:Metric"], "arch": "foreign:build"}[entry]
    text = json.dumps(record)
    with pytest.raises(ActstatsError, match="pass `trust=True`"):
        SweepPlan.from_json(text).run(workers=0)
    assert "foreign" not in sys.modules
    with pytest.raises(ActstatsError, match="the code of the plan runs"):
        SweepPlan.from_json(text, trust=True).run(workers=0)


def test_planning_leaves_nothing_behind_and_pickles(photographs, tmp_path):
    plan = plan_of(photographs, tmp_path / "s.zarr")
    again = pickle.loads(pickle.dumps(plan))
    assert again.manifest == plan.manifest
    assert again.schema == plan.schema
    assert plan.estimate(measure=True).seconds > 0
    assert list(tmp_path.iterdir()) == []


def test_the_estimate_of_bytes_is_what_is_written_uncompressed(photographs, tmp_path):
    plan = plan_of(photographs, tmp_path / "s.zarr", compression="none", layers="all")
    plan.run()
    written = sum(file.stat().st_size for file in (tmp_path / "s.zarr").rglob("c*") if file.is_file())
    estimate = plan.estimate()
    assert (estimate.images, estimate.partitions) == (14, 3)
    assert estimate.bytes == pytest.approx(written, rel=0.2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model": SmallNet(), "preprocessing": SMALL},
            "another process cannot create the network from a SmallNet",
        ),
        (
            {"custom": [type("Local", (Range,), {"__qualname__": "f.<locals>.Local"})]},
            "another process cannot import the metric",
        ),
    ],
)
def test_what_another_process_cannot_find_is_refused_in_one_line(change, message, photographs, tmp_path):
    arguments = {"model": FACTORY, **SETTINGS, **change}
    plan = actstats.plan(arguments.pop("model"), photographs, tmp_path / "s.zarr", **arguments)
    with pytest.raises(ActstatsError, match=message) as caught:
        plan.to_json()
    assert "\n" not in str(caught.value)
    with pytest.raises(ActstatsError, match=message):
        pickle.dumps(plan)


def test_a_source_of_ones_own_runs_here_and_cannot_be_sent_away(photographs, tmp_path):
    source = actstats.open_source(photographs)
    source.kind = "own"
    plan = actstats.plan(FACTORY, source, tmp_path / "s.zarr", **SETTINGS)
    with pytest.raises(ActstatsError, match="another process cannot open images of kind 'own'"):
        plan.to_json()
    assert plan.run().complete


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"actstats_plan": 99, "manifest": {}, "store": "x"}'])
def test_what_is_no_plan_is_refused(text):
    with pytest.raises(ActstatsError, match="plan"):
        SweepPlan.from_json(text)


def test_the_way_back_from_a_store(photographs, tmp_path):
    made = plan_of(photographs, tmp_path / "s.zarr", layers=["second"])
    made.run()
    found = actstats.open_sweep(tmp_path / "s.zarr", trust=True)
    assert found.manifest.identity == made.manifest.identity
    assert found.preprocessing == SMALL
    assert found.images().paths == made.images().paths
    layers, places = found.layers()
    assert ([layer.name for layer in layers], places) == (["second"], [slice(0, 11)])
    expected, same = made.network().model.state_dict(), found.network().model.state_dict()
    assert all(torch.equal(expected[name], same[name]) for name in expected)
    again = SweepPlan.from_store(tmp_path / "s.zarr", trust=True)
    assert (again.settings, again.schema) == (made.settings, made.schema)
    assert again.run().partitions == 0


def test_a_store_that_names_code_is_not_obeyed(photographs, tmp_path):
    plan_of(photographs, tmp_path / "s.zarr", custom=f"{__name__}:Range").run()
    found = actstats.open_sweep(tmp_path / "s.zarr")
    with pytest.raises(ActstatsError, match=r"comes from .*:small_net, .*`trust=True`"):
        found.network()
    assert found.network(arch=FACTORY).identity["arch"] == FACTORY
    with pytest.raises(ActstatsError, match=r"uses the custom metric .*Range"):
        SweepPlan.from_store(tmp_path / "s.zarr").run()


def test_moved_images_are_found_where_they_are_said_to_be(photographs, tmp_path):
    import shutil

    shutil.copytree(photographs, tmp_path / "before")
    plan_of(tmp_path / "before", tmp_path / "s.zarr").run()
    (tmp_path / "before").rename(tmp_path / "after")
    found = actstats.open_sweep(tmp_path / "s.zarr")
    with pytest.raises(ActstatsError, match="if the images were moved, pass their new location as `data=`"):
        found.images()
    assert len(found.images(tmp_path / "after")) == 14
    assert len(found.images(actstats.open_source(tmp_path / "after"))) == 14
    (tmp_path / "after" / "dog" / "13.png").unlink()
    with pytest.raises(ActstatsError, match="other names or sizes than those of the sweep"):
        found.images(tmp_path / "after")


def changed(store: Path, entry: str, value: str) -> None:
    """Give a store's manifest another version of a package."""
    reseal(store, lambda root: root["attributes"]["versions"].update({entry: value}))


def test_another_release_of_python_or_zarr_is_told_and_another_torch_refused(photographs, tmp_path):
    plan = plan_of(photographs, tmp_path / "s.zarr")
    plan.run(part=(0, 2))
    changed(tmp_path / "s.zarr", "python", "3.11.0")
    notes: list[str] = []
    plan.run(part=(0, 3), on_start=lambda start: notes.extend(start.notes))
    assert any("versions.python is '3.11.0' in the store" in note for note in notes)
    changed(tmp_path / "s.zarr", "torch", "1.0")
    with pytest.raises(ManifestMismatchError, match=r"versions\.torch is '1\.0' in the store"):
        plan.run()


def test_a_complete_sweep_answers_without_the_network(photographs, tmp_path):
    arguments = ("squeezenet1_1", photographs, tmp_path / "s.zarr")
    options = {"weights": "none", "limit": 2, "layers": ["features.1"], "device": "cpu"}
    actstats.sweep(*arguments, **options)
    program = (
        "import sys, actstats;"
        "import actstats.models.loading as loading;"
        "loading.load_model = lambda *a, **k: sys.exit('the network was loaded');"
        f"s = actstats.sweep('squeezenet1_1', {str(photographs)!r}, {str(tmp_path / 's.zarr')!r}, **{options!r});"
        "assert s.complete and s.partitions == 0 and s.units == 64"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    with pytest.raises(ManifestMismatchError, match="top_k"):
        actstats.sweep(*arguments, **options, top_k=3)


def test_a_wrong_keyword_is_a_type_error_that_offers_the_right_one(photographs, tmp_path):
    for function in (actstats.plan, actstats.sweep):
        with pytest.raises(TypeError, match="no argument 'bach_size'; did you mean batch_size"):
            function(FACTORY, photographs, tmp_path / "s.zarr", bach_size=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="no argument 'callback'"):
        plan_of(photographs, tmp_path / "s.zarr").run(callback=print)  # type: ignore[call-arg]


def test_the_plan_is_for_one_kind_of_device(photographs, tmp_path):
    with pytest.raises(ActstatsError, match="unknown device 'abacus'"):
        plan_of(photographs, tmp_path / "s.zarr").run(device="abacus")


def test_completed_is_known_without_reading_each_flag(photographs, tmp_path):
    from actstats.store import Store

    plan_of(photographs, tmp_path / "s.zarr", partition_size=1).run()
    store = Store.open(tmp_path / "s.zarr")
    opened: list[str] = []
    listening = True
    sys.addaudithook(
        lambda event, args: opened.append(str(args[0])) if listening and event == "open" else None
    )
    assert store.completed.all()
    listening = False
    assert not [name for name in opened if "completed" in name]
    np.testing.assert_array_equal(store.statuses(), 0)
