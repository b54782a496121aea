"""The sweep with `torch.compile` and with autocast, and the custom ops as torch checks them."""

from __future__ import annotations

import json
import re
import shutil
import sys

import numpy as np
import pytest
import torch
import xarray

from actstats import ActstatsError, Metric, Output, Preprocessing, Settings, sweep
from actstats.passes.device import missing_for_compiling
from actstats.sweeping import settings as settings_module
from actstats.sweeping.settings import AUTO_COMPILE
from actstats_kernels import ops
from actstats_kernels.bins import FREQUENCY_BINS, HISTOGRAM_BINS
from tests.conftest import SmallNet

SMALL = {"preprocessing": Preprocessing.imagenet(size=32, resize=36), "batch_size": 3, "workers": 0}


def buffers(images: int, channels: int) -> tuple[torch.Tensor, ...]:
    return (
        torch.zeros(5, images, channels),
        torch.zeros(images, channels, dtype=torch.int32),
        torch.zeros(channels, HISTOGRAM_BINS, dtype=torch.int32),
        torch.zeros(channels, FREQUENCY_BINS, dtype=torch.float64),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torch_finds_nothing_wrong_with_the_ops(dtype):
    x = torch.randn(2, 8, 6, 5).to(dtype).contiguous(memory_format=torch.channels_last)
    torch.library.opcheck(ops.accumulate, (x, *buffers(2, 8)))
    torch.library.opcheck(ops.accumulate, (x, None, None, buffers(2, 8)[2], None))
    torch.library.opcheck(ops.top_k, (torch.randn(5, 3), torch.zeros(5, 3, dtype=torch.int32), 2))


def test_the_op_is_part_of_one_graph():
    def network(x, *into):
        maps = x.relu()
        ops.accumulate(maps, *into)
        return maps + 1

    x = torch.randn(2, 3, 8, 8)
    eager, compiled = buffers(2, 3), buffers(2, 3)
    network(x, *eager)
    torch.compile(network, fullgraph=True, backend="aot_eager")(x, *compiled)
    for a, b in zip(eager, compiled, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("ran", [False, True])
def test_a_network_that_the_caller_compiled_is_swept_and_stays_compiled(ran, photographs, tmp_path):
    counters = torch._dynamo.utils.counters
    torch.compiler.reset()
    counters.clear()
    plain, compiled = tmp_path / "plain.zarr", tmp_path / "compiled.zarr"
    sweep(SmallNet(), photographs, plain, **SMALL)
    network, images = torch.compile(SmallNet().eval(), backend="aot_eager"), torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        before = network(images) if ran else None
        sweep(network, photographs, compiled, **SMALL)
        after = network(images)
    assert before is None or torch.equal(before, after)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    expected, found = xarray.open_zarr(plain), xarray.open_zarr(compiled)
    assert found.layer.values.tolist() == [f"_orig_mod.{name}" for name in expected.layer.values]
    for name in ("maximum", "total_variation", "power_spectrum"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found.histogram.sum("bin"), expected.histogram.sum("bin"))


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_under_autocast_the_maps_are_narrow_and_the_statistics_are_not(photographs, tmp_path, amp):
    sweep(SmallNet(), photographs, tmp_path / "full.zarr", **SMALL)
    sweep(SmallNet(), photographs, tmp_path / "amp.zarr", amp=amp, **SMALL)
    full, narrow = (xarray.open_zarr(tmp_path / f"{name}.zarr") for name in ("full", "amp"))
    assert narrow["mean"].dtype == np.float32
    bits = 16 if amp == "bf16" else 13
    maxima = narrow["maximum"].values.view(np.uint32)
    assert not (maxima & ((1 << bits) - 1)).any(), "a maximum is a value of the narrow map, exactly"
    means = narrow["mean"].values.view(np.uint32)
    assert (means & ((1 << bits) - 1)).any(), "a mean of many is not rounded to their precision"
    np.testing.assert_allclose(narrow["mean"], full["mean"], rtol=0.05, atol=0.02)


@pytest.fixture(scope="module")
def eager_and_compiled(photographs, tmp_path_factory):
    """Stores of a small network, 14 images in batches of 4 and partitions of 10, one image damaged."""
    folder = tmp_path_factory.mktemp("compiled")
    images = folder / "images"
    shutil.copytree(photographs, images)
    (images / "cat" / "02.png").write_bytes(b"damaged")
    notes: list[str] = []
    for name, compiled in (("eager", False), ("compiled", True)):
        sweep(
            SmallNet(),
            images,
            folder / f"{name}.zarr",
            preprocessing=Preprocessing.imagenet(size=32, resize=36),
            batch_size=4,
            partition_size=10,
            custom="actstats.metrics.examples:UnitCovariance",
            compile=compiled,
            on_note=notes.append,
        )
    return folder / "eager.zarr", folder / "compiled.zarr", notes


@pytest.mark.slow
@pytest.mark.compiler
def test_compiled_statistics_are_those_of_the_eager_network(eager_and_compiled):
    """Also of the last batch of a partition and of one with a damaged image, which are padded."""
    expected, found = (xarray.open_zarr(path) for path in eager_and_compiled[:2])
    assert set(found) == set(expected)
    for name in (
        "mean",
        "variance",
        "maximum",
        "active_fraction",
        "total_variation",
        "power_spectrum",
        "top_value",
    ):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-6, err_msg=name)
    np.testing.assert_array_equal(found.histogram.sum("bin"), expected.histogram.sum("bin"))
    np.testing.assert_array_equal(found.status, expected.status)
    assert int((found.status != 0).sum()) == 1
    custom = [name for name in expected if "covariance" in name]
    assert custom
    for name in custom:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.compiler
def test_a_compiled_sweep_says_so(eager_and_compiled):
    eager, compiled, notes = eager_and_compiled
    assert len(notes) == 1
    assert re.fullmatch(r"compiled the network in \d+ s", notes[0])
    assert "compile" not in xarray.open_zarr(eager).attrs
    assert xarray.open_zarr(compiled).attrs["compile"] is True
    records = [json.loads(str(text)) for text in xarray.open_zarr(compiled).provenance.values]
    assert [record["compiled"] for record in records] == [True, True]


@pytest.mark.slow
@pytest.mark.compiler
def test_eager_and_compiled_numbers_do_not_share_a_store(eager_and_compiled, photographs):
    with pytest.raises(ActstatsError, match="compile is absent in the store and True in this sweep"):
        sweep(
            SmallNet(),
            photographs.parent / photographs.name,
            eager_and_compiled[0],
            preprocessing=Preprocessing.imagenet(size=32, resize=36),
            batch_size=4,
            partition_size=10,
            compile=True,
        )


class Undecided(SmallNet):
    """What is computed depends on the values, which no compiler can trace."""

    def forward(self, x):
        return super().forward(x * 2 if float(x.sum()) > 0 else x)


@pytest.mark.compiler
def test_a_network_that_cannot_be_compiled_runs_eagerly(photographs, tmp_path, capfd):
    notes: list[str] = []
    summary = sweep(
        Undecided(), photographs, tmp_path / "x.zarr", compile=True, on_note=notes.append, **SMALL
    )
    assert summary.complete
    assert capfd.readouterr().err == ""
    [note] = notes
    assert note.startswith("the network cannot be compiled: ")
    assert note.endswith("; running it eagerly")
    assert "\n" not in note
    record = json.loads(str(xarray.open_zarr(tmp_path / "x.zarr").provenance.values[0]))
    assert record["compiled"] is False
    with pytest.raises(ActstatsError, match=r"^the network cannot be compiled: [^\n]+$"):
        sweep(Undecided(), photographs, tmp_path / "y.zarr", compile=True, strict=True, **SMALL)


@pytest.mark.slow
@pytest.mark.compiler
def test_a_metric_that_fails_in_a_compiled_network_is_named(photographs, tmp_path):
    class Broken(Metric):
        outputs = (Output("broken"),)

        def update(self, activation, state):
            raise ValueError("no number today")

    with pytest.raises(
        ActstatsError, match=r"metric .*Broken failed in layer first: ValueError: no number today"
    ):
        sweep(
            SmallNet(), photographs, tmp_path / "x.zarr", compile=True, custom=Broken, on_note=print, **SMALL
        )


@pytest.mark.compiler
def test_auto_compiles_where_there_are_many_images():
    auto = Settings(compile="auto")
    assert auto.compiles(AUTO_COMPILE, "cpu")
    assert not auto.compiles(AUTO_COMPILE - 1, "cpu")
    assert Settings(compile=True).compiles(1, "cuda")
    assert not Settings().compiles(10**9, "cpu")
    with pytest.raises(ActstatsError, match="compile is 'yes'"):
        Settings(compile="yes")


@pytest.fixture(params=["no compiler", "no headers"])
def uncompilable(request, monkeypatch, tmp_path):
    """A machine that cannot compile, and the package that it lacks."""
    compiler = tmp_path / "c++"
    if request.param == "no headers":  # a compiler that ends as one does that does not find an included file
        compiler.write_text("#!/bin/sh\nexit 1\n")
        compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    missing_for_compiling.cache_clear()
    yield "g++" if request.param == "no compiler" else "python{}.{}-dev".format(*sys.version_info)
    missing_for_compiling.cache_clear()


@pytest.mark.linux  # the packages are Debian's
def test_a_machine_that_cannot_compile_stays_eager_or_names_the_package(
    uncompilable, photographs, tmp_path, monkeypatch
):
    monkeypatch.setattr(settings_module, "AUTO_COMPILE", 10)
    notes: list[str] = []
    sweep(SmallNet(), photographs, tmp_path / "auto.zarr", compile="auto", on_note=notes.append, **SMALL)
    [note] = notes
    assert note.startswith("running the network eagerly: compiling needs ")
    assert f"apt install {uncompilable}`" in note
    assert "\n" not in note
    assert "compile" not in xarray.open_zarr(tmp_path / "auto.zarr").attrs
    with pytest.raises(
        ActstatsError, match=rf"^compiling needs [^\n]*apt install {re.escape(uncompilable)}`"
    ):
        sweep(SmallNet(), photographs, tmp_path / "on.zarr", compile=True, **SMALL)
    assert not (tmp_path / "on.zarr").exists()
