"""Preprocessing equals torchvision's presets to the bit, one image or a batch, and survives its record."""

import json
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from actstats.data.preprocessing import Preprocessing
from actstats.errors import ActstatsError
from actstats.models import torchvision_zoo as zoo
from tests.data.images import picture

IMAGENET = Preprocessing.imagenet()


@pytest.mark.parametrize(
    "arch",
    [
        "alexnet",
        "convnext_tiny",
        "efficientnet_b0",
        "googlenet",
        "inception_v3",
        "resnet50",
        "swin_t",
        "vit_b_16",
    ],
)
def test_equals_torchvisions_transforms(arch: str) -> None:
    for weights in torchvision.models.get_model_weights(arch):
        expected, ours = weights.transforms(), zoo.preprocessing_of(weights)
        for image in (picture(500, 375), picture(333, 500), picture(90, 70), picture(1, 1)):
            assert torch.equal(ours(image), expected(image))


sizes = st.one_of(st.integers(1, 40), st.integers(100, 420))


@settings(max_examples=150, deadline=None)
@given(sizes, sizes, sizes, sizes, st.sampled_from(["bilinear", "bicubic"]))
def test_pixels_equal_torchvisions_at_any_size(
    width: int, height: int, resize: int, crop: int, kind: str
) -> None:
    ours = Preprocessing(resize, crop, kind)
    if max(ours.resized((width, height))) > 4000:
        return
    image = picture(width, height)
    resized = F.resize(image, [resize], interpolation=InterpolationMode(kind))
    assert resized.size == ours.resized(image.size)
    np.testing.assert_array_equal(ours.pixels(image), np.asarray(F.center_crop(resized, [crop])))


def test_without_resizing() -> None:
    np.testing.assert_array_equal(
        Preprocessing(None, 20).pixels(picture(20, 20)), np.asarray(picture(20, 20))
    )


def test_images_of_other_modes_are_converted() -> None:
    grey = picture(300, 300).convert("L")
    assert torch.equal(IMAGENET(grey), IMAGENET(grey.convert("RGB")))


@pytest.mark.parametrize("count", [0, 1, 5])
def test_normalizing_a_batch_equals_one_by_one(count: int) -> None:
    images = [picture(300, 260, seed) for seed in range(count)]
    pixels = torch.from_numpy(np.array([IMAGENET.pixels(image) for image in images], dtype=np.uint8))
    batch = IMAGENET.normalize(pixels.view(count, 224, 224, 3))
    assert batch.shape == (count, *IMAGENET.shape)
    assert batch.dtype == torch.float32
    assert batch.is_contiguous(memory_format=torch.channels_last)
    for row, image in zip(batch, images, strict=True):
        assert torch.equal(row, IMAGENET(image))


def test_normalizing_in_inference_mode_leaves_ordinary_tensors_usable() -> None:
    with torch.inference_mode():
        IMAGENET(picture(300, 300))
    image = IMAGENET(picture(300, 300)).requires_grad_()
    image.sum().backward()
    assert image.grad is not None


@pytest.mark.gpu
def test_normalizing_on_a_gpu_gives_the_same_bits() -> None:
    pixels = torch.from_numpy(np.asarray(picture(224, 224)).copy())[None]
    assert torch.equal(IMAGENET.normalize(pixels.cuda()).cpu(), IMAGENET.normalize(pixels))


@pytest.mark.parametrize(
    "ours", [IMAGENET, Preprocessing(None, 64, "bicubic", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))]
)
def test_record_rebuilds_an_equal_object(ours: Preprocessing) -> None:
    assert Preprocessing.from_dict(json.loads(json.dumps(ours.to_dict()))) == ours


@pytest.mark.parametrize(
    "change",
    [
        {"interpolation": "bilinaer"},
        {"crop": 0},
        {"resize": -1},
        {"mean": [0.5]},
        {"std": [0, 1, 1]},
        {"fill": 3},
    ],
)
def test_records_that_make_no_preprocessing(change: dict[str, Any]) -> None:
    with pytest.raises(ActstatsError):
        Preprocessing.from_dict(IMAGENET.to_dict() | change)


def test_size_is_that_of_the_shorter_side() -> None:
    assert IMAGENET.resized((500, 375)) == (341, 256)
    assert IMAGENET.pixels(Image.new("RGB", (1, 9))).shape == (224, 224, 3)
