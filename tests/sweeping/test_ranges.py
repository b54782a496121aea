"""Values of own metrics that are beyond the dtype of their output are refused, and those within are stored."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import actstats
from actstats import ActstatsError, Metric, Output

DTYPES = ("int8", "int16", "uint16", "int32", "float16", "float32")
PER_IMAGE, SUMMED = ("image", "unit"), ("partition", "unit")


def returning(values, dtype: str, dims=PER_IMAGE, merge: str = "sum") -> type[Metric]:
    """A metric that stores `values` [images] for the single unit, or gathers them in an accumulator."""

    class Returned(Metric):
        outputs = (Output("odd", dims, dtype, merge=merge),)

        def update(self, activation, state, batch):
            chosen = values[batch.indices][:, None]
            if dims == PER_IMAGE:
                return {"odd": chosen}
            if merge == "sum":
                state["odd"] = state["odd"] + chosen.sum(0)
            else:
                state["odd"] = getattr(torch, f"{merge}imum")(state["odd"], getattr(chosen, f"a{merge}")(0))
            return None

    return Returned


def swept(metric: type[Metric], store, **options) -> np.ndarray:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 1, 3))
    actstats.sweep(
        network,
        torch.rand(4, 3, 8, 8),
        store,
        layers=["0"],
        metrics=["mean"],
        custom=metric,
        batch_size=2,
        partition_size=4,
        device="cpu",
        workers=0,
        **options,
    )
    return xr.open_zarr(store)["odd"].values[:, 0]


def limits(dtype: str) -> tuple[float, float]:
    made = np.finfo(dtype) if np.dtype(dtype).kind == "f" else np.iinfo(dtype)
    return float(made.min), float(made.max)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("side", [0, 1])
def test_a_value_per_image_beyond_its_dtype_is_refused_and_the_last_one_within_is_not(dtype, side, tmp_path):
    edge = limits(dtype)[side]
    values = torch.tensor([0.0, 1.0, edge, 2.0], dtype=torch.float64)
    assert swept(returning(values, dtype), tmp_path / "x.zarr").tolist() == values.tolist()
    values[2] = edge * 1.001 + (2 * side - 1)
    with pytest.raises(
        ActstatsError, match=rf"Returned: a value of output 'odd' is .*{dtype} cannot hold"
    ) as e:
        swept(returning(values, dtype), tmp_path / "y.zarr")
    assert "\n" not in str(e.value)
    assert not xr.open_zarr(tmp_path / "y.zarr").completed.values.any()


@pytest.mark.parametrize("dtype", ["int16", "uint32", "int64"])
@pytest.mark.parametrize("dims", [PER_IMAGE, SUMMED])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_do_not_become_integers(dtype, dims, bad, tmp_path):
    values = torch.tensor([0.0, bad, 1.0, 2.0])
    with pytest.raises(ActstatsError, match=f"output 'odd' is {bad}, which {dtype} cannot hold"):
        swept(returning(values, dtype, dims), tmp_path / "x.zarr")


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_nan_and_infinities_are_stored_as_floats(dtype, tmp_path):
    values = torch.tensor([np.nan, np.inf, -np.inf, 1.5], dtype=torch.float64)
    np.testing.assert_array_equal(swept(returning(values, dtype), tmp_path / "x.zarr"), values.numpy())


@pytest.mark.parametrize("given", [torch.int32, torch.bfloat16])
def test_the_dtype_that_a_metric_returns_does_not_matter(given, tmp_path):
    values = torch.tensor([0, 3, 70_000, 5]).to(given)
    for dtype in ("int16", "uint16", "float16"):
        with pytest.raises(ActstatsError, match=f"{dtype} cannot hold"):
            swept(returning(values, dtype), tmp_path / f"{dtype}.zarr")
    stored = swept(returning(values, "int32"), tmp_path / "int32.zarr")
    assert stored.tolist() == values.tolist()


@pytest.mark.parametrize(
    ("dtype", "most"), [("int8", 127), ("int16", 32767), ("uint16", 65535), ("float16", 65504)]
)
def test_a_sum_beyond_its_dtype_is_refused_and_not_wrapped(dtype, most, tmp_path):
    values = torch.tensor([most // 2, 1, most - most // 2 - 2, 1])
    assert swept(returning(values, dtype, SUMMED), tmp_path / "x.zarr").tolist() == [most]
    values[3] += most // 4
    with pytest.raises(ActstatsError, match=f"output 'odd' is .*{dtype} cannot hold"):
        swept(returning(values, dtype, SUMMED), tmp_path / "y.zarr")


@pytest.mark.parametrize("merge", ["min", "max"])
@pytest.mark.parametrize("dtype", ["int16", "uint8", "float16"])
def test_extremes_are_stored_in_their_dtype(merge, dtype, tmp_path):
    values = torch.tensor([5, 3, 100, 4])
    stored = swept(returning(values, dtype, SUMMED, merge), tmp_path / "x.zarr")
    assert stored.dtype == np.dtype(dtype)
    assert stored.tolist() == [getattr(values, merge)().item()]


def test_a_value_beyond_its_dtype_is_refused_with_sums_only(tmp_path):
    values = torch.tensor([1, 2, 3, 40_000])
    with pytest.raises(ActstatsError, match="int16 cannot hold"):
        swept(returning(values, "int16", SUMMED), tmp_path / "x.zarr", per_image=False)
