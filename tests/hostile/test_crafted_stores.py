"""Stores that a stranger wrote: what they name is neither imported nor called, and what is impossible is said."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from actstats.errors import ActstatsError
from actstats.models import load_from_manifest, load_model
from actstats.store.digests import sealed
from actstats_cli.analyze import ANALYSES
from actstats_cli.main import main
from tests.conftest import photograph

WATCHED = """
import json, pickle, platform, shlex, sys
platform.processor()  # asks the machine by a program, once
events = []
def watch(event, arguments):
    told = [str(argument) for argument in arguments]
    if event == "import" and told[0].partition(".")[0] == "stranger":
        events.append("import " + told[0])
    elif event == "open" and "stranger" in told[0]:  # importlib's own functions tell only this
        events.append("import stranger")
    elif event == "open" and "secret" in told[0]:
        events.append("open " + told[0])
    elif event in WATCHED:
        events.append(" ".join([event, *told]))
WATCHED = {"socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system", "os.exec", "os.kill",
           "os.killpg", "os.posix_spawn", "os.fork"}
import actstats, actstats.report
from actstats.errors import ActstatsError
from actstats_cli.main import main
from click.testing import CliRunner
sys.addaudithook(watch)

def command(words, store):
    return CliRunner().invoke(main, shlex.split(words.format(store=store)), catch_exceptions=False).exit_code

def call(read, store):
    try:
        read(store)
    except ActstatsError as error:
        return str(error)
    return "fine"

sweep, plan = actstats.open_sweep, actstats.SweepPlan.from_store
READERS = {
    "open_dataset": lambda store: actstats.open_dataset(store).load(),
    "merge": lambda store: actstats.merge(actstats.open_dataset(store)).load(),
    "load_from_manifest": lambda store: actstats.load_from_manifest(actstats.open_dataset(store).attrs),
    "compare": lambda store: actstats.report.compare([store]),
    "settings": lambda store: plan(store).settings,
    "schema": lambda store: plan(store).schema,
    "network": lambda store: sweep(store).network(),
    "images": lambda store: sweep(store).images(),
    "top": lambda store: sweep(store).top("features.1/0"),
    "layers": lambda store: plan(store).layers(),
    "estimate": lambda store: plan(store).estimate(),
    "run": lambda store: plan(store).run(),
    "repair": lambda store: actstats.repair(store),
    "pickled": lambda store: pickle.loads(pickle.dumps(plan(store))).network(),
}
found = {}
commands, stores, honest = json.loads(sys.argv[1])
READERS["compare"](honest)  # libraries look at the machine by programs of their own, once
for number, (name, store) in enumerate(stores.items()):
    sys.modules.pop("stranger", None)
    for words in commands if number < 2 else ():
        events.clear()
        try:
            code = command(words, store)
        except BaseException as error:
            code = repr(error)
        found[f"{name}: {words}"] = [code, *events]
    for reader in READERS:
        events.clear()
        found[f"{name}: {reader}()"] = [call(READERS[reader], store), *events]
print(json.dumps(found))
"""

COMMANDS = {
    "info": ["info {store}", "info {store} --verify", "info {store} --json"],
    "top": ["top {store} features.1/0", "top {store} features.1/0 --out sheet.png"],
    "compare": ["compare {store}", "compare {store} {store} --name a --name b --report report.html"],
    "sweep": ["sweep --arch squeezenet1_1 --weights none --data images --out {store} --repair"],
    "repair": ["repair {store}"],
    "smoothness": ["analyze smoothness {store}"],
    "kernels": ["analyze kernels {store}"],
    "noise": ["analyze noise {store} {store} --of-input"],
    "spectrum": ["analyze spectrum {store}"],
    "selectivity": ["analyze selectivity {store}"],
    "quantiles": ["analyze quantiles {store}"],
    "match": ["analyze match {store} {store}"],
    "similarity": ["analyze similarity {store} {store}"],
    "shape-bias": ["analyze shape-bias --network {store} --stimuli images"],
    "cues": ["analyze cues {store} --data images --distort scramble:4"],
    "dissect": ["analyze dissect {store}", "analyze dissect {store} --data images"],
    "ablate": ["analyze ablate {store} --data images --unit features.1/0"],
}
"""Every command that reads a store, in the ways in which it might use what the store names."""
NO_STORE = {"demo", "plan", "run", "layers", "models", "analyze"}


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of four photographs, complete."""
    folder = tmp_path_factory.mktemp("honest")
    (folder / "images").mkdir()
    for index in range(4):
        photograph(index).save(folder / "images" / f"{index}.png")
    command = f"sweep --arch squeezenet1_1 --weights none --device cpu --layers features.1 --data {folder / 'images'}"
    result = CliRunner().invoke(main, [*shlex.split(command), "--out", str(folder / "s.zarr")])
    assert result.exit_code == 0, result.output
    return folder / "s.zarr"


def crafted(honest: Path, path: Path, **changed: Any) -> Path:
    """A copy whose manifest says something else, with a checksum that is right."""
    shutil.copytree(honest, path)
    file = path / "zarr.json"
    content = json.loads(file.read_text())
    content["attributes"] |= changed
    file.write_text(json.dumps(sealed(content)))
    return path


def named_by_a_stranger(honest: Path, folder: Path) -> dict[str, Path]:
    """Stores that name code, a file, and addresses, each by a manifest whose checksum is right."""
    secret = folder / "secret.pt"
    secret.write_bytes(b"nothing of a stranger's business")
    attributes = json.loads((honest / "zarr.json").read_text())["attributes"]
    weights, data, address = attributes["weights"], attributes["data"], "http://127.0.0.1:9/secret.tar"
    named = {key: value for key, value in weights.items() if key != "seed"} | {"file_sha256": "0" * 64}
    metric = {"metrics": ["mean", "stranger:Metric"]}
    drawn = {"source": "factory", "seed": 0, "builder": {}, "sha256": "0" * 64}
    changes: dict[str, dict[str, Any]] = {
        "a factory": {"arch": "stranger:factory", "weights": drawn, **metric},
        "a file": {
            "weights": named | {"source": "file:secret.pt", "path": str(secret), "resolved": str(secret)},
            **metric,
            "data": data | {"spec": address, "resolved": address},
        },
        "os abort": {"arch": "os:abort", "weights": drawn},
        "an address": {"weights": named | {"source": "url:http://127.0.0.1:9/secret.pt"}},
        "the hub": {"weights": named | {"source": "hf://owner/name/secret.pt"}},
    }
    return {
        name: crafted(honest, folder / f"{name}.zarr".replace(" ", "-"), **c) for name, c in changes.items()
    }


def watched(commands: list[str], stores: dict[str, Path], honest: Path) -> dict[str, list[Any]]:
    """Run commands over the first two stores and readers over all, in a process of their own.

    Returns how each ended, and what the audit hook saw of it.
    """
    asked = [commands, {name: str(path) for name, path in stores.items()}, str(honest)]
    found = subprocess.run(
        [sys.executable, "-c", WATCHED, json.dumps(asked)],
        cwd=next(iter(stores.values())).parent,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    told: dict[str, list[Any]] = json.loads(found.stdout.splitlines()[-1])
    return told


@pytest.mark.once
def test_nothing_that_a_store_names_is_imported_called_or_opened(honest: Path, tmp_path: Path) -> None:
    assert COMMANDS.keys() == (main.table.keys() - NO_STORE) | ANALYSES.keys()
    (tmp_path / "stranger.py").write_text("open('ran', 'w').close()\nfactory = Metric = open\n")
    shutil.copytree(honest.parent / "images", tmp_path / "images")
    stores = named_by_a_stranger(honest, tmp_path)
    trusting = "analyze kernels {store} --trust"  # last: it shows that the hook sees what is to be seen
    commands = [words for each in COMMANDS.values() for words in each]
    told = watched([*commands, trusting], stores, honest)
    assert told.pop(f"a factory: {trusting}")[1] == "import stranger"
    assert told.pop(f"a file: {trusting}")[1] == f"open {tmp_path / 'secret.pt'}"
    assert {what: seen for what, (_, *seen) in told.items() if seen} == {}
    for name in stores:
        assert told[f"{name}: open_dataset()"] == ["fine"]
        assert "`arch=" in told[f"{name}: network()"][0] or "`trust=True`" in told[f"{name}: network()"][0]
    assert told["a file: info {store}"] == [0]  # the commands did read the stores


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    loaded = load_model("squeezenet1_1", "none")
    return {**loaded.identity, "preprocessing": loaded.preprocessing.to_dict()}


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("arch", 3),
        ("arch", None),
        ("arch", "../squeezenet1_1"),
        ("weights", "none"),
        ("weights.source", "torchvision:https://example.org/a.pth"),
        ("weights.source", "url:file:///etc/passwd"),
        ("weights.source", "demo:../../x"),
        ("weights.source", None),
        ("weights.seed", -1),
        ("weights.seed", "0"),
        ("weights.sha256", "zz"),
        ("weights.builder", [1]),
        ("weights.builder.num_classes", 10**9),
        ("weights.builder.num_classes", True),
        ("weights.builder.num_classes", 10**4000),
        ("weights.builder.weights", "DEFAULT"),
        ("weights.builder.progress", 1),
        ("preprocessing", None),
        ("preprocessing.crop", 10**6),
        ("preprocessing.crop", "224"),
        ("preprocessing.interpolation", ["bilinear"]),
        ("preprocessing.mean", 3),
        ("preprocessing.std", [float("nan")] * 3),
    ],
)
def test_impossible_entries_are_refused_in_one_line(record: dict[str, Any], entry: str, value: Any) -> None:
    changed = {**record, "weights": {**record["weights"], "builder": dict(record["weights"]["builder"])}}
    changed["preprocessing"] = dict(record["preprocessing"])
    *parents, last = entry.split(".")
    place: Any = changed
    for parent in parents:
        place = place[parent]
    place[last] = value
    with pytest.raises(ActstatsError) as error:
        load_from_manifest(changed, offline=True)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("address", ["hf://../x/a.pth", "hf://owner/name/../../a.pth", "hf://owner/name"])
def test_addresses_that_lead_elsewhere_are_refused(record: dict[str, Any], address: str) -> None:
    weights = {**record["weights"], "source": address, "file_sha256": "0" * 64}
    with pytest.raises(ActstatsError, match="not a file on the hub"):
        load_from_manifest(
            {**record, "weights": {k: v for k, v in weights.items() if k != "seed"}}, trust=True
        )


def test_another_factory_than_the_recorded_one_is_not_called(record: dict[str, Any]) -> None:
    with pytest.raises(ActstatsError, match="not os:abort"):
        load_from_manifest(record, arch="os:abort")
