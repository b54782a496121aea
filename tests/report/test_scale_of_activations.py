"""Verdicts do not depend on the units of activations: a network is rescaled without changing what it computes."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from PIL import Image
from torch import Tensor, nn

import actstats
from actstats.analysis import kernel_smoothness
from actstats.analysis.measures import KERNELS, MEASURES
from actstats.report import compare, finding
from actstats.report.findings import common_measures, derive_findings, measure_units
from actstats.report.pairing import pair_units
from actstats.report.verdicts import OF_A_PAIR, SCALED
from actstats.store import open_dataset

SIDE, IMAGES = 24, 18
PLAIN = actstats.Preprocessing(resize=SIDE, crop=SIDE, mean=(0, 0, 0), std=(1, 1, 1))


class Unit(nn.Sequential):
    """Convolution, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, **options: int) -> None:
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False, **options)
        super().__init__(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class Residual(nn.Module):
    """Two blocks added to what they read, the second through a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.second = Unit(3, 16), Unit(16, 16), Unit(16, 24)
        self.back, self.back_norm = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.skip, self.skip_norm = nn.Conv2d(16, 24, 1, bias=False), nn.BatchNorm2d(24)
        self.last, self.last_norm = nn.Conv2d(24, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24)
        self.first_sum, self.second_sum = nn.ReLU(), nn.ReLU()
        self.fc = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.first_sum(x + self.back_norm(self.back(self.inner(x))))
        x = self.second_sum(self.skip_norm(self.skip(x)) + self.last_norm(self.last(self.second(x))))
        return self.fc(x.mean((2, 3)))


class Branching(nn.Module):
    """Two branches side by side, one of them depthwise, without batch norm behind."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = Unit(3, 16), Unit(16, 16, groups=16)
        self.wide, self.relu = nn.Conv2d(16, 12, 5, padding=2), nn.ReLU()
        self.both, self.both_relu = nn.Conv2d(28, 20, 3, padding=1), nn.ReLU()
        self.fc = nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([self.depthwise(x), self.relu(self.wide(x))], 1)
        return self.fc(nn.functional.max_pool2d(self.both_relu(self.both(x)), 4).mean((2, 3)))


def chain() -> nn.Module:
    return nn.Sequential(
        Unit(3, 24), Unit(24, 24), Unit(24, 24), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 4)
    )


def without_norm() -> nn.Module:
    layers = [nn.Conv2d(3, 16, 5, padding=2), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))


def perceptron() -> nn.Module:
    layers = [nn.Linear(3 * SIDE**2, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 4)]
    return nn.Sequential(nn.Flatten(), *layers)


@dataclass(frozen=True)
class Case:
    """A kind of network.

    Attributes:
        made: makes one.
        layers: the layers to sweep.
        shared: for each group of units that must be rescaled together, the modules that write them and those that
            read them, with the number of the group's first unit among those that a reader reads.
        normed: pairs of a convolution and its batch norm, between which the scale is free as well.
    """

    made: Callable[[], nn.Module]
    layers: tuple[str, ...]
    shared: tuple[tuple[tuple[str, ...], tuple[tuple[str, int], ...]], ...]
    normed: tuple[tuple[str, str], ...] = ()


CASES = {
    "a chain with batch norm": Case(
        chain, ("0.2", "1.2", "2.2"),
        ((("0.1",), (("1.0", 0),)), (("1.1",), (("2.0", 0),)), (("2.1",), (("5", 0),))),
        (("0.0", "0.1"), ("1.0", "1.1"), ("2.0", "2.1")),
    ),
    "a chain without batch norm": Case(
        without_norm, ("1", "3"), ((("0",), (("2", 0),)), (("2",), (("7", 0),)))
    ),
    "a perceptron": Case(perceptron, ("2", "4"), ((("1",), (("3", 0),)), (("3",), (("5", 0),)))),
    "residual branches": Case(
        Residual, ("stem.2", "inner.2", "first_sum", "second.2", "second_sum"),
        (
            # What is added must keep one scale.
            (("stem.1", "back_norm"), (("inner.0", 0), ("skip", 0), ("second.0", 0))),
            (("inner.1",), (("back", 0),)),
            (("second.1",), (("last", 0),)),
            (("skip_norm", "last_norm"), (("fc", 0),)),
        ),
        (("stem.0", "stem.1"), ("back", "back_norm"), ("skip", "skip_norm")),
    ),
    "concatenated branches": Case(
        Branching, ("stem.2", "depthwise.2", "relu", "both_relu"),
        (
            (("stem.1",), (("depthwise.0", 0), ("wide", 0))),
            (("depthwise.1",), (("both", 0),)),
            (("wide",), (("both", 16),)),
            (("both",), (("fc", 0),)),
        ),
        (("depthwise.0", "depthwise.1"),),
    ),
}  # fmt: skip


def network(case: Case, seed: int, *, smooth: bool = False) -> nn.Module:
    """A network with statistics of batch norm from images, and with smooth kernels if it is to differ."""
    torch.manual_seed(seed)
    made = case.made()
    for part in made.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.uniform_(part.bias, -0.3, 0.3)
        elif isinstance(part, nn.Conv2d) and smooth and part.kernel_size[0] > 1:
            with torch.no_grad():
                part.weight += 0.6 * part.weight.mean((2, 3), keepdim=True) / part.weight.std()
    made.train()
    with torch.no_grad():
        for _ in range(8):
            made(nn.functional.interpolate(torch.rand(8, 3, 8, 8), SIDE, mode="bicubic"))
    for part in made.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eps = 0.0  # so that the scale before it is exactly free
    return made.eval()


def rescaled(made: nn.Module, case: Case) -> nn.Module:
    """The same function: each unit times a factor of its own, and whatever reads it divided by that."""
    made = copy.deepcopy(made)
    rng = torch.Generator().manual_seed(3)
    part = made.get_submodule

    def factors(units: int) -> Tensor:
        return 5 ** (2 * torch.rand(units, generator=rng) - 1)

    with torch.no_grad():
        for convolution, norm in case.normed:
            scale = factors(len(part(norm).weight))
            part(convolution).weight *= scale[:, None, None, None]
            part(norm).running_mean *= scale
            part(norm).running_var *= scale**2
        for writers, readers in case.shared:
            scale = factors(len(part(writers[0]).weight))
            for name in writers:
                part(name).weight *= scale.reshape(-1, *[1] * (part(name).weight.ndim - 1))
                part(name).bias *= scale
            for name, start in readers:
                weight = part(name).weight
                depthwise = isinstance(part(name), nn.Conv2d) and part(name).groups > 1
                read = weight if depthwise else weight.transpose(0, 1)[start : start + len(scale)]
                read /= scale.reshape(-1, *[1] * (weight.ndim - 1))
    return made


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("blurred")
    rng = np.random.default_rng(0)
    for index in range(IMAGES):
        (folder / f"class{index % 3}").mkdir(exist_ok=True)
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        small.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(folder / f"class{index % 3}/{index:02}.png")
    return folder


def swept(made: nn.Module, case: Case, images: Path, store: Path, **options: object) -> Path:
    loaded = actstats.Loaded.of(made, PLAIN)
    actstats.sweep(loaded, images, store, layers=list(case.layers), device="cpu", **options)  # type: ignore[arg-type]
    return store


@pytest.mark.parametrize("name", CASES)
def test_a_network_in_other_units_gets_the_same_verdicts(name, images, tmp_path):
    case = CASES[name]
    standard, robust = network(case, 0), network(case, 1, smooth=True)
    models = {"s": standard, "r": robust, "other": rescaled(robust, case)}
    x = torch.rand(8, 3, SIDE, SIDE)
    with torch.no_grad():
        torch.testing.assert_close(models["other"](x), robust(x), rtol=1e-4, atol=1e-4)
    with_noise = name == "a chain with batch norm"
    stores = {
        of: open_dataset(
            swept(
                *(made, case, images, tmp_path / f"{of}.zarr"),
                changed={"noise:0.1": tmp_path / f"{of}-noisy.zarr"} if with_noise else None,
            )
        )
        for of, made in models.items()
    }
    noisy = dict.fromkeys(models)
    if with_noise:
        noisy = {of: open_dataset(tmp_path / f"{of}-noisy.zarr") for of in models}
    measured = {of: measure_units(stores[of], noisy[of])[0] for of in models}
    assert ("relative_map_change" in measured["s"]) == with_noise
    for measure in common_measures(list(measured.values())):
        r, other = (measured[of][measure.key].values for of in ("r", "other"))
        same = np.allclose(r, other, rtol=1e-3, atol=1e-5, equal_nan=True)
        assert same == (measure.invariant or not np.nanmax(np.abs(r))), measure.key

    def verdicts(one: str, two: str) -> dict[str, tuple[object, ...]]:
        of = [measured[one], measured[two]]
        pairing = pair_units([stores[one], stores[two]], ["S", "R"])
        lines = derive_findings(of, common_measures(of), [models[one], models[two]], pairing=pairing)
        return {
            line.claim: (said.verdict, said.words, *(said.layers if said.verdict else ()))
            for line in lines
            for said in line.comparisons
        }

    expected = verdicts("s", "r")
    assert verdicts("s", "other") == expected
    assert {verdict for verdict, *_ in verdicts("r", "other").values()} <= {"negligible", "open", ""}
    scaled = {measure.claim for measure in MEASURES if measure.claim and not measure.invariant}
    assert scaled
    assert {expected[claim] for claim in scaled & set(expected)} <= {("", SCALED)}
    if "convolution" in inspect.getsource(case.made):
        assert {verdict for verdict, *_ in expected.values()} & {"agrees", "differs"}


def test_kernels_are_invariant_where_their_record_says_so():
    case = CASES["residual branches"]
    made = network(case, 0)
    one, other = (kernel_smoothness(model) for model in (made, rescaled(made, case)))
    for measure in KERNELS:
        same = np.allclose(one[measure.key], other[measure.key], rtol=1e-4, equal_nan=True)
        assert same == measure.invariant, measure.key
    # In the first layer, which reads the image, all that divide by a scale of the filter are.
    first = one["layer"].values == "stem.0"
    for key in ("normed_filter", "normed_kernels", "roughness"):
        np.testing.assert_allclose(one[key].values[first], other[key].values[first], rtol=1e-5)
    # By hand: every filter at norm 1, and every kernel of a filter at norm 1.
    weight = made.get_submodule("inner.0").weight.detach().double().numpy()
    norm = weight / np.sqrt((weight**2).sum((1, 2, 3), keepdims=True))
    each = weight / np.sqrt((weight**2).sum((2, 3), keepdims=True))
    steps = [
        np.abs(np.diff(of, axis=2)).sum((2, 3)) + np.abs(np.diff(of, axis=3)).sum((2, 3))
        for of in (norm, each)
    ]
    here = one["layer"].values == "inner.0"
    # 16 kernels of 9 weights and 12 pairs; a norm of 1 is a root mean square of 1 / sqrt(144) and of 1 / 3.
    np.testing.assert_allclose(one["normed_filter"].values[here], steps[0].sum(1) / (16 * 12) * 12, rtol=1e-6)
    np.testing.assert_allclose(one["normed_kernels"].values[here], steps[1].mean(1) / 12 * 3, rtol=1e-6)


def test_stores_of_one_function_in_other_units_do_not_differ(images, tmp_path):
    case = CASES["a chain with batch norm"]
    made = network(case, 0)
    stores = [
        swept(of, case, images, tmp_path / f"{at}.zarr") for at, of in enumerate((made, rescaled(made, case)))
    ]
    decided = [said for line in compare(stores).findings for said in line.comparisons if said.verdict]
    assert decided
    for said in decided:
        assert said.verdict in ("negligible", "open")
        assert said.scope == OF_A_PAIR or said.words == "not measured"
        assert [layer.decision for layer in said.by_layer] == ["neither"] * len(said.by_layer)


@pytest.mark.parametrize(
    ("unit", "verdict"),
    [("1", "agrees"), ("", "agrees"), ("cycles/pixel", "agrees"), ("activation", ""), ("activation^2", "")],
)
def test_a_measure_of_ones_own_in_units_of_activation_gets_no_verdict(unit, verdict):
    units = xr.DataArray(
        np.random.default_rng(0).normal(size=40),
        dims="unit",
        coords={"layer": ("unit", np.repeat(["a", "b"], 20)), "channel": ("unit", np.tile(range(20), 2))},
        attrs={"units": unit} if unit else {},
    )
    (said,) = finding("R is lower", units, units - 9).comparisons
    assert said.verdict == verdict
    assert said.words == ("this pair: as claimed" if verdict else SCALED)
    assert said.delta == -1
