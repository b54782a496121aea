"""The ops refuse buffers that do not fit the maps before anything is written."""

from __future__ import annotations

import pytest
import torch

from actstats_kernels import ops
from actstats_kernels.bins import FREQUENCY_BINS, HISTOGRAM_BINS, MOMENTS
from actstats_kernels.overlap import add_overlap

IMAGES, UNITS = 3, 5
GUARD = 7


def maps() -> torch.Tensor:
    return torch.arange(IMAGES * UNITS * 12.0).reshape(IMAGES, UNITS, 4, 3)


def fitting() -> dict[str, torch.Tensor]:
    return {
        "moments": torch.full((len(MOMENTS), IMAGES, UNITS), float(GUARD)),
        "argmax": torch.full((IMAGES, UNITS), GUARD, dtype=torch.int32),
        "histogram": torch.full((UNITS, HISTOGRAM_BINS), GUARD, dtype=torch.int64),
        "power": torch.full((UNITS, FREQUENCY_BINS), float(GUARD), dtype=torch.float64),
    }


MISFITS = {
    "too few rows": ("moments", lambda b: b[:, :-1]),
    "too many rows": ("moments", lambda b: torch.cat([b, b], 1)),
    "too few moments": ("moments", lambda b: b[:-1]),
    "too few units": ("moments", lambda b: b[..., :-1]),
    "moments in double precision": ("moments", torch.Tensor.double),
    "no row of positions": ("argmax", lambda b: b[:0]),
    "positions of fewer units": ("argmax", lambda b: b[:, 1:]),
    "long positions": ("argmax", torch.Tensor.long),
    "flat positions": ("argmax", torch.Tensor.flatten),
    "counts of fewer units": ("histogram", lambda b: b[1:]),
    "fewer bins": ("histogram", lambda b: b[:, :-1].contiguous()),
    "counts in floats": ("histogram", torch.Tensor.float),
    "transposed counts": ("histogram", lambda b: b.T.contiguous().T),
    "power of fewer units": ("power", lambda b: b[:2]),
    "power in single precision": ("power", torch.Tensor.float),
    "every second row of power": ("power", lambda b: b.repeat(2, 1)[::2]),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_a_buffer_that_does_not_fit_is_refused_and_nothing_is_written(misfit):
    name, change = MISFITS[misfit]
    buffers = fitting()
    buffers[name] = change(buffers[name])
    with pytest.raises(ValueError, match=f"^`{name}` is ") as caught:
        ops.accumulate(maps(), *buffers.values())
    assert "\n" not in str(caught.value)
    for buffer in buffers.values():
        assert (buffer == GUARD).all()


def test_more_images_than_rows_leave_the_memory_behind_the_rows_alone():
    whole = torch.full((len(MOMENTS), 2 * IMAGES, UNITS), float(GUARD))
    with pytest.raises(ValueError, match="`moments`"):
        ops.accumulate(torch.cat([maps(), maps()]), whole[:, :IMAGES], None, None, None)
    assert (whole == GUARD).all()


def test_maps_without_four_axes_are_refused():
    with pytest.raises(ValueError, match="`x` is "):
        ops.accumulate(maps()[0], *fitting().values())


def test_strided_rows_of_a_larger_buffer_fit():
    whole = torch.zeros(len(MOMENTS), 2 * IMAGES, UNITS + 4)
    ops.accumulate(maps(), whole[:, 1 : 1 + IMAGES, 2:-2], None, None, None)
    expected = maps().mean((2, 3))
    torch.testing.assert_close(whole[0, 1 : 1 + IMAGES, 2:-2], expected)
    assert whole[0].count_nonzero() == expected.count_nonzero()


def test_a_compiled_caller_is_refused_too():
    def network(x, buffer):
        ops.accumulate(x.relu(), buffer, None, None, None)
        return x + 1

    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    buffer = torch.full((len(MOMENTS), IMAGES - 1, UNITS), float(GUARD))
    with pytest.raises(ValueError, match="`moments`"):
        compiled(maps(), buffer)
    assert (buffer == GUARD).all()


def test_values_and_positions_of_a_ranking_have_one_shape():
    with pytest.raises(ValueError, match="`maximum` and `position`"):
        ops.top_k(torch.zeros(4, 3), torch.zeros(4, 2, dtype=torch.int32), 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("threshold", torch.zeros(UNITS + 1, dtype=torch.float64)),
        ("both", torch.zeros(UNITS - 1, 4, dtype=torch.int64)),
        ("both", torch.zeros(UNITS, 4, dtype=torch.int32)),
        ("both", torch.zeros(4, UNITS, dtype=torch.int64).T),
        ("labels", torch.full((1, 4, 3), 4, dtype=torch.int32)),
        ("labels", torch.full((1, 4, 3), -1, dtype=torch.int32)),
    ],
)
def test_labels_beyond_the_counts_are_refused(name, value):
    given = {
        "threshold": torch.zeros(UNITS, dtype=torch.float64),
        "labels": torch.ones(1, 4, 3, dtype=torch.int32),
        "both": torch.zeros(UNITS, 4, dtype=torch.int64),
    }
    add_overlap(maps()[1], **given)
    with pytest.raises(ValueError, match=f"`{name}`"):
        add_overlap(maps()[1], **{**given, name: value})
