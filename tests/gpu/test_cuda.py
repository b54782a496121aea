"""What only a GPU can show: the kernels on it, a sweep on it, and that nothing in the hooks waits for it."""

from __future__ import annotations

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
from actstats_kernels import ops, reference
from tests.conftest import SmallNet, photograph
from tests.data.images import encoded, write_folder
from tests.kernels.strategies import DTYPES, activations, draw_values, lay_out

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here"),
]

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


@settings(max_examples=60, deadline=None)
@given(activations())
def test_any_maps_equal_the_reference(x):
    assert_right(x.cuda())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("side", [7, 14, 28, 55, 112, 224, 512])
def test_layers_of_networks_equal_the_reference_whatever_their_layout(side, dtype):
    values = draw_values("relu", (2, 16, side, side), 0).to(dtype).cuda()
    contiguous = assert_right(values)
    last = assert_right(lay_out(values, "channels_last"))
    assert all(torch.equal(contiguous[name], last[name]) for name in contiguous)


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


def test_jpegs_decoded_by_the_gpu_are_within_two_levels_of_pillow_on_average(tmp_path):
    files = {f"{n}.jpg": encoded(photograph(n).resize((500, 375)), "JPEG", quality=90) for n in range(8)}
    source = open_source(write_folder(tmp_path, files | {"8.png": encoded(photograph(8))}))
    preprocessing = Preprocessing.imagenet()
    try:
        decoder = DeviceDecoder(source, preprocessing, torch.device("cuda"))
    except ActstatsError as error:
        pytest.skip(str(error))
    [batch] = batches(source, preprocessing, [(0, 9)], workers=2, pin=True, decoder=decoder)
    assert batch.pixels.is_cuda
    for index, pixels in enumerate(batch.pixels.cpu().int()):
        wanted = torch.from_numpy(preprocessing.pixels(source.image(index)).copy()).int()
        assert (pixels - wanted).abs().float().mean() <= 2
