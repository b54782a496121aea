"""`actstats plan` and `actstats run`: plan a sweep, compute it later or elsewhere, several in one pass."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import actstats as package
from actstats.store import Store
from tests.cli.conftest import COMMAND, SWEEP, actstats, output_of
from tests.conftest import files_of, photograph

SETTINGS = "--partition-size 4 --batch-size 2 --top-k 5"
PLAN = f"plan{SWEEP.removeprefix('sweep')}"
STRANGER = """
import os, time
import torch
from actstats import Metric, Output, Preprocessing

open("ran", "w").close()

class Mine(Metric):
    outputs = (Output("mine"),)

    def update(self, activation, state):
        time.sleep(float(os.environ.get("SLOWLY", 0)))
        return {"mine": activation.sum((2, 3))}

def factory():
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()), Preprocessing.imagenet(size=32)

def prepared(image):
    return torch.full((3, 32, 32), image.size[0] / 1000)
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with two photographs, and a module whose import leaves the file `ran`."""
    (tmp_path / "photographs").mkdir()
    for index in range(2):
        photograph(index).save(tmp_path / "photographs" / f"{index}.png")
    (tmp_path / "stranger.py").write_text(STRANGER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("stranger", None)


@pytest.fixture(scope="module")
def planned(tmp_path_factory) -> dict[str, Any]:
    """A plan of two photographs, in JSON."""
    folder = tmp_path_factory.mktemp("planned")
    (folder / "photographs").mkdir()
    for index in range(2):
        photograph(index).save(folder / "photographs" / f"{index}.png")
    output_of(
        f"{PLAN} --data {folder}/photographs --metrics mean --store {folder}/s.zarr --out {folder}/p.json"
    )
    record: dict[str, Any] = json.loads((folder / "p.json").read_text())
    return record


def refused(command: str) -> str:
    """The one line that a command ends with."""
    result = actstats(command)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1), result.output
    assert result.stderr.startswith("actstats: error: ")
    return result.stderr


def changed(record: dict[str, Any], **entries: Any) -> dict[str, Any]:
    """The plan with other entries in its manifest; dots lead into objects."""
    copy: dict[str, Any] = json.loads(json.dumps(record))
    for name, value in entries.items():
        *parents, last = name.split("__")
        place = copy["manifest"]
        for parent in parents:
            place = place[parent]
        place[last] = value
    return copy


def test_a_plan_gives_the_bytes_of_a_sweep_from_another_folder_in_parts(images, store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = output_of(f"{PLAN} --data {os.path.relpath(images)} {SETTINGS} --store s.zarr --out plans/s.json")
    assert "9 of" in text
    assert "would be created" in text
    assert not (tmp_path / "s.zarr").exists()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert "not all partitions are complete" in output_of("run ../plans/s.json --part 1/2")
    resumed = actstats("run ../plans/s.json --json --workers 0")
    assert "resuming: 1 of 3 partitions are complete" in resumed.stderr
    record = json.loads(resumed.stdout)
    assert (record["store"], record["complete"]) == (str(tmp_path / "s.zarr"), True)
    assert record["failures"].keys() == {"cat/1.png"}  # of this run
    assert files_of(tmp_path / "s.zarr") == files_of(store)
    assert "already complete, nothing to do" in output_of("run ../plans/s.json")


def test_several_plans_run_in_one_pass_with_those_of_changed_images(here):
    common = "--data photographs --metrics mean"
    output_of(f"{PLAN} {common} --changed noise:0.1=n.zarr --store s.zarr --out s.json")
    output_of(f"{PLAN} {common} --seed 1 --store t.zarr --out t.json")
    records = json.loads(output_of("run s.json t.json --json"))["sweeps"]
    assert [Path(record["store"]).name for record in records] == ["s.zarr", "n.zarr", "t.zarr"]
    assert [record["run"]["images"] for record in records] == [2, 2, 2]
    output_of(f"{SWEEP} {common} --out u.zarr --changed noise:0.1=m.zarr --also '--seed 1 --out v.zarr'")
    for planned, swept in zip("snt", "umv", strict=True):
        assert files_of(here / f"{planned}.zarr") == files_of(here / f"{swept}.zarr")
    assert "map_change" in package.open_dataset(here / "n.zarr")
    (here / "n.json").write_text(json.dumps(json.loads((here / "s.json").read_text())[1]))
    assert "pass the plan of that sweep too" in refused("run n.json")
    assert "two sweeps in one pass have the same store" in refused("run s.json s.json")


NEEDS_TRUST = {
    "metric": ("--arch squeezenet1_1 --weights none --metric stranger:Mine", "stranger:Mine"),
    "factory": ("--arch stranger:factory --layers 0", "stranger:factory"),
    "function": (
        "--arch squeezenet1_1 --weights none --preprocessing stranger:prepared", "stranger:prepared",
    ),
    "weights": ("--arch squeezenet1_1 --weights a.pth", "file:a.pth"),
}  # fmt: skip


@pytest.mark.parametrize("kind", NEEDS_TRUST)
def test_what_a_plan_names_is_used_only_with_trust(kind, here):
    options, name = NEEDS_TRUST[kind]
    model = package.load_model("squeezenet1_1", "none").model
    torch.save(model.state_dict(), "a.pth")
    layers = "" if "--layers" in options else "--layers features.1"
    output_of(f"plan {options} {layers} --data photographs --device cpu --store s.zarr --out s.json")
    (here / "ran").unlink(missing_ok=True)
    sys.modules.pop("stranger", None)
    output_of(f"{SWEEP} --data photographs --metrics mean --out other.zarr")
    before = files_of(here / "other.zarr")
    record = json.loads((here / "s.json").read_text()) | {"store": str(here / "other.zarr")}
    (here / "other.json").write_text(json.dumps(record))
    for command in ("run s.json", "run other.json --overwrite", "run other.json --repair --overwrite"):
        line = refused(command)
        assert name in line
        assert line.endswith("pass --trust\n")
    assert "stranger" not in sys.modules
    assert not (here / "ran").exists()
    assert not (here / "s.zarr").exists()
    assert files_of(here / "other.zarr") == before
    output_of("run s.json --trust")
    assert Store.open(here / "s.zarr").completed.all()


@pytest.mark.parametrize("entry", ["store", "spec"])
@pytest.mark.parametrize("address", ["s3://bucket/x.zarr", "https://127.0.0.1:9/x.tar", "hf://a/b"])
def test_addresses_in_a_plan_are_opened_only_with_trust(entry, address, planned, here):
    record = changed(planned, data__spec=address) if entry == "spec" else planned | {"store": address}
    (here / "p.json").write_text(json.dumps(record))
    line = refused("run p.json")
    assert line == (
        f"actstats: error: p.json: the plan names {address}, which is not opened without permission; for a plan of "
        "your own, pass --trust\n"
    )


DEEP = "[" * 100_000
CRAFTED = {
    "empty": (b"", "not a valid plan in JSON"),
    "binary": (bytes(range(256)), "not a valid plan in JSON"),
    "zeros": (bytes(1000), "not a valid plan in JSON"),
    "cut short": (b'{"actstats_plan": 1, "manifest": {', "not a valid plan in JSON"),
    "deep": (DEEP.encode(), "nests lists and objects too deeply"),
    "deep in a manifest": (f'{{"actstats_plan": 1, "store": "x", "manifest": {DEEP}'.encode(), "too deeply"),
    "twice": (b'{"actstats_plan": 1, "actstats_plan": 1}', "an object has an entry twice"),
    "a long number": (b'{"actstats_plan": 1' + b"0" * 5000 + b"}", "not a valid plan in JSON"),
    "a number": (b"3", "invalid record: 3; it must be an object"),
    "text": (b'"plan"', "it must be an object"),
    "null": (b"null", "it must be an object"),
    "no plans": (b"[]", "it must be an object"),
    "nested lists": (b"[[]]", "it must be an object"),
    "another object": (b'{"a": 1}', "not a valid plan in JSON: "),
    "version": (b'{"actstats_plan": 99, "manifest": {}, "store": "x"}', "this version of actstats reads 1"),
    "infinite version": (b'{"actstats_plan": 1e999, "manifest": {}, "store": "x"}', "reads 1"),
    "version true": (b'{"actstats_plan": true, "manifest": {}, "store": "x"}', "invalid actstats_plan: True"),
}


@pytest.mark.parametrize("name", CRAFTED)
def test_a_file_that_is_no_plan_is_refused_in_one_line(name, here):
    content, words = CRAFTED[name]
    (here / "p.json").write_bytes(content)
    line = refused("run p.json")
    assert line.startswith("actstats: error: p.json: ")
    assert words in line
    assert len(line) < 300


def test_what_is_no_file_is_refused_in_one_line(here):
    assert refused("run missing.json") == "actstats: error: missing.json: No such file or directory\n"
    assert refused("run photographs") == "actstats: error: photographs: Is a directory\n"
    with (here / "huge.json").open("wb") as file:
        file.truncate((1 << 28) + 1)  # without a byte on the disk
    assert refused("run huge.json") == "actstats: error: huge.json: not a plan: it has more than 256 MiB\n"


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"layers": []}, "layers is empty"),
        ({"layers": 3}, "invalid manifest.layers: 3"),
        ({"arch": ["alexnet"]}, "invalid manifest.arch"),
        ({"arch": "../squeezenet1_1"}, "../squeezenet1_1"),
        ({"arch": "no_such_network"}, "no_such_network"),
        ({"metrics": ["no_such_metric"]}, "no metric is named 'no_such_metric'"),
        ({"metrics": []}, "no metrics were selected"),
        ({"metrics": ["mean", "os:abort"]}, "os:abort"),
        ({"outputs": ["top_value"]}, "compute other variables than planned: mean; plan it again"),
        ({"distort": ["shake:1"]}, "shake"),
        ({"batch_size": 0}, "invalid manifest.batch_size: 0"),
        ({"partition_size": 2**31}, "invalid manifest.partition_size"),
        ({"partition_size": True}, "invalid manifest.partition_size"),
        ({"device": "cuda:1"}, "invalid manifest.device"),
        ({"device": "abacus"}, "abacus"),
        ({"amp": "fp8"}, "invalid manifest.amp"),
        ({"surprise": 1}, "unknown entry manifest.surprise"),
        ({"actstats": 3}, "invalid manifest.actstats: 3"),
        ({"versions": {"torch": "1.0"}}, "was planned with 1.0; install the same version, or plan it again"),
        ({"versions": {"actstats": "99.0"}}, "planned with 99.0"),
        ({"data__images": 1}, "other names or sizes"),
        ({"data__images": 3}, "have other names or sizes than those of the sweep"),
        ({"data__fingerprint": "0"}, "pass the location of the original images as --data of actstats plan"),
        ({"data__kind": "tensor"}, "--data of actstats plan"),
        ({"data__spec": "/dev/zero", "data__resolved": "/dev/zero"}, "/dev/zero"),
        ({"data__spec": "nowhere", "data__resolved": "nowhere"}, "nowhere"),
        ({"weights__sha256": "0" * 64}, "differ from the swept ones in their SHA-256"),
        ({"weights__source": "url:https://127.0.0.1:9/a.pth", "weights__seed": 0}, "weights"),
        ({"weights__builder": {"weights": "DEFAULT"}}, "weights.builder.weights"),
    ],
    ids=str,
)  # fmt: skip
def test_a_crafted_plan_is_refused_in_one_line_and_creates_nothing(entries, words, planned, here):
    (here / "p.json").write_text(json.dumps(changed(planned, **entries) | {"store": str(here / "s.zarr")}))
    assert words in refused("run p.json")
    assert not (here / "s.zarr").exists()


def test_layers_that_the_network_lacks_are_refused_in_one_line(planned, here):
    layer = planned["manifest"]["layers"][0]
    for wrong in ({"name": "x", "module": "x"}, {"units": 3}, {"height": 7}, {"call": 5}):
        record = changed(planned, layers=[layer | wrong]) | {"store": str(here / "s.zarr")}
        (here / "p.json").write_text(json.dumps(record))
        result = actstats("run p.json")
        assert result.exit_code == 1, wrong
        assert result.stderr.splitlines()[-1].startswith("actstats: error: ")
        assert not Store.open(here / "s.zarr").completed.any()


def test_messages_name_options_that_the_command_has_or_where_they_are(planned, here):
    for name, size in (("a", 4), ("b", 5)):
        record = changed(planned, partition_size=size) | {"store": str(here / f"{name}.zarr")}
        (here / f"{name}.json").write_text(json.dumps(record))
    assert refused("run a.json b.json") == (
        "actstats: error: sweeps in one pass need the same --partition-size of actstats plan, got 4 and 5\n"
    )
    output_of("run a.json")
    (here / "b.json").write_text(json.dumps(record | {"store": str(here / "a.zarr")}))
    assert refused("run b.json").endswith(
        "Choose another --store of actstats plan, or use --overwrite to replace it\n"
    )
    output_of("run b.json --overwrite")
    assert Store.open(here / "a.zarr").manifest.partition_size == 5
    usage = actstats("run a.json --scheduler local --device cpu")
    assert usage.exit_code == 2
    assert "--device cannot be combined with --scheduler" in usage.stderr
    (here / "c.json").write_text(json.dumps(record | {"store": str(here / "c.zarr")}))
    assert refused("run c.json --device abacus").startswith("actstats: error: unknown device 'abacus'")


def test_a_damaged_partition_is_repaired(planned, here):
    (here / "p.json").write_text(
        json.dumps(changed(planned, partition_size=1) | {"store": str(here / "s.zarr")})
    )
    output_of("run p.json")
    whole = files_of(here / "s.zarr")
    (here / "s.zarr" / "mean" / "c.1.0").write_bytes(b"x")
    result = actstats("run p.json --repair")
    assert result.exit_code == 0
    assert "partition 1 is damaged (mean)" in result.stderr
    assert files_of(here / "s.zarr") == whole


def test_a_folder_or_url_is_no_file_for_a_plan(here):
    options = f"{PLAN} --data photographs --metrics mean"
    for file, words in (("photographs", "is a directory"), ("s3://bucket/p.json", "is a URL")):
        result = actstats(f"{options} --out {file}")
        assert result.exit_code == 2
        assert words in result.stderr
    assert "Missing option '--out'" in actstats(options).stderr
    assert not list(here.glob("*.zarr"))


@pytest.mark.once
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_run_resumes_with_the_same_command(stop, here):
    metrics = "--metrics mean --metric stranger:Mine --batch-size 1 --partition-size 1"
    for index in range(2, 5):
        photograph(index).save(here / "photographs" / f"{index}.png")
    for name in ("stopped", "whole"):
        output_of(f"{PLAN} --data photographs {metrics} --store {name}.zarr --out {name}.json")
    process = subprocess.Popen(
        [*COMMAND, "run", "stopped.json", "--trust"],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, cwd=here, env={**os.environ, "SLOWLY": "0.3"}, text=True,
    )  # fmt: skip
    while not list(here.glob("stopped.zarr/completed/c.*")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(stop)
    out, shown = process.communicate()
    assert out == ""
    done = int(Store.open(here / "stopped.zarr").completed.sum())
    assert 1 <= done < 5
    if stop is signal.SIGINT:
        assert process.returncode == 130
        assert shown.splitlines()[-1] == (
            f"actstats: stopped; {done} of 5 partitions complete in {here / 'stopped.zarr'}; "
            "rerun the same command to resume"
        )
    result = actstats("run stopped.json --trust")
    assert f"resuming: {done} of 5 partitions are complete" in result.stderr
    output_of("run whole.json --trust")
    assert files_of(here / "stopped.zarr") == files_of(here / "whole.zarr")
