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
from actstats.store import manifest as manifests
from actstats_cli.main import main
from tests.conftest import photograph

WATCHED = """
import sys
seen = []
def watch(event, arguments):
    if event == "import" and str(arguments[0]).partition(".")[0] == "stranger":
        seen.append(("import", arguments[0]))
    elif event in ("os.system", "os.kill", "os.exec", "os.posix_spawn"):
        seen.append((event, str(arguments)))
sys.addaudithook(watch)
import actstats
from actstats.errors import ActstatsError
from actstats_cli.main import main
from click.testing import CliRunner
import json
codes = {}
for command in json.loads(sys.argv[1]):
    result = CliRunner().invoke(main, command)
    trace = result.exception is not None and not isinstance(result.exception, SystemExit)
    codes[" ".join(command)] = repr(result.exception) if trace else result.exit_code
try:
    actstats.SweepPlan.from_store(sys.argv[2]).network()
except ActstatsError as error:
    codes["network"] = str(error)
print(json.dumps({"seen": seen, "codes": codes, "loaded": "stranger" in sys.modules}))
"""


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
    manifest = content["attributes"] | changed
    manifest["checksum"] = manifests.checksum(manifest)
    content["attributes"] = manifest
    file.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("arch", ["stranger:factory", "os:abort"])
def test_nothing_that_a_store_names_is_imported_or_called(arch: str, honest: Path, tmp_path: Path) -> None:
    (tmp_path / "stranger.py").write_text(
        "from pathlib import Path\nPath('ran').touch()\nfactory = Path.cwd\n"
    )
    custom = {"metrics": {"stranger": {"reference": "stranger:factory"}}, "custom": ["stranger:Metric"]}
    weights = {"source": "factory", "seed": 0, "builder": {}, "sha256": "0" * 64}
    store = str(crafted(honest, tmp_path / "s.zarr", arch=arch, weights=weights, **custom))
    unit = "features.1"
    commands = [
        ["compare", store, store],
        ["compare", store, store, "--report", "report.html"],
        ["analyze", "kernels", store],
        ["analyze", "smoothness", store],
        ["info", store],
        ["info", store, "--verify"],
        ["top", store, "--layer", unit],
    ]
    found = subprocess.run(
        [sys.executable, "-c", WATCHED, json.dumps(commands), store],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr
    told = json.loads(found.stdout.splitlines()[-1])
    assert told["seen"] == []
    assert not told["loaded"]
    assert not (tmp_path / "ran").exists()
    network = told["codes"].pop("network")
    assert all(isinstance(code, int) for code in told["codes"].values()), told["codes"]
    assert told["codes"][f"analyze kernels {store}"] != 0
    assert told["codes"][f"info {store}"] == 0  # the commands did read the store
    assert f"`arch={arch}`" in network


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
        load_from_manifest({**record, "weights": {k: v for k, v in weights.items() if k != "seed"}})


def test_another_factory_than_the_recorded_one_is_not_called(record: dict[str, Any]) -> None:
    with pytest.raises(ActstatsError, match="not os:abort"):
        load_from_manifest(record, arch="os:abort")
