"""Weights files that hold something else than the real numbers that a network needs: one line each."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch

from actstats.errors import ActstatsError
from actstats.models import load_model


def refusal(weights: str | Path) -> str:
    with pytest.raises(ActstatsError) as error:
        load_model("squeezenet1_1", weights)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("mean", "std", "reason"),
    [
        (torch.tensor([0.5, 0.5, math.nan]), torch.ones(3), "not finite"),
        (torch.zeros(3), torch.tensor([1.0, math.nan, 1.0]), "not finite"),
        (torch.zeros(3), torch.tensor([1.0, math.inf, 1.0]), "not finite"),
        (torch.ones(3, dtype=torch.complex64), torch.ones(3), "no real numbers"),
    ],
)
def test_an_impossible_normaliser(tmp_path: Path, mean: torch.Tensor, std: torch.Tensor, reason: str) -> None:
    state = {
        f"model.{name}": value
        for name, value in load_model("squeezenet1_1", "none").model.state_dict().items()
    }
    torch.save(
        {"model": {**state, "normalizer.new_mean": mean, "normalizer.new_std": std}}, tmp_path / "a.pt"
    )
    assert reason in refusal(tmp_path / "a.pt")


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int8, torch.bool])
def test_weights_that_are_no_real_numbers(tmp_path: Path, dtype: torch.dtype) -> None:
    state = load_model("squeezenet1_1", "none").model.state_dict()
    torch.save({name: value.to(dtype) for name, value in state.items()}, tmp_path / "a.pt")
    assert f"52 weights of {str(dtype)[6:]} (features.0.weight" in refusal(tmp_path / "a.pt")


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    assert "a pipe or a device" in refusal(tmp_path / "pipe.pt")
    assert "a pipe or a device" in refusal("/dev/zero")


def test_a_checksum_that_is_none_is_not_taken_for_a_key(tmp_path: Path) -> None:
    assert "64 hexadecimal digits" in refusal(f"{tmp_path / 'a.pt'}#sha256=zz")
