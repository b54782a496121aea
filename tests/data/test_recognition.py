"""Transforms of torchvision and timm: recorded as sizes and moments if that is all they do, otherwise kept."""

from __future__ import annotations

import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms as v1
import torchvision.transforms.v2 as v2
import xarray as xr
from PIL import Image, ImageOps
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights

import actstats
from actstats.data.preprocessing import Preprocessing
from actstats.data.transform import Transform, as_preprocessing, choose_preprocessing, parse_preprocessing
from actstats.errors import ActstatsError
from tests.data.images import picture

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FINE = (0.49139968, 0.48215827, 0.44653124)
SHAPES = [(60, 60), (120, 60), (200, 50), (33, 90), (20, 31), (3, 300), (301, 333)]


def steps(kind: Any = v1, resize: Any = None, crop: Any = None, mean: Any = MEAN, std: Any = STD) -> Any:
    with warnings.catch_warnings(action="ignore"):
        return kind.Compose(
            [
                kind.Resize(36) if resize is None else resize,
                kind.CenterCrop(32) if crop is None else crop,
                kind.ToTensor(),
                kind.Normalize(mean, std),
            ]
        )


def changed(made: Any, **values: Any) -> Any:
    for name, value in values.items():
        setattr(made, name, value)
    return made


class Turned(v1.Resize):
    def forward(self, img: Image.Image) -> Image.Image:
        return super().forward(ImageOps.exif_transpose(img))


class TurnedPreset(type(ResNet50_Weights.DEFAULT.transforms())):  # type: ignore[misc]
    def forward(self, img: Image.Image) -> Tensor:
        return super().forward(ImageOps.mirror(img))


def hooked() -> Any:
    resize = v1.Resize(36)
    resize.register_forward_hook(lambda module, inputs, output: ImageOps.mirror(output))
    return resize


def timms(**options: Any) -> Any:
    timm = pytest.importorskip("timm")
    return timm.data.create_transform((3, 48, 48), **options)


KNOWN = {
    "v1": lambda: steps(),
    "v2": lambda: steps(v2),
    "lists": lambda: steps(resize=v1.Resize([36]), crop=v1.CenterCrop([32, 32])),
    "bicubic": lambda: steps(resize=v1.Resize(36, v1.InterpolationMode.BICUBIC)),
    "many digits": lambda: steps(mean=FINE),
    "in place": lambda: changed(
        steps(), transforms=[*steps().transforms[:3], v1.Normalize(MEAN, STD, inplace=True)]
    ),
    "a preset": lambda: ResNet50_Weights.IMAGENET1K_V2.transforms(),
    "a preset of another size": lambda: ResNet50_Weights.IMAGENET1K_V2.transforms(crop_size=64),
    "timm": lambda: timms(crop_pct=0.9, interpolation="bicubic"),
}
with suppress(ValueError):  # of a torchvision that takes no names
    v2.functional.resize(picture(8, 8), [4], "bicubic")
    KNOWN["bicubic by name"] = lambda: steps(v2, resize=v2.Resize(36, "bicubic"))


@pytest.mark.parametrize("name", KNOWN)
def test_what_is_recognised_does_the_same_to_every_image(name: str) -> None:
    transform = KNOWN[name]()
    known = as_preprocessing(transform)
    assert known is not None
    for width, height in SHAPES:
        image = picture(width, height)
        assert torch.equal(known(image), transform(image)), (width, height)


UNKNOWN = {
    "max_size": lambda: steps(resize=v1.Resize(36, max_size=40)),
    "max_size of v2": lambda: steps(v2, resize=v2.Resize(36, max_size=40)),
    "two sides": lambda: steps(resize=v1.Resize((36, 50))),
    "a crop that is no square": lambda: steps(crop=v1.CenterCrop((32, 30))),
    "no antialias": lambda: steps(resize=v1.Resize(36, antialias=False)),
    "a nearest neighbour": lambda: steps(resize=v1.Resize(36, v1.InterpolationMode.NEAREST)),
    "a subclass of a step": lambda: steps(resize=Turned(36)),
    "a method of an object": lambda: steps(
        resize=changed(v1.Resize(36), forward=lambda img: img.resize((40, 40)))
    ),
    "a hook": lambda: steps(resize=hooked()),
    "another call": lambda: changed(steps(), transforms=[*steps().transforms, lambda x: x / 2]),
    "scaled by a product": lambda: v2.Compose(
        [
            v2.Resize(36),
            v2.CenterCrop(32),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    ),
    "one moment": lambda: steps(mean=(0.5,), std=(0.5,)),
    "moments up to 255": lambda: steps(mean=(123.0, 116.0, 103.0), std=(58.0, 57.0, 57.0)),
    "a subclass of a preset": lambda: TurnedPreset(crop_size=32, resize_size=36),
    "a preset without antialias": lambda: ResNet50_Weights.DEFAULT.transforms(
        crop_size=32, resize_size=36, antialias=False
    ),
    "timm, squashed": lambda: timms(crop_mode="squash", interpolation="bilinear"),
    "timm, with a border": lambda: timms(crop_mode="border", interpolation="bilinear"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_does_more_is_kept(name: str) -> None:
    transform = UNKNOWN[name]()
    assert as_preprocessing(transform) is None
    images = [picture(60, 60), picture(120, 60), picture(60, 90)]
    expected = [transform(image) for image in images]
    chosen = choose_preprocessing(transform, None, images[0])
    assert isinstance(chosen, Transform)
    for image, made in zip(images, expected, strict=True):
        if made.shape == expected[0].shape:
            np.testing.assert_array_equal(chosen.pixels(image), made.numpy())


def test_a_sweep_with_a_longest_side_sees_the_images_of_the_transform(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    sizes = [(60, 60), (120, 60), (200, 50)]  # the first is square, where `max_size` does nothing
    for index, size in enumerate(sizes):
        picture(*size, index).save(folder / f"{index}.png")
    transform = UNKNOWN["max_size"]()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 2, 3)).eval()
    actstats.sweep(net, folder, tmp_path / "s.zarr", preprocessing=transform, device="cpu", workers=0)
    inputs = torch.stack([transform(Image.open(folder / f"{index}.png")) for index in range(3)])
    with torch.no_grad():
        expected = net(inputs).mean((2, 3)).numpy()
    np.testing.assert_allclose(xr.open_zarr(tmp_path / "s.zarr")["mean"], expected, atol=1e-6)


class Inverted(Preprocessing):
    """A preprocessing of the user's own, whose pixels are inverted."""

    def pixels(self, image: Any) -> Any:
        return 255 - super().pixels(image)


def test_a_subclass_of_preprocessing_is_not_recorded_as_the_plain_one() -> None:
    own, image = Inverted(36, 32), picture(50, 60)
    for chosen in (choose_preprocessing(own, None, image), choose_preprocessing(None, own, image)):
        assert isinstance(chosen, Transform)
        np.testing.assert_array_equal(chosen.pixels(image), own(image).numpy())


def test_the_mean_of_a_preprocessing_is_one_of_colours_up_to_1() -> None:
    with pytest.raises(ActstatsError, match="divide mean and std by 255"):
        Preprocessing(36, 32, mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))


def half(image: Image.Image) -> Tensor:
    return torch.full((3, 20, 24), float(np.asarray(image).mean() / 510))


OWN = Preprocessing(None, 24)
NUMBER = 3


def test_the_text_of_a_preprocessing(tmp_path: Path) -> None:
    file = tmp_path / "input.json"
    file.write_text(
        '{"resize": 36, "crop": 32, "interpolation": "bicubic", "mean": [0, 0, 0], "std": [1, 1, 1]}'
    )
    black_and_white = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    assert parse_preprocessing("imagenet") == Preprocessing.imagenet()
    assert parse_preprocessing(str(file)) == Preprocessing(36, 32, "bicubic", **black_and_white)
    assert parse_preprocessing("crop=24 mean=0 std=1") == Preprocessing(None, 24, **black_and_white)
    text = "resize=36 crop=32 interpolation=bicubic mean=0.1,0.2,0.3 std=0.5"
    assert parse_preprocessing(text) == Preprocessing(36, 32, "bicubic", (0.1, 0.2, 0.3), (0.5,) * 3)
    assert parse_preprocessing("tests.data.test_recognition:OWN") is OWN
    for wrong, message in {
        "imagnet": "give imagenet, sizes and moments",
        "crop=24": "lacks mean, std",
        "crop=24 mean=0 std=0": "positive std",
        "crop=24 mean=0,1 std=1": "each of three colours",
        "crop=x mean=0 std=1": "invalid literal",
        "crop=2 corp=24 mean=0 std=1": "'corp=24'",
        "crop=2 crop=24 mean=0 std=1": "twice",
        str(tmp_path / "none.json"): "No such file",
        "tests.data.test_recognition:NUMBER": "is a int",
        "tests.data.test_recognition:absent": "no attribute 'absent'",
    }.items():
        with pytest.raises(ActstatsError) as caught:
            parse_preprocessing(wrong)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
    file.write_text("[1]")
    with pytest.raises(ActstatsError, match="JSON object"):
        parse_preprocessing(str(file))


def test_a_function_given_by_name_is_found_again_only_with_trust(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    picture(30, 30).save(tmp_path / "set" / "0.png")
    name = "tests.data.test_recognition:half"
    options: Any = {"weights": "none", "layers": ["features.1"], "device": "cpu", "preprocessing": name}
    plan = actstats.plan("squeezenet1_1", tmp_path / "set", tmp_path / "s.zarr", **options)
    assert plan.manifest.preprocessing.function == name
    assert str(plan.manifest.preprocessing) == f"3 x 20 x 24 float32, by {name}"
    plan.run(workers=0)
    image = picture(30, 30)
    network = actstats.open_sweep(tmp_path / "s.zarr", trust=True).network()
    np.testing.assert_array_equal(network.preprocessing.pixels(image), half(image).numpy())
    with pytest.raises(ActstatsError, match="which is not in the store"):
        actstats.open_sweep(tmp_path / "s.zarr").network().preprocessing.pixels(image)
    assert "another process" not in plan.to_json()
    options["preprocessing"] = half
    unnamed = actstats.plan("squeezenet1_1", tmp_path / "set", tmp_path / "t.zarr", **options)
    with pytest.raises(ActstatsError, match="another process cannot import the preprocessing"):
        unnamed.to_json()
