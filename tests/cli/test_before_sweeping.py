"""`actstats sweep` before it computes: names of stores, plans without a download, what a complete store needs."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import click
import pytest

import actstats as package
import actstats_cli
from actstats_cli.plan import default_name
from actstats_cli.printing import with_flags
from tests.cli.conftest import SWEEP, actstats, output_of
from tests.conftest import files_of

CHOICES = {
    "arch": ("googlenet", "alexnet"),
    "weights": ("default", "none", "IMAGENET1K_V1", "a/one.pth", "https://example.org/two.pth#sha256=00112233"),
    "robust": (None, "default", "l2:1", "linf:4"),
    "seed": (0, 1, 12),
    "limit": (None, 1, 64),
    "distort": ((), ("noise:0.1",), ("scramble:4+noise:0.1",), ("scramble:4", "lowpass:8")),
    "layers": (("conv",), ("block",), ("conv1", "inception*")),
    "metrics": ((), ("mean",), ("mean", "histogram")),
    "custom": ((), ("my_metrics:Kurtosis",)),
}  # fmt: skip


def test_sweeps_that_differ_in_one_choice_have_stores_of_different_names():
    first = {name: values[0] for name, values in CHOICES.items()}
    asked = [{**first, name: value} for name, values in CHOICES.items() for value in values[1:]]
    names = [default_name("photographs", **choice) for choice in (first, *asked)]
    names += [
        default_name(data, **first) for data in ("val.tar", "s3://bucket/train/", "shard-{000..009}.tar")
    ]
    assert len(set(names)) == len(names)
    assert all(name == Path(name).name and name.endswith(".zarr") for name in names)


def test_a_name_is_short_enough_for_a_file_system_and_still_tells_sweeps_apart():
    layers = [f"features.{index}" for index in range(60)]
    names = {default_name("demo", arch="alexnet", layers=chosen) for chosen in (layers, layers[:-1])}
    assert len(names) == 2
    assert max(map(len, names)) < 200


def test_one_sweep_after_another_needs_no_out(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    common = f"sweep --arch squeezenet1_1 --weights none --data {images} --limit 1 --layers features.1 --device cpu"
    for more in ("", "--seed 1", "--distort noise:0.1"):
        assert "already complete" not in output_of(f"{common} {more}")
    assert "already complete" in output_of(common)
    assert len(list(tmp_path.glob("*.zarr"))) == 3


@pytest.mark.parametrize(
    ("network", "units"),
    [
        ("alexnet", 1152),
        ("resnet50 --robust l2:3", 26560),
        ("timm/resnet18.a1_in1k", 4800),
    ],
)
def test_a_dry_run_downloads_no_weights(images, tmp_path, monkeypatch, network, units):
    monkeypatch.setenv("ACTSTATS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    command = f"sweep --arch {network} --data {images} --limit 2 --dry-run"
    result = actstats(command)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "weights not downloaded yet" in result.stdout
    assert f"{units:,} units" in result.stdout
    planned = json.loads(output_of(f"{command} --json"))
    assert planned["manifest"]["weights"] is None
    assert list(tmp_path.iterdir()) == []  # neither a store nor a folder for downloads
    refused = actstats(f"{command} --offline")
    assert refused.exit_code == 1
    assert "is not in the cache and --offline forbids the download" in refused.stderr


def test_a_dry_run_over_the_demo_photographs_announces_the_embedded_network(tmp_path, monkeypatch):
    monkeypatch.setenv("ACTSTATS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    result = actstats("sweep --arch googlenet --robust --limit 2 --dry-run")
    assert "weights demo:r" in result.stdout
    # The reason is the library's; its arguments are options here.
    assert (
        "use --arch googlenet --weights GoogleNet_R.pt; or use the embedded network: --weights demo --robust"
        in (result.stderr)
    )
    assert "`" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_repair_looks_at_a_complete_store_of_a_named_network(images, tmp_path):
    store = tmp_path / "s.zarr"
    command = f"{SWEEP} --data {images} --out {store} --partition-size 4 --metrics mean --limit 5"
    output_of(command)
    whole = files_of(store)
    damaged = store / "mean" / "c.1.0"
    content = damaged.read_bytes()
    for damage in (content[:100] + b"\0\1\2\3" + content[104:], b""):
        damaged.write_bytes(damage)
        assert actstats(f"info {store} --verify").exit_code == 1
        result = actstats(f"{command} --repair")
        assert result.exit_code == 0
        assert "partition 1 is damaged (mean)" in result.stderr
        assert "already complete" not in result.stdout
        assert actstats(f"info {store} --verify").exit_code == 0
        assert files_of(store) == whole
    assert "already complete, nothing to do" in output_of(f"{command} --repair")


def test_every_line_on_stderr_is_translated():
    # Where text for stderr is printed, arguments become options: in one function, and in the one that ends a command.
    folder = Path(actstats_cli.__file__).parent
    printing = [
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        if any(keyword.arg in ("err", "file") for keyword in node.keywords)
        if getattr(node.func, "attr", getattr(node.func, "id", "")) in ("echo", "print", "secho", "write")
    ]
    assert sorted(printing) == ["main.py", "printing.py", "progress.py"]


def test_the_options_that_messages_name_exist():
    from actstats_cli.main import main

    def options(command: click.Command) -> set[str]:
        names = {name for param in command.params for name in (*param.opts, *param.secondary_opts)}
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                names |= options(command.get_command(context, name))
        return names

    named = set()
    for path in Path(package.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise):
                named |= set(re.findall(r"`([a-z_]+)=", ast.unparse(node)))
    python_only = {
        *("client", "fingerprint", "preprocessing", "across", "at_once", "step", "classes", "sample"),
        *("counterpart", "resamples", "variables"),
    }
    missing = {n for n in named - python_only if with_flags(f"`{n}=`") not in options(main)}
    assert missing == set()
