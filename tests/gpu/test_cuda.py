"""What only a GPU can show: the kernels on it, a sweep on it, and that nothing in the hooks waits for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray
from hypothesis import given, settings

from actstats import Preprocessing, sweep
from actstats.data import batches, open_source
from actstats.data.on_device import DeviceDecoder
from actstats.errors import ActstatsError
from actstats.layers import select_layers, watch
from actstats.passes.images import Progress
from actstats_kernels import ops, reference
from tests.conftest import SmallNet, files_of, photograph
from tests.data.images import encoded, write_folder
from tests.kernels.strategies import DTYPES, activations, assert_pairs_right, draw_values, lay_out, pairs

pytestmark = pytest.mark.gpu

SMALL = {"preprocessing": Preprocessing.imagenet(size=32, resize=36), "batch_size": 3, "workers": 2}


def assert_right(x: torch.Tensor) -> dict[str, torch.Tensor]:
    found, expected = ops.statistics(x), reference.statistics(x)
    size = torch.nan_to_num(x.double(), 0, 0, 0).abs().amax((-2, -1))
    for name in reference.MOMENTS:
        scale = {"variance": size**2 * 1e-2, "maximum": 0 * size, "active_fraction": 0 * size}.get(name, size)
        wrong = (found[name].double() - expected[name]).abs() > 1e-5 * expected[name].abs() + 1e-6 * scale
        assert not wrong.any(), name
        assert torch.equal(found[name].isnan(), expected[name].isnan()), name
    assert torch.equal(found["argmax"], expected["argmax"])
    assert torch.equal(found["histogram"], expected["histogram"])
    spectra = expected["power_spectrum"]
    assert ((found["power_spectrum"] - spectra).abs() <= 1e-5 * spectra.sum(1, keepdim=True)).all()
    return found


# Nearly every example compiles kernels, so that processes share the parts.
@pytest.mark.parametrize("part", range(6))
@settings(max_examples=10, deadline=None)
@given(activations())
def test_any_maps_equal_the_reference(part, x):
    assert_right(x.cuda())


@settings(max_examples=40, deadline=None)
@given(pairs())
def test_any_pair_of_maps_equals_the_reference(pair):
    clean, changed = (maps.cuda() for maps in pair)
    found = torch.empty(2, *clean.shape[:2], device="cuda")
    ops.compare(clean, changed, found)
    assert_pairs_right(found.cpu(), reference.compare(*pair))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("side", [7, 14, 28, 55, 112, 224, 512])
def test_layers_of_networks_equal_the_reference_whatever_their_layout(side, dtype):
    values = draw_values("relu", (2, 16, side, side), 0).to(dtype).cuda()
    contiguous, last = (lay_out(values, layout) for layout in ("contiguous", "channels_last"))
    found, others = assert_right(contiguous), assert_right(last)
    for maps, first in ((contiguous, found), (last, others)):
        again = ops.statistics(maps)
        assert all(torch.equal(first[name], again[name]) for name in first)
    for name in ("maximum", "active_fraction", "argmax", "histogram"):
        assert torch.equal(found[name], others[name]), name
    # Threads are laid out as the memory is, which changes the order of sums.
    size = values.double().abs().amax((-2, -1))
    tolerances = {
        "mean": 1e-6 * size,
        "variance": 1e-6 * size**2,
        "total_variation": 5e-6 * found["total_variation"],
        "power_spectrum": 5e-6 * found["power_spectrum"].sum(1, keepdim=True),
    }
    for name, tolerance in tolerances.items():
        assert ((found[name].double() - others[name]).abs() <= tolerance).all(), name


@pytest.mark.large_gpu
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_maps_of_more_than_2_to_the_31_values(layout):
    images, shape = 700, (64, 224, 224)
    x = draw_values("relu", (4, *shape), 0).bfloat16().cuda().repeat(images // 4, 1, 1, 1)
    x[-1].mul_(2)  # differs from the images whose offsets would be equal modulo 2**32
    x = lay_out(x, layout)
    assert x.numel() > 2**31
    found, last = ops.statistics(x), assert_right(x[-4:])
    first = ops.statistics(x[:4])
    for name in (*reference.MOMENTS, "argmax"):
        assert torch.equal(found[name][-4:], last[name]), name
        assert torch.equal(found[name][:-4], first[name].repeat(images // 4 - 1, 1)), name
    for name in ("histogram", "power_spectrum"):
        expected = first[name] * (images // 4 - 1) + last[name]
        # f32 sums over all images have another order than those over 4.
        torch.testing.assert_close(found[name], expected, rtol=0 if name == "histogram" else 1e-5, atol=0)
    assert (found["histogram"].sum(1) == images * 224 * 224).all()


def test_the_same_maps_give_the_same_bytes():
    x = draw_values("normal", (64, 96, 28, 28), 1).cuda()
    first = ops.statistics(x)
    for _ in range(10):
        again = ops.statistics(x)
        assert all(torch.equal(first[name], again[name]) for name in first)


def test_ranking_equals_the_reference():
    maximum = draw_values("integers", (300, 40, 1, 1), 2).reshape(300, 40)
    maximum[maximum > 6] = torch.nan
    position = torch.arange(12000, dtype=torch.int32).reshape(300, 40)
    found = ops.top_k(maximum.cuda(), position.cuda(), 16)
    for a, b in zip(found, reference.top_k(maximum, position, 16), strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=0, atol=0, equal_nan=True)


def test_torch_finds_nothing_wrong_with_the_ops():
    x = torch.randn(2, 8, 6, 5, device="cuda")
    power = torch.zeros(8, 18, dtype=torch.float64, device="cuda")
    torch.library.opcheck(ops.accumulate, (x, None, None, None, power))


def test_the_hooks_do_not_wait_for_the_device():
    model = SmallNet().eval().cuda().to(memory_format=torch.channels_last)
    images = torch.rand(4, 3, 32, 32, device="cuda")
    layers = select_layers(model, images[:2])
    moments = [torch.empty(5, 4, layer.units, device="cuda") for layer in layers]
    power = [torch.zeros(layer.units, 18, dtype=torch.float64, device="cuda") for layer in layers]

    def take(layer: int, maps: torch.Tensor) -> None:
        ops.accumulate(maps, moments[layer], None, None, power[layer])

    with torch.inference_mode(), watch(model, layers, take):
        model(images)  # compiles, and makes the tables
        torch.cuda.set_sync_debug_mode("error")
        try:
            model(images)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_a_sweep_on_the_gpu_equals_one_on_the_cpu(photographs, tmp_path):
    for device in ("cpu", "cuda"):
        sweep(SmallNet(), photographs, tmp_path / f"{device}.zarr", device=device, partition_size=6, **SMALL)
    cpu, cuda = (xarray.open_zarr(tmp_path / f"{device}.zarr") for device in ("cpu", "cuda"))
    for name in ("mean", "maximum", "total_variation", "power_spectrum"):
        np.testing.assert_allclose(cuda[name], cpu[name], rtol=2e-3, atol=2e-3)
    np.testing.assert_array_equal(cuda.histogram.sum("bin"), cpu.histogram.sum("bin"))


def run(store: Path, photographs: Path, model: torch.nn.Module | None = None, **options: Any) -> Path:
    """Sweep on the GPU in partitions of 5, with every statistic."""
    sweep(
        model or SmallNet(), photographs, store, **{"device": "cuda", "partition_size": 5, **SMALL, **options}
    )
    return store


def test_three_sweeps_give_the_same_bytes(photographs, tmp_path):
    stores = [files_of(run(tmp_path / f"{n}.zarr", photographs)) for n in range(3)]
    assert stores[0] == stores[1] == stores[2]


def test_a_sweep_resumes_on_the_gpu(photographs, tmp_path):
    whole, parts = tmp_path / "whole.zarr", tmp_path / "parts.zarr"
    run(whole, photographs)
    run(parts, photographs, part=(1, 3))
    assert xarray.open_zarr(parts).completed.values.tolist() == [False, True, False]
    run(parts, photographs)
    assert files_of(parts) == files_of(whole)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_under_autocast_the_kernels_read_narrow_maps(photographs, tmp_path, amp):
    full, narrow = (
        xarray.open_zarr(run(tmp_path / f"{name}.zarr", photographs, amp=name)) for name in ("off", amp)
    )
    dropped = (1 << {"bf16": 16, "fp16": 13}[amp]) - 1
    assert not (narrow["maximum"].values.view(np.uint32) & dropped).any()
    assert (narrow["mean"].values.view(np.uint32) & dropped).any()
    np.testing.assert_allclose(narrow["mean"], full["mean"], rtol=0.05, atol=0.02)


def test_a_compiled_network_gives_the_same_statistics(photographs, tmp_path):
    # 14 images in partitions of 5 and batches of 3: most batches are padded.
    eager, compiled = (
        xarray.open_zarr(run(tmp_path / f"{on}.zarr", photographs, compile=on, strict=True))
        for on in (False, True)
    )
    assert compiled.attrs["compile"] is True
    for name in ("mean", "variance", "maximum", "total_variation", "power_spectrum"):
        np.testing.assert_allclose(compiled[name], eager[name], rtol=2e-3, atol=2e-3, err_msg=name)
    np.testing.assert_array_equal(compiled.histogram.sum("bin"), eager.histogram.sum("bin"))


def test_custom_metrics_on_the_gpu_equal_those_on_the_cpu(photographs, tmp_path):
    custom = ("actstats.metrics.examples:Kurtosis", "actstats.metrics.examples:UnitCovariance")
    cpu, cuda = (
        xarray.open_zarr(run(tmp_path / f"{device}.zarr", photographs, custom=custom, device=device))
        for device in ("cpu", "cuda")
    )
    for name in ("kurtosis", "covariance_product", "covariance_sum", "covariance_count"):
        np.testing.assert_allclose(cuda[name], cpu[name], rtol=2e-2, atol=2e-2, err_msg=name)


class Hungry(SmallNet):
    """Asks for more memory than any GPU has once it is `hungry`."""

    hungry = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.hungry:
            torch.empty(2**45, dtype=torch.uint8, device=x.device)
        return super().forward(x)


def test_out_of_memory_in_the_middle_keeps_what_is_complete(photographs, tmp_path):
    model, store = Hungry(), tmp_path / "hungry.zarr"

    def grow_hungry(progress: Progress) -> None:
        model.hungry = progress.done >= 10

    with pytest.raises(
        ActstatsError, match="out of memory with `batch_size=3`; completed partitions are kept"
    ):
        run(store, photographs, model, on_progress=grow_hungry)
    assert xarray.open_zarr(store).completed.values.tolist() == [True, True, False]
    run(store, photographs, Hungry())
    assert files_of(store) == files_of(run(tmp_path / "whole.zarr", photographs, Hungry()))


@pytest.mark.gpu_decoder
def test_jpegs_decoded_by_the_gpu_are_within_two_levels_of_pillow_on_average(tmp_path):
    files = {f"{n}.jpg": encoded(photograph(n).resize((500, 375)), "JPEG", quality=90) for n in range(8)}
    source = open_source(write_folder(tmp_path, files | {"8.png": encoded(photograph(8))}))
    preprocessing = Preprocessing.imagenet()
    decoder = DeviceDecoder(source, preprocessing, torch.device("cuda"))
    [batch] = batches(source, preprocessing, [(0, 9)], workers=2, pin=True, decoder=decoder)
    assert batch.pixels.is_cuda
    for index, pixels in enumerate(batch.pixels.cpu().int()):
        wanted = torch.from_numpy(preprocessing.pixels(source.image(index)).copy()).int()
        assert (pixels - wanted).abs().float().mean() <= 2
