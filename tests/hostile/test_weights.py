"""Weights files that a stranger made: bombs, files changed at random, numbers that no network needs. One line each.

    ACTSTATS_FUZZ=10000 pytest tests/hostile/test_weights.py -n 0 -rP

reads so many changed files, and prints the greatest time and memory; `python -m tests.hostile.fuzz_weights` does the
same for as long as one likes.
"""

from __future__ import annotations

import json
import math
import os
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from actstats.errors import ActstatsError
from actstats.models import load_model
from tests.hostile.fuzz_weights import fuzz, summary
from tests.hostile.reading import network, read_apart
from tests.models.checkpoints import crafted


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


def bombs(folder: Path) -> list[Path]:
    """The pickles of `crafted.BOMBS`, and whole files with one entry that is too large to be meant."""
    for number, data in enumerate(crafted.BOMBS.values()):
        (folder / f"{number}.pt").write_bytes(data)
    state = network().state_dict()
    torch.save({"." * 400_000: torch.zeros(1), **state}, folder / "dots.pt")
    notes = {"resize": 32, "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.5] * 3}
    for entry, size in (("crop", 10**6), ("resize", 10**9)):
        noted = json.dumps({"crop": 32, **notes, entry: size})
        save_file(state, folder / f"{entry}.safetensors", {"preprocessing": noted})
    save_file(state, folder / "classes.safetensors", {"num_classes": str(10**12)})
    return sorted(folder.iterdir())


def test_bombs_are_refused_within_little_memory_and_time(tmp_path: Path) -> None:
    found = read_apart(bombs(tmp_path))
    print(summary(found))
    assert len(found) == len(crafted.BOMBS) + 4
    for each in found:
        assert each.get("fault") is None, each
        assert each["said"], each
        assert "\n" not in each["said"]


def test_files_changed_at_random_are_read_or_refused_in_one_line(tmp_path: Path) -> None:
    seed = int(os.environ.get("ACTSTATS_SEED", random.SystemRandom().randrange(2**32)))
    print(f"changed with ACTSTATS_SEED={seed}")
    found = list(fuzz(int(os.environ.get("ACTSTATS_FUZZ", 500)), seed, tmp_path))
    print(summary(found))
    assert [each for each in found if "fault" in each or "\n" in each["said"]] == []
    assert 0 < sum(not each["said"] for each in found) < len(found)
