"""Distortions in a sweep: what the network sees, what the store says of it, and attacks on the network."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn.functional import cross_entropy

import actstats
from actstats.data.preprocessing import Preprocessing
from actstats.distort import Place, parse, pgd_l2
from actstats.errors import ActstatsError, ManifestMismatchError
from actstats.store.description import describe
from tests.conftest import SmallNet, files_of

SMALL = Preprocessing.imagenet(size=32, resize=36)


def seen(images, store, specs, **options) -> torch.Tensor:
    """What the network read in the sweep's own forward passes, in order."""
    inputs: list[torch.Tensor] = []

    def look(_module, arguments):
        if any(module._forward_hooks for module in model.modules()):  # not in the passes of an attack
            inputs.append(arguments[0].clone())

    model = SmallNet()
    arguments = {"batch_size": 4, "partition_size": 6, "workers": 2, "device": "cpu", **options}

    def listen(*_):
        model.register_forward_pre_hook(look)

    actstats.sweep(model, images, store, preprocessing=SMALL, distort=specs, on_start=listen, **arguments)
    return torch.cat(inputs)


def expected(images, specs) -> torch.Tensor:
    source, chain = actstats.open_source(images), parse(specs)
    pictures = [source.image(index) for index in range(len(source))]
    places = [Place(i, source.paths[i], SMALL, picture.size) for i, picture in enumerate(pictures)]
    distorted = [chain.image(SMALL.pixels(picture), at) for picture, at in zip(pictures, places, strict=True)]
    pixels = torch.from_numpy(np.stack(distorted))
    return SMALL.normalize(chain.batch(SmallNet().eval(), SMALL, pixels, places))


@pytest.mark.parametrize("specs", [["noise:0.1"], ["scramble:4", "greyscale+lowpass:6"], ["contour"]])
@pytest.mark.parametrize("options", [{}, {"batch_size": 5, "workers": 0}])
def test_the_network_sees_the_distorted_images(photographs, tmp_path, specs, options):
    found = seen(photographs, tmp_path / "a.zarr", specs, **options)
    torch.testing.assert_close(found, expected(photographs, specs), rtol=0, atol=0)


@pytest.mark.parametrize("specs", [["pgd:l2:0.5:3"], ["greyscale", "pgd:l2:0.5:3", "noise:0.1"]])
def test_an_attack_does_not_depend_on_batches_and_keeps_its_place(photographs, tmp_path, specs):
    found = seen(photographs, tmp_path / "a.zarr", specs, batch_size=3)
    torch.testing.assert_close(found, expected(photographs, specs), rtol=0, atol=1e-4)


def test_the_store_says_what_was_done_and_holds_to_it(photographs, tmp_path):
    arguments = {"preprocessing": SMALL, "device": "cpu", "limit": 4}
    actstats.sweep(
        SmallNet(), photographs, tmp_path / "a.zarr", distort=["noise:0.10+greyscale"], **arguments
    )
    assert xr.open_zarr(tmp_path / "a.zarr").attrs["distort"] == ["noise:0.1", "greyscale"]
    with pytest.raises(ManifestMismatchError, match="distort"):
        actstats.sweep(SmallNet(), photographs, tmp_path / "a.zarr", distort=["noise:0.2"], **arguments)
    with pytest.raises(ManifestMismatchError, match="distort"):
        actstats.sweep(SmallNet(), photographs, tmp_path / "a.zarr", **arguments)
    # The same twice is the same, to the byte.
    actstats.sweep(
        SmallNet(), photographs, tmp_path / "b.zarr", distort=parse(["noise:0.1+greyscale"]), **arguments
    )
    assert files_of(tmp_path / "a.zarr") == files_of(tmp_path / "b.zarr")


def test_a_sweep_without_distortions_says_nothing_of_them(photographs, tmp_path):
    actstats.sweep(SmallNet(), photographs, tmp_path / "a.zarr", preprocessing=SMALL, device="cpu", limit=4)
    assert "distort" not in xr.open_zarr(tmp_path / "a.zarr").attrs


def test_an_attack_leaves_its_own_passes_out_of_the_statistics(photographs, tmp_path):
    """A tiny step away, the statistics are nearly those of the clean images, not of several passes."""
    arguments = {"preprocessing": SMALL, "device": "cpu", "limit": 4}
    actstats.sweep(SmallNet(), photographs, tmp_path / "a.zarr", **arguments)
    actstats.sweep(SmallNet(), photographs, tmp_path / "b.zarr", distort=["pgd:l2:1e-6:2"], **arguments)
    clean, moved = (actstats.merge(xr.open_zarr(tmp_path / name)) for name in ("a.zarr", "b.zarr"))
    np.testing.assert_array_equal(clean["histogram"].sum("bin"), moved["histogram"].sum("bin"))
    np.testing.assert_allclose(clean["mean"], moved["mean"], atol=1e-5)


def test_an_image_without_a_mask_is_named_and_passed_over(photographs, tmp_path):
    masks = tmp_path / "masks"
    (masks / "cat").mkdir(parents=True)
    Image.new("L", (96, 80), 255).save(masks / "cat" / "00.png")
    summary = actstats.sweep(
        SmallNet(),
        photographs,
        tmp_path / "a.zarr",
        preprocessing=SMALL,
        device="cpu",
        limit=2,
        distort=[f"silhouette:{masks}"],
    )
    assert summary.failures == {"cat/02.png": f"has no mask in {masks}"}
    assert xr.open_zarr(tmp_path / "a.zarr").attrs["masks"]


def test_a_network_without_logits_cannot_be_attacked(photographs, tmp_path):
    with pytest.raises(ActstatsError, match="needs a network that returns logits"):
        actstats.sweep(
            SmallNet().first,
            photographs,
            tmp_path / "a.zarr",
            preprocessing=SMALL,
            device="cpu",
            distort=["pgd:l2:0.5:2"],
        )


@settings(max_examples=20, deadline=None)
@given(st.floats(0.01, 3), st.integers(1, 6), st.integers(0, 100), st.booleans())
def test_pgd_stays_in_the_ball_and_in_range_and_raises_the_loss(epsilon, steps, seed, random):
    torch.manual_seed(seed)
    model = SmallNet().eval()
    images, labels = torch.rand(3, 3, 16, 16), torch.tensor([0, 1, 2])
    start = torch.randn_like(images) * epsilon if random else None
    moved = pgd_l2(model, images, labels, epsilon, steps, start=start)
    assert (moved - images).flatten(1).norm(dim=1).max() <= epsilon * (1 + 1e-4)
    assert moved.min() >= 0
    assert moved.max() <= 1
    assert not moved.requires_grad
    before, after = (cross_entropy(model(x), labels, reduction="none") for x in (images, moved))
    assert after.mean() > before.mean()
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("gap", [1, 20, 60, 200])
def test_pgd_moves_away_from_confident_predictions_as_in_float64(gap):
    torch.manual_seed(1)
    model = SmallNet().eval()
    images = torch.rand(4, 3, 16, 16)
    with torch.no_grad():
        first, second = model(images).topk(2).values.T
        scale = gap / (first - second).mean()
    labels = model(images).argmax(1)
    epsilon, steps = 0.5, 5
    moved = pgd_l2(lambda x: scale * model(x), images, labels, epsilon, steps)

    double, clean, rows = copy.deepcopy(model).double(), images.double(), torch.arange(4)
    expected = clean
    for _ in range(steps):
        point = expected.clone().requires_grad_()
        logits = scale * double(point)
        # The gradient of the cross-entropy, over 1 - p: each other class by its share of the rest.
        others = logits.detach().clone()
        others[rows, labels] = -torch.inf
        ((others.softmax(1) * logits).sum() - logits[rows, labels].sum()).backward()
        direction = point.grad / point.grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        offset = expected - clean + 2.5 * epsilon / steps * direction
        offset = offset * (epsilon / offset.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).clamp(max=1)
        expected = (clean + offset).clamp(0, 1)
    torch.testing.assert_close(moved.double(), expected, rtol=0, atol=1e-4)
    assert ((moved - images).flatten(1).norm(dim=1) > 0.9 * epsilon).all()


def test_pgd_leaves_images_in_place_that_have_no_gradient():
    images = torch.rand(2, 3, 8, 8)
    for weight in (0.0, float("nan")):
        moved = pgd_l2(lambda x, w=weight: w * x.mean((2, 3)), images, torch.tensor([0, 1]), 0.5, 3)
        assert torch.equal(moved, images)


def test_pgd_moves_along_gradients_whose_squares_underflow():
    images = torch.full((2, 3, 8, 8), 0.5)
    moved = pgd_l2(lambda x: 1e-30 * x.mean((2, 3)), images, torch.tensor([0, 1]), 0.25, 4)
    torch.testing.assert_close((moved - images).flatten(1).norm(dim=1), torch.full((2,), 0.25))


def test_normalising_can_be_differentiated_and_gives_the_same_bits():
    pixels = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    images = (pixels.float() / 255).requires_grad_()
    assert torch.equal(SMALL.normalize(images), SMALL.normalize(pixels))
    SMALL.normalize(images).sum().backward()
    torch.testing.assert_close(images.grad[0, 0, 0], 1 / torch.tensor(SMALL.std))


class HalfDead(SmallNet):
    """Depends on the brighter images only."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * (x.mean((1, 2, 3)) > 0)[:, None]


def test_a_sweep_says_how_far_an_attack_moved_the_images(photographs, tmp_path):
    arguments = {"preprocessing": SMALL, "device": "cpu", "batch_size": 4, "partition_size": 8}
    summary = actstats.sweep(
        HalfDead(), photographs, tmp_path / "a.zarr", distort=["pgd:l2:0.5:3"], **arguments
    )
    source = actstats.open_source(photographs)
    pixels = np.stack([SMALL.pixels(source.image(i)) for i in range(len(source))])
    dark = (SMALL.normalize(torch.from_numpy(pixels)).mean((1, 2, 3)) <= 0).sum().item()
    assert 0 < dark < len(source)
    assert (summary.attack.images, summary.attack.unmoved) == (len(source), dark)
    # Every other image moves to the sphere, or nearly so where it is clipped.
    assert summary.attack.distance == pytest.approx(0.5 * (1 - dark / len(source)), rel=0.1)
    assert describe(tmp_path / "a.zarr").attack == summary.attack
    assert str(summary.attack).endswith(f"{dark} did not move")
    clean = actstats.sweep(HalfDead(), photographs, tmp_path / "b.zarr", distort=["noise:0.1"], **arguments)
    assert clean.attack is None
