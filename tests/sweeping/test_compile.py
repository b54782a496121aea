"""The sweep with `torch.compile` and with autocast, and the custom ops as torch checks them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray

from actstats import Preprocessing, sweep
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


def test_a_compiled_network_is_swept_without_a_graph_break(photographs, tmp_path):
    counters = torch._dynamo.utils.counters
    torch.compiler.reset()
    counters.clear()
    plain, compiled = tmp_path / "plain.zarr", tmp_path / "compiled.zarr"
    sweep(SmallNet(), photographs, plain, **SMALL)
    sweep(torch.compile(SmallNet(), backend="aot_eager"), photographs, compiled, **SMALL)
    assert counters["stats"]["unique_graphs"] >= 1
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
