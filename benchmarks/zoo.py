"""Check layers of public networks with random weights: stored values by plain hooks, layouts by changing the image.

    nice python benchmarks/zoo.py                             # one network of each module of timm, and some others
    nice python benchmarks/zoo.py 'timm/vit_tiny*' torchvision/swin_t transformers/Dinov2

Each network is swept over four random images with `layers=all`, and the mean and the maximum of each unit are
compared with what hooks on the modules see. A layout is checked where the network is still local: a patch of the
image is changed, and the positions of the map that change must lie where the patch is. Prints a line per network, and
exits with 1 if a network cannot be swept, a value differs, or a change is in the wrong place.
"""

from __future__ import annotations

import argparse
import fnmatch
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import actstats
from actstats.layers import Layer, probe
from actstats.layers.layer import ROOT, returned_tensor, watch

PATCHES = ((0.2, 0.3), (0.3, 0.75), (0.7, 0.2), (0.8, 0.65))
"""Centres of the changed patches, as shares of the image's height and width."""

SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 64,
    "patch_size": 8, "window_size": 4, "window_block_indices": [0],
}  # fmt: skip
"""Attributes of the configurations of plain transformers."""

TRANSFORMERS = (
    "ViT", "DeiT", "Beit", "Dinov2", "Dinov2WithRegisters", "DINOv3ViT", "DINOv3ConvNext", "Swin", "Swinv2", "VitDet",
    "ConvNext", "ConvNextV2", "ResNet", "RegNet", "MobileNetV1", "MobileNetV2", "MobileViT", "MobileViTV2",
    "PoolFormer", "Pvt", "PvtV2", "Segformer", "Cvt", "Hiera", "ViTMSN", "Yolos", "Bit", "EfficientNet", "FocalNet",
    "Data2VecVision", "Levit", "IJepa", "CLIPVision", "SiglipVision", "GLPN", "DPT", "SwiftFormer", "TextNet",
)  # fmt: skip


@dataclass
class Result:
    """What was seen of one network."""

    layers: int = 0
    grids: int = 0
    local: int = 0
    rows: int = 0
    refused: int = 0
    faults: list[str] = field(default_factory=list)


def names(patterns: Sequence[str]) -> list[str]:
    """Return the networks that match, as `library/name`."""
    import timm
    import torchvision

    models = torchvision.models
    everything = [
        *(f"timm/{name}" for name in timm.list_models()),
        *(f"torchvision/{name}" for name in models.list_models(module=models)),
        *(f"transformers/{name}" for name in TRANSFORMERS),
    ]
    if patterns:
        return [name for pattern in patterns for name in fnmatch.filter(everything, pattern)]
    smallest = [
        f"timm/{min(known, key=_guessed_size)}"
        for module in timm.list_modules()
        if (known := timm.list_models(module=module))
    ]
    chosen = ("alexnet", "googlenet", "maxvit_t", "regnet_y_400mf", "swin_v2_t", "vit_b_32", "densenet121")
    others = [name for name in everything if name.startswith("transformers/")]
    return [*smallest, *(f"torchvision/{name}" for name in chosen), *others]


def _guessed_size(name: str) -> tuple[int, int]:
    sizes = (
        "atto",
        "femto",
        "pico",
        "nano",
        "xxt",
        "xxs",
        "xt",
        "xs",
        "tiny",
        "_t",
        "ti_",
        "mini",
        "small",
        "_s",
        "18",
    )
    return next((at for at, size in enumerate(sizes) if size in name), len(sizes)), len(name)


def build(name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    """Return a network with random weights and the shape of its images."""
    library, _, model = name.partition("/")
    if library == "timm":
        import timm

        network = timm.create_model(model, pretrained=False)
        channels, height, width = network.default_cfg.get("input_size", (3, 224, 224))
        return network, (channels, height, width)
    if library == "torchvision":
        import torchvision

        options = {"init_weights": False} if model in ("googlenet", "inception_v3") else {}
        return torchvision.models.get_model(model, weights=None, **options), (3, 224, 224)
    import transformers

    kind = model.removesuffix("Model")
    config = getattr(transformers, f"{kind}Config")()
    plain = all(isinstance(getattr(config, key, None), int) for key in ("num_hidden_layers", "hidden_size"))
    plain = plain and not hasattr(config, "depths")
    for key, value in SMALL.items() if plain else ():
        if type(getattr(config, key, None)) is type(value):
            setattr(config, key, value)
    side = getattr(config, "image_size", 224) or 224
    side = side if isinstance(side, int) else side[0]
    return getattr(transformers, f"{kind}Model")(config), (3, side, side)


def check(network: nn.Module, shape: tuple[int, int, int], *, values: bool = True) -> Result:
    """Sweep a network and check every layer."""
    network.eval()
    images = torch.rand(1 + len(PATCHES), *shape, generator=torch.Generator().manual_seed(1))
    probed = probe(network, images)
    layers = [candidate.layer for candidate in probed.candidates]
    result = Result(len(layers), refused=len(probed.refused))
    result.grids = sum(layer.height > 1 and layer.width > 1 for layer in layers)
    result.rows = sum("t" not in layer.axes and layer.height == 1 < layer.width for layer in layers)
    if values:
        result.faults += _values(network, images[: len(PATCHES)])
    changed = images[:1].repeat(1 + len(PATCHES), 1, 1, 1)
    for at, (row, column) in enumerate(PATCHES, 1):
        top, left = (int((centre - 1 / 14) * size) for centre, size in ((row, shape[1]), (column, shape[2])))
        changed[at, :, top : top + shape[1] // 7, left : left + shape[2] // 7] += 3.0

    def note(index: int, maps: Tensor) -> None:
        layer = layers[index]
        if layer.height > 3 and layer.width > 3:
            wrong = _misplaced(maps)
            result.local += wrong is not None
            if wrong:
                result.faults.append(f"{layer.name}, {layer.height} x {layer.width}: {wrong}")

    with torch.inference_mode(), watch(network, layers, note):
        network(changed.contiguous(memory_format=torch.channels_last))
    return result


def _misplaced(maps: Tensor) -> str | None:
    """Return where a changed patch appears, if not at its place; empty if there, None if everywhere or nowhere."""
    height, width = maps.shape[2:]
    change = (maps[1:] - maps[:1]).double().square().sum(1)
    greatest = change.amax((1, 2), keepdim=True)
    if not bool((greatest.isfinite() & (greatest > 1e-20)).all()):
        return None
    change /= greatest
    if bool(((change > 1e-8).double().mean((1, 2)) > 0.4).any()):
        return None
    weights = change / change.sum((1, 2), keepdim=True)
    rows = (torch.arange(height, dtype=torch.float64) + 0.5) / height
    columns = (torch.arange(width, dtype=torch.float64) + 0.5) / width
    for seen, place in zip(weights, PATCHES, strict=True):
        down, across = float(seen.sum(1) @ rows), float(seen.sum(0) @ columns)
        there = change_at(seen, place)  # a long kernel in a small map spreads to one side of the border
        if there < 0.05 and max(abs(down - place[0]), abs(across - place[1])) > 0.15:
            return f"a patch at {place} changes the map at ({down:.2f}, {across:.2f})"
    return ""


def change_at(change: Tensor, place: tuple[float, float]) -> float:
    """Return the change at a place, as a share of the greatest."""
    height, width = change.shape
    return float(change[int(place[0] * height), int(place[1] * width)] / change.max())


def _values(network: nn.Module, images: Tensor) -> Iterator[str]:
    """Yield the layers whose stored mean or maximum is not that of the module's output."""
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "zoo.zarr")
        actstats.sweep(
            network, TensorDataset(images), store, layers=["all"], metrics=["mean", "maximum"],
            batch_size=len(images), partition_size=len(images), device="cpu", workers=0, compile=False,
        )  # fmt: skip
        dataset = actstats.open_dataset(store).load()
    stored = {
        str(name): {
            key: dataset[key].values[:, dataset["layer"].values == name] for key in ("mean", "maximum")
        }
        for name in dict.fromkeys(dataset["layer"].values)
    }
    probed = {c.layer.name: c.layer for c in probe(network, images).candidates if c.layer.name in stored}
    for name, expected in hooked(network, images, list(probed.values())):
        for key, values in expected.items():
            got = stored[name][key]
            if got.shape != values.shape or not np.allclose(
                got, values, rtol=1e-3, atol=1e-5, equal_nan=True
            ):
                yield f"{name}: the stored {key} differs from that of the module's output"


def hooked(
    network: nn.Module, images: Tensor, layers: Sequence[Layer]
) -> Iterator[tuple[str, dict[str, NDArray[np.float64]]]]:
    """Yield the mean and maximum [N, C] of each layer's output, read by plain hooks and reduced in NumPy."""
    modules = {name or ROOT: module for name, module in network.named_modules()}
    calls: dict[str, int] = {}
    outputs: dict[tuple[str, int], NDArray[np.float64]] = {}
    wanted = {(layer.module, layer.call) for layer in layers}

    def hook(name: str) -> Callable[[nn.Module, object, object], None]:
        def keep(_module: nn.Module, _inputs: object, output: object) -> None:
            key = name, calls.get(name, 0)
            calls[name] = key[1] + 1
            tensor = returned_tensor(output)
            if key in wanted and tensor is not None:
                outputs[key] = tensor.double().numpy().copy()

        return keep

    handles = [modules[name].register_forward_hook(hook(name)) for name in {layer.module for layer in layers}]
    with torch.inference_mode():
        network(images.contiguous(memory_format=torch.channels_last))
    for handle in handles:
        handle.remove()
    for layer in layers:
        output = outputs[layer.module, layer.call]
        if "t" in layer.axes:
            at = layer.axes.index("t")
            output = output.take(range(layer.prefix, layer.prefix + layer.height * layer.width), at)
        places = tuple(at for at, axis in enumerate(layer.axes) if axis in "hwt")
        values = {"mean": output.mean(places), "maximum": output.max(places)}
        kept = [axis for axis in layer.axes if axis not in "hwt"]
        for key, value in values.items():
            value = value if "c" in kept else value[..., None]
            values[key] = value.T if kept[0] == "c" else value
        yield layer.name, values


def main() -> int:
    """Check the networks that the arguments name, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("patterns", nargs="*", help="library/name, with * and ? as in a shell")
    parser.add_argument("--layouts", action="store_true", help="check only layouts, which is much faster")
    parser.add_argument("--seconds", type=int, default=300, help="time limit for each network")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    chosen = names(options.patterns)
    if not chosen:
        parser.error(f"no network matches {' '.join(options.patterns)}")

    def stop(*_: object) -> None:
        raise TimeoutError(f"no end within {options.seconds} s")

    signal.signal(signal.SIGALRM, stop)
    print(
        f"{'network':50s} {'layers':>6s} {'grids':>6s} {'local':>6s} {'rows':>5s} {'refused':>7s} {'s':>5s}  fault"
    )
    broken = 0
    for name in chosen:
        started = time.perf_counter()
        signal.alarm(options.seconds)
        try:
            torch.manual_seed(0)
            network, shape = build(name)
            result = check(network, shape, values=not options.layouts)
        except Exception as error:
            result = Result(faults=[f"{type(error).__name__}: {error}".splitlines()[0]])
        finally:
            signal.alarm(0)
        broken += bool(result.faults)
        shown = f"{len(result.faults)}: {result.faults[0]}" if result.faults else ""
        print(
            f"{name:50s} {result.layers:6d} {result.grids:6d} {result.local:6d} {result.rows:5d} {result.refused:7d} "
            f"{time.perf_counter() - started:5.0f}  {shown}",
            flush=True,
        )
    print(f"{len(chosen) - broken} of {len(chosen)} networks without a fault")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
