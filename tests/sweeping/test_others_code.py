"""Networks and metrics of the user's own that fail, lie or misbehave: one line each, and no harm to the rest."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import actstats
from actstats.data.preprocessing import Preprocessing
from actstats.errors import ActstatsError
from actstats.metrics import Metric, Output
from tests.conftest import SmallNet

SMALL = Preprocessing.imagenet(size=32, resize=36)


def sweep(model, images, store, **options):
    return actstats.sweep(
        model,
        images,
        store,
        preprocessing=SMALL,
        batch_size=4,
        partition_size=6,
        device="cpu",
        workers=1,
        **options,
    )


ODD = (Output("odd"),)


def metric(name: str, update=None, sizes=None, outputs=ODD) -> type[Metric]:
    """A metric class of this behaviour."""
    members: dict[str, object] = {"outputs": outputs}
    if update is not None:
        members["update"] = update
    if sizes is not None:
        members["sizes"] = sizes
    return type(name, (Metric,), members)


def fails(self, activation, state):
    raise ZeroDivisionError("division by zero")


def leaves(self, activation, state):
    sys.exit(0)


SUM = (Output("total", ("partition", "unit")),)
WIDE = (Output("wide", ("image", "unit", "step")),)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (
            metric("Fails", fails),
            r"Fails failed in layer first: ZeroDivisionError: division by zero \(.*:\d+\)",
        ),
        (metric("Leaves", leaves), r"Leaves failed in layer first: it called sys.exit\(0\)"),
        (metric("NoState", lambda self, activation: {}), "NoState failed in layer first: TypeError"),
        (metric("Nothing"), "Nothing failed in layer first: NotImplementedError"),
        (
            metric("Number", lambda *_: 3),
            "Number returned a int for layer first; update.. must return a dict",
        ),
        (metric("Listed", lambda *_: [1]), "Listed returned a list for layer first"),
        (
            metric("Plain", lambda *_: {"odd": 3.0}),
            "Plain returned 'odd' float for layer first; it must be a tensor",
        ),
        (
            metric("Unknown", lambda self, a, state: state["tota"].add_(1), outputs=SUM),
            "asked for the accumulator 'tota' in layer first, but declares total",
        ),
        (
            metric("Misshapen", lambda self, a, state: state.__setitem__("total", a.sum(1)), outputs=SUM),
            "set the accumulator 'total' in layer first to shape",
        ),
        (
            metric("Negative", sizes=lambda *_: {"step": -3}, outputs=WIDE),
            "Negative: sizes.. gives .*'step'.* -3;",
        ),
        (metric("Zero", sizes=lambda *_: {"step": 0}, outputs=WIDE), "Zero: sizes.. gives .* length 0;"),
        (metric("Half", sizes=lambda *_: {"step": 2.5}, outputs=WIDE), "Half: sizes.. gives .* length 2.5;"),
        (metric("Missing", outputs=WIDE), "Missing: sizes.. gives no length for the dimension 'step'"),
        (metric("NoDict", sizes=lambda *_: 7, outputs=WIDE), "NoDict: sizes.. returned 7; it must be a dict"),
        (metric("Raises", sizes=lambda *_: {}["x"], outputs=WIDE), "Raises: sizes.. failed: KeyError"),
    ],
)
def test_a_metric_that_fails_is_named_with_layer_and_reason(made, message, photographs, tmp_path):
    with pytest.raises(ActstatsError, match=message) as caught:
        sweep(SmallNet(), photographs, tmp_path / "s.zarr", custom=made)
    assert "\n" not in str(caught.value)


def test_a_metric_that_works_in_place_changes_nothing_else(photographs, tmp_path):
    def spoil(self, activation, state):
        activation.zero_()
        return {"odd": activation.amax((-2, -1))}

    def peak(self, activation, state):
        return {"peak": activation.amax((-2, -1))}

    sweep(SmallNet(), photographs, tmp_path / "plain.zarr")
    customs = [metric("Spoil", spoil), metric("Peak", peak, outputs=(Output("peak"),))]
    sweep(SmallNet(), photographs, tmp_path / "spoilt.zarr", custom=customs)
    plain, spoilt = (xr.open_zarr(tmp_path / name).load() for name in ("plain.zarr", "spoilt.zarr"))
    for name in plain.data_vars:
        np.testing.assert_array_equal(plain[name], spoilt[name])
    assert (spoilt["odd"] == 0).all()
    np.testing.assert_array_equal(spoilt["peak"], spoilt["maximum"])


class Later(nn.Module):
    """A network that does `what` from its second batch of a sweep on; the probe has batches of two images."""

    def __init__(self, what) -> None:
        super().__init__()
        self.inside, self.what, self.passes = SmallNet(), what, 0

    def forward(self, x):
        self.passes += len(x) > 2
        if self.passes > 1:
            self.what()
        return self.inside(x)


def raise_error():
    raise ValueError("no more")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (raise_error, r"the network fails on a batch of \d images: ValueError: no more \(.*:\d+\)"),
        (
            lambda: sys.exit(0),
            r"the network fails on a batch of \d images: it called sys.exit\(0\)",
        ),
    ],
)
def test_a_network_that_fails_after_the_probe_is_one_line(what, message, photographs, tmp_path):
    with pytest.raises(ActstatsError, match=message) as caught:
        sweep(Later(what), photographs, tmp_path / "s.zarr", layers="all")
    assert "\n" not in str(caught.value)


def test_a_network_on_the_meta_device_is_refused(photographs, tmp_path):
    with torch.device("meta"):
        network = nn.Sequential(nn.Conv2d(3, 4, 3))
    with pytest.raises(ActstatsError, match="the network is on the meta device"):
        sweep(network, photographs, tmp_path / "s.zarr", layers="all")
    assert not (tmp_path / "s.zarr").exists()


class WithVolumes(nn.Module):
    """Two-dimensional layers, and a convolution over the channels as depth."""

    def __init__(self) -> None:
        super().__init__()
        self.flat, self.deep = nn.Conv2d(3, 4, 3), nn.Conv3d(1, 2, 3, padding=1)

    def forward(self, x):
        x = self.flat(x)
        return self.deep(x[:, None]).mean((1, 2))


def test_a_network_with_a_conv3d_is_swept_where_its_layers_have_maps(photographs, tmp_path):
    sweep(WithVolumes(), photographs, tmp_path / "s.zarr", layers="flat", limit=3)
    dataset = xr.open_zarr(tmp_path / "s.zarr")
    assert set(dataset["layer"].values) == {"flat"}
    assert np.isfinite(dataset["mean"]).all()


@pytest.mark.parametrize("value", [10**22, 2**31, -1, 2.5, True])
def test_a_number_out_of_range_is_refused_before_anything_is_made(value, photographs, tmp_path):
    with pytest.raises(ActstatsError, match="top_k is"):
        sweep(SmallNet(), photographs, tmp_path / "s.zarr", top_k=value)
    assert not (tmp_path / "s.zarr").exists()


def test_a_metric_knows_the_images_and_labels_of_its_batch(tmp_path, photographs):
    (photographs / "dog" / "broken.png").write_bytes(b"")  # never in a batch
    seen: list[str] = []

    class Knowing(Metric):
        outputs = (
            Output("index", dtype="int64"),
            Output("by_class", ("partition", "unit", "class"), "float64"),
        )

        def sizes(self, layers):
            return {"class": 2}

        def update(self, activation, state, batch):
            seen.append(batch.layer)
            of_class = torch.nn.functional.one_hot(batch.labels, 2).double()
            state["by_class"] += activation.amax((-2, -1)).double().T @ of_class
            return {"index": batch.indices[:, None].expand(-1, activation.shape[1])}

    try:
        sweep(SmallNet(), photographs, tmp_path / "s", custom=Knowing, layers=["first", "second"])
    finally:
        (photographs / "dog" / "broken.png").unlink()
    found = xr.open_zarr(tmp_path / "s").load()
    read = found["status"].values == 0
    assert read.tolist() == [True] * 14 + [False]
    np.testing.assert_array_equal(found["index"][read], np.broadcast_to(np.arange(14)[:, None], (14, 16)))
    for label in (0, 1):
        expected = found["maximum"][read & (found["label"] == label).values].sum("image")
        np.testing.assert_allclose(found["by_class"].sum("partition")[:, label], expected, rtol=1e-5)
    assert set(seen) == {"first", "second"}
